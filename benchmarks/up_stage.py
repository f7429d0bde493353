"""up_stage against PyTorch's own convolutions, with the released model's stages. On a GPU only these run.

Read: x, written: the result, and as much again between the two convolutions. Operations: those of the definition, also
where Winograd's form needs fewer multiplications.
"""

from typing import NamedTuple

import pytest
from shapes import providers

from fgaseg.kernels import UpWeights, up_stage
from fgaseg.kernels.up_stage.reference import up_stage_reference


class Stage(NamedTuple):
    """R maps of H×W with C channels, P between them and N after them."""

    r: int
    h: int
    c: int
    p: int
    n: int


SHAPES = {
    **{f"stage 1, R={r}": Stage(r, 24, 128, 96, 64) for r in (1, 8)},
    **{f"stage 2, R={r}": Stage(r, 48, 64, 48, 32) for r in (1, 8)},
    "local map, R=8": Stage(8, 24, 128, 64, 64),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("provider", providers("up_stage"))
def test_up_stage(measure, new, shape, provider):
    r, h, c, p, n = SHAPES[shape]
    sizes = [(c, p, 2, 2), (p,), (n, p, 3, 3), (n,), (n,), (n, n, 3, 3), (n,), (n,)]
    inputs = [new(1, r, h, h, c), new(1, 2 * h, 2 * h, n), *(new(*size) / (size[-1] ** 2 * c) ** 0.5 for size in sizes)]

    def reference(x, *args):
        return up_stage_reference(x[0], *args, n // 16, 1e-5)[None]

    def run(x, guidance, *weights):
        if provider in ("reference", "torch.compile"):
            return reference(x, guidance, *weights)
        return up_stage(x[0], guidance, UpWeights(*weights), n // 16, backend=provider)[None]

    flops = 2.0 * r * h * h * (c * 4 * p + 4 * 9 * (p + n) * n)
    nbytes = (inputs[0].numel() + 3 * r * 4 * h * h * n) * inputs[0].element_size()
    measure("up_stage", shape, provider, run, reference, inputs, False, flops, nbytes)
