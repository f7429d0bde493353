"""What is installed, what was built, and which backend would run each op here."""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .kernels import Int8Weight, Norm, Selection, UpWeights, _dispatch, _library
from .kernels.class_attention.reference import accumulator
from .kernels.labels.host import why_no_host
from .threads import why_fixed

PACKAGES = (
    "fgaseg",
    "torch",
    "torchvision",
    "triton",
    "open_clip_torch",
    "einops",
    "pybind11",
    "ninja",
    "numpy",
    "safetensors",
    "accelerate",
)


def _selection(device: str) -> Selection:
    rows = torch.tensor([0, 2], device=device)
    return Selection(rows, torch.tensor([2], device=device), 1, 3)


def _class_summary_args(new: Callable[..., Tensor], device: str) -> tuple:
    return new(3, 2, 4), new(3, 2, 4), new(3, 4), torch.tensor([0, 3], device=device), 2


def _class_lookup_args(new: Callable[..., Tensor], device: str) -> tuple:
    summary, total = (x.to(accumulator(x.dtype)) for x in (new(1, 2, 2, 2, 2), new(1, 2, 2, 2)))
    return new(3, 2, 4), new(3, 4), summary, total, torch.tensor([0, 3], device=device), 2, 1e-6


def _up_stage_args(new: Callable[..., Tensor], device: str) -> tuple:
    scale, shift = new(4), new(4)
    weights = UpWeights(
        new(5, 3, 2, 2), new(3), new(4, 3, 3, 3), scale, shift, new(4, 4, 3, 3), scale, shift
    )  # fmt: skip
    return new(2, 3, 3, 5), new(1, 6, 6, 4), weights, 2


def _int8(new: Callable[..., Tensor], *sizes: int) -> Int8Weight:
    return Int8Weight.of(new(*sizes))


# The arguments of one representative call of each op: small, because only dtype and device decide the backend.
CALLS: dict[str, Callable[[Callable[..., Tensor], str], tuple]] = {
    "attention": lambda new, device: (new(1, 2, 3, 4), new(1, 2, 3, 4), new(1, 2, 3, 4)),
    "kernel_softmax": lambda new, device: (new(1, 64, 18), 3, "taps"),  # fewer elements are left to PyTorch
    "lcs_conv": lambda new, device: (new(1, 2, 4, 4), new(1, 3, 18), new(1, 3), 3),
    "lcs_conv_from_text": lambda new, device: (new(1, 3, 5), new(19, 5), new(19), new(1, 2, 4, 4), 3),
    "cosine_cost_volume": lambda new, device: (new(1, 2, 4, 4), new(1, 3, 1, 2)),
    "topk_classes": lambda new, device: (new(1, 3, 4, 4), 1),
    "gather_classes": lambda new, device: (new(1, 3, 2), _selection(device)),
    "class_summary": _class_summary_args,
    "class_lookup": _class_lookup_args,
    "scatter_classes": lambda new, device: (new(2, 2), _selection(device), 0.0),
    "group_norm_relu": lambda new, device: (new(2, 3, 4, 6), new(6), new(6), 2),
    "embed_maps": lambda new, device: (new(2, 3, 4), new(5, 1, 3, 3), new(5)),
    "score_maps": lambda new, device: (new(2, 3, 4, 5), new(1, 5, 3, 3), new(1)),
    "up_stage": _up_stage_args,
    "upsample_argmax": lambda new, device: (new(1, 3, 4, 4), (5, 6)),
    "upsample_argmax_windows": lambda new, device: (new(5, 3, 4, 4), 6, 4, (5, 6)),
    "linear": lambda new, device: (new(3, 4), new(5, 4), new(5)),
    "linear_int8": lambda new, device: (new(3, 4), _int8(new, 5, 4), new(5)),
    "mlp_int8": lambda new, device: (
        *(new(3, 4), Norm(new(4), new(4), 1e-5)),
        *(_int8(new, 6, 4), new(6), _int8(new, 4, 6), new(4), "gelu"),
    ),
    "mlp": lambda new, device: (new(3, 4), Norm(new(4), new(4), 1e-5), new(6, 4), new(6), new(4, 6), new(4), "gelu"),
    "window_attention": lambda new, device: (*(new(n, 3, 4, 2) for n in (2, 2, 2, 1, 1)), 1, 2, 1),
}


def version(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _choices(op: str, device: str) -> list[dict[str, Any]]:
    """For each dtype, the backend that would run, what it multiplies in, and why none before it would run."""
    found = []
    for dtype in _dispatch.DTYPES:

        def new(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        args = CALLS[op](new, device)
        backends = {backend.name: backend for backend in _dispatch.OPS[op]}
        reasons = {name: one.why_not(*args) or one.prefer_reference(*args) for name, one in backends.items()}
        runs = next(name for name, why in reasons.items() if not why)
        passed = {name: why for name, why in reasons.items() if why}
        name = str(dtype).removeprefix("torch.")
        found.append({"dtype": name, "runs": runs, "multiplies": _multiplies(backends[runs], name), "why_not": passed})
    return found


def _multiplies(backend: _dispatch.Backend, dtype: str) -> str:
    """The arithmetic of a backend's products: C++ converts to float32 what it, or the processor, does not multiply."""
    if backend.name != "cpp" or dtype in ("float32", "float64"):
        return dtype
    return dtype if getattr(torch, dtype) in backend.native and arithmetic(dtype) else "float32"


def processor() -> str:
    """The processor's name, such as "AMD EPYC 9554"."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# what torch calls the instructions that multiply in a precision, on x86 and on ARM
_INSTRUCTIONS = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "dot", "i8mm"),
}


def arithmetic(precision: str) -> bool | None:
    """Whether this processor has instructions that multiply in a precision; None: it is not known."""
    found = _capabilities()
    return any(found.get(name) for name in _INSTRUCTIONS[precision]) if found else None


def instruction_sets() -> list[str]:
    """The vector and matrix instructions of this processor, as torch names them; empty where it does not say."""
    names = ("avx2", "avx512_f", *(name for names in _INSTRUCTIONS.values() for name in names))
    return [name for name in names if _capabilities().get(name)]


def _capabilities() -> dict[str, Any]:
    read = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that is supported
    return read() if read else {}


def collect() -> dict[str, Any]:
    """Versions, the machine, what setup.py built or skipped and why, and the backend for each op, device and dtype.

    Every value can be written as JSON.
    """
    cuda = torch.cuda.is_available()
    devices = ["cpu", "cuda"] if cuda else ["cpu"]
    return {
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "threads_follow_load": f"no: {why}" if (why := why_fixed()) else "yes: cores used by others are left free",
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "instructions": ", ".join(instruction_sets()) or "not known",
            "torch_cuda": torch.version.cuda or "a build without CUDA",
            "gpu": torch.cuda.get_device_name() if cuda else "none found",
        },
        "built": _library.build_info(),
        "loaded": {part: why or "loaded" for part, why in {**_library.unavailable, "host": why_no_host}.items()},
        "strict": os.environ.get("FGASEG_STRICT") == "1",
        "ops": {op: {device: _choices(op, device) for device in devices} for op in CALLS},
    }
