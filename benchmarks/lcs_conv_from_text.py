"""lcs_conv_from_text against a linear layer followed by lcs_conv, in PyTorch and with our own kernel.

Operations: 2*B*T*D*C*K*K for the projection and 2*B*T*C*K*K*H*W for the convolution.
"""

import pytest
import torch.nn.functional as F
from lcs_conv import loop_of_convolutions
from shapes import SHAPES, providers

from fgaseg.kernels import lcs_conv, lcs_conv_from_text
from fgaseg.kernels.lcs_conv_from_text.reference import lcs_conv_from_text_reference

PROVIDERS = providers("lcs_conv_from_text", "auto", "linear, then lcs_conv", "linear, then loop of conv2d")


def form(provider: str, k: int):
    def two_steps(texts, weight, bias, pixels):
        outputs = F.linear(texts, weight, bias)
        if provider == "linear, then loop of conv2d":
            return loop_of_convolutions(pixels, outputs[..., :-1], outputs[..., -1], k)
        return lcs_conv(pixels, outputs[..., :-1], outputs[..., -1], k)

    if provider.startswith("linear"):
        return two_steps
    if provider == "torch.compile":
        return lambda *a: lcs_conv_from_text_reference(*a, k, "taps")
    return lambda *a: lcs_conv_from_text(*a, k, backend=provider)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_lcs_conv_from_text(measure, new, shape, gradient, provider):
    b, c, t, h, w, k = SHAPES[shape]
    texts, pixels = (F.normalize(x, dim=d) for x, d in ((new(b, t, c), 2), (new(b, c, h, w), 1)))
    inputs = [texts, new(c * k * k + 1, c), new(c * k * k + 1), pixels]
    flops = 2.0 * b * t * c * k * k * (c + h * w)
    nbytes = (b * t * c + c * k * k * c + b * c * h * w + b * t * h * w) * texts.element_size()
    reference = form("linear, then loop of conv2d", k)
    measure("lcs_conv_from_text", shape, provider, form(provider, k), reference, inputs, gradient, flops, nbytes)
