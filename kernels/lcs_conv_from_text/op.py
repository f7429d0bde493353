"""lcs_conv_from_text: schema, shape rule, gradient and backends."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import able_backends, check_same, check_shape, dispatch, register, under_autocast
from .._library import define, empty_like, first_order_only, register_autograd
from ..kernel_softmax.op import check_norm
from ..lcs_conv import lcs_conv
from .reference import lcs_conv_from_text_reference

KEPT_LOGITS = (2**16, 2**25)  # bytes on a CPU: at least, at most
MOST_ON_GPU = 2**28  # bytes


def _check(texts: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, kernel_size: int, norm: str) -> None:
    op = "lcs_conv_from_text"
    check_same(op, texts=texts, weight=weight, bias=bias, pixels=pixels)
    check_norm(op, kernel_size, norm)
    if pixels.dim() != 4 or pixels.shape[2] < 1 or pixels.shape[3] < 1:
        raise ValueError(f"{op}: pixels has shape {list(pixels.shape)}; expected [B, C, H, W], H and W at least 1")
    if texts.dim() != 3 or texts.shape[0] != pixels.shape[0]:
        raise ValueError(f"{op}: texts has shape {list(texts.shape)}; expected [{pixels.shape[0]}, T, D]")
    outputs = pixels.shape[1] * kernel_size**2 + 1
    if weight.dim() != 2 or weight.shape[0] != outputs or weight.shape[1] != texts.shape[2]:
        raise ValueError(
            f"{op}: weight has shape {list(weight.shape)}; pixels {list(pixels.shape)} with kernel_size {kernel_size} "
            f"and texts {list(texts.shape)} expect [{outputs}, {texts.shape[2]}]"
        )
    check_shape(op, "bias", bias, [outputs])


def _check_backward(grad, texts, weight, bias, pixels, kernel_size, norm):
    _check(texts, weight, bias, pixels, kernel_size, norm)
    check_same("lcs_conv_from_text_backward", pixels=pixels, grad=grad)
    check_shape("lcs_conv_from_text_backward", "grad", grad, [*texts.shape[:2], *pixels.shape[2:]])


def _fake(texts, weight, bias, pixels, kernel_size, norm):
    return pixels.new_empty(*texts.shape[:2], *pixels.shape[2:])


def _fake_backward(grad, texts, weight, bias, pixels, kernel_size, norm):
    return empty_like(texts, weight, bias, pixels)


def _save(ctx, inputs, output):
    *tensors, ctx.kernel_size, ctx.norm = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, ops, grad):
    # the logits are recomputed, a part at a time
    grads = ops("lcs_conv_from_text_backward")(grad, *ctx.saved_tensors, ctx.kernel_size, ctx.norm)
    return *grads, None, None


define(
    "lcs_conv_from_text",
    "(Tensor texts, Tensor weight, Tensor bias, Tensor pixels, int kernel_size, str norm) -> Tensor",
    _check,
    _fake,
    __package__,
)
define(
    "lcs_conv_from_text_backward",
    "(Tensor grad, Tensor texts, Tensor weight, Tensor bias, Tensor pixels, int kernel_size, str norm)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _check_backward,
    _fake_backward,
    __package__,
)
register_autograd("lcs_conv_from_text", _save, _backward)
first_order_only("lcs_conv_from_text_backward")
register(
    "lcs_conv_from_text",
    lcs_conv_from_text_reference,
    cuda=lambda *_: "there is no CUDA kernel; Triton's form is cuBLAS and lcs_conv, as one in CUDA would be",
)


def lcs_conv_from_text(
    texts: Tensor,
    weight: Tensor,
    bias: Tensor,
    pixels: Tensor,
    kernel_size: int,
    norm: str = "taps",
    *,
    backend: str = "auto",
) -> Tensor:
    """``lcs_conv`` with kernel logits and class biases computed from the texts, never all in memory at once.

        logits, class_bias = (texts @ weight.T + bias).split([C*K*K, 1], -1)
        S_l = lcs_conv(pixels, logits, class_bias, kernel_size, norm)

    texts        [B, T, D]      float32, float64, float16 or bfloat16; any strides
    weight       [C*K*K+1, D]   W_txt of eq. 10; its last row gives the class's bias
    bias         [C*K*K+1]
    pixels       [B, C, H, W]
    kernel_size  K, odd, at most 32767
    norm         "taps", "channels" or "none", as in ``kernel_softmax``
    returns      [B, T, H, W]   dtype of pixels, contiguous

    Differentiable once in the four tensors (the reference any number of times). Working memory does not grow with
    C*K*K, except in the reference, for norm="channels", and where "auto" takes two steps, a linear layer and then
    ``lcs_conv``: on a CPU, if a gradient is recorded and all logits take 64 KiB to 32 MiB, which are then computed once
    instead of twice (measured: 2 to 24 % less time forward and backward, up to 117 MB more memory); on a GPU, for 3x3
    kernels of 16-bit elements, if the CUDA kernels were built and all logits take at most 256 MiB (predicted for an
    H100 at C = 512 and T = 847: less than half the time).
    Under autocast it runs in autocast's dtype. B and T may be 0. ``backend`` is "auto" or a name that ``explain``
    lists. Source: FGAseg, section III-C, eq. 10. Raises ValueError for an even K, an unknown norm, mismatched shapes or
    devices, TypeError for mismatched dtypes.
    """
    (texts, weight, bias, pixels), no_more_casts = under_autocast(texts, weight, bias, pixels)
    if backend == "auto":
        _check(texts, weight, bias, pixels, kernel_size, norm)
    with no_more_casts:
        if backend == "auto" and _keeps_logits(kernel_size, texts, weight, bias, pixels):
            outputs = F.linear(texts, weight, bias)
            return lcs_conv(pixels, outputs[..., :-1], outputs[..., -1], kernel_size, norm)
        return dispatch("lcs_conv_from_text", backend, texts, weight, bias, pixels, kernel_size, norm)


def _keeps_logits(kernel_size: int, *args: Tensor) -> bool:
    texts, weight = args[:2]
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in args)
    logits_bytes = texts.shape[0] * texts.shape[1] * weight.shape[0] * texts.element_size()
    if texts.device.type == "cuda":
        few_instructions = kernel_size == 3 and texts.dtype in (torch.float16, torch.bfloat16)
        return few_instructions and logits_bytes <= MOST_ON_GPU and "cuda" in able_backends("lcs_conv", args).named
    least, most = KEPT_LOGITS
    return gradient and texts.device.type == "cpu" and least <= logits_bytes <= most
