"""The machine that benchmarks run on: its description, its rates, and the memory that a piece of work needs."""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from shapes import DEVICE

from fgaseg.environment import processor, version
from fgaseg.reproduce.profiling import copy_rate, peak, product_rate

__all__ = ["copy_rate", "machine", "matmul_rate", "peak"]


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations per second of the fastest large product of this machine."""
    return product_rate(str(dtype).removeprefix("torch."), DEVICE).per_second


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
