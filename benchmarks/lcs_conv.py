"""lcs_conv: C++ against the reference and against the straightforward form, a softmax and a loop of convolutions."""

import pytest
import torch
import torch.nn.functional as F

from fgaseg.kernels import lcs_conv
from fgaseg.kernels.lcs_conv.reference import lcs_conv_reference

SHAPES = {  # B, C, T, H, W, K
    "S1 B1 C512 T171 24x24 K3": (1, 512, 171, 24, 24, 3),
    "B1 C512 T20 24x24 K3": (1, 512, 20, 24, 24, 3),
    "A-847 B1 C512 T847 24x24 K3": (1, 512, 847, 24, 24, 3),
    "B1 C512 T64 24x24 K11": (1, 512, 64, 24, 24, 11),
    "S8 B2 C37 T5 7x9 K5": (2, 37, 5, 7, 9, 5),
}


def loop_of_convolutions(pixels, kernel_logits, bias, k):
    kernels = kernel_logits.unflatten(2, (-1, k * k)).softmax(3).unflatten(3, (k, k))
    images = zip(pixels, kernels, bias, strict=True)
    return torch.stack([F.conv2d(image, kernel, shift, padding=k // 2) for image, kernel, shift in images])


PROVIDERS = {
    "cpp": lambda *a: lcs_conv(*a, backend="cpp"),
    "reference": lambda *a: lcs_conv_reference(*a, "taps"),
    "loop of conv2d": loop_of_convolutions,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_lcs_conv(measure, shape, gradient, provider):
    b, c, t, h, w, k = SHAPES[shape]
    inputs = [F.normalize(torch.randn(b, c, h, w), dim=1), torch.randn(b, t, c * k * k), torch.randn(b, t)]
    inputs = [x.requires_grad_(gradient) for x in inputs]
    run = PROVIDERS[provider]
    measure("lcs_conv", shape, provider, inputs, lambda *a: run(*a, k), lambda *a: loop_of_convolutions(*a, k))
