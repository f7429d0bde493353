"""kernel_softmax: C++ against PyTorch's softmax. The work is one read and one write of the logits."""

from functools import partial

import pytest
import torch

from fgaseg.kernels import kernel_softmax
from fgaseg.kernels.kernel_softmax.reference import kernel_softmax_reference

SHAPES = {  # B, T, C, K
    "S1 B1 C512 T171 K3": (1, 171, 512, 3),
    "A-847 B1 C512 T847 K3": (1, 847, 512, 3),
    "B1 C512 T64 K11": (1, 64, 512, 11),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["taps", "channels"])
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", ["cpp", "reference"])
def test_kernel_softmax(measure, shape, norm, gradient, provider):
    b, t, c, k = SHAPES[shape]
    logits = torch.randn(b, t, c * k * k).requires_grad_(gradient)
    run = partial(kernel_softmax, kernel_size=k, norm=norm, backend=provider)
    expect = partial(kernel_softmax_reference, kernel_size=k, norm=norm)
    measure("kernel_softmax", f"{shape} {norm}", provider, [logits], run, expect)
