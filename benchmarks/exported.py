"""The model in other programs: the graphs of `fgaseg export` in ONNX Runtime and OpenVINO, in every precision.

bfloat16 and int8 are made of the float32 graphs here, as their users would: by OpenVINO's hint, by ONNX Runtime's
dynamic quantisation and by NNCF.
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from fgaseg import FGASeg
from fgaseg.errors import ExportError
from fgaseg.export import runtimes
from fgaseg.export.graphs import Part, head_part, image_part, text_part
from fgaseg.export.onnx import write_onnx
from fgaseg.export.runtimes import Run, needed
from fgaseg.export.tracing import last_line, trace

PARTS: dict[str, Callable[[FGASeg], Part]] = {"image tower": image_part, "text tower": text_part, "head": head_part}


def export(model: FGASeg, part: str, folder: Path) -> Path:
    """Write a part as an ONNX graph for any sizes. Raises ExportError."""
    made = PARTS[part](model)
    path = folder / f"{made.name}.onnx"
    write_onnx(made, trace(made), path, None, {})
    return path


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without the remarks of quantisers on every node."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


class OnnxRuntime(runtimes.OnnxRuntime):
    """ONNX Runtime on the CPU; int8 by quantize_dynamic, for products (its int8 convolutions are slower than float32).

    All sessions share one arena, as they would in a server: otherwise each keeps the memory of its largest run.
    """

    package = "onnxruntime"

    def __init__(self, threads: int) -> None:
        super().__init__(threads, arena=True)

    def build(self, path: Path, precision: str, sample: tuple[Tensor, ...]) -> Run:
        if precision == "bfloat16":
            self.check_bfloat16()
        return self.load(self._quantised(path) if precision == "int8" else path)

    def check_bfloat16(self) -> None:
        """Raise ExportError with ONNX Runtime's words if its CPU provider has no product in bfloat16."""
        onnx = needed("onnx")
        kind = onnx.TensorProto.BFLOAT16
        a, b, c = (onnx.helper.make_tensor_value_info(name, kind, [2, 2]) for name in "abc")
        node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"])
        graph = onnx.helper.make_graph([node], "product", [a, b], [c])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        try:
            self.session(model.SerializeToString())
        except Exception as error:  # NotImplemented, of its own
            raise ExportError(f"its CPU provider: {last_line(error)}") from error
        raise ExportError("its CPU provider has a product in bfloat16; exporting to it is not in this benchmark")

    def _quantised(self, path: Path) -> Path:
        quantization = needed("onnxruntime.quantization")
        out = path.with_suffix(".int8.onnx")
        with silence():
            quantization.quantize_dynamic(
                str(path),
                str(out),
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
                use_external_data_format=True,
            )
        return out


class OpenVino(runtimes.OpenVino):
    """OpenVINO's CPU plugin; bfloat16 by its precision hint, int8 by NNCF's quantisation, calibrated on one sample."""

    package = "openvino"

    def build(self, path: Path, precision: str, sample: tuple[Tensor, ...]) -> Run:
        model = self.core.read_model(path)
        if precision == "int8":
            return self.compiled(self._quantised(model, sample), "float32")
        return self.compiled(model, precision)

    def _quantised(self, model: Any, sample: tuple[Tensor, ...]) -> Any:
        os.environ.setdefault("NNCF_CI", "1")  # it would report its use to its makers
        nncf = needed("nncf")
        with silence():
            return nncf.quantize(
                model,
                nncf.Dataset([[x.numpy() for x in sample]]),
                subset_size=1,
                model_type=nncf.ModelType.TRANSFORMER,
                advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
            )


PROGRAMS: dict[str, Callable[[int], Any]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
