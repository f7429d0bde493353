"""class_attention against its form with einsum, on one image of T classes and 24x24 pixels.

Operations: 2*R*P*D*d for the summary and as many for the lookup. Bytes: q, k and v read once, y written once, the
summary written and read once.
"""

from functools import cache

import pytest
import torch
from shapes import DEVICE, providers

from fgaseg.kernels import class_attention
from fgaseg.kernels.class_attention.reference import positive

HEADS, CHANNELS, PIXELS = 4, 128, 24 * 24
SHAPES = {"small": 3} | {f"T={t}": t for t in (20, 150, 847)}


def by_einsum(q, k, v, q_guidance, k_guidance):
    """All classes at once, with the features in memory; values are divided by their number, as in the released code."""
    q, k = (positive(x + g[:, None]).unflatten(-1, (HEADS, -1)) for x, g in ((q, q_guidance), (k, k_guidance)))
    summary = torch.einsum("tphd,tphe->phde", k, v.unflatten(-1, (HEADS, -1)) / len(v))
    scale = len(v) / (torch.einsum("tphd,phd->tph", q, k.sum(0)) + 1e-6)
    return (torch.einsum("tphd,phde->tphe", q, summary) * scale[..., None]).flatten(-2)


@cache
def offsets(classes: int) -> torch.Tensor:
    """Of one image; made once, as a copy to a GPU would make a call wait."""
    return torch.tensor([0, classes], device=DEVICE)


def form(provider: str):
    """A function of one image, [1, T, ...]."""

    def run(*x):
        backend = "reference" if provider == "torch.compile" else provider
        return class_attention(*(t[0] for t in x), offsets(x[0].shape[1]), HEADS, backend=backend)[None]

    return run if provider != "einsum" else lambda *x: by_einsum(*(t[0] for t in x))[None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", providers("class_attention", "einsum"))
def test_class_attention(measure, new, shape, gradient, provider):
    t = SHAPES[shape]
    packed, guidance = new(1, t, PIXELS, 3 * CHANNELS), new(2, 1, t, CHANNELS)
    inputs = [*packed.split(CHANNELS, -1), *guidance]  # slices, as the model's linear layer gives them
    flops = 4.0 * t * PIXELS * CHANNELS * CHANNELS / HEADS
    sums = 4 * PIXELS * CHANNELS * (CHANNELS // HEADS + 1)
    nbytes = packed.element_size() * 4 * t * PIXELS * CHANNELS + 2 * sums
    measure("class_attention", shape, provider, form(provider), form("einsum"), inputs, gradient, flops, nbytes)
