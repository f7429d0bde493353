"""attention: schema, shape rule, gradient and backends."""

import torch
from torch import Tensor

from .._dispatch import check_same, dispatch, register
from .._library import define, register_autograd
from .reference import attention_reference


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> None:
    check_same("attention", q=q, k=k, v=v)
    if q.dim() != 4 or q.shape[3] < 1:
        raise ValueError(f"attention: q has shape {list(q.shape)}; expected [B, heads, L, d], d at least 1")
    if k.dim() != 4 or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3] or k.shape[2] < 1:
        expected = f"[{q.shape[0]}, {q.shape[1]}, M, {q.shape[3]}], M at least 1"
        raise ValueError(f"attention: k has shape {list(k.shape)}; expected {expected}")
    if v.shape != k.shape:
        raise ValueError(f"attention: v has shape {list(v.shape)}; expected that of k, {list(k.shape)}")
    if causal and k.shape[2] != q.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} queries and {k.shape[2]} keys; causal needs equally many")
    if scale is not None and not scale > 0:
        raise ValueError(f"attention: scale is {scale}; expected a positive number")


def _fake(q, k, v, causal, scale):
    batch, heads, length, width = q.shape
    return q.new_empty(batch, length, heads, width)


def _save(ctx, inputs, output):
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, ops, grad):
    # With P = softmax(a q kᵀ) and G the gradient of the output:
    # dv = Pᵀ G;  dS = P (G vᵀ - rowsum(P G vᵀ));  dq = a dS k;  dk = a dSᵀ q
    q, k, v = ctx.saved_tensors
    grad, scale = grad.transpose(1, 2), q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
    scores = scale * (q @ k.mT)
    if ctx.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    weights = scores.softmax(-1)
    towards = weights * (grad @ v.mT)
    slopes = scale * (towards - weights * towards.sum(-1, keepdim=True))
    return slopes @ k, slopes.mT @ q, weights.mT @ grad, None, None


define("attention", "(Tensor q, Tensor k, Tensor v, bool causal, float? scale) -> Tensor", _check, _fake, __package__)
register_autograd("attention", _save, _backward)


def _only_in_pytorch(q: Tensor, *_) -> str:
    return "" if q.dtype in (torch.float32, torch.bfloat16) else f"{q.dtype} is left to PyTorch's own attention"


def _faster_in_pytorch(q: Tensor, k: Tensor, v: Tensor, *_) -> str:
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "PyTorch's own attention keeps what its backward pass needs"
    return ""


register(
    "attention",
    attention_reference,
    prefer_reference={"cpp": _faster_in_pytorch},
    native=(torch.bfloat16,),
    cpp=_only_in_pytorch,
    triton=lambda *_: "there is no Triton kernel: on a GPU PyTorch's own attention runs",
    cuda=lambda *_: "there is no CUDA kernel: on a GPU PyTorch's own attention runs",
)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    r"""Attention, as PyTorch's ``scaled_dot_product_attention``, with the heads of a token side by side in memory:

        y[b, h, i] = sum_j softmax_j(scale <q[b, h, i], k[b, h, j]>) v[b, h, j]

    q        [B, heads, L, d]  float32, float64, float16 or bfloat16; any strides, without a copy if d's is 1, as in a
             projection [B, L, heads*d] that is viewed so
    k, v     [B, heads, M, d]
    causal   query i has the keys j <= i only; M is L then
    scale    positive; None: 1 / sqrt(d)
    returns  [B, heads, L, d]  dtype of q, a view of [B, L, heads, d]: its transpose(1, 2).flatten(2), the input of the
             next projection, is no copy; sums and softmax in float32, or float64 for float64

    Differentiable any number of times. The kernel computes float32 and bfloat16 on a CPU; on a GPU, in the other types,
    under autocast, and where a gradient is needed PyTorch's own attention runs, by choice. B and L may be 0.
    ``backend`` is "auto" or a name that ``explain`` lists. Raises ValueError for mismatched shapes or devices and a
    scale that is not positive, TypeError for mismatched dtypes.
    """
    if backend == "auto" and (q.device.type != "cpu" or torch.is_autocast_enabled("cpu")):
        return attention_reference(q, k, v, causal, scale).transpose(1, 2)
    if backend == "auto" and _only_in_pytorch(q):
        _check(q, k, v, causal, scale)
        return attention_reference(q, k, v, causal, scale).transpose(1, 2)
    return dispatch("attention", backend, q, k, v, causal, scale).transpose(1, 2)
