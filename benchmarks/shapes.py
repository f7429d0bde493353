"""The shapes on which ops are measured, from the field's benchmarks and as sweeps over T and K, and the providers."""

from typing import NamedTuple

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def providers(*others: str) -> list[str]:
    """The backends of this device, the reference, torch.compile of the reference, and `others`."""
    return [*{"cpu": ["cpp"], "cuda": ["triton", "cuda"]}[DEVICE], "reference", "torch.compile", *others]


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
