"""The classes that are worth computing further: the k best of every pixel, united per image, as packed rows."""

from .op import Selection, gather_classes, scatter_classes, topk_classes

__all__ = ["Selection", "gather_classes", "scatter_classes", "topk_classes"]
