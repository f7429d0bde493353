"""The shapes that the ops for linear layers take, in any kind of weight."""

from typing import Any

from torch import Tensor

from ._dispatch import check_shape

ACTIVATIONS = ("none", "relu", "gelu", "quick_gelu")


def check_layer(op: str, name: str, x: Tensor, weight: Any, bias: Tensor | None) -> None:
    """Raises ValueError unless weight, of any kind that has a shape, and bias fit x [..., K]."""
    if x.dim() < 1 or len(weight.shape) != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{op}: x has shape {list(x.shape)} and {name} {list(weight.shape)}; expected [..., K] and [N, K]"
        )
    check_vector(op, name.replace("weight", "bias"), bias, weight.shape[0])


def check_vector(op: str, name: str, vector: Tensor | None, length: int) -> None:
    """Raises ValueError unless the vector, if there is one, has this length."""
    if vector is not None and (vector.dim() != 1 or vector.shape[0] != length):
        raise ValueError(f"{op}: {name} has shape {list(vector.shape)}; expected [{length}]")


def check_activation(op: str, activation: str) -> None:
    """Raises ValueError for an unknown activation."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")


def check_rows(op, x, weight, bias, norm_weight, norm_bias, eps, activation, residual):
    """Raises ValueError unless the shapes are those of the op linear, or linear_int8."""
    if x.dim() != 2:
        raise ValueError(f"{op}: x has shape {list(x.shape)}; expected [R, K]")
    check_layer(op, "weight", x, weight, bias)
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError(f"{op}: a norm needs norm_weight and norm_bias")
    check_vector(op, "norm_weight", norm_weight, x.shape[1])
    check_vector(op, "norm_bias", norm_bias, x.shape[1])
    check_activation(op, activation)
    if residual is not None:
        check_shape(op, "residual", residual, [x.shape[0], weight.shape[0]])


def check_mlp(op, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, activation):
    """Raises ValueError unless the shapes are those of the op mlp, or mlp_int8."""
    check_rows(op, x, weight1, bias1, norm_weight, norm_bias, 0.0, activation, None)
    check_shape(op, "weight2", weight2, [x.shape[1], weight1.shape[0]])
    check_vector(op, "bias2", bias2, x.shape[1])
