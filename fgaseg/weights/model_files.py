"""Files of weights: written atomically, and read without trusting them (a pickle can run code)."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import atomic_write

REPEATED = 4  # how often a file may use what it stores: weights of two towers may be shared


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically. Raises OSError (full disk, no permission)."""
    # serialised in memory first: safetensors' own file writer reports a full disk as an error of its own kind
    data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, metadata)
    atomic_write(path, lambda file: file.write(data))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from an untrusted file onto the CPU.

    path     a .safetensors file; a torch.save file (.pt, .pth, .bin, .ckpt) holding a state dict, at the top level or
             under "model", "state_dict" or "module"; or a folder with model.safetensors. The content decides, not the
             suffix
    Numeric NumPy arrays, which detectron2 may leave in a file, are read as tensors.
    Raises CheckpointError, naming the file, when it is missing, empty, truncated, of another format, or holds objects
    other than plain data and tensors (such a file is refused before anything in it runs).
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    start = _beginning(path)
    if not start:
        raise CheckpointError(f"{path}: the file is empty; copy or download it again")
    # safetensors: eight bytes of header length, then JSON. torch.save: a zip archive, or (before 1.6) a pickle
    if start[4:] == b"\0\0\0\0{":
        return find_state_dict(_read_safetensors(path), path)
    if start.startswith((b"PK\3\4", b"\x80")):
        tensors = find_state_dict(read_torch(path), path)
        _check_stored(tensors, path)
        return tensors
    raise CheckpointError(f"{path}: neither a safetensors nor a torch.save file (it starts with {start!r})")


def _beginning(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: is no file (a pipe or a device); give a file of weights")
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read weights: {error.strerror}; give a file, or a folder "
                              "with model.safetensors") from None  # fmt: skip


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file, from its header alone. Raises CheckpointError as `read_weights`."""
    if _beginning(path)[4:] != b"\0\0\0\0{":
        return {key: tuple(value.shape) for key, value in read_weights(path).items()}
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None
    _check_names(shapes, path)
    return shapes


def _check_names(names: Iterable[Any], source: str | Path) -> None:
    for name in names:
        if not str(name).isprintable():
            raise CheckpointError(f"{source}: the name {str(name)[:80]!r} of a tensor has control characters: refused")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, RuntimeError | FileNotFoundError):  # file descriptors or memory have run out
        return CheckpointError(f"{path}: cannot read weights: {error}")
    return CheckpointError(f"{path}: damaged or truncated safetensors file ({error}); fetch it again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None


def _check_stored(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors of torch.save that are much larger than what the file stores of them: a few bytes of a pickle can
    describe a view that repeats one value any number of times."""
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            kind = "quantized" if value.is_quantized else f"{value.layout} on {value.device}".removeprefix("torch.")
            raise CheckpointError(f"{path}: {key!r} is {kind}; plain dense tensors are needed")
    stored = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors.values()}
    described = sum(value.numel() * value.element_size() for value in tensors.values())
    if described > REPEATED * sum(stored.values()):
        raise CheckpointError(
            f"{path}: its tensors are views of {described:,} bytes on the {sum(stored.values()):,} that it stores: "
            "refused; save contiguous tensors"
        )


class _Dtype:
    """Unpickled in place of a numpy.dtype: its name and byte order alone, so that NumPy is given nothing untrusted."""

    def __init__(self, name: str, *_: Any):
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def decode(self, data: Any, shape: tuple[int, ...], fortran: bool) -> Tensor:
        if self.name not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1") or not isinstance(data, bytes):
            raise CheckpointError(f"holds a NumPy array of type {self.name}; only numeric arrays are read: refused")
        values = np.frombuffer(data, (self.order if self.order in "<>" else "=") + self.name)
        values = values.reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))  # a copy: torch would write to it


class _Array:
    """Unpickled in place of a numpy.ndarray."""

    tensor: Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.tensor = dtype.decode(data, shape, fortran)


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: Any) -> Tensor:
    return dtype.decode(data, (), False)


