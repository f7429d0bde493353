"""embed_maps and score_maps against PyTorch's own convolutions, with the released model's sizes."""

import pytest
from shapes import providers

from fgaseg.kernels import embed_maps, score_maps
from fgaseg.kernels.map_conv.reference import embed_maps_reference, score_maps_reference

PROVIDERS = providers("map_conv")
SHAPES = {f"R={r}": r for r in (1, 8, 150)}


def form(op, reference, provider):
    """A function of one image [1, R, ...]."""
    if provider in ("reference", "torch.compile"):
        return lambda x, *args: reference(x[0], *args)[None]
    return lambda x, *args: op(x[0], *args, backend=provider)[None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_embed_maps(measure, new, shape, provider):
    r, grid, hidden, size = SHAPES[shape], 24, 128, 7
    inputs = [new(1, r, grid, grid), new(hidden, 1, size, size), new(hidden)]
    flops, nbytes = 2.0 * r * grid**2 * size**2 * hidden, r * grid**2 * (1 + hidden) * inputs[0].element_size()
    forms = (form(embed_maps, embed_maps_reference, p) for p in (provider, "reference"))
    measure("embed_maps", shape, provider, *forms, inputs, False, flops, nbytes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_score_maps(measure, new, shape, provider):
    r, grid, channels = SHAPES[shape], 96, 32
    inputs = [new(1, r, grid, grid, channels), new(1, channels, 3, 3), new(1)]
    flops, nbytes = 2.0 * r * grid**2 * 9 * channels, r * grid**2 * (1 + channels) * inputs[0].element_size()
    forms = (form(score_maps, score_maps_reference, p) for p in (provider, "reference"))
    measure("score_maps", shape, provider, *forms, inputs, False, flops, nbytes)
