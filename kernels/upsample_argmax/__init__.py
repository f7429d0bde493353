"""The winning class of every pixel at the photo's size, from small score maps, without the maps at that size."""

from .op import upsample_argmax, upsample_argmax_windows

__all__ = ["upsample_argmax", "upsample_argmax_windows"]
