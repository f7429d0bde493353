"""lcs_conv preceded by its projection from text, so that the kernel logits are never stored."""

from .op import lcs_conv_from_text

__all__ = ["lcs_conv_from_text"]
