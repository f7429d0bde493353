"""What the Triton kernels share: how they are launched, and how the same launches are compiled without a GPU.

A launcher names the arguments of its kernel in one mapping and calls ``launch``. ``recorded`` calls a launcher with
tensors of the "meta" device and returns its launches instead of running them; ``Launch.compiled`` has Triton's own JIT
compile one, so that what aot.py judges is the binary that a GPU would be given: the same types, the same specialisation
on alignment, divisibility by 16 and 1, the same warps and stages.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when a kernel is decorated
FLOATS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
FAR = 2**33  # a stride that needs 64 bits
# For a function of sizes, strides and dtypes alone: what a launch needs beside its tensors. Its result is shared, so
# nobody may change it.
planned = lru_cache(maxsize=1024)


class _AbsentGPU:
    """The driver of a GPU of some compute capability, as far as Triton's JIT needs one to compile."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability  # each has its own compiled kernels

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)


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

    @classmethod
    def of(cls, kernel: Any, programs: int, values: tuple, num_warps: int, num_stages: int) -> "Launch":
        """The launch that ``run`` makes of these arguments."""
        return cls(kernel, programs, dict(zip(kernel.arg_names, values, strict=True)), num_warps, num_stages)

    def compiled(self, capability: int) -> Any:
        """The kernel that Triton's JIT compiles for this launch on a GPU of this compute capability, such as 90.

        Nothing is run, and no GPU is needed; an address on the meta device counts as aligned, as PyTorch's allocator
        returns it. The result is also in Triton's cache on disk, where a launch on such a GPU finds it.
        """
        from triton.runtime import driver

        before = driver._active  # `active` would look for a GPU
        driver.set_active(_AbsentGPU(capability))  # type: ignore[arg-type]
        try:
            options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
            return self.kernel.warmup(*self.arguments.values(), grid=(self.programs,), **options)
        finally:
            driver._active = before


@dataclass(frozen=True)
class Configuration:
    """A launch that is compiled ahead of time; ``matrix``: it is meant to have tensor-core instructions."""

    label: str
    launch: Launch
    matrix: bool = False


_recording: list[Launch] | None = None
_values: dict[int, tuple[Any, Callable[[Mapping[str, Any]], tuple]]] = {}  # by id: a kernel's hash takes long


def launch(
    kernel: Any, programs: int, arguments: Mapping[str, Any], *, num_warps: int = 4, num_stages: int = 3
) -> None:
    """Runs a kernel.

    ``arguments`` holds them by the name of the parameter. It may hold more than this kernel takes, so that one
    description of a call serves several kernels. Warps and stages are Triton's own where nothing else is said.
    """
    found = _values.get(id(kernel))
    if found is None:
        found = _values[id(kernel)] = (kernel, itemgetter(*kernel.arg_names))  # with the kernel, whose id stays taken
    values = found[1](arguments)
    if _recording is None:
        run(kernel, programs, values, num_warps, num_stages)
    else:
        _recording.append(Launch.of(kernel, programs, values, num_warps, num_stages))


def run(kernel: Any, programs: int, values: tuple, num_warps: int, num_stages: int) -> None:
    """Launches a kernel with the values of its parameters in their order."""
    kernel[(programs,)](*values, num_warps=num_warps, num_stages=num_stages)


def recorded(launcher: Callable, *args: Any) -> list[Launch]:
    """The launches that ``launcher(*args)`` would make, none of them run. Tensors may be on the meta device."""
    global _recording
    _recording = []
    try:
        launcher(*args)
        return _recording
    finally:
        _recording = None


def cdiv(a: int, b: int) -> int:
    """a / b rounded up; triton.cdiv takes longer, because it also takes constants of kernels."""
    return -(-a // b)


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
