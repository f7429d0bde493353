"""ONNX graphs as OpenVINO's own files."""

from __future__ import annotations

from pathlib import Path

from ..errors import ExportError

# its CPU plugin does so by default, and a file cannot say otherwise (2026.4)
LIMIT = (
    "OpenVINO computes in bfloat16 on processors that have it, which changes labels; for float32 compile with "
    '{"INFERENCE_PRECISION_HINT": "f32"}'
)


def write_openvino(graph: Path, path: Path, halves: bool) -> None:
    """Write an ONNX file as `path` (.xml) and its weights beside it (.bin).

    halves  store the weights in float16; the plugin of the device decides in what it computes

    Raises ExportError.
    """
    try:
        import openvino
    except ImportError as error:
        raise ExportError(f"--to openvino needs OpenVINO ({error}): pip install 'fgaseg[export]'") from None
    try:
        openvino.save_model(openvino.convert_model(graph), path, compress_to_fp16=halves)
    except Exception as error:  # its exceptions have no common type
        raise ExportError(f"{graph.name}: OpenVINO: {str(error).strip().splitlines()[-1][:300]}") from error
