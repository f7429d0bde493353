"""GroupNorm and the ReLU after it on maps with channels last."""

from .op import group_norm_relu

__all__ = ["group_norm_relu"]
