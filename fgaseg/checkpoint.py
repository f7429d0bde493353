"""Files that are whole or absent: atomic writing, weights from strangers, and the state of a training run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

CHECKPOINT_FILES = ("model.safetensors", "state.pt")


class CheckpointError(RuntimeError):
    """A file of weights or training state that cannot be read or written; the message names the file and a remedy."""


def atomic_write(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call write(file) on a temporary file beside `path`, flush it to disk, then rename it over `path`.

    Whatever happens (full disk, Ctrl-C, power loss), `path` holds either its old content or all of the new.
    Raises OSError as it came; the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide a shared model from its users
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_directory(path: str | Path, keep_old: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; when the block ends well, it takes the place of `path`.

    The old folder is kept as `<path>.old` until the new one is in place, so one complete folder exists at any moment:
    read it through `complete_directory`. If the block raises, the temporary folder is removed and `path` is untouched.
    With `keep_old`, `<path>.old` then stays, as the last but one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = _old(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        for file in temporary.rglob("*"):
            _fsync(file)
        _fsync(temporary)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    if not keep_old:
        shutil.rmtree(old, ignore_errors=True)


def complete_directory(path: str | Path) -> Path | None:
    """The folder that `atomic_directory(path)` last completed, or None. It is `<path>.old` if the process was killed
    between the two renames."""
    path = Path(path)
    return next((folder for folder in (path, _old(path)) if folder.is_dir()), None)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files and folders that a killed training left in `folder`, its own names only."""
    folder = Path(folder)
    own = ("checkpoint", "config.yaml", "log.jsonl", "nan_batch.safetensors", "summary.json",
           "model/model.safetensors", "model/config.json")  # fmt: skip
    patterns = [Path(name).with_name(f".{Path(name).name}.*.tmp") for name in own]
    for leftover in (found for pattern in patterns for found in folder.glob(str(pattern))):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    """Flush a file, or a folder's entries (so that a rename inside it survives power loss)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically. Raises OSError (full disk, no permission)."""
    # serialised in memory first: safetensors' own file writer reports a full disk as an error of its own kind
    data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, metadata)
    atomic_write(path, lambda file: file.write(data))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict, on the CPU, without running anything that is in the file.

    path     a .safetensors file; a torch.save file (.pt, .pth, .bin, .ckpt) holding a state dict, at the top or under
             "model", "state_dict" or "module"; or a folder with model.safetensors. The content decides, not the suffix.
    NumPy arrays of numbers, which detectron2 may leave in a file, are read as tensors.
    Raises CheckpointError, naming the file, when it is missing, empty, truncated, something else, or holds objects
    other than plain data and tensors (a pickle can run code; such a file is refused unread).
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read weights: {error.strerror}; a file or a folder of "
                              "model.safetensors is needed") from None  # fmt: skip
    if not start:
        raise CheckpointError(f"{path}: the file is empty; copy or download it again")
    # safetensors: eight bytes of header length, then JSON. torch.save: a zip archive, or (before 1.6) a pickle
    if start[4:] == b"\0\0\0\0{":
        return state_dict(_read_safetensors(path), path)
    if start.startswith((b"PK\3\4", b"\x80")):
        return state_dict(read_torch(path), path)
    raise CheckpointError(f"{path}: neither a safetensors nor a torch.save file (it starts with {start!r})")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or truncated safetensors file ({error}); fetch it again") from None


class _Dtype:
    """Stands for a numpy.dtype in a file: its letters and byte order, nothing that NumPy would have to trust."""

    def __init__(self, name: str, *_: Any):
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def decode(self, data: Any, shape: tuple[int, ...], fortran: bool) -> Tensor:
        if self.name not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1") or not isinstance(data, bytes):
            raise CheckpointError(f"holds a NumPy array of type {self.name}, and only numbers are read: refused")
        values = np.frombuffer(data, (self.order if self.order in "<>" else "=") + self.name)
        values = values.reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))


class _Array:
    """Stands for a numpy.ndarray in a file."""

    tensor: Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.tensor = dtype.decode(data, shape, fortran)


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: Any) -> Tensor:
    return dtype.decode(data, (), False)


