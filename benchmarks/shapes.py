"""The shapes on which ops are measured, from the field's benchmarks and as sweeps over T and K, and the providers.

FGASEG_DRY_RUN=1: the GPU's backends on the CPU, interpreted and emulated. FGASEG_META=1: their launches on tensors
without memory, for compile_ahead.py.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
DRY = os.environ.get("FGASEG_DRY_RUN") == "1"
META = os.environ.get("FGASEG_META") == "1"
DEVICE = "meta" if META else "cuda" if torch.cuda.is_available() else "cpu"
GPU = DEVICE == "cuda" or DRY  # whether the GPU's backends are measured


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


class Shape(NamedTuple):
    """B images of H×W pixels with C channels, T classes, K×K kernels."""

    b: int
    c: int
    t: int
    h: int
    w: int
    k: int

    def __str__(self) -> str:
        return f"B{self.b} C{self.c} T{self.t} {self.h}x{self.w} K{self.k}"


SHAPES = {
    "S1": Shape(1, 512, 171, 24, 24, 3),  # training on COCO-Stuff
    "S2": Shape(5, 512, 150, 24, 24, 3),  # A-150, five views
    "S3": Shape(5, 512, 847, 24, 24, 3),  # A-847, five views
    "S4": Shape(5, 768, 847, 24, 24, 3),  # the same with ViT-L/14
    "S5": Shape(5, 512, 171, 24, 24, 11),  # a large kernel (Table IV)
    "S6": Shape(1, 512, 150, 48, 48, 3),  # a fine grid
    "S7": Shape(5, 512, 847, 24, 24, 11),  # many classes and a large kernel
    "S8": Shape(2, 37, 5, 7, 9, 5),  # small and odd: call overhead
    **{f"T={t}": Shape(1, 512, t, 24, 24, 3) for t in (1, 20, 60, 459, 847, 2000)},
    **{f"K={k}": Shape(1, 512, 64, 24, 24, k) for k in (1, 3, 5, 7, 11, 15)},
}
CLASS_SHAPES = {name: shape for name, shape in SHAPES.items() if name[0] != "K"}  # for the ops without a kernel

if DRY and DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when fgaseg.kernels is imported
    import accuracy  # noqa: F401  of the tests: emulates CUDA
