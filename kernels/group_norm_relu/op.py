"""group_norm_relu: schema, shape rule, gradient and backends."""

import torch
from torch import Tensor

from .._dispatch import check_same, check_shape, dispatch, register
from .._library import define, empty_like, first_order_only, register_autograd
from .reference import group_norm_relu_reference

WIDEST = 4096  # channels of a group, which Triton's programs keep in registers


def _check(x: Tensor, weight: Tensor, bias: Tensor, groups: int, *_) -> None:
    op = "group_norm_relu"
    check_same(op, x=x, weight=weight, bias=bias)
    if x.dim() != 4 or any(n < 1 for n in x.shape[1:]):
        raise ValueError(f"{op}: x has shape {list(x.shape)}; expected [N, H, W, C], H, W and C at least 1")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector.dim() != 1 or vector.shape[0] != x.shape[3]:
            raise ValueError(f"{op}: {name} has shape {list(vector.shape)}; expected [{x.shape[3]}]")
    if groups < 1 or x.shape[3] % groups:
        raise ValueError(f"{op}: groups is {groups}; expected a divisor of C = {x.shape[3]}")


def _check_backward(grad, x, weight, bias, moments, groups, relu):
    op = "group_norm_relu_backward"
    _check(x, weight, bias, groups)
    check_same(op, x=x, grad=grad)
    check_shape(op, "grad", grad, x.shape)
    check_shape(op, "moments", moments, (x.shape[0], groups, 2))
    if moments.dtype != _wide(x) or moments.device != x.device:
        raise TypeError(f"{op}: moments are {moments.dtype} on {moments.device}; expected {_wide(x)} on {x.device}")


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake(x, weight, bias, groups, eps, relu):
    return x.new_empty(x.shape), x.new_empty(x.shape[0], groups, 2, dtype=_wide(x))


def _fake_backward(grad, x, weight, bias, moments, groups, relu):
    return empty_like(x, weight, bias)


def _save(ctx, inputs, output):
    x, weight, bias, ctx.groups, _, ctx.relu = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, output[1])


def _backward(ctx, ops, grad, _):
    # With u = (x - mean) / deviation, z = w u + b, and g the gradient of z, 0 where ReLU cut z off:
    # dw = sum of g u, db = sum of g, and, with means over a group, dx = (w g - mean(w g) - u mean(w g u)) / deviation
    grads = ops("group_norm_relu_backward")(grad, *ctx.saved_tensors, ctx.groups, ctx.relu)
    return *grads, None, None, None


define(
    "group_norm_relu",
    "(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool relu) -> (Tensor, Tensor)",
    _check,
    _fake,
    __package__,
)
define(
    "group_norm_relu_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor moments, int groups, bool relu)"
    " -> (Tensor, Tensor, Tensor)",
    _check_backward,
    _fake_backward,
    __package__,
)


def _narrow(x: Tensor, weight: Tensor, bias: Tensor, groups: int, *_) -> str:
    size = x.shape[3] // groups
    return "" if size <= WIDEST else f"a group has {size} channels, more than {WIDEST}"


register_autograd("group_norm_relu", _save, _backward)
first_order_only("group_norm_relu_backward")
register(
    "group_norm_relu",
    lambda *args: (group_norm_relu_reference(*args),),
    casts=3,
    casts_to=torch.float32,
    triton=_narrow,
    cuda=lambda *_: "there is no CUDA kernel: Triton's needs few instructions an element",
)


def group_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, relu: bool = True, *, backend: str = "auto"
) -> Tensor:
    r"""GroupNorm, and the ReLU after it, of maps that keep their channels last:

        y = relu(weight (x - mean) / sqrt(variance + eps) + bias)

    with mean and variance over the pixels and the C / groups channels of each group in each map.

    x             [N, H, W, C]  float32, float64, float16 or bfloat16; fastest if it is contiguous; any strides
    weight, bias  [C]           dtype and device of x
    groups        a divisor of C
    relu          False: without the ReLU
    returns       [N, H, W, C]  dtype of x, contiguous; mean and variance in float32, in float64 for float64

    The variance is that of the differences from the mean, so it is right also where the mean is much larger. PyTorch's
    own GroupNorm on a GPU copies such maps to channels first. Differentiable once (the reference any number of times).
    Under autocast it runs in float32, as GroupNorm does. N may be 0. ``backend`` is "auto" or a name that ``explain``
    lists. Source: FGAseg's decoder (section III-D). Raises ValueError for mismatched shapes or devices, TypeError for
    mismatched dtypes.
    """
    return dispatch("group_norm_relu", backend, x, weight, bias, groups, eps, relu)[0]
