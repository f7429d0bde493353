"""The definition of group_norm_relu, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_relu_reference(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool) -> Tensor:
    """relu(GroupNorm(x)) of maps with channels last."""
    y = torch.group_norm(x.permute(0, 3, 1, 2), groups, weight, bias, eps)
    return (F.relu(y, inplace=True) if relu else y).permute(0, 2, 3, 1)
