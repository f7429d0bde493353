"""The definition of lcs_conv_from_text, in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from ..lcs_conv.reference import lcs_conv_reference


def lcs_conv_from_text_reference(
    texts: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, kernel_size: int, norm: str
) -> Tensor:
    """A linear layer gives every class its C*K*K kernel logits and its bias, the inputs of lcs_conv."""
    outputs = F.linear(texts, weight, bias)
    return lcs_conv_reference(pixels, outputs[..., :-1], outputs[..., -1], kernel_size, norm)
