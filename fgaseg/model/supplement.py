"""Category supplementation (section III-C): the local map S_l, and the embedding and fusion of both maps."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import embed_maps, kernel_softmax, lcs_conv, lcs_conv_from_text, linear
from .precision import KeptInFloat32, counts_launches


class LocalSupplement(KeptInFloat32):
    """LCS, eq. 10: every class slides its own depthwise K×K kernel, made from its text, over the pixels.

    pixels   [B, C, H, W], unit length over C
    texts    [B, T, C], unit length
    returns  S_l [B, T, H, W]; float32 in a model of bfloat16 too

    kernel_norm  as in `kernel_softmax`, or "cosine": the kernels of "taps", in channel c times the text's value t_c,
                 S_l = sum_c t_c sum_k softmax_k(.) x_{c,p+k} + b
    padding      the pixels beyond the border: "zeros", or "replicate", the nearest one
    """

    def __init__(self, channels: int, kernel_size: int, kernel_norm: str, padding: str = "zeros"):
        super().__init__()
        self.kernel_size, self.kernel_norm, self.padding = kernel_size, kernel_norm, padding
        self.text = nn.Linear(channels, channels * kernel_size**2 + 1)  # the last output is the class's bias

    def forward(self, pixels: Tensor, texts: Tensor) -> Tensor:
        weight, bias = self.text.weight, self.text.bias
        pixels, texts = pixels.to(weight.dtype), texts.to(weight.dtype)
        border = self.kernel_size // 2 if self.padding == "replicate" else 0
        if border:  # the zeros of the op then reach only what is cut off
            pixels = F.pad(pixels, (border,) * 4, mode="replicate")
        if self.kernel_norm == "cosine":
            outputs = self.text(texts)
            kernels = kernel_softmax(outputs[..., :-1], self.kernel_size) * texts[..., None, None]
            maps = lcs_conv(pixels, kernels.flatten(2), outputs[..., -1], self.kernel_size, "none")
        else:
            maps = lcs_conv_from_text(texts, weight, bias, pixels, self.kernel_size, norm=self.kernel_norm)
        return maps[:, :, border:-border, border:-border] if border else maps


class Fusion(nn.Module):
    """Two class maps into one: `cat` is a linear layer on both, `add` their sum (Table V). Channels last.

    halves  W_x and W_l in 8 bits, in a quantized model
    """

    def __init__(self, channels: int, mode: str):
        super().__init__()
        self.linear = nn.Linear(2 * channels, channels) if mode == "cat" else None
        self.halves: nn.ModuleList | None = None

    def forward(self, x: Tensor, local: Tensor) -> Tensor:
        if self.linear is None:
            return x + local
        # W [x; l] = W_x x + W_l l: the two are never joined
        own, other = self.linear.weight.chunk(2, dim=1) if self.halves is None else cast("Any", self.halves)
        if counts_launches(x):
            y = linear(x, own, self.linear.bias)
            y.flatten(0, -2).addmm_(local.flatten(0, -2), other.t())
            return y
        return linear(local, other, residual=linear(x, own, self.linear.bias))


class MapEmbedding(nn.Module):
    """A 7×7 convolution that gives every class map [N, H, W] its hidden channels: [N, H, W, hidden]."""

    def __init__(self, hidden: int):
        super().__init__()
        self.conv = nn.Conv2d(1, hidden, 7)  # holds the weights; the op pads

    def forward(self, maps: Tensor) -> Tensor:
        weight = self.conv.weight
        return embed_maps(maps.to(weight.dtype), weight, cast(Tensor, self.conv.bias))
