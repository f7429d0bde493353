"""kernel_softmax: schema, shape rule, gradient and backends."""

import torch
from torch import Tensor

from .._dispatch import LONGEST_SIDE, check_same, check_shape, dispatch, register
from .._library import define, first_order_only, register_autograd
from .reference import kernel_softmax_reference

NORMS = ("taps", "channels", "none")


def check_kernels(op: str, kernel_logits: Tensor, kernel_size: int, norm: str) -> None:
    """Raises ValueError for an even K, an unknown norm, or logits that are not [B, T, C*K*K]."""
    check_norm(op, kernel_size, norm)
    if kernel_logits.dim() != 3 or kernel_logits.shape[2] % kernel_size**2:
        raise ValueError(
            f"{op}: kernel_logits has shape {list(kernel_logits.shape)}; expected [B, T, C*{kernel_size}*{kernel_size}]"
        )


def check_norm(op: str, kernel_size: int, norm: str) -> None:
    """Raises ValueError for an even K or an unknown norm."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{op}: kernel_size is {kernel_size}; expected an odd number, so that the kernel has a centre")
    if kernel_size > LONGEST_SIDE:
        raise ValueError(f"{op}: kernel_size is {kernel_size}; expected at most {LONGEST_SIDE}")
    if norm not in NORMS:
        raise ValueError(f"{op}: norm is '{norm}'; expected one of {', '.join(NORMS)}")


def _check(kernel_logits, kernel_size, norm):
    check_same("kernel_softmax", kernel_logits=kernel_logits)
    check_kernels("kernel_softmax", kernel_logits, kernel_size, norm)


def _check_backward(grad, kernels, norm):
    op = "kernel_softmax_backward"
    check_same(op, kernels=kernels, grad=grad)
    if kernels.dim() != 5 or kernels.shape[3] != kernels.shape[4]:
        raise ValueError(f"{op}: kernels has shape {list(kernels.shape)}; expected [B, T, C, K, K]")
    check_norm(op, kernels.shape[4], norm)
    check_shape(op, "grad", grad, kernels.shape)


def _fake(kernel_logits, kernel_size, norm):
    batch, classes, length = kernel_logits.shape
    return kernel_logits.new_empty(batch, classes, length // kernel_size**2, kernel_size, kernel_size)


def _fake_backward(grad, kernels, norm):
    batch, classes, channels, rows, columns = kernels.shape
    return kernels.new_empty(batch, classes, channels * rows * columns)


def _save(ctx, inputs, output):
    ctx.norm = inputs[2]
    ctx.save_for_backward(output)


def _backward(ctx, ops, grad):
    # p = softmax(x):  dx = p (g - sum(p g)), so only the output is kept
    (kernels,) = ctx.saved_tensors
    return ops("kernel_softmax_backward")(grad, kernels, ctx.norm), None, None


define("kernel_softmax", "(Tensor kernel_logits, int kernel_size, str norm) -> Tensor", _check, _fake, __package__)
define(
    "kernel_softmax_backward",
    "(Tensor grad, Tensor kernels, str norm) -> Tensor",
    _check_backward,
    _fake_backward,
    __package__,
)
register_autograd("kernel_softmax", _save, _backward)
first_order_only("kernel_softmax_backward")


def _few_elements(kernel_logits: Tensor, kernel_size: int, norm: str) -> str:
    """Why PyTorch's softmax, which costs less to call, runs small inputs, or "" (measured: one AVX-512 core, K <= 15).

    PyTorch's softmax over 9 elements is slow, over 25 and more fast. With a gradient the limits are higher, because
    most of such a call of ours is spent in autograd's Python code.
    """
    if kernel_size < 5:
        limit = 2**10
    else:
        limit = 2**14 if norm == "taps" else 2**12
        if torch.is_grad_enabled() and kernel_logits.requires_grad:
            limit *= 8 if norm == "taps" else 4
    return f"it is faster up to {limit} elements" if kernel_logits.numel() <= limit else ""


register(
    "kernel_softmax",
    kernel_softmax_reference,
    prefer_reference={"cpp": _few_elements},
    casts=1,
    casts_to=torch.float32,
)


def kernel_softmax(kernel_logits: Tensor, kernel_size: int, norm: str = "taps", *, backend: str = "auto") -> Tensor:
    """Normalised convolution kernels of every class from their logits.

    kernel_logits  [B, T, C*K*K]   float32, float64, float16 or bfloat16, ordered channel, row, column; any strides
    kernel_size    K, odd, at most 32767
    norm           "taps": softmax over the K*K taps of each channel; "channels": over the C channels at each tap;
                   "none": only reshaped
    returns        [B, T, C, K, K]  dtype of kernel_logits, contiguous; sums in float32, or float64 for float64

    Differentiable once (the reference any number of times). Under autocast it runs in float32, as torch.softmax does on
    a GPU. B, T and C may be 0. ``backend`` is "auto" or a name that ``explain`` lists. Source: FGAseg, section III-C,
    eq. 10. Raises ValueError for an even K, an unknown norm or a wrong shape, TypeError for another dtype.
    """
    return dispatch("kernel_softmax", backend, kernel_logits, kernel_size, norm)
