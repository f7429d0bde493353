"""The definition of up_stage, in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


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
) -> Tensor:
    """relu(norm2(conv2(relu(norm1(conv1(up(x)) + guidance))))), channels last."""
    x = F.conv_transpose2d(x.permute(0, 3, 1, 2), up_weight, up_bias, stride=2)
    x = F.conv2d(x, weight1, padding=1)
    if guidance is not None:  # in place: nothing else reads the convolution's output, and no gradient needs it
        images = guidance.shape[0]
        x.unflatten(0, (images, x.shape[0] // max(images, 1))).add_(guidance.permute(0, 3, 1, 2)[:, None])
    x = F.relu(F.group_norm(x, groups, norm1_weight, norm1_bias, eps), inplace=True)
    x = F.conv2d(x, weight2, padding=1)
    return F.relu(F.group_norm(x, groups, norm2_weight, norm2_bias, eps), inplace=True).permute(0, 2, 3, 1)
