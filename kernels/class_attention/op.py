"""class_summary and class_lookup: schemas, shape rules, gradients and backends; class_attention: the two in a row."""

import torch
from torch import Tensor

from .._dispatch import check_same, check_shape, dispatch, register
from .._library import define, empty_like, first_order_only, register_autograd
from .reference import accumulator, class_lookup_reference, class_summary_reference, positive

WIDEST = 64  # channels of a head: Triton's programs keep d*d sums, and as many gradients, in registers


def _check_rows(op: str, name: str, x: Tensor, guidance: Tensor, offsets: Tensor, heads: int) -> None:
    if x.dim() != 3 or heads < 1 or x.shape[2] < 1 or x.shape[2] % heads:
        raise ValueError(
            f"{op}: {name} has shape {list(x.shape)} and heads is {heads}; expected [R, P, D], D a multiple of heads"
        )
    if guidance.dim() != 2 or guidance.shape[0] != x.shape[0] or guidance.shape[1] != x.shape[2]:
        expected = [x.shape[0], x.shape[2]]
        raise ValueError(f"{op}: {name}_guidance has shape {list(guidance.shape)}; expected {expected}")
    if offsets.dtype != torch.int64:
        raise TypeError(f"{op}: offsets has dtype {offsets.dtype}; expected torch.int64")
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"{op}: offsets has shape {list(offsets.shape)}; expected [B+1]")
    _check_device(op, "offsets", offsets, name, x)


def _check_summary(k: Tensor, v: Tensor, k_guidance: Tensor, offsets: Tensor, heads: int) -> None:
    check_same("class_summary", k=k, v=v, k_guidance=k_guidance)
    _check_rows("class_summary", "k", k, k_guidance, offsets, heads)
    if v.shape != k.shape:
        raise ValueError(f"class_summary: v has shape {list(v.shape)}; expected that of k, {list(k.shape)}")


def _check_lookup(
    q: Tensor, q_guidance: Tensor, summary: Tensor, total: Tensor, offsets: Tensor, heads: int, eps: float = 0.0
) -> None:
    check_same("class_lookup", q=q, q_guidance=q_guidance)
    _check_rows("class_lookup", "q", q, q_guidance, offsets, heads)
    _check_sums("class_lookup", "q", q, offsets, heads, summary=summary, total=total)


def _check_sums(op: str, name: str, x: Tensor, offsets: Tensor, heads: int, **named: Tensor) -> None:
    """S and z, or their gradients, for x, which is called ``name``."""
    width = x.shape[2] // heads
    shape = [offsets.shape[0] - 1, x.shape[1], heads, width, width]
    for (of, sums), expected in zip(named.items(), (shape, shape[:-1]), strict=True):
        check_shape(op, of, sums, expected)
        if sums.dtype != accumulator(x.dtype):
            raise TypeError(
                f"{op}: {of} has dtype {sums.dtype}; {name} has {x.dtype} and expects {accumulator(x.dtype)}"
            )
        _check_device(op, of, sums, name, x)


def _check_summary_backward(summary_grad, total_grad, k, v, k_guidance, offsets, heads):
    _check_summary(k, v, k_guidance, offsets, heads)
    _check_sums("class_summary_backward", "k", k, offsets, heads, summary_grad=summary_grad, total_grad=total_grad)


def _check_lookup_backward(grad, q, q_guidance, summary, total, offsets, heads, eps):
    _check_lookup(q, q_guidance, summary, total, offsets, heads)
    check_same("class_lookup_backward", q=q, grad=grad)
    check_shape("class_lookup_backward", "grad", grad, q.shape)


def _check_pads(k: Tensor, **pads: Tensor) -> None:
    for name, pad in pads.items():
        if pad.dim() != 1 or pad.shape[0] != k.shape[2]:
            raise ValueError(f"class_attention: {name} has shape {list(pad.shape)}; expected [{k.shape[2]}]")
        _check_device("class_attention", name, pad, "k", k)


def _check_device(op: str, name: str, x: Tensor, first: str, expected: Tensor) -> None:
    if x.device != expected.device:
        raise ValueError(f"{op}: {name} is on {x.device} but {first} is on {expected.device}; move one with .to()")


