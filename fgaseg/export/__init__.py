"""A model outside of Python: graphs for ONNX Runtime, OpenVINO and PyTorch, in which the class names stay free."""

from .checking import check_export
from .exporting import PARTS, TARGETS, ExportOptions, Tiles, export_model

__all__ = ["PARTS", "TARGETS", "ExportOptions", "Tiles", "check_export", "export_model"]
