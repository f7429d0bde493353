"""Attention within the windows of every class map, guided by the image (Swin)."""

from .op import window_attention

__all__ = ["window_attention"]
