"""lcs_conv_from_text: schema, shape rule, gradient and backends."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import check_same, register, run, under_autocast
from .._library import define, differentiate, first_order_only
from ..kernel_softmax.op import NORMS
from ..lcs_conv import lcs_conv
from .reference import lcs_conv_from_text_reference


def _shape(texts, weight, bias, pixels, kernel_size, norm):
    batch, channels, height, width = pixels.shape
    torch._check(texts.shape[0] == batch, lambda: "texts and pixels must share B")
    torch._check(weight.shape[0] == channels * kernel_size**2 + 1, lambda: "weight must have C*K*K+1 rows")
    torch._check(weight.shape[1] == texts.shape[2], lambda: "weight and texts must share D")
    return pixels.new_empty(batch, texts.shape[1], height, width)


def _shape_backward(grad, texts, weight, bias, pixels, kernel_size, norm):
    torch._check(grad.shape[0] == pixels.shape[0], lambda: "grad and pixels must share B")
    return tuple(x.new_empty(x.shape) for x in (texts, weight, bias, pixels))


def _save(ctx, inputs, output):
    *tensors, ctx.kernel_size, ctx.norm = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, ops, grad):
    # the logits are made again, a part at a time
    grads = ops("lcs_conv_from_text_backward")(grad, *ctx.saved_tensors, ctx.kernel_size, ctx.norm)
    return *grads, None, None


define(
    "lcs_conv_from_text",
    "(Tensor texts, Tensor weight, Tensor bias, Tensor pixels, int kernel_size, str norm) -> Tensor",
    _shape,
    __package__,
)
define(
    "lcs_conv_from_text_backward",
    "(Tensor grad, Tensor texts, Tensor weight, Tensor bias, Tensor pixels, int kernel_size, str norm)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _shape_backward,
    __package__,
)
differentiate("lcs_conv_from_text", _save, _backward)
first_order_only("lcs_conv_from_text_backward")
register(
    "lcs_conv_from_text",
    lcs_conv_from_text_reference,
    cuda=lambda *_: "it has no CUDA kernel: it is a product by cuBLAS and lcs_conv, as in Triton's form",
)

KEPT_LOGITS = (2**16, 2**25)  # bytes, at least and at most


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
    """``lcs_conv`` whose kernel logits and class biases are a linear layer of the texts, never all in memory at once.

        logits, class_bias = (texts @ weight.T + bias).split([C*K*K, 1], -1)
        S_l = lcs_conv(pixels, logits, class_bias, kernel_size, norm)

    texts        [B, T, D]      float32, float64, float16 or bfloat16; any strides
    weight       [C*K*K+1, D]   W_txt of eq. 10; its last row makes the class's bias
    bias         [C*K*K+1]
    pixels       [B, C, H, W]
    kernel_size  K, odd
    norm         "taps", "channels" or "none", as in ``kernel_softmax``
    returns      [B, T, H, W]   dtype of pixels, contiguous

    Differentiable in the four tensors, except with the reference once. Working memory does not grow with C*K*K, except
    in the reference and for norm="channels", and where "auto" takes two steps: on a CPU, when a gradient is recorded
    and all logits take 64 KiB to 32 MiB, a linear layer and then ``lcs_conv``, which makes the logits once, not twice
    (measured: forward and backward take 2 to 24 % less time, and up to 117 MB more memory).
    Under autocast it runs in autocast's dtype. B and T may be 0. ``backend`` is "auto" or a name that ``explain``
    lists. Source: FGAseg, section III-C, eq. 10. Raises ValueError for an even K, an unknown norm, shapes that do not
    fit or different devices, TypeError for different dtypes.
    """
    (texts, weight, bias, pixels), no_more_casts = under_autocast(texts, weight, bias, pixels)
    check_same("lcs_conv_from_text", texts=texts, weight=weight, bias=bias, pixels=pixels)
    _check(texts, weight, bias, pixels, kernel_size, norm)
    with no_more_casts:
        if backend == "auto" and _keeps_logits(texts, weight, bias, pixels):
            outputs = F.linear(texts, weight, bias)
            return lcs_conv(pixels, outputs[..., :-1], outputs[..., -1], kernel_size, norm)
        return run("lcs_conv_from_text", backend, texts, weight, bias, pixels, kernel_size, norm)


def _keeps_logits(*args: Tensor) -> bool:
    texts, weight = args[:2]
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in args)
    numbers = texts.shape[0] * texts.shape[1] * weight.shape[0]
    least, most = KEPT_LOGITS
    return gradient and texts.device.type == "cpu" and least <= numbers * texts.element_size() <= most


def _check(texts: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, kernel_size: int, norm: str) -> None:
    op = "lcs_conv_from_text"
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{op}: kernel_size is {kernel_size}; expected an odd number, so that the kernel has a centre")
    if norm not in NORMS:
        raise ValueError(f"{op}: norm is '{norm}'; expected one of {', '.join(NORMS)}")
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
    if bias.dim() != 1 or bias.shape[0] != outputs:
        raise ValueError(f"{op}: bias has shape {list(bias.shape)}; expected [{outputs}]")
