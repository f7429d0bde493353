"""The decoder (section III-D): two upsampling stages, into each of which the local map is fused again, and the head.

Class maps are rows [N, H, W, D], channels last; image guidance is joined without copying it to the rows.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import UpWeights, score_maps, up_stage
from .supplement import Fusion


class SharedGuidanceConv(nn.Module):
    """conv3×3 without bias on [x; guidance]: W[x; g] = W_x x + W_g g, the second term computed once per image."""

    def __init__(self, inputs: int, guidance: int, outputs: int):
        super().__init__()
        self.inputs = inputs
        self.conv = nn.Conv2d(inputs + guidance, outputs, 3, padding=1, bias=False)

    def project(self, guidance: Tensor) -> Tensor:
        """W_g g: [B, guidance, H, W] → [B, outputs, H, W], channels last in memory."""
        projected = F.conv2d(guidance, self.conv.weight[:, self.inputs :], padding=1)
        return projected.contiguous(memory_format=torch.channels_last)

    @property
    def weight(self) -> Tensor:
        """W_x [outputs, inputs, 3, 3]."""
        return self.conv.weight[:, : self.inputs]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


class UpStage(nn.Module):
    """Transposed convolution ×2, guidance joined, two [conv3×3, GroupNorm, ReLU]."""

    def __init__(self, inputs: int, guidance: int, outputs: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, inputs - guidance, 2, stride=2)
        self.conv1 = SharedGuidanceConv(inputs - guidance, guidance, outputs)
        self.norm1 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(outputs)

    def forward(self, x: Tensor, projected: Tensor) -> Tensor:
        """x [B·T, H, W, inputs], guidance as `conv1.project` gives it [B, outputs, 2H, 2W] → [B·T, 2H, 2W, outputs]."""
        return _run(self, x, projected.permute(0, 2, 3, 1))


class LocalUp(nn.Module):
    """The embedded local map at twice the size: transposed convolution, then two [conv3×3, GroupNorm, ReLU]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return _run(self, x, None)


def _run(stage: UpStage | LocalUp, x: Tensor, guidance: Tensor | None) -> Tensor:
    norm1, norm2 = stage.norm1, stage.norm2
    norms = (norm1.weight, norm1.bias, stage.conv2.weight, norm2.weight, norm2.bias)
    weights = UpWeights(stage.up.weight, cast(Tensor, stage.up.bias), stage.conv1.weight, *norms)
    return up_stage(x, guidance, weights, norm1.num_groups, norm1.eps)


class MapHead(nn.Module):
    """conv3×3 to one logit per class and pixel: [N, H, W, D] → [N, H, W]."""

    def __init__(self, inputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 1, 3)  # holds the weights; the op pads

    def forward(self, x: Tensor) -> Tensor:
        return score_maps(x, self.conv.weight, cast(Tensor, self.conv.bias))


class Decoder(nn.Module):
    """Class maps at H×W to logits at 4H×4W. Without LCS (`local=False`) there is no local map to fuse again."""

    def __init__(self, hidden: int, channels: tuple[int, int], guidance: tuple[int, int], fusion: str, local: bool):
        super().__init__()
        self.stage1 = UpStage(hidden, guidance[0], channels[0])
        self.stage2 = UpStage(channels[0], guidance[1], channels[1])
        self.fuse1 = Fusion(hidden, fusion) if local else None
        self.local_up = LocalUp(hidden, channels[0]) if local else None
        self.fuse2 = Fusion(channels[0], fusion) if local else None
        self.head = MapHead(channels[1])

    def fuse_stage1(self, x: Tensor, local: Tensor | None) -> Tensor:
        """Input of stage 1: x and the embedded local map, both [N, H, W, hidden]."""
        return x if self.fuse1 is None else self.fuse1(x, local)

    def fuse_stage2(self, x: Tensor, local: Tensor | None) -> Tensor:
        """Input of stage 2: x [N, 2H, 2W, channels] and the embedded local map [N, H, W, hidden]."""
        return x if self.fuse2 is None or self.local_up is None else self.fuse2(x, self.local_up(local))