# what pickles of NumPy 1 and 2 call by name, and what is called instead
NUMPY_STAND_INS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_empty_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_torch(path: str | Path) -> Any:
    """torch.load with weights_only=True on the CPU; CheckpointError naming the file and the reason when it fails."""
    try:
        _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_STAND_INS):
            warnings.simplefilter("ignore")  # torch warns about files that are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types for damaged files
        text = str(error)
        if isinstance(error, CheckpointError):
            reason = text
        elif refused := re.search(r"GLOBAL (\S+)", text):
            reason = f"holds the Python object {refused[1]}, which could run code: refused, and none of it was run"
        elif "TorchScript" in text:
            reason = (
                "is a TorchScript archive, which can run code: refused (OpenAI's CLIP files are such; "
                "model.encoder.pretrained=openai fetches their weights)"
            )
        else:
            reason = f"damaged, truncated or not a torch.save file ({type(error).__name__})"
        raise CheckpointError(f"{path}: {reason}; use a file of plain tensors, preferably safetensors") from None


def _check_archive(path: str | Path) -> None:
    """Refuse a zip archive whose entries are larger than the file: torch.save compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(entry.file_size for entry in archive.infolist()), Path(path).stat().st_size
    if unpacked > size:
        raise CheckpointError(f"its entries unpack to {unpacked:,} bytes, and the file has {size:,}: refused")


def find_state_dict(data: Any, source: str | Path) -> dict[str, Tensor]:
    """The state dict in what a file holds: at the top level or under "model", "state_dict" or "module".

    Raises CheckpointError naming `source` and the first entry that is not a tensor (or a numeric NumPy array).
    """
    for key in ("model", "state_dict", "module"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
            break
    if not isinstance(data, Mapping) or not data:
        raise CheckpointError(
            f"{source}: not a state dict: names to tensors are needed, at the top level or under model or state_dict"
        )
    if any(isinstance(part, Mapping) and "param_groups" in part for part in (data, *data.values())):
        raise CheckpointError(
            f"{source}: the state of an optimizer, without the weights of a model; give the file that holds the weights"
        )
    tensors = {key: _as_tensor(value) for key, value in data.items()}
    _check_names(tensors, source)
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise CheckpointError(f"{source}: not a state dict: {key!r} is of type {kind}, not a tensor")
    return {str(key).removeprefix("module."): value for key, value in tensors.items()}


def _as_tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value)
    return value.tensor if isinstance(value, _Array) else value


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy tensors into the model, converted to its dtypes.

    All keys and shapes must match, floating weights must be floating in the file too, and finite in the dtype of the
    model: otherwise CheckpointError, naming `source`, lists those that do not and the model is unchanged.
    """
    own = model.state_dict()
    check_shapes({key: value.shape for key, value in own.items()},
                 {key: value.shape for key, value in tensors.items()}, source)  # fmt: skip
    other = [
        f"{key} {str(tensors[key].dtype).removeprefix('torch.')}"
        for key in own
        if own[key].is_floating_point() != tensors[key].is_floating_point() or tensors[key].is_complex()
    ]
    if other:
        raise CheckpointError(f"{source}: {len(other)} weights are of another kind of number than the model's: "
                              f"{_shortened(other)}; give the file of the floating weights")  # fmt: skip
    if broken := [key for key in own if not _finite(tensors[key], own[key].dtype)]:
        raise CheckpointError(f"{source}: {len(broken)} weights have NaN or infinite values: {_shortened(broken)}; "
                              "fetch it again, or take an earlier checkpoint")  # fmt: skip
    model.load_state_dict(dict(tensors))


def check_shapes(own: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]], source: str | Path) -> None:
    """Raise the CheckpointError of `load_weights` for keys and shapes of a file that are not those of a model."""
    misfits = {
        "missing from the file": [key for key in own if key not in given],
        "not in the model": [key for key in given if key not in own],
        "of another shape": [
            f"{key} {list(given[key])}, not {list(own[key])}"
            for key in own
            if key in given and tuple(given[key]) != tuple(own[key])
        ],
    }
    if any(misfits.values()):
        lines = [f"  {len(keys)} {kind}: {_shortened(keys)}" for kind, keys in misfits.items() if keys]
        raise CheckpointError("\n".join([f"{source}: these weights do not fit this model configuration", *lines]))


def _finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether every value is finite once it has the dtype; in one pass, which NaN and infinity survive."""
    if not tensor.numel() or not dtype.is_floating_point:
        return True
    narrower = tensor.dtype in (torch.float16, torch.bfloat16) and dtype == torch.float32  # as finite as it is
    low, high = (tensor if narrower else tensor.detach().to(dtype)).aminmax()
    return bool(low.isfinite() and high.isfinite())


def _shortened(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f", and {len(keys) - most} more" if len(keys) > most else "")
