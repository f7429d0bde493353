"""window_attention against copies and PyTorch's own attention, with the released model's windows. No CUDA kernel.

Read: q, k and v, N*H*W*D elements each; written: as many. Operations: 4*window^2*N*H*W*D.
"""

from typing import NamedTuple

import pytest
from shapes import providers

from fgaseg.kernels import window_attention
from fgaseg.kernels.window_attention.reference import window_attention_reference

HEADS, SIZE, WINDOW = 4, 32, 12


class Maps(NamedTuple):
    """T classes of one image on a grid of H×W."""

    t: int
    h: int
    w: int
    shift: int


SHAPES = {
    **{f"T={t} shift={shift}": Maps(t, 24, 24, shift) for t in (20, 150) for shift in (0, 6)},
    "T=20 48x48 shift=6": Maps(20, 48, 48, 6),
    "T=20 40x30 shift=6": Maps(20, 40, 30, 6),  # padded to 48x36
}


def form(provider: str, shift: int):
    """A function of one image [1, T, H, W, D]. The reference is PyTorch's form: guided, padded and rolled copies, then
    scaled_dot_product_attention."""

    def attend(q, k, v, *guidance):
        rows = (x.flatten(0, 1) for x in (q, k, v))
        if provider == "torch.compile":
            return window_attention_reference(*rows, *guidance, HEADS, WINDOW, shift)[None]
        return window_attention(*rows, *guidance, HEADS, WINDOW, shift, backend=provider)[None]

    return attend


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", [p for p in providers() if p != "cuda"])
def test_window_attention(measure, new, shape, gradient, provider):
    t, h, w, shift = SHAPES[shape]
    d = HEADS * SIZE
    inputs = [*(new(1, t, h, w, d) for _ in range(3)), *(new(1, h, w, d) for _ in range(2))]
    flops, elements = 4.0 * WINDOW**2 * t * h * w * d, 4 * t * h * w * d
    nbytes = elements * inputs[0].element_size()
    reference = form("reference", shift)
    measure("window_attention", shape, provider, form(provider, shift), reference, inputs, gradient, flops, nbytes)
