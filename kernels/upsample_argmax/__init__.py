"""The winning class of every pixel at the photo's size, from small score maps that are never upsampled in memory."""

from .op import upsample_argmax, upsample_argmax_windows

__all__ = ["upsample_argmax", "upsample_argmax_windows"]
