"""The definition of up_stage, in plain PyTorch."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..group_norm_relu.reference import group_norm_relu_reference


def up_stage_reference(
    x: Tensor,
    guidance: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor,
    weight1: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    weight2: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    groups: int,
    eps: float,
    norm: Callable[..., Tensor] = group_norm_relu_reference,
) -> Tensor:
    """relu(norm2(conv2(relu(norm1(conv1(up(x)) + guidance))))), channels last; norm: GroupNorm and ReLU."""
    x = F.conv_transpose2d(x.permute(0, 3, 1, 2), up_weight, up_bias, stride=2)
    x = F.conv2d(x, weight1, padding=1)
    if guidance is not None:  # in place: nothing else reads the convolution's output, and no gradient needs it
        images = guidance.shape[0]
        x.unflatten(0, (images, x.shape[0] // max(images, 1))).add_(guidance.permute(0, 3, 1, 2)[:, None])
    x = norm(x.permute(0, 2, 3, 1), norm1_weight, norm1_bias, groups, eps, True)
    x = F.conv2d(x.permute(0, 3, 1, 2), weight2, padding=1)
    return norm(x.permute(0, 2, 3, 1), norm2_weight, norm2_bias, groups, eps, True)
