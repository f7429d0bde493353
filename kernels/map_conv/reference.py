"""The definitions of embed_maps and score_maps, in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def embed_maps_reference(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv(maps, weight) + bias, channels last."""
    y = F.conv2d(maps[:, None], weight, bias, padding=weight.shape[-1] // 2)
    return y.permute(0, 2, 3, 1).contiguous()


def score_maps_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """conv(x, weight) + bias of maps that are channels last."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1)[:, 0]
