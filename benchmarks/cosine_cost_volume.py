"""cosine_cost_volume: C++ against two normalisations and an einsum."""

import pytest
import torch

from fgaseg.kernels import cosine_cost_volume
from fgaseg.kernels.cosine_cost_volume.reference import cosine_cost_volume_reference

SHAPES = {  # B, C, T, H, W
    "S1 B1 C512 T171 24x24": (1, 512, 171, 24, 24),
    "B1 C512 T20 24x24": (1, 512, 20, 24, 24),
    "A-847 B1 C512 T847 24x24": (1, 512, 847, 24, 24),
    "S6 B1 C512 T150 48x48": (1, 512, 150, 48, 48),
}
PROVIDERS = {"cpp": lambda *a: cosine_cost_volume(*a, backend="cpp"), "reference": lambda *a: reference(*a)}


def reference(pixels, texts):
    return cosine_cost_volume_reference(pixels, texts, 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_cosine_cost_volume(measure, shape, gradient, provider):
    b, c, t, h, w = SHAPES[shape]
    inputs = [torch.randn(b, c, h, w).requires_grad_(gradient), torch.randn(b, t, 1, c).requires_grad_(gradient)]
    measure("cosine_cost_volume", shape, provider, inputs, PROVIDERS[provider], reference)
