"""Linear attention over the classes at every pixel: a summary of keys and values, looked up by queries."""

from .op import add_pads, class_attention, class_lookup, class_summary

__all__ = ["add_pads", "class_attention", "class_lookup", "class_summary"]
