"""The machine that benchmarks run on: its description, its rates, and the memory that a piece of work needs."""

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from shapes import DEVICE

from fgaseg.environment import processor, version


def peak(step: Callable) -> float:
    """The bytes that one step needs beyond what is resident before it."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to what is resident now
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def _best_seconds(work: Callable[[], Any], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)


@cache
def copy_rate() -> float:
    """Bytes per second, read and written, of a large copy on this machine."""
    x = torch.zeros(1 << (30 if DEVICE == "cuda" else 27), dtype=torch.int8, device=DEVICE)
    y = torch.empty_like(x)
    return 2 * x.numel() / _best_seconds(lambda: y.copy_(x))


@cache
def matmul_rate(dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on this machine."""
    n = 8192 if DEVICE == "cuda" else 1536
    x = torch.randn(n, n, device=DEVICE).to(dtype)
    return 2 * n**3 / _best_seconds(lambda: x @ x)


@cache
def machine() -> dict[str, Any]:
    """The columns that name the machine, its software and the commit in every table."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "copy_gb_s": round(copy_rate() / 1e9, 1),
    }
