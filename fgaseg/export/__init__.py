"""A model outside of Python: graphs for ONNX Runtime, OpenVINO and PyTorch, in which the class names stay free."""

from .exporting import PARTS, TARGETS, ExportOptions, Tiles, export_model

__all__ = ["PARTS", "TARGETS", "ExportOptions", "Tiles", "export_model"]
