"""Softmax attention of all tokens of a sequence, as in a vision or text transformer."""

from .op import attention

__all__ = ["attention"]
