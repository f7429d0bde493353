"""lcs_conv against PyTorch, the released code's softmax and loop of convolutions, and one convolution in groups.

Read: logits B*T*C*K*K and pixels B*C*H*W; written: B*T*H*W. Operations: 2*B*T*C*K*K*H*W.
"""

import pytest
import torch
import torch.nn.functional as F
from shapes import SHAPES, providers

from fgaseg.kernels import lcs_conv
from fgaseg.kernels.lcs_conv.reference import lcs_conv_reference


def loop_of_convolutions(pixels, kernel_logits, bias, k):
    kernels = kernel_logits.unflatten(2, (-1, k * k)).softmax(3).unflatten(3, (k, k))
    images = zip(pixels, kernels, bias, strict=True)
    return torch.stack([F.conv2d(image, kernel, shift, padding=k // 2) for image, kernel, shift in images])


def grouped_convolution(pixels, kernel_logits, bias, k):
    """One convolution in which every image is a group of channels, with kernels of its own."""
    kernels = kernel_logits.unflatten(2, (-1, k * k)).softmax(3).unflatten(3, (k, k)).flatten(0, 1)
    rows = pixels.flatten(0, 1)[None]
    maps = F.conv2d(rows, kernels, bias.flatten(), padding=k // 2, groups=len(pixels))
    return maps[0].unflatten(0, bias.shape)


def form(provider: str, k: int):
    if provider == "loop of conv2d":
        return lambda *a: loop_of_convolutions(*a, k)
    if provider == "grouped conv2d":
        return lambda *a: grouped_convolution(*a, k)
    if provider == "torch.compile":
        return lambda *a: lcs_conv_reference(*a, k, "taps")
    return lambda *a: lcs_conv(*a, k, backend=provider)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", providers("lcs_conv", "loop of conv2d", "grouped conv2d"))
def test_lcs_conv(measure, new, shape, gradient, provider):
    b, c, t, h, w, k = SHAPES[shape]
    inputs = [F.normalize(new(b, c, h, w), dim=1), new(b, t, c * k * k), new(b, t)]
    flops = 2.0 * b * t * c * k * k * h * w
    elements = b * (t * c * k * k + c * h * w + t * h * w)
    # the loop of convolutions is the yardstick: our reference's im2col does not fit in memory at S7 in float64
    reference = form("loop of conv2d", k)
    nbytes = elements * inputs[0].element_size()
    measure("lcs_conv", shape, provider, form(provider, k), reference, inputs, gradient, flops, nbytes)
