"""The classes worth computing further: per pixel the k best, united per image, as packed rows."""

from .op import Selection, gather_classes, scatter_classes, topk_classes

__all__ = ["Selection", "gather_classes", "scatter_classes", "topk_classes"]
