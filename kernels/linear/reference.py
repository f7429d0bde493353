"""linear and mlp in PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from .._activation import activate


def linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """activation(LayerNorm(x) weightᵀ + bias) + residual."""
    if norm_weight is not None:
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    y = activate(F.linear(x, weight, bias), activation)
    return y if residual is None else y + residual


def mlp_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    activation: str,
) -> Tensor:
    """x + weight2 activation(weight1 LayerNorm(x) + bias1) + bias2."""
    hidden = linear_reference(x, weight1, bias1, norm_weight, norm_bias, eps, activation, None)
    return linear_reference(hidden, weight2, bias2, None, None, eps, "none", x)
