"""cosine_cost_volume against two normalisations and an einsum. Operations: 2*B*T*C*H*W, with one prompt per class."""

import pytest
from shapes import CLASS_SHAPES, providers

from fgaseg.kernels import cosine_cost_volume
from fgaseg.kernels.cosine_cost_volume.reference import cosine_cost_volume_reference


def form(provider: str):
    if provider == "torch.compile":
        return lambda pixels, texts: cosine_cost_volume_reference(pixels, texts, 1e-12)
    return lambda pixels, texts: cosine_cost_volume(pixels, texts, backend=provider)


@pytest.mark.parametrize("shape", CLASS_SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", providers("cosine_cost_volume"))
def test_cosine_cost_volume(measure, new, shape, gradient, provider):
    b, c, t, h, w, _ = CLASS_SHAPES[shape]
    inputs = [new(b, c, h, w), new(b, t, 1, c)]
    flops = 2.0 * b * t * c * h * w
    nbytes = (b * c * h * w + b * t * c + b * t * h * w) * inputs[0].element_size()
    reference = form("reference")
    measure("cosine_cost_volume", shape, provider, form(provider), reference, inputs, gradient, flops, nbytes)
