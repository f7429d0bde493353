"""Category supplementation (section III-C): the local map S_l, and the embedding and fusion of both maps."""

from typing import Any, cast

from torch import Tensor, nn

from ..kernels import embed_maps, lcs_conv_from_text, linear
from .precision import KeptInFloat32


class LocalSupplement(KeptInFloat32):
    """LCS, eq. 10: every class slides its own depthwise K×K kernel, made from its text, over the pixels.

    pixels   [B, C, H, W], unit length over C
    texts    [B, T, C], unit length
    returns  S_l [B, T, H, W]; float32 in a model of bfloat16 too
    """

    def __init__(self, channels: int, kernel_size: int, kernel_norm: str):
        super().__init__()
        self.kernel_size, self.kernel_norm = kernel_size, kernel_norm
        self.text = nn.Linear(channels, channels * kernel_size**2 + 1)  # the last output is the class's bias

    def forward(self, pixels: Tensor, texts: Tensor) -> Tensor:
        weight, bias = self.text.weight, self.text.bias
        pixels, texts = pixels.to(weight.dtype), texts.to(weight.dtype)
        return lcs_conv_from_text(texts, weight, bias, pixels, self.kernel_size, norm=self.kernel_norm)


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
        return linear(local, other, residual=linear(x, own, self.linear.bias))


class MapEmbedding(nn.Module):
    """A 7×7 convolution that gives every class map [N, H, W] its hidden channels: [N, H, W, hidden]."""

    def __init__(self, hidden: int):
        super().__init__()
        self.conv = nn.Conv2d(1, hidden, 7, padding=3)

    def forward(self, maps: Tensor) -> Tensor:
        weight = self.conv.weight
        return embed_maps(maps.to(weight.dtype), weight, cast(Tensor, self.conv.bias))
