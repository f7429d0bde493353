"""lcs_conv with the projection from text in front, so that the kernel logits never exist."""

from .op import lcs_conv_from_text

__all__ = ["lcs_conv_from_text"]
