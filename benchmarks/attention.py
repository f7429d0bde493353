"""attention against PyTorch's own, with the sequences of image and text towers. No Triton and no CUDA kernel.

Read: q, k and v, B*heads*L*d elements each; written: as many. Operations: 4*B*heads*L^2*d, also where it is causal.
"""

from typing import NamedTuple

import pytest
from shapes import DEVICE, providers

from fgaseg.kernels import attention


class Sequences(NamedTuple):
    """B sequences of L tokens, heads of 64 channels."""

    b: int
    heads: int
    length: int
    causal: bool = False


SHAPES = {
    "ViT-B/16 384": Sequences(1, 12, 577),
    "ViT-L/14 336": Sequences(1, 16, 577),
    "ViT-B/16 224": Sequences(4, 12, 197),
    "L=1024": Sequences(1, 16, 1024),
    "150 names of 10 tokens": Sequences(150, 8, 10, True),
    "64 texts of 77 tokens": Sequences(64, 8, 77, True),
}


def form(provider: str, shape: Sequences):
    """A function of projections [B, L, heads*d], with a projection's input as its result."""
    backend = "reference" if provider == "torch.compile" else provider

    def attend(*x):
        q, k, v = (part.unflatten(-1, (shape.heads, 64)).transpose(1, 2) for part in x)
        return attention(q, k, v, causal=shape.causal, backend=backend).transpose(1, 2).flatten(2)

    return attend


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU PyTorch's own attention runs")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", providers("attention"))
def test_attention(measure, new, shape, provider):
    sizes = SHAPES[shape]
    inputs = list(new(3, sizes.b, sizes.length, sizes.heads * 64))
    flops, elements = 4.0 * sizes.b * sizes.heads * sizes.length**2 * 64, 4 * inputs[0].numel()
    nbytes = elements * inputs[0].element_size()
    measure("attention", shape, provider, form(provider, sizes), form("reference", sizes), inputs, False, flops, nbytes)
