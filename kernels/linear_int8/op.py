"""linear_int8 and mlp_int8: the weight, schemas, shape rules and backends."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._dispatch import DTYPES, dispatch, register
from .._layers import check_mlp, check_rows
from .._library import define
from .reference import linear_int8_reference, mlp_int8_reference, quantized

LONGEST = 2**16  # channels: the sums of longer products might not fit 32 bits


class Int8Weight(nn.Module):
    """A weight [N, K] in 8 bits, for `linear` and `mlp` in place of a tensor: values · scale.

    values  int8 [N, K], -127 to 127
    scale   float32 [N]: the largest absolute weight of each output channel, over 127

    A buffer each, without a gradient; the scale stays float32 whatever the rest of a model is converted to.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, values: Tensor, scale: Tensor):
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, weight: Tensor) -> "Int8Weight":
        """The nearest to a weight [N, K] of any floating type."""
        return cls(*quantized(weight))

    @classmethod
    def stacked(cls, weights: "Sequence[Int8Weight]") -> "Int8Weight":
        """Several weights on the same input as one, below each other."""
        return cls(torch.cat([w.values for w in weights]), torch.cat([w.scale for w in weights]))

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def dtype(self) -> torch.dtype:
        """int8."""
        return self.values.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(lambda x: fn(x).to(x.dtype) if x.is_floating_point() else fn(x), recurse)


def _check_weights(op: str, x: Tensor, *weights: tuple[Tensor, Tensor]) -> None:
    """Of the dtypes of x and of weights (values, scale)."""
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: x has dtype {x.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    for values, scale in weights:
        matrix = values.dtype == torch.int8 and values.dim() == 2
        if not matrix or scale.dtype != torch.float32 or list(scale.shape) != [values.shape[0]]:
            found = f"{values.dtype} {list(values.shape)} with scales {scale.dtype} {list(scale.shape)}"
            raise ValueError(f"{op}: the weight is {found}; expected int8 [N, K] with scales [N], as of Int8Weight.of")
        if not 1 <= values.shape[1] <= LONGEST:
            raise ValueError(f"{op}: the weight has {values.shape[1]} input channels; expected 1 to {LONGEST}")


def _check_types(op: str, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], *others: Tensor | None) -> None:
    _check_weights(op, x, *weights)
    for tensor in (*others, *(part for weight in weights for part in weight)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{op}: a tensor is on {tensor.device} but x is on {x.device}; move one with .to()")
    for tensor in others:
        if tensor is not None and tensor.dtype not in DTYPES:
            raise TypeError(f"{op}: a bias, norm or residual has dtype {tensor.dtype}; expected floating-point numbers")


def _check(x, weight, scale, bias, norm_weight, norm_bias, eps, activation, residual):
    _check_types("linear_int8", x, [(weight, scale)], bias, norm_weight, norm_bias, residual)
    check_rows("linear_int8", x, weight, bias, norm_weight, norm_bias, eps, activation, residual)
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f"linear_int8: residual has dtype {residual.dtype} but x has {x.dtype}; convert one with .to()")


def _check_mlp(x, norm_weight, norm_bias, eps, weight1, scale1, bias1, weight2, scale2, bias2, activation):
    weights = [(weight1, scale1), (weight2, scale2)]
    _check_types("mlp_int8", x, weights, norm_weight, norm_bias, bias1, bias2)
    check_mlp("mlp_int8", x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, activation)


def _fake(x, weight, scale, bias, norm_weight, norm_bias, eps, activation, residual):
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_mlp(x, *_):
    return x.new_empty(x.shape)


define(
    "linear_int8",
    "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, float eps,"
    " str activation, Tensor? residual) -> Tensor",
    _check,
    _fake,
    __package__,
)
define(
    "mlp_int8",
    "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight1, Tensor scale1, Tensor bias1,"
    " Tensor weight2, Tensor scale2, Tensor bias2, str activation) -> Tensor",
    _check_mlp,
    _fake_mlp,
    __package__,
)


def _no_kernel(x: Tensor, *_) -> str:
    return "" if x.dtype in (torch.float32, torch.bfloat16) else f"{x.dtype} is left to PyTorch's own product"


for _op, _reference in (("linear_int8", linear_int8_reference), ("mlp_int8", mlp_int8_reference)):
    register(
        _op,
        _reference,
        cpp=_no_kernel,
        triton=lambda *_: "there is no Triton kernel: on a GPU the reference multiplies the integers in float32",
        cuda=lambda *_: "there is no CUDA kernel: on a GPU the reference multiplies the integers in float32",
    )


def _backend(x: Tensor, backend: str) -> str:
    """A choice, not a fallback: on a GPU, in float64 and in float16 there is nothing but the reference."""
    left = x.device.type != "cpu" or _no_kernel(x)
    return "reference" if backend == "auto" and left else backend


def _check_no_gradient(op: str, *tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise RuntimeError(f"{op}: has no gradient, and one is recorded; use torch.no_grad() or the weight as it was")


def linear_int8(
    x: Tensor,
    weight: Int8Weight,
    bias: Tensor | None = None,
    norm: tuple[Tensor, Tensor, float] | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""`linear` with a weight in 8 bits, which calls this op; shapes are those of `linear`, which checks them.

        y[i, j] = activation(step[i] scale[j] sum_k (code[i, k] - zero[i]) values[j, k] + bias[j]) + residual[i, j]

    where code, 0 to 255, is z = LayerNorm(x) in 8 bits: with the range of row i of z, widened to contain 0,
    step = (high - low) / 255, zero = round(-low / step), code = round(z / step) + zero; halves are rounded to even. The
    sum is exact. A row with a value that is not finite becomes NaN.

    x        [..., K]  float32 and bfloat16; float64 and float16 are left to the reference; K at most 65536
    returns  [..., N]  dtype of x

    Without a gradient: raises RuntimeError where one would be recorded. Raises TypeError and ValueError for other types
    of weights.
    """
    _check_weights("linear_int8", x, (weight.values, weight.scale))
    _check_no_gradient("linear_int8", x, bias, residual, *(norm or ())[:2])
    rows = x.reshape(-1, x.shape[-1])
    if residual is not None:
        residual = residual.reshape(len(rows), weight.shape[0]).to(x.dtype)
    call = (rows, weight.values, weight.scale, bias, *(norm or (None, None, 0.0)), activation, residual)
    return dispatch("linear_int8", _backend(x, backend), *call).view(*x.shape[:-1], weight.shape[0])


def mlp_int8(
    x: Tensor,
    norm: tuple[Tensor, Tensor, float],
    weight1: Int8Weight,
    bias1: Tensor,
    weight2: Int8Weight,
    bias2: Tensor,
    activation: str,
    *,
    backend: str = "auto",
) -> Tensor:
    """`mlp` with weights in 8 bits, which calls this op and checks the shapes; x and the hidden values are coded."""
    _check_weights("mlp_int8", x, *((w.values, w.scale) for w in (weight1, weight2)))
    _check_no_gradient("mlp_int8", x, bias1, bias2, *norm[:2])
    one, two = (weight1.values, weight1.scale, bias1), (weight2.values, weight2.scale, bias2)
    rows = x.reshape(-1, x.shape[-1])
    return dispatch("mlp_int8", _backend(x, backend), rows, *norm, *one, *two, activation).view(x.shape)
