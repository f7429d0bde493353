"""lcs_conv: schema, shape rule, gradient and backends."""

import torch
from torch import Tensor

from .._dispatch import check_same, check_shape, dispatch, register
from .._library import define, empty_like, first_order_only, register_autograd
from ..kernel_softmax.op import check_kernels
from .reference import lcs_conv_reference


def _check(pixels: Tensor, kernel_logits: Tensor, bias: Tensor, kernel_size: int, norm: str) -> None:
    check_same("lcs_conv", pixels=pixels, kernel_logits=kernel_logits, bias=bias)
    _check_convolution(pixels, kernel_logits, kernel_size, norm)
    check_shape("lcs_conv", "bias", bias, kernel_logits.shape[:2])


def _check_backward(grad, pixels, kernel_logits, kernel_size, norm):
    check_same("lcs_conv_backward", pixels=pixels, kernel_logits=kernel_logits, grad=grad)
    _check_convolution(pixels, kernel_logits, kernel_size, norm)
    check_shape("lcs_conv_backward", "grad", grad, [*kernel_logits.shape[:2], *pixels.shape[2:]])


def _check_convolution(pixels: Tensor, kernel_logits: Tensor, kernel_size: int, norm: str) -> None:
    check_kernels("lcs_conv", kernel_logits, kernel_size, norm)
    if pixels.dim() != 4 or pixels.shape[2] < 1 or pixels.shape[3] < 1:
        raise ValueError(f"lcs_conv: pixels has shape {list(pixels.shape)}; expected [B, C, H, W], H and W at least 1")
    batch, _, length = kernel_logits.shape
    if pixels.shape[0] != batch or pixels.shape[1] * kernel_size**2 != length:
        raise ValueError(
            f"lcs_conv: kernel_logits has shape {list(kernel_logits.shape)}; pixels {list(pixels.shape)} with "
            f"kernel_size {kernel_size} expect [{pixels.shape[0]}, T, {pixels.shape[1] * kernel_size**2}]"
        )


def _fake(pixels, kernel_logits, bias, kernel_size, norm):
    return pixels.new_empty(*bias.shape, *pixels.shape[2:])


def _fake_backward(grad, pixels, kernel_logits, kernel_size, norm):
    return *empty_like(pixels, kernel_logits), pixels.new_empty(kernel_logits.shape[:2])


def _save(ctx, inputs, output):
    pixels, kernel_logits, _, ctx.kernel_size, ctx.norm = inputs
    ctx.save_for_backward(pixels, kernel_logits)


def _backward(ctx, ops, grad):
    # the kernels are recomputed: at K = 15 keeping them would double the memory of the logits
    pixels, kernel_logits = ctx.saved_tensors
    grads = ops("lcs_conv_backward")(grad, pixels, kernel_logits, ctx.kernel_size, ctx.norm)
    return *grads, None, None


define(
    "lcs_conv",
    "(Tensor pixels, Tensor kernel_logits, Tensor bias, int kernel_size, str norm) -> Tensor",
    _check,
    _fake,
    __package__,
)
define(
    "lcs_conv_backward",
    "(Tensor grad, Tensor pixels, Tensor kernel_logits, int kernel_size, str norm) -> (Tensor, Tensor, Tensor)",
    _check_backward,
    _fake_backward,
    __package__,
)
register_autograd("lcs_conv", _save, _backward)
first_order_only("lcs_conv_backward")


def _large_kernels(pixels: Tensor, kernel_logits: Tensor, bias: Tensor, kernel_size: int, norm: str) -> str:
    if kernel_size == 3 and pixels.dtype in (torch.float16, torch.bfloat16):
        return ""
    return "only for 3x3 kernels of 16-bit elements do the CUDA kernels take fewer instructions"


register(
    "lcs_conv",
    lcs_conv_reference,
    order=("cpp", "cuda", "triton"),  # a fifth of Triton's instructions, where it is not passed over
    prefer_next={"cuda": _large_kernels},
    casts=3,
)


def lcs_conv(
    pixels: Tensor, kernel_logits: Tensor, bias: Tensor, kernel_size: int, norm: str = "taps", *, backend: str = "auto"
) -> Tensor:
    """Local similarity S_l of every pixel with every class: the class's normalised kernel, convolved, plus its bias.

        S_l[b,t,y,x] = bias[b,t] + sum_{c,i,j} kernels[b,t,c,i,j] * pixels[b, c, y+i-K//2, x+j-K//2]

    pixels         [B, C, H, W]   float32, float64, float16 or bfloat16, zero outside the image; any strides
    kernel_logits  [B, T, C*K*K]  normalised here as in ``kernel_softmax``
    bias           [B, T]
    kernel_size    K, odd, at most 32767; may be larger than the image
    norm           "taps", "channels" or "none"
    returns        [B, T, H, W]   dtype of pixels, contiguous; sums in float32, or float64 for float64

    Differentiable once in the three tensors (the reference any number of times). Under autocast it runs in autocast's
    dtype, like a convolution. B, T and C may be 0; H and W are at least 1. ``backend`` is "auto" or a name that
    ``explain`` lists. Source: FGAseg, section III-C, eq. 10. Raises ValueError for an even K, an unknown norm,
    mismatched shapes or devices, TypeError for mismatched dtypes.
    """
    return dispatch("lcs_conv", backend, pixels, kernel_logits, bias, kernel_size, norm)