def _fake_summary(k, v, k_guidance, offsets, heads):
    batch, pixels, width = offsets.shape[0] - 1, k.shape[1], k.shape[2] // heads
    dtype = accumulator(k.dtype)
    return (
        k.new_empty(batch, pixels, heads, width, width, dtype=dtype),
        k.new_empty(batch, pixels, heads, width, dtype=dtype),
    )


def _fake_summary_backward(summary_grad, total_grad, k, v, k_guidance, offsets, heads):
    return empty_like(k, v, k_guidance)


def _save_summary(ctx, inputs, output):
    *tensors, ctx.heads = inputs
    ctx.save_for_backward(*tensors)


def _summary_backward(ctx, ops, summary_grad, total_grad):
    # phi = elu + 1 is recomputed; its slope is min(phi, 1):
    # dk = min(phi, 1) (dS v + dz),  dv = dS^T phi,  dk_guidance = sum over pixels of dk
    grads = ops("class_summary_backward")(summary_grad, total_grad, *ctx.saved_tensors, ctx.heads)
    return *grads, None, None


def _fake_lookup(q, q_guidance, summary, total, offsets, heads, eps):
    return q.new_empty(q.shape)


def _fake_lookup_backward(grad, q, q_guidance, summary, total, offsets, heads, eps):
    return empty_like(q, q_guidance, summary, total)


def _save_lookup(ctx, inputs, output):
    *tensors, ctx.heads, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _lookup_backward(ctx, ops, grad):
    # with n = phi S and w = phi . z + eps:  dn = g / w,  dw = -(g . n) / w^2,
    # dq = min(phi, 1) (S dn + z dw),  dS = sum over rows of phi dn^T,  dz = sum over rows of phi dw
    grads = ops("class_lookup_backward")(grad, *ctx.saved_tensors, ctx.heads, ctx.eps)
    return *grads, None, None, None


define(
    "class_summary",
    "(Tensor k, Tensor v, Tensor k_guidance, Tensor offsets, int heads) -> (Tensor, Tensor)",
    _check_summary,
    _fake_summary,
    __package__,
)
define(
    "class_summary_backward",
    "(Tensor summary_grad, Tensor total_grad, Tensor k, Tensor v, Tensor k_guidance, Tensor offsets, int heads)"
    " -> (Tensor, Tensor, Tensor)",
    _check_summary_backward,
    _fake_summary_backward,
    __package__,
)
define(
    "class_lookup",
    "(Tensor q, Tensor q_guidance, Tensor summary, Tensor total, Tensor offsets, int heads, float eps) -> Tensor",
    _check_lookup,
    _fake_lookup,
    __package__,
)
define(
    "class_lookup_backward",
    "(Tensor grad, Tensor q, Tensor q_guidance, Tensor summary, Tensor total, Tensor offsets, int heads, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _check_lookup_backward,
    _fake_lookup_backward,
    __package__,
)
register_autograd("class_summary", _save_summary, _summary_backward)
register_autograd("class_lookup", _save_lookup, _lookup_backward)
first_order_only("class_summary_backward")
first_order_only("class_lookup_backward")


def _no_cuda(*_) -> str:
    return "there is no CUDA kernel: Triton's reads and writes every element once, as one in CUDA would"


def _too_wide(x: Tensor, *others) -> str:
    width = x.shape[2] // next(arg for arg in others if isinstance(arg, int))
    return "" if width <= WIDEST else f"a head has {width} channels, more than {WIDEST}"


register("class_summary", class_summary_reference, casts=3, triton=_too_wide, cuda=_no_cuda)
register("class_lookup", class_lookup_reference, casts=2, triton=_too_wide, cuda=_no_cuda)


