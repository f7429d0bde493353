"""lcs_conv_from_text on a GPU: a bounded chunk of logits from one matrix product, then lcs_conv's kernels on it.

torch.matmul computes every chunk of logits once. A chunk has at most SCRATCH logits (lcs_conv/triton.py), unless 32
channels of an image have more: it is read again from the second-level cache, and memory does not grow with C.
docs/design/kernels.md says why the product is not fused into the convolution.

Backward does the same. A chunk of channels finishes its rows of dweight and dbias and its channels of dpixels, unless
it has only some of the images; dtexts accumulates over the chunks. What is accumulated is in float32.

norm="channels" needs all channels of a class at once: there the logits are computed in full.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .._triton import Configuration
from ..lcs_conv.triton import convolve, convolve_backward, lcs_conv, lcs_conv_backward, of_images


def _logits(texts: Tensor, weight: Tensor, bias: Tensor, channels: slice, taps: int) -> Tensor:
    """Logits [b, T, c, K*K] of some channels."""
    outputs = slice(channels.start * taps, channels.stop * taps)
    logits = F.linear(texts, weight[outputs], bias[outputs])
    return logits.view(texts.shape[0], texts.shape[1], channels.stop - channels.start, taps)


def lcs_conv_from_text(
    texts: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, kernel_size: int, norm: str
) -> Tensor:
    taps = kernel_size**2
    class_bias = F.linear(texts, weight[-1:], bias[-1:])[..., 0]
    if norm == "channels":
        logits = F.linear(texts, weight[:-1], bias[:-1])
        return lcs_conv(pixels, logits, class_bias, kernel_size, norm)
    return convolve(
        pixels, class_bias, kernel_size, norm == "taps",
        lambda images, channels: _logits(of_images(texts, images), weight, bias, channels, taps),
    )  # fmt: skip


def lcs_conv_from_text_backward(
    grad: Tensor, texts: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, kernel_size: int, norm: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    taps, dpixels = kernel_size**2, pixels.new_empty(pixels.shape)
    dweight, dbias = (x.new_zeros(x.shape, dtype=torch.float32) for x in (weight, bias))
    dclass = grad.sum((2, 3), dtype=torch.float32)  # the gradient of the class's bias, the last output
    dtexts = dclass[..., None] * weight[-1].float()
    dweight[-1] = torch.einsum("bt,btd->d", dclass, texts.float())
    dbias[-1] = dclass.sum()
    if norm == "channels":
        logits = F.linear(texts, weight[:-1], bias[:-1])
        channels = slice(0, pixels.shape[1])
        dpixels, dlogits, _ = lcs_conv_backward(grad, pixels, logits, kernel_size, norm)
        parts = iter([(slice(0, len(texts)), channels, dlogits)])
    else:
        parts = convolve_backward(
            grad, pixels, dpixels, kernel_size, norm == "taps",
            lambda images, channels: _logits(texts[images], weight, bias, channels, taps),
            lambda images, channels: texts.new_empty(
                images.stop - images.start, texts.shape[1], channels.stop - channels.start, taps
            ),
        )  # fmt: skip
    for images, channels, dlogits in parts:
        outputs, part = slice(channels.start * taps, channels.stop * taps), dlogits.flatten(2).flatten(0, 1)
        dtexts[images] += (part @ weight[outputs]).view(texts[images].shape)
        dweight[outputs] += part.mT @ texts[images].flatten(0, 1)
        dbias[outputs] += part.sum(0, dtype=torch.float32)
    return dtexts.to(texts.dtype), dweight.to(weight.dtype), dbias.to(bias.dtype), dpixels


def configurations() -> Iterator[Configuration]:
    """None: all kernels that it launches are configured by lcs_conv."""
    return iter(())
