"""cosine_cost_volume: schema, shape rule, gradient and backends."""

import torch
from torch import Tensor

from .._dispatch import DTYPES, check_same, check_shape, dispatch, register, under_autocast
from .._library import define, empty_like, first_order_only, register_autograd
from .reference import cosine_cost_volume_reference


def _shortest(dtype: torch.dtype) -> float:
    """To what lengths are raised; 0 for a dtype that the op refuses."""
    return max(1e-12, torch.finfo(dtype).tiny) if dtype in DTYPES else 0.0


def _check(pixels: Tensor, texts: Tensor, eps: float) -> None:
    check_same("cosine_cost_volume", pixels=pixels, texts=texts)
    if pixels.dim() != 4:
        raise ValueError(f"cosine_cost_volume: pixels has shape {list(pixels.shape)}; expected [B, C, H, W]")
    if texts.dim() != 4 or texts.shape[0] != pixels.shape[0] or texts.shape[3] != pixels.shape[1]:
        raise ValueError(
            f"cosine_cost_volume: texts has shape {list(texts.shape)}; "
            f"expected [{pixels.shape[0]}, T, P, {pixels.shape[1]}] for pixels {list(pixels.shape)}"
        )


def _check_backward(grad, pixels, texts, eps):
    _check(pixels, texts, eps)
    check_same("cosine_cost_volume_backward", pixels=pixels, grad=grad)
    expected = [pixels.shape[0], texts.shape[2], texts.shape[1], *pixels.shape[2:]]
    check_shape("cosine_cost_volume_backward", "grad", grad, expected)


def _fake(pixels, texts, eps):
    return pixels.new_empty(pixels.shape[0], texts.shape[2], texts.shape[1], *pixels.shape[2:])


def _fake_backward(grad, pixels, texts, eps):
    return empty_like(pixels, texts)


def _save(ctx, inputs, output):
    pixels, texts, ctx.eps = inputs
    ctx.save_for_backward(pixels, texts)


def _backward(ctx, ops, grad):
    # u = v / |v|:  dv = (du - u <u, du>) / |v|; the unit vectors are recomputed rather than kept
    pixels, texts = ctx.saved_tensors
    return *ops("cosine_cost_volume_backward")(grad, pixels, texts, ctx.eps), None


define("cosine_cost_volume", "(Tensor pixels, Tensor texts, float eps) -> Tensor", _check, _fake, __package__)
define(
    "cosine_cost_volume_backward",
    "(Tensor grad, Tensor pixels, Tensor texts, float eps) -> (Tensor, Tensor)",
    _check_backward,
    _fake_backward,
    __package__,
)
register_autograd("cosine_cost_volume", _save, _backward)
first_order_only("cosine_cost_volume_backward")
register("cosine_cost_volume", cosine_cost_volume_reference)


def cosine_cost_volume(pixels: Tensor, texts: Tensor, *, backend: str = "auto") -> Tensor:
    """Cosine similarity of every pixel with every prompt of every class: the global category map S_g.

        S_g[b,p,t,y,x] = <texts[b,t,p], pixels[b,:,y,x]> / (|texts[b,t,p]| |pixels[b,:,y,x]|)

    pixels   [B, C, H, W]     float32, float64, float16 or bfloat16; any strides
    texts    [B, T, P, C]     same dtype and device; neither needs to be normalised
    returns  [B, P, T, H, W]  dtype of pixels, contiguous; sums in float32, or float64 for float64

    Lengths below 1e-12 (float16: 6e-5, its smallest normal number) are raised to that, so a zero vector has cosine 0.
    Differentiable once in both tensors (the reference any number of times). Under autocast it runs in autocast's dtype,
    like a matrix product. Every size may be 0. ``backend`` is "auto" or a name that ``explain`` lists. Source: FGAseg,
    section III-C, eq. 9. Raises ValueError for mismatched shapes or devices, TypeError for mismatched dtypes.
    """
    (pixels, texts), no_more_casts = under_autocast(pixels, texts)
    with no_more_casts:
        return dispatch("cosine_cost_volume", backend, pixels, texts, _shortest(pixels.dtype))