def class_summary(
    k: Tensor, v: Tensor, k_guidance: Tensor, offsets: Tensor, heads: int, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""The sums over an image's classes that linear attention needs at every pixel: keys times values, and keys.

        phi(x) = elu(x) + 1
        S[b,p,h] = sum over the rows r of image b of phi(k[r,p,h] + k_guidance[r,h]) v[r,p,h]^T
        z[b,p,h] = sum over the rows r of image b of phi(k[r,p,h] + k_guidance[r,h])

    k, v        [R, P, D]  float32, float64, float16 or bfloat16; rows image after image, D = heads * d channels;
                           any strides, without a copy where the channels of a pixel are adjacent in memory
    k_guidance  [R, D]     shared by the pixels of a row
    offsets     [B+1] int64, ascending from 0 to R: rows offsets[b] to offsets[b+1] belong to image b, which may have
                none. On a GPU the offsets are not read back, so values that do not ascend give wrong sums, no error
    returns     S [B, P, heads, d, d] and z [B, P, heads, d], contiguous, float64 for float64, else float32

    The results of disjoint sets of classes add up to the result of their union. Differentiable once in k, v and
    k_guidance (the reference any number of times). Deterministic: no atomics. Under autocast k, v and k_guidance are
    cast to autocast's dtype. R, P and B may be 0. ``backend`` is "auto" or a name that ``explain`` lists. Source:
    FGAseg, section III-C3, as released (CAT-Seg's class aggregation; Katharopoulos et al., 2020). Raises ValueError for
    mismatched shapes or devices, TypeError for mismatched dtypes.
    """
    return dispatch("class_summary", backend, k, v, k_guidance, offsets, heads)


def class_lookup(
    q: Tensor,
    q_guidance: Tensor,
    summary: Tensor,
    total: Tensor,
    offsets: Tensor,
    heads: int,
    eps: float = 1e-6,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""Linear attention's output for every class, from the sums of ``class_summary``.

        phi(x) = elu(x) + 1
        y[r,p,h] = phi(q[r,p,h] + q_guidance[r,h]) S[b,p,h] / (phi(q[r,p,h] + q_guidance[r,h]) . z[b,p,h] + eps)

    q           [R, P, D]  as k of ``class_summary``
    q_guidance  [R, D]     shared by the pixels of a row
    summary     S [B, P, heads, d, d], float64 for float64, else float32
    total       z [B, P, heads, d], likewise
    offsets     [B+1]      as in ``class_summary``
    returns     [R, P, D]  dtype of q, contiguous

    Differentiable in q, q_guidance, summary and total; everything else is as in ``class_summary``.
    """
    return dispatch("class_lookup", backend, q, q_guidance, summary, total, offsets, heads, float(eps))


def class_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_guidance: Tensor,
    k_guidance: Tensor,
    offsets: Tensor,
    heads: int,
    pad_key: Tensor | None = None,
    pad_value: Tensor | None = None,
    pad_classes: int = 0,
    *,
    backend: str = "auto",
) -> Tensor:
    """Linear attention over the classes at every pixel: ``class_summary``, then ``class_lookup``.

    q, k, v                 [R, P, D]  packed rows (image, class) of P pixels
    q_guidance, k_guidance  [R, D]     added to the queries and keys of all pixels of a row
    offsets                 [B+1]      the rows of every image, as in ``class_summary``
    pad_key, pad_value      [D]        key (guidance included, before phi) and value of the pad token; required if
                                       pad_classes is not 0
    pad_classes             an image of fewer classes is padded to so many with pad tokens; n of them add
                            n phi(pad_key) pad_value^T to S and n phi(pad_key) to z
    returns                 [R, P, D]  dtype of q, contiguous

    Differentiable in all tensors but the offsets.
    """
    summary, total = class_summary(k, v, k_guidance, offsets, heads, backend=backend)
    if pad_classes:
        if pad_key is None or pad_value is None:
            raise ValueError(f"class_attention: pad_classes is {pad_classes}; give pad_key and pad_value")
        _check_pads(k, pad_key=pad_key, pad_value=pad_value)
        missing = (pad_classes - offsets.diff()).clamp(min=0)
        summary, total = add_pads(summary, total, pad_key, pad_value, missing)
    # eps is passed explicitly: torch.compile(dynamic=True) treats a default as a variable and would trace twice
    return class_lookup(q, q_guidance, summary, total, offsets, heads, 1e-6, backend=backend)


def add_pads(
    summary: Tensor, total: Tensor, pad_key: Tensor, pad_value: Tensor, missing: Tensor
) -> tuple[Tensor, Tensor]:
    """The sums of ``class_summary`` with `missing` [B] more classes, all with one key (before phi) and value [D]."""
    width = summary.shape[-1]
    keys = missing.to(total.dtype)[:, None, None, None] * positive(pad_key.to(total.dtype)).unflatten(0, (-1, width))
    return summary + keys[..., None] * pad_value.to(total.dtype).unflatten(0, (-1, 1, width)), total + keys
