"""What the Triton kernels share: how they are launched, and how the same launches are compiled ahead of time.

A launcher names the arguments of its kernel in one mapping and calls ``launch``. ``recorded`` calls a launcher with
tensors of the "meta" device and returns its launches instead of running them, and aot.py compiles those. So a kernel's
signature is written only once, in the kernel: what is compiled ahead of time has the types of the recorded arguments.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when a kernel is decorated
FLOATS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
TYPES = FLOATS | {torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}
FAR = 2**33  # a stride that needs 64 bits


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel.

    programs   in the grid, which has one dimension
    arguments  by the name of the parameter, in the order of the parameters
    """

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        values = self.arguments.values()
        self.kernel[(self.programs,)](*values, num_warps=self.num_warps, num_stages=self.num_stages)

    def signature(self) -> dict[str, str]:
        """Every parameter's type as Triton writes it: "*bf16", "i64", "fp32", "constexpr"."""
        return {parameter.name: _type(parameter, self.arguments[parameter.name]) for parameter in self.kernel.params}

    def constants(self) -> dict[str, Any]:
        return {name: self.arguments[name] for name, kind in self.signature().items() if kind == "constexpr"}


@dataclass(frozen=True)
class Configuration:
    """A launch that is compiled ahead of time; ``matrix``: it is meant to have tensor-core instructions."""

    label: str
    launch: Launch
    matrix: bool = False


def _type(parameter: Any, value: Any) -> str:
    """The type for which Triton compiles a kernel when it is launched with this argument."""
    if parameter.is_constexpr:
        return "constexpr"
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value == 1 and not parameter.do_not_specialize:
        return "constexpr"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


_recording: list[Launch] | None = None


def launch(
    kernel: Any, programs: int, arguments: Mapping[str, Any], *, num_warps: int = 4, num_stages: int = 2
) -> None:
    """Runs a kernel.

    ``arguments`` holds them by the name of the parameter. It may hold more than this kernel takes, so that one
    description of a call serves several kernels. ``num_stages`` is not Triton's default of 3, because 2 is what the
    budgets of shared memory and registers were set for.
    """
    one = Launch(kernel, programs, {name: arguments[name] for name in kernel.arg_names}, num_warps, num_stages)
    if _recording is None:
        one.run()
    else:
        _recording.append(one)


def recorded(launcher: Callable, *args: Any) -> list[Launch]:
    """The launches that ``launcher(*args)`` would make, none of them run. Tensors may be on the meta device."""
    global _recording
    _recording = []
    try:
        launcher(*args)
        return _recording
    finally:
        _recording = None


def strides(x: Tensor, *names: str) -> dict[str, int]:
    """The strides of the first dimensions of x under these names."""
    return dict(zip(names, x.stride(), strict=False))


def far_apart(*sizes: int, dtype: torch.dtype) -> Tensor:
    """An example for ``recorded`` whose strides need 64 bits, except the last, which is 1: a slice of a huge tensor.

    This is the case that needs the most registers.
    """
    return torch.empty_strided(sizes, [FAR] * (len(sizes) - 1) + [1], dtype=dtype, device="meta")


def precision() -> str:
    """How tl.dot multiplies float32: as torch.backends.cuda.matmul.allow_tf32 says."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
