"""The activations that layers apply to their sums."""

import torch.nn.functional as F
from torch import Tensor


def activate(x: Tensor, activation: str) -> Tensor:
    """ "none", "relu", "gelu" (exact) or "quick_gelu", x · sigmoid(1.702 x)."""
    if activation == "quick_gelu":
        return x * (1.702 * x).sigmoid()
    return {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}[activation](x)
