"""kernel_softmax: schema, shape rule, gradient and backends."""

import torch
from torch import Tensor

from .._dispatch import check_same, register, run, under_autocast
from .._library import define, differentiate, first_order_only
from .reference import kernel_softmax_reference

NORMS = ("taps", "channels", "none")


def _shape(kernel_logits, kernel_size, norm):
    batch, classes, length = kernel_logits.shape
    torch._check(length % kernel_size**2 == 0, lambda: "kernel_logits must end in C*K*K")
    return kernel_logits.new_empty(batch, classes, length // kernel_size**2, kernel_size, kernel_size)


def _shape_backward(grad, kernels, norm):
    torch._check(grad.shape == kernels.shape, lambda: "grad and kernels must have one shape")
    return kernels.new_empty(*kernels.shape[:2], kernels.shape[2] * kernels.shape[3] * kernels.shape[4])


def _save(ctx, inputs, output):
    ctx.norm = inputs[2]
    ctx.save_for_backward(output)


def _backward(ctx, ops, grad):
    # p = softmax(x):  dx = p (g - sum(p g)), so the output is all that is kept
    (kernels,) = ctx.saved_tensors
    return ops("kernel_softmax_backward")(grad, kernels, ctx.norm), None, None


define("kernel_softmax", "(Tensor kernel_logits, int kernel_size, str norm) -> Tensor", _shape, __package__)
define("kernel_softmax_backward", "(Tensor grad, Tensor kernels, str norm) -> Tensor", _shape_backward, __package__)
differentiate("kernel_softmax", _save, _backward)
first_order_only("kernel_softmax_backward")


def _few(kernel_logits: Tensor, kernel_size: int, norm: str) -> str:
    """Where PyTorch's own softmax, whose call costs less, was faster (one core with AVX-512, K = 1 to 15).

    Over 9 numbers it is slow, and over 25 and more fast; most of a call of ours with a gradient is autograd in Python.
    """
    if kernel_size < 5:
        limit = 2**10
    else:
        limit = 2**14 if norm == "taps" else 2**12
        if torch.is_grad_enabled() and kernel_logits.requires_grad:
            limit *= 8 if norm == "taps" else 4
    return f"it is faster up to {limit} numbers" if kernel_logits.numel() <= limit else ""


register("kernel_softmax", kernel_softmax_reference, slow={"cpp": _few})


def check_kernels(op: str, kernel_logits: Tensor, kernel_size: int, norm: str) -> None:
    """Raises ValueError for an even K, an unknown norm, or logits that are not [B, T, C*K*K]."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{op}: kernel_size is {kernel_size}; expected an odd number, so that the kernel has a centre")
    if norm not in NORMS:
        raise ValueError(f"{op}: norm is '{norm}'; expected one of {', '.join(NORMS)}")
    if kernel_logits.dim() != 3 or kernel_logits.shape[2] % kernel_size**2:
        raise ValueError(
            f"{op}: kernel_logits has shape {list(kernel_logits.shape)}; expected [B, T, C*{kernel_size}*{kernel_size}]"
        )


def kernel_softmax(kernel_logits: Tensor, kernel_size: int, norm: str = "taps", *, backend: str = "auto") -> Tensor:
    """Normalised convolution kernels of every class from their logits.

    kernel_logits  [B, T, C*K*K]  float32, float64, float16 or bfloat16, c-major then row then column; any strides
    kernel_size    K, odd
    norm           "taps": softmax over the K*K taps of each channel; "channels": over the C channels at each tap;
                   "none": only reshaped
    returns        [B, T, C, K, K]  dtype of kernel_logits, contiguous; sums in float32, or float64 for float64

    Differentiable, with the C++ backend once. Under autocast it runs in float32, as torch.softmax does on a GPU. B, T
    and C may be 0. ``backend`` is "auto" or a name that ``explain`` lists. Source: FGAseg, section III-C, eq. 10.
    Raises ValueError for an even K, an unknown norm or a wrong shape, TypeError for another dtype.
    """
    check_same("kernel_softmax", kernel_logits=kernel_logits)
    check_kernels("kernel_softmax", kernel_logits, kernel_size, norm)
    (kernel_logits,), full_precision = under_autocast(kernel_logits, to=torch.float32)
    with full_precision:
        return run("kernel_softmax", backend, kernel_logits, kernel_size, norm)
