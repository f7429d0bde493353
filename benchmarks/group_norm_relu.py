"""group_norm_relu against PyTorch's GroupNorm and ReLU, with the maps of the released model's decoder.

Read: x; written: as much. PyTorch's form on a GPU copies to channels first; on a CPU it has channels last of its own.
"""

import pytest
from shapes import providers

from fgaseg.kernels import group_norm_relu
from fgaseg.kernels.calls import DECODER
from fgaseg.kernels.group_norm_relu.reference import group_norm_relu_reference

MAPS = (1, 8, 20, 150)
SHAPES = {f"T={n} {stage}": (n, *sizes) for stage, sizes in DECODER.items() for n in MAPS}
SHAPES["small"] = (2, 6, 32, 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", providers("group_norm_relu"))
def test_group_norm_relu(measure, new, shape, gradient, provider):
    n, side, channels, groups = SHAPES[shape]
    inputs = [new(1, n, side, side, channels), new(channels), new(channels)]

    def reference(x, weight, bias):
        return group_norm_relu_reference(x[0], weight, bias, groups, 1e-5, True)[None]

    def run(x, weight, bias):
        if provider in ("reference", "torch.compile"):
            return reference(x, weight, bias)
        return group_norm_relu(x[0], weight, bias, groups, backend=provider)[None]

    nbytes = 2.0 * inputs[0].numel() * inputs[0].element_size()
    measure("group_norm_relu", shape, provider, run, reference, inputs, gradient, 0.0, nbytes)
