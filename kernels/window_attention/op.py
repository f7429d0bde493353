"""window_attention: schema, shape rule, gradient and backends."""

import torch
from torch import Tensor

from .._dispatch import LONGEST_SIDE, check_same, check_shape, dispatch, register
from .._library import define, empty_like, first_order_only, register_autograd
from .reference import window_attention_reference


def _check(
    q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor, heads: int, window: int, shift: int
) -> None:
    op = "window_attention"
    check_same(op, q=q, k=k, v=v, q_guidance=q_guidance, k_guidance=k_guidance)
    # with min, torch.compile would specialise on which of H, W and D is smallest
    if q.dim() != 4 or any(n < 1 for n in q.shape[1:]):
        raise ValueError(f"{op}: q has shape {list(q.shape)}; expected [N, H, W, D], H, W and D at least 1")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            raise ValueError(f"{op}: {name} has shape {list(x.shape)}; expected that of q, {list(q.shape)}")
    for name, x in (("q_guidance", q_guidance), ("k_guidance", k_guidance)):
        if x.dim() != 4 or x.shape[1:] != q.shape[1:] or x.shape[0] != q_guidance.shape[0]:
            expected = f"[B, {', '.join(map(str, q.shape[1:]))}], B the same for both"
            raise ValueError(f"{op}: {name} has shape {list(x.shape)}; expected {expected}")
    rows, images = q.shape[0], q_guidance.shape[0]
    if rows % images if images else rows:
        raise ValueError(f"{op}: q has {rows} rows for {images} images; expected equally many rows for every image")
    if heads < 1 or q.shape[3] % heads:
        raise ValueError(f"{op}: heads is {heads}; expected a divisor of D = {q.shape[3]}")
    if window < 1 or not 0 <= shift < window:
        raise ValueError(f"{op}: window is {window} and shift {shift}; expected 0 <= shift < window")
    if window > LONGEST_SIDE:
        raise ValueError(f"{op}: window is {window}; expected at most {LONGEST_SIDE}")


def _check_backward(grad, q, k, v, q_guidance, k_guidance, heads, window, shift):
    _check(q, k, v, q_guidance, k_guidance, heads, window, shift)
    check_same("window_attention_backward", q=q, grad=grad)
    check_shape("window_attention_backward", "grad", grad, q.shape)


def _fake(q, k, v, q_guidance, k_guidance, heads, window, shift):
    return q.new_empty(q.shape)


def _fake_backward(grad, q, k, v, q_guidance, k_guidance, heads, window, shift):
    return empty_like(q, k, v, q_guidance, k_guidance)


def _save(ctx, inputs, output):
    *tensors, ctx.heads, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, ops, grad):
    # With P = softmax(S), S = a (q + g)(k + h)^T + mask, a = 1 / sqrt(d), and G the gradient of the output:
    # dv = P^T G;  dS = P (G v^T - rowsum(P G v^T));  dq = a dS (k + h);  dk = a dS^T (q + g);
    # dg = sum of dq over the classes of an image, dh = sum of dk. P, window^2 elements a token and head, is recomputed.
    grads = ops("window_attention_backward")(grad, *ctx.saved_tensors, ctx.heads, ctx.window, ctx.shift)
    return *grads, None, None, None


define(
    "window_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor q_guidance, Tensor k_guidance, int heads, int window, int shift) -> Tensor",
    _check,
    _fake,
    __package__,
)
define(
    "window_attention_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor q_guidance, Tensor k_guidance,"
    " int heads, int window, int shift) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _check_backward,
    _fake_backward,
    __package__,
)


def _not_for_cuda(q, k, v, q_guidance, k_guidance, heads, window, shift) -> str:
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"the CUDA kernels multiply float16 and bfloat16, not {q.dtype}"
    if q.shape[3] != 32 * heads:
        return f"the CUDA kernels take heads of 32 channels, not {q.shape[3] // heads}"
    return "" if window <= 12 else f"the CUDA kernels take windows of at most 12 pixels, not {window}"


register_autograd("window_attention", _save, _backward)
first_order_only("window_attention_backward")
register(
    "window_attention",
    window_attention_reference,
    native=(torch.bfloat16,),
    order=("cpp", "cuda", "triton"),  # a seventh of Triton's instructions, in forward (docs/design/kernels.md)
    casts=5,
    cuda=_not_for_cuda,
)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_guidance: Tensor,
    k_guidance: Tensor,
    heads: int,
    window: int,
    shift: int,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""Attention within the windows of every class map, without rolled, padded or guided copies of it.

        y[n, i, head] = sum_j softmax_j(<q[n, i, head] + q_guidance[b, i, head], k[n, j, head] + k_guidance[b, j, head]>
                                        / sqrt(d) + mask[i, j]) v[n, j, head]

    where b = n // (N // B) is the image of row n and j runs over the pixels of i's window. The grid is padded below and
    on the right to whole windows, rolled by -shift, and cut into windows. Padding is never a key. mask is -100 between
    pixels that are neighbours only because one of them was rolled over an edge, else 0.

    q, k, v                 [N, H, W, D]  float64, float32, float16 or bfloat16, N = B*T rows, image after image; any
                            strides, without a copy if D's is 1, as in slices of one packed projection
    q_guidance, k_guidance  [B, H, W, D]  added to q and k of all rows of an image, bias included
    heads                   D = heads * d
    window, shift           in pixels, 0 <= shift < window <= 32767; H and W need not be multiples of window
    returns                 [N, H, W, D]  dtype of q, contiguous; sums in float32, or float64 for float64

    Differentiable once in the five tensors (the reference twice under sdpa_kernel(SDPBackend.MATH)). Backward
    recomputes the scores: nothing of size window^2 is kept. Deterministic: no atomics. Under autocast it runs in
    autocast's dtype, like a matrix product. N and B may be 0; H, W and D are at least 1. ``backend`` is "auto" or a
    name that ``explain`` lists. Source: Swin Transformer's shifted windows, as FGAseg's aggregation uses them (section
    III-C3). Raises ValueError for mismatched shapes or devices and for a wrong heads, window or shift, TypeError for
    mismatched dtypes.
    """
    return dispatch("window_attention", backend, q, k, v, q_guidance, k_guidance, heads, window, shift)
