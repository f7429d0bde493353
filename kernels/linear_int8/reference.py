"""linear_int8 and mlp_int8 in PyTorch, and how weights and activations become 8 bits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._activation import activate
from ..class_attention.reference import accumulator

SMALLEST = 1e-30  # range of a row of activations; its values are 0 below


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [N, K] as int8 between -127 and 127 and a float32 scale [N]: weight ≈ values · scale."""
    weight = weight.detach().to(accumulator(weight.dtype))
    scale = weight.abs().amax(1) / 127 if weight.shape[1] else weight.new_zeros(len(weight))
    values = torch.where(scale[:, None] > 0, weight / scale[:, None], 0.0).round()
    return values.to(torch.int8), scale.float()


def steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations [R, K] as integers and the step [R, 1] of each row: x ≈ integers · step.

    A row's range, widened to contain 0, has 256 codes, of which one is 0. A row with a value that is not finite has the
    step NaN.
    """
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    span = high - low
    inverse = torch.where(span > SMALLEST, torch.full_like(span, 255) / span, 0.0)  # 255 / span is a reciprocal first
    zero = (-low * inverse).round()
    codes = ((x * inverse).round() + zero).clamp(0, 255) - zero
    return codes.nan_to_num(0.0), torch.where(span.isfinite(), span / 255, torch.nan)


def linear_int8_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    """activation(integers of LayerNorm(x) · weightᵀ · step · scale + bias) + residual, in float32 or float64."""
    dtype = accumulator(x.dtype)
    wide = [None if t is None else t.to(dtype) for t in (bias, norm_weight, norm_bias, residual)]
    bias, norm_weight, norm_bias, residual = wide
    y = x.to(dtype)
    if norm_weight is not None:
        y = F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)
    integers, step = steps(y) if y.numel() else (y, y.new_zeros(len(y), 1))
    y = F.linear(integers, weight.to(dtype)) * (step * scale.to(dtype))
    y = activate(y if bias is None else y + bias, activation)
    return (y if residual is None else y + residual).to(x.dtype)


def mlp_int8_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight1: Tensor,
    scale1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    scale2: Tensor,
    bias2: Tensor,
    activation: str,
) -> Tensor:
    """x + the second layer of the first one's activation; the hidden values keep the width of sums."""
    wide = x.to(accumulator(x.dtype))
    hidden = linear_int8_reference(wide, weight1, scale1, bias1, norm_weight, norm_bias, eps, activation, None)
    return linear_int8_reference(hidden, weight2, scale2, bias2, None, None, eps, "none", wide).to(x.dtype)