# names that NumPy's pickles call, old and new, and what is called here in their place
NUMPY_STAND_INS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_empty_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_torch(path: str | Path) -> Any:
    """torch.load with weights_only=True on the CPU; CheckpointError naming the file and the reason when it fails."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_STAND_INS):
            warnings.simplefilter("ignore")  # torch comments on what is then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for damaged files
        text = str(error)
        if isinstance(error, CheckpointError):
            reason = text
        elif refused := re.search(r"GLOBAL (\S+)", text):
            reason = f"holds the Python object {refused[1]}, which could run code: refused, nothing of it was run"
        elif "TorchScript" in text:
            reason = "is a TorchScript archive, not a state dict"
        else:
            reason = f"damaged, truncated or not a torch.save file ({type(error).__name__})"
        raise CheckpointError(f"{path}: {reason}; use a file of plain tensors, safetensors if you can") from None


def state_dict(data: Any, source: str | Path) -> dict[str, Tensor]:
    """The tensors of what a file held: names to tensors, at the top or under "model", "state_dict" or "module".

    Raises CheckpointError naming `source` and the first entry that is not a tensor (or a NumPy array of numbers).
    """
    for key in ("model", "state_dict", "module"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
            break
    if not isinstance(data, Mapping) or not data:
        raise CheckpointError(f"{source}: not a state dict (names to tensors), at the top or under model or state_dict")
    tensors = {key: _as_tensor(value) for key, value in data.items()}
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
    """Copy tensors into the model. All keys and shapes must fit, else CheckpointError lists those that do not and the
    model is left as it was. `source` is the file that the message names. Dtypes are converted to the model's."""
    own = model.state_dict()
    wrong = {
        "missing from the file": [key for key in own if key not in tensors],
        "not in the model": [key for key in tensors if key not in own],
        "of another shape": [
            f"{key} {list(tensors[key].shape)}, not {list(own[key].shape)}"
            for key in own
            if key in tensors and tensors[key].shape != own[key].shape
        ],
    }
    if any(wrong.values()):
        lines = [f"  {len(keys)} {kind}: {_shortened(keys)}" for kind, keys in wrong.items() if keys]
        raise CheckpointError("\n".join([f"{source}: these weights do not fit this model configuration", *lines]))
    model.load_state_dict(dict(tensors))


def _shortened(keys: list[str], most: int = 8) -> str:
    return ", ".join(keys[:most]) + (f", and {len(keys) - most} more" if len(keys) > most else "")


def save_training(
    folder: Path, weights: Mapping[str, Tensor], state: dict[str, Any], keep_previous: bool = True
) -> None:
    """Make a new training checkpoint `folder`: model.safetensors, the rest in state.pt, and SHA256SUMS of both.

    The one before stays as `<folder>.old` (`keep_previous` False: goes), to fall back on if this one is damaged.
    Raises CheckpointError on a full disk or any other OSError; the previous checkpoint is then still there, whole.
    """
    buffer = io.BytesIO()  # torch.save on a file turns a full disk into an internal error, or worse
    torch.save(state, buffer)
    try:
        with atomic_directory(folder, keep_previous) as temporary:
            write_weights(temporary / "model.safetensors", weights)
            atomic_write(temporary / "state.pt", lambda file: file.write(buffer.getbuffer()))
            write_sums(temporary)
    except OSError as error:
        previous = complete_directory(folder)
        kept = f"the previous checkpoint {previous} is intact" if previous else "there is no previous checkpoint"
        raise CheckpointError(
            f"{folder}: could not be written: {error.strerror or error}; {kept}. "
            "Make room (or give another train.out) and run the same command again to resume"
        ) from error


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of a training checkpoint's two files, in the format of `sha256sum -c`."""
    lines = "".join(f"{_sha256(folder / name)}  {name}\n" for name in CHECKPOINT_FILES)
    atomic_write(folder / "SHA256SUMS", lambda file: file.write(lines.encode()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_training(folder: Path) -> None:
    """Compare a training checkpoint's files with its SHA256SUMS; CheckpointError names one that is not as written."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        wrong = [name for name in CHECKPOINT_FILES if _sha256(folder / name) != sums.get(name)]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: damaged: {error}") from None
    if wrong:
        raise CheckpointError(f"{folder / wrong[0]}: damaged: its SHA-256 is not the one in SHA256SUMS")


def set_damaged_aside(folder: Path) -> str:
    """Where the last training checkpoint is damaged and the one before is whole, put that in its place.

    The damaged one is kept as `<folder>.damaged`. Returns what was done, for the user; "" where nothing had to be.
    Raises CheckpointError, naming the damage, when no whole checkpoint is left.
    """
    found = complete_directory(folder)
    if found is None:
        return ""
    try:
        check_training(found)
        return ""
    except CheckpointError as error:
        damage = str(error)
    old, aside = _old(folder), folder.with_name(folder.name + ".damaged")
    try:
        if found == old or not old.is_dir():
            raise CheckpointError("there is no checkpoint before it")
        check_training(old)
    except CheckpointError as error:
        raise CheckpointError(
            f"{damage}; nor can an earlier one be used ({error}). Copy the folder back from a place where it is whole, "
            "or start over with --restart"
        ) from None
    try:
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)  # from here on complete_directory finds the one before
        os.replace(old, folder)
    except OSError as error:
        raise CheckpointError(f"{damage}; it cannot be set aside: {error.strerror or error}") from error
    return f"{damage}. Going on from the checkpoint before it; the damaged one is kept in {aside}"


def load_training(folder: Path, model: nn.Module) -> dict[str, Any] | None:
    """Put a checkpoint's weights into the model and return its state; None if there is no checkpoint.

    Raises CheckpointError naming the file that is damaged or does not fit (`set_damaged_aside` has looked for bits that
    flipped).
    """
    found = complete_directory(folder)
    if found is None:
        return None
    state = read_torch(found / "state.pt")
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{found / 'state.pt'}: not a training state written by fgaseg train")
    load_weights(model, read_weights(found / "model.safetensors"), found / "model.safetensors")
    return state
