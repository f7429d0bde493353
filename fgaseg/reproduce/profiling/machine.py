"""What the machine can do, measured: products and copies a second, and the memory that a piece of work needs."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ...kernels import linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Rate(NamedTuple):
    """Operations a second, an addition and a multiplication being two, and the product that reached them."""

    per_second: float
    product: str


@cache
def product_rate(precision: str, device: str = DEVICE) -> Rate:
    """The machine's roof in "float32", "bfloat16", "float16" or "int8": the fastest product at hand.

    On a CPU PyTorch's products go to two libraries, MKL and oneDNN, of which either can be twice as fast as the other.
    Tried are a matrix product, a 3×3 convolution with channels last and `fgaseg.kernels.linear`; for int8 the product
    with 32-bit sums. A few seconds, once in a process. Raises RuntimeError if no product of the precision runs here.
    """
    best, refused = Rate(0.0, ""), ""
    for name, operations, work in _products(precision, device):
        try:
            found = Rate(operations / _best_seconds(work, device), name)
        except RuntimeError as error:  # not on every processor, nor on every GPU
            refused = str(error).splitlines()[0]
            continue
        best = max(best, found)
    if not best.product:
        raise RuntimeError(f"no product in {precision} on {device}: {refused}")
    return best


def _products(precision: str, device: str) -> Iterator[tuple[str, float, Callable[[], Any]]]:
    """(name, operations, the work) of every product that is tried."""
    n = 8192 if device == "cuda" else 1536
    if precision == "int8":
        whole = torch.randint(-128, 128, (n, n), dtype=torch.int8, device=device)
        yield "matrix product", 2 * n**3, lambda: torch._int_mm(whole, whole.T)
        return
    dtype = getattr(torch, precision)
    square = torch.randn(n, n, device=device).to(dtype)
    yield "matrix product", 2 * n**3, lambda: square @ square
    images, channels, side = (64 if device == "cuda" else 4), 256, 48
    maps, weight = (
        torch.randn(*shape, device=device).to(dtype).to(memory_format=torch.channels_last)
        for shape in ((images, channels, side, side), (channels, channels, 3, 3))
    )
    operations = 2 * images * side**2 * channels**2 * 9
    yield "3x3 convolution", operations, lambda: F.conv2d(maps, weight, padding=1)
    rows, out = torch.randn(3 * n, 512, device=device).to(dtype), torch.randn(512, 512, device=device).to(dtype)
    yield "linear", 2 * 3 * n * 512**2, lambda: linear(rows, out)


@cache
def copy_rate(device: str = DEVICE) -> float:
    """Bytes a second, read and written, of a large copy."""
    x = torch.zeros(1 << (30 if device == "cuda" else 27), dtype=torch.int8, device=device)
    y = torch.empty_like(x)
    return 2 * x.numel() / _best_seconds(lambda: y.copy_(x), device)


@torch.inference_mode()
def _best_seconds(work: Callable[[], Any], device: str) -> float:
    """The fastest of 15 times, or of as many as begin within 2 s of work: bfloat16 is slow on many processors."""
    times: list[float] = []
    while len(times) < 15 and sum(times) < 2:
        begin = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def synchronize(device: str = DEVICE) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Memory:
    """Memory in use, and the most since `reset`, in bytes: of the process, or of PyTorch on a GPU.

    NaN on systems other than Linux, without a GPU.
    """

    def __init__(self, device: str = DEVICE) -> None:
        self.cuda = device.startswith("cuda")

    def reset(self) -> None:
        """Forget the high-water mark."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")

    def used(self) -> float:
        return torch.cuda.memory_allocated() if self.cuda else _status("VmRSS")

    def highest(self) -> float:
        return torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")

    def settle(self) -> None:
        """Give back what is free, so that it counts for nothing."""
        gc.collect()
        if not self.cuda and sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> float:
    if sys.platform != "linux":
        return float("nan")
    with open("/proc/self/status") as lines:
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(name))


def peak(step: Callable[[], Any], device: str = DEVICE) -> float:
    """The bytes that one step needs beyond what is resident before it."""
    memory = Memory(device)
    memory.settle()
    memory.reset()
    before = memory.used()
    step()
    return memory.highest() - before
