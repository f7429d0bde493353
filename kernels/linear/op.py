"""linear and mlp: schemas, shape rules, gradients and backends."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import LayerNorm
from torch.utils.checkpoint import checkpoint

from .._activation import activate
from .._dispatch import able_backends, check_same, check_shape, differentiated, dispatch, register
from .._layers import check_activation, check_layer, check_mlp, check_rows, check_vector
from .._library import define, first_order_only, overload, register_autograd
from ..linear_int8.op import Int8Weight, linear_int8, mlp_int8
from .reference import linear_reference, mlp_reference

Weight = Tensor | Int8Weight

COMPILED = (torch.float32, torch.bfloat16)
WIDEST = 8192  # channels of an MLP's rows, which Triton's programs keep in registers


class Norm(NamedTuple):
    """A LayerNorm over the last axis, applied to the input of a layer."""

    weight: Tensor  # [K]
    bias: Tensor  # [K]
    eps: float

    @classmethod
    def of(cls, layer: LayerNorm) -> "Norm":
        return cls(layer.weight, layer.bias, layer.eps)


def _check_norm(op: str, x: Tensor, norm: Norm | None) -> None:
    if norm is not None:
        check_vector(op, "norm.weight", norm.weight, x.shape[-1])
        check_vector(op, "norm.bias", norm.bias, x.shape[-1])


def _given(**named: Tensor | None) -> dict[str, Tensor]:
    return {name: x for name, x in named.items() if x is not None}


def _check(x, weight, bias, norm_weight, norm_bias, eps, activation, residual):
    others = _given(weight=weight, bias=bias, norm_weight=norm_weight, norm_bias=norm_bias, residual=residual)
    check_same("linear", x=x, **others)
    check_rows("linear", x, weight, bias, norm_weight, norm_bias, eps, activation, residual)


def _check_mlp(x, norm_weight, norm_bias, eps, weight1, bias1, weight2, bias2, activation):
    weights = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    check_same("mlp", x=x, norm_weight=norm_weight, norm_bias=norm_bias, **weights)
    check_mlp("mlp", x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, activation)


def _check_mlp_of_sum(x, added, *others):
    _check_mlp(x, *others)
    if added is not None:
        check_same("mlp_of_sum", x=x, added=added)
        check_shape("mlp_of_sum", "added", added, x.shape)


def _check_mlp_backward(grad, x, weight1, bias1, weight2, activation, weights):
    op = "mlp_backward"
    check_same(op, x=x, grad=grad, weight1=weight1, bias1=bias1, weight2=weight2)
    check_mlp(op, x, None, None, weight1, bias1, weight2, None, activation)
    check_shape(op, "grad", grad, x.shape)


def _fake(x, weight, bias, norm_weight, norm_bias, eps, activation, residual):
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_mlp(x, *_):
    return x.new_empty(x.shape)


def _fake_mlp_backward(grad, x, weight1, bias1, weight2, activation, weights):
    sizes = (weight1.shape, bias1.shape, weight2.shape) if weights else ((0,),) * 3
    return x.new_empty(x.shape), *(x.new_empty(size) for size in sizes)


def _again(grad: Tensor, needed: Sequence[bool], reference: Callable[..., Tensor], *args: Any) -> list[Tensor | None]:
    """The gradients of the arguments by PyTorch's own operations, which can be differentiated again."""
    with torch.enable_grad():
        y = reference(*args)
    wanted = [x for x, need in zip(args, needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needed]


class _Normalised(NamedTuple):
    """The rows that a layer multiplied, and what the gradient of its LayerNorm needs (None: there is no norm)."""

    rows: Tensor
    of: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None  # input, mean, 1 / deviation, weight, bias

    @classmethod
    def again(cls, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> "_Normalised":
        if scale is None or shift is None:
            return cls(x, None)
        rows, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        return cls(rows, (x, mean, inverse, scale, shift))

    def backward(self, grad: Tensor | None, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Of x, the norm's weight and bias, from the gradient of the rows."""
        if self.of is None or grad is None:
            return grad, None, None
        x, *rest = self.of
        return torch.ops.aten.native_layer_norm_backward(grad, x, x.shape[-1:], *rest, list(needed))


def _save(ctx, inputs, output):
    x, weight, bias, norm_weight, norm_bias, ctx.eps, ctx.activation, _ = inputs
    ctx.save_for_backward(x, weight, bias, norm_weight, norm_bias)


def _backward(ctx, ops, grad):
    # y = x Wᵀ + b:  dx = g W,  dW = gᵀ x,  db = Σ g: two more products of the same kind
    if ctx.activation != "none":
        raise RuntimeError("the op linear has no gradient with an activation")
    x, weight, bias, scale, shift = ctx.saved_tensors
    *needed, added = ctx.needs_input_grad
    added = grad if added else None
    if torch.is_grad_enabled():
        args = (x, weight, bias, scale, shift, ctx.eps, "none")
        return *_again(grad, needed, lambda *args: linear_reference(*args, None), *args), added
    product = lambda a, b: ops("linear")(a, b, None, None, None, 0.0, "none", None)  # noqa: E731
    before = _Normalised.again(x, scale, shift, ctx.eps)
    dw = product(grad.t(), before.rows.t()) if needed[1] else None
    db = grad.sum(0) if needed[2] else None
    of_x = (needed[0], *needed[3:5])
    dx, dscale, dshift = before.backward(product(grad, weight.t()) if any(of_x) else None, of_x)
    return dx, dw, db, dscale, dshift, None, None, added


def _save_mlp(ctx, inputs, output):
    *tensors, ctx.activation = inputs
    ctx.eps = tensors.pop(3)
    ctx.save_for_backward(*tensors)


def _backward_mlp(ctx, ops, grad):
    x, scale, shift, weight1, bias1, weight2, bias2 = ctx.saved_tensors
    needed = ctx.needs_input_grad
    if torch.is_grad_enabled():
        args = (x, scale, shift, ctx.eps, weight1, bias1, weight2, bias2, ctx.activation)
        return tuple(_again(grad, needed, mlp_reference, *args))
    before = _Normalised.again(x, scale, shift, ctx.eps)
    grad = grad.contiguous()
    args = (grad, before.rows, weight1, bias1, weight2, ctx.activation, any(needed[4:7]))
    drows, *weights = ops("mlp_backward")(*args)
    dx, dscale, dshift = before.backward(drows, needed[:3])
    dw1, db1, dw2 = (d if need else None for d, need in zip(weights, needed[4:7], strict=True))
    db2 = grad.sum(0) if needed[7] else None
    return dx + grad if needed[0] else None, dscale, dshift, None, dw1, db1, dw2, db2, None


define(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, float eps, str activation,"
    " Tensor? residual) -> Tensor",
    _check,
    _fake,
    __package__,
)
define(
    "mlp",
    "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight1, Tensor bias1, Tensor weight2,"
    " Tensor bias2, str activation) -> Tensor",
    _check_mlp,
    _fake_mlp,
    __package__,
)
define(
    "mlp_of_sum",
    "(Tensor x, Tensor? added, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight1, Tensor bias1,"
    " Tensor weight2, Tensor bias2, str activation) -> Tensor",
    _check_mlp_of_sum,
    _fake_mlp,
    __package__,
)
define(
    "mlp_backward",
    "(Tensor grad, Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, str activation, bool weights)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _check_mlp_backward,
    _fake_mlp_backward,
    __package__,
)
register_autograd("linear", _save, _backward)
register_autograd("mlp", _save_mlp, _backward_mlp)
first_order_only("mlp_backward")


def _no_kernel(x: Tensor, *_) -> str:
    return "" if x.dtype in COMPILED else f"{x.dtype} is left to PyTorch's own product"


def _has_amx() -> bool:
    read = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that is supported
    return bool(read and read().get("amx_bf16"))


AMX = _has_amx()


def _matrix_instructions(x: Tensor, *_) -> str:
    """AMX has several times the rate of AVX512_BF16. PyTorch's product on it was not measured."""
    return "PyTorch's product uses this processor's AMX" if AMX and x.dtype == torch.bfloat16 else ""


def _no_triton(*_) -> str:
    return "there is no Triton kernel: on a GPU PyTorch's own product runs"


def _no_triton_mlp(x: Tensor, *others) -> str:
    if x.shape[-1] > WIDEST:
        return f"x has {x.shape[-1]} channels, more than {WIDEST}"
    own = (arg for arg in others if isinstance(arg, Tensor))
    return "Triton's form has no gradient" if differentiated(x, *own) else ""


for _op, _reference, _limit in (("linear", linear_reference, _no_triton), ("mlp", mlp_reference, _no_triton_mlp)):
    register(
        _op,
        _reference,
        prefer_reference={"cpp": _matrix_instructions},
        native=(torch.bfloat16,),
        cpp=_no_kernel,
        triton=_limit,
        cuda=lambda *_: "there is no CUDA kernel: on a GPU PyTorch's own product runs",
    )


def _left_to_pytorch(x: Tensor, backend: str) -> bool:
    """A choice, not a fallback: on a GPU PyTorch's products are the fast ones, and autocast decides for every part."""
    if backend != "auto":
        return backend == "reference"
    return x.device.type != "cpu" or x.dtype not in COMPILED or torch.is_autocast_enabled("cpu")


def _fused_on_gpu(x: Tensor, *others: Weight | None) -> bool:
    """Whether Triton's form of `mlp` runs: in inference, and not where torch.compile fuses PyTorch's operations."""
    if x.device.type != "cuda" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda"):
        return False
    if "triton" not in able_backends("mlp", (x,)).named or x.shape[-1] > WIDEST:
        return False
    tensors = [y for y in others if isinstance(y, Tensor)]
    return len(tensors) == len([y for y in others if y is not None]) and not differentiated(x, *tensors)


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""A linear layer in one pass, with the LayerNorm before it and the activation and residual after it:

        y = activation(LayerNorm(x) weightᵀ + bias) + residual

    x           [..., K]  float32, float64, float16 or bfloat16; any strides
    weight      [N, K]    any strides; packed within the call, so that no copy is kept and none can be stale. Or an
                          Int8Weight, with which the rows of x get 8 bits too: inexact, and without a gradient
    bias        [N]
    norm        Norm(weight [K], bias [K], eps); None: none
    activation  "none", "relu", "gelu" (exact, by the error function) or "quick_gelu" (OpenAI's, x · sigmoid(1.702 x))
    residual    [..., N], added last
    returns     [..., N]  dtype of x; sums, norm and activation in float32

    Differentiable any number of times; the activation and the residual after one are then operations of their own, and
    the backward pass normalises x again. On a GPU, under
    autocast, and in float64 and float16 PyTorch's own operations run. x may have no rows. ``backend`` is "auto" or a
    name that ``explain`` lists. Raises ValueError for mismatched shapes or devices and an unknown activation, TypeError
    for mismatched dtypes.
    """
    check_layer("linear", "weight", x, weight, bias)
    _check_norm("linear", x, norm)
    check_activation("linear", activation)
    expected = [*x.shape[:-1], weight.shape[0]]
    if residual is not None and list(residual.shape) != expected:
        raise ValueError(f"linear: residual has shape {list(residual.shape)}; expected {expected}")
    if isinstance(weight, Int8Weight):
        return linear_int8(x, weight, bias, norm, activation, residual, backend=backend)
    scale, shift, eps = norm or (None, None, 0.0)
    if _left_to_pytorch(x, backend):
        return linear_reference(x, weight, bias, scale, shift, eps, activation, residual)
    named = {"x": x, "weight": weight, "bias": bias, "norm.weight": scale, "norm.bias": shift, "residual": residual}
    check_same("linear", **{name: tensor for name, tensor in named.items() if tensor is not None})
    if activation != "none" and differentiated(*named.values()):
        y = activate(_rows_through(x, backend, weight, bias, scale, shift, eps, "none", None), activation)
        return y if residual is None else y + residual
    if residual is not None:
        residual = residual.reshape(prod(expected[:-1]), weight.shape[0])
    return _rows_through(x, backend, weight, bias, scale, shift, eps, activation, residual)


def _matrix(x: Tensor) -> Tensor:
    """x [..., K] as rows [R, K]."""
    return x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(prod(x.shape[:-1]), 0)  # -1 of 0 is not defined


def _rows_through(x: Tensor, backend: str, weight: Tensor, *args) -> Tensor:
    """The op on x as a matrix."""
    y = dispatch("linear", backend, _matrix(x), weight, *args)
    return y.view(*x.shape[:-1], weight.shape[0])


def _check_call_of_mlp(
    x: Tensor, norm: Norm, weight1: Weight, bias1: Tensor, weight2: Weight, bias2: Tensor, activation: str,
    added: Tensor | None,
) -> None:  # fmt: skip
    check_layer("mlp", "weight1", x, weight1, bias1)
    _check_norm("mlp", x, norm)
    check_activation("mlp", activation)
    if list(weight2.shape) != [x.shape[-1], weight1.shape[0]]:
        expected = [x.shape[-1], weight1.shape[0]]
        raise ValueError(f"mlp: weight2 has shape {list(weight2.shape)}; expected {expected}")
    check_vector("mlp", "bias2", bias2, x.shape[-1])
    if added is not None and added.shape != x.shape:
        raise ValueError(f"mlp: added has shape {list(added.shape)}; expected that of x, {list(x.shape)}")


def mlp(
    x: Tensor,
    norm: Norm,
    weight1: Weight,
    bias1: Tensor,
    weight2: Weight,
    bias2: Tensor,
    activation: str,
    *,
    added: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""The second half of a pre-norm transformer block, in one pass:

        y = x + weight2 activation(weight1 LayerNorm(x) + bias1) + bias2

    x                [..., D]  float32, float64, float16 or bfloat16; any strides
    norm             Norm(weight [D], bias [D], eps)
    weight1, bias1   [M, D], [M]
    weight2, bias2   [D, M], [D]; both weights tensors, or both Int8Weight, as for ``linear``
    activation       "none", "relu", "gelu" or "quick_gelu", as for ``linear``
    added            [..., D]  what the first half of the block adds to x, in x + added instead of x; on a GPU in the
                     same pass as the norm
    returns          [..., D]  dtype of x; sums, norm and activation in float32

    The hidden values, M a row, stay in the cache if both weights together do. Differentiable any number of times; of
    the hidden values nothing is kept: the backward pass computes them again. Backends, choices and errors are those
    of ``linear``, but for Triton's form, which has no gradient and runs on a GPU in inference, outside autocast.
    """
    _check_call_of_mlp(x, norm, weight1, bias1, weight2, bias2, activation, added)
    fused = backend == "auto" and _fused_on_gpu(x, added, norm.weight, norm.bias, weight1, bias1, weight2, bias2)
    if added is not None and not fused:
        x, added = x + added, None
    if isinstance(weight1, Int8Weight) and isinstance(weight2, Int8Weight):
        return mlp_int8(x, norm, weight1, bias1, weight2, bias2, activation, backend=backend)
    if not (isinstance(weight1, Tensor) and isinstance(weight2, Tensor)):
        raise TypeError("mlp: weight1 and weight2 must both be tensors or both Int8Weight")
    if _left_to_pytorch(x, backend) and not fused and not differentiated(x, *norm[:2], weight1, weight2):
        return mlp_reference(x, *norm, weight1, bias1, weight2, bias2, activation)
    if x.device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(x.device.type):
        named = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
        check_same("mlp", x=x, **{"norm.weight": norm.weight, "norm.bias": norm.bias}, **named)
    if fused:
        check_same("mlp", x=x, **({} if added is None else {"added": added}))
        rows, more = (None if y is None else _matrix(y) for y in (x, added))
        run = overload("mlp_of_sum", "triton")
        return run(rows, more, *norm, weight1, bias1, weight2, bias2, activation).view(x.shape)
    if _left_to_pytorch(x, backend):
        hidden = linear(x, weight1, bias1, norm=norm, backend=backend)

        def rest(hidden: Tensor) -> Tensor:
            return linear(activate(hidden, activation), weight2, bias2, backend=backend)

        return x + checkpoint(rest, hidden, use_reentrant=False, preserve_rng_state=False)
    return dispatch("mlp", backend, _matrix(x), *norm, weight1, bias1, weight2, bias2, activation).view(x.shape)
