"""Category supplementation (section III-C): the local map S_l, and the embedding and fusion of both maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import lcs_conv


class LocalSupplement(nn.Module):
    """LCS, eq. 10: every class slides its own depthwise K×K kernel, made from its text, over the pixels.

    pixels   [B, C, H, W], unit length over C
    texts    [B, T, C], unit length
    returns  S_l [B, T, H, W]
    """

    classes_per_step = 1024  # bounds the kernel logits [classes, C·K²] when no gradient is recorded

    def __init__(self, channels: int, kernel_size: int, kernel_norm: str):
        super().__init__()
        self.kernel_size, self.kernel_norm = kernel_size, kernel_norm
        self.text = nn.Linear(channels, channels * kernel_size**2 + 1)

    def forward(self, pixels: Tensor, texts: Tensor) -> Tensor:
        step = texts.shape[1] if torch.is_grad_enabled() else self.classes_per_step
        maps = [self._maps(pixels, t) for t in texts.split(max(step, 1), dim=1)]
        return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)

    def _maps(self, pixels: Tensor, texts: Tensor) -> Tensor:
        weight, bias = self.text.weight, self.text.bias  # the last output is the class's bias
        kernel_logits = F.linear(texts, weight[:-1], bias[:-1])
        class_bias = F.linear(texts, weight[-1:], bias[-1:])[..., 0]
        return lcs_conv(pixels, kernel_logits, class_bias, self.kernel_size, norm=self.kernel_norm)


class Fusion(nn.Module):
    """Two class maps into one: `cat` is a linear layer on both, `add` their sum (Table V). Channels last."""

    def __init__(self, channels: int, mode: str):
        super().__init__()
        self.linear = nn.Linear(2 * channels, channels) if mode == "cat" else None

    def forward(self, x: Tensor, local: Tensor) -> Tensor:
        return x + local if self.linear is None else self.linear(torch.cat([x, local], dim=-1))


class MapEmbedding(nn.Module):
    """A 7×7 convolution that gives every class map [N, H, W] its hidden channels: [N, H, W, hidden]."""

    def __init__(self, hidden: int):
        super().__init__()
        self.conv = nn.Conv2d(1, hidden, 7, padding=3)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv(maps[:, None]).permute(0, 2, 3, 1)
