"""Local category supplementation: one normalised kernel per image and class, convolved with the image."""

from .op import lcs_conv

__all__ = ["lcs_conv"]
