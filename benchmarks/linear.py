"""linear and mlp against PyTorch's layers one after the other, with the shapes of the model's layers.

linear, on a CPU: 2*M*K*N operations; x, weight and residual are read once, y is written once. A GPU has PyTorch's own
product. mlp, in inference: 4*M*D*N operations for N hidden values a row; x and the weights are read once, y is written
once, and on a GPU N hidden values a row are written and read.
"""

from typing import NamedTuple

import pytest
from shapes import DEVICE, providers

from fgaseg.kernels import Norm, linear, mlp
from fgaseg.kernels.linear.reference import linear_reference, mlp_reference


class Layer(NamedTuple):
    """M rows of K channels to N channels."""

    m: int
    k: int
    n: int
    activation: str = "none"
    residual: bool = False


SHAPES = {
    "tower qkv": Layer(577, 768, 768),
    "tower fc1": Layer(577, 768, 3072, "quick_gelu"),
    "tower fc2": Layer(577, 3072, 768, residual=True),
    "maps qkv": Layer(4608, 128, 384),
    "maps fc1": Layer(4608, 128, 512, "gelu"),
    "maps fc2": Layer(4608, 512, 128, residual=True),
}


# T classes of 24×24 patches in the aggregation, and the image tower
MLPS = {
    "small": Layer(65, 24, 96, "quick_gelu"),
    **{f"T={t}": Layer(t * 576, 128, 512, "gelu") for t in (20, 150, 847)},
    "tower": Layer(577, 768, 3072, "quick_gelu"),
}


def form(provider: str, shape: Layer):
    def run(x, weight, bias, scale, shift, residual):
        extra = residual[0] if shape.residual else None
        args = x[0], weight[0, 0], bias[0, 0, 0]
        vectors = scale[0, 0, 0], shift[0, 0, 0]
        if provider in ("layers", "torch.compile"):
            return linear_reference(*args, *vectors, 1e-5, shape.activation, extra)[None]
        norm = Norm(*vectors, 1e-5)
        return linear(*args, norm=norm, activation=shape.activation, residual=extra, backend=provider)[None]

    return run


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU it is PyTorch's own product")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", [p for p in providers("linear", "layers") if p != "reference"])
def test_linear(measure, new, shape, gradient, provider):
    layer = SHAPES[shape]
    m, k, n = layer[:3]
    inputs = [new(1, m, k), new(1, 1, n, k), *(new(1, 1, 1, c) for c in (n, k, k)), new(1, m, n)]
    elements = m * k + k * n + m * n * (2 if layer.residual else 1)
    measure(
        "linear", shape, provider, form(provider, layer), form("layers", layer), inputs, gradient, 2.0 * m * k * n,
        inputs[0].element_size() * elements,
    )  # fmt: skip


def mlp_form(provider: str, shape: Layer):
    def run(x, weight1, weight2, bias1, scale, shift, bias2):
        args = weight1[0, 0], bias1[0, 0, 0], weight2[0, 0], bias2[0, 0, 0], shape.activation
        norm = Norm(scale[0, 0, 0], shift[0, 0, 0], 1e-5)
        if provider in ("layers", "torch.compile"):
            return mlp_reference(x[0], *norm, *args)[None]
        return mlp(x[0], norm, *args, backend=provider)[None]

    return run


@pytest.mark.parametrize("shape", MLPS)
@pytest.mark.parametrize("provider", [p for p in providers("linear", "layers") if p != "reference"])
def test_mlp(measure, new, shape, provider):
    layer = MLPS[shape]
    m, d, n = layer[:3]
    inputs = [new(1, m, d), new(1, 1, n, d), new(1, 1, d, n), *(new(1, 1, 1, c) for c in (n, d, d, d))]
    hidden = 2 * m * n if DEVICE == "cuda" else 0
    measure(
        "mlp", shape, provider, mlp_form(provider, layer), mlp_form("layers", layer), inputs, False, 4.0 * m * d * n,
        inputs[0].element_size() * (2 * m * d + 2 * d * n + hidden),
    )  # fmt: skip
