"""linear and mlp in PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def activate(x: Tensor, activation: str) -> Tensor:
    """ "none", "relu", "gelu" (exact) or "quick_gelu", x · sigmoid(1.702 x)."""
    if activation == "quick_gelu":
        return x * (1.702 * x).sigmoid()
    return {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}[activation](x)


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
