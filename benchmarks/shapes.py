"""The shapes on which ops are measured, from the field's benchmarks and as sweeps over T and K, and the providers.

FGASEG_DRY_RUN=1: the GPU's backends on the CPU, interpreted and emulated. FGASEG_META=1: their launches on tensors
without memory, for compile_ahead.py.
"""

import os
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DRY = os.environ.get("FGASEG_DRY_RUN") == "1"
META = os.environ.get("FGASEG_META") == "1"
DEVICE = "meta" if META else "cuda" if torch.cuda.is_available() else "cpu"
GPU = DEVICE == "cuda" or DRY  # whether the GPU's backends are measured

if DRY and DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when fgaseg.kernels is imported
    import accuracy  # noqa: F401  of the tests: emulates CUDA

from fgaseg.kernels import calls  # noqa: E402  after the above

Shape = calls.Shape


def backends(op: str) -> list[str]:
    """The compiled backends of an op's folder on this device."""
    if META:
        return ["triton"]
    found = {
        "triton": GPU and (ROOT / "kernels" / op / "triton.py").exists(),
        "cuda": GPU and (ROOT / "csrc" / op / "cuda.cpp").exists(),
        "cpp": not GPU and (ROOT / "csrc" / op / "cpu.cpp").exists(),
    }
    return [name for name, exists in found.items() if exists]


def providers(op: str, *others: str) -> list[str]:
    """The backends of an op on this device, the reference, torch.compile of the reference, and `others`."""
    return backends(op) if META else [*backends(op), "reference", "torch.compile", *others]


SHAPES = {
    **calls.SHAPES,
    **{f"T={t}": Shape(1, 512, t, 24, 24, 3) for t in (1, 20, 60, 459, 847, 2000)},
    **{f"K={k}": Shape(1, 512, 64, 24, 24, k) for k in (1, 3, 5, 7, 11, 15)},
}
CLASS_SHAPES = {name: shape for name, shape in SHAPES.items() if name[0] != "K"}  # for the ops without a kernel
