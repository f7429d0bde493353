"""The model as graphs that other programs run, and those programs: ONNX Runtime and OpenVINO.

What is exported is the model with every op in its plain form and all class maps in one chunk, at fixed sizes: the same
products and convolutions as ours, without pad tokens or repeated guidance, which is the best that a user gets out of
torch.onnx.export. The choice of the classes under the cap, which has no ONNX form, is by TopK instead of a stable sort.
"""

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgaseg import FGASeg
from fgaseg.kernels import Selection, _dispatch
from fgaseg.model import ClassSelector, run_block
from fgaseg.model.encoders import ImageFeatures

Run = Callable[..., tuple[Tensor, ...]]


class Unavailable(Exception):
    """Why a program cannot run a part in a precision."""


class TopKSelector(ClassSelector):
    def cap(self, scores: Tensor, count: int) -> Selection:
        """The same classes, of one image; ties may be broken otherwise."""
        kept = scores.flatten(2).amax(-1).topk(count).indices.topk(count, largest=False).values
        return Selection(kept.flatten(), torch.full((1,), count), 1, scores.shape[1])


class ImageGraph(nn.Module):
    """pixels [1, 3, h, w] → embedding, early and late features."""

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.image_encoder(pixels))


class TextGraph(nn.Module):
    """tokens [N, L] and where each prompt ends [N] → embeddings [N, C]."""

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
        tower = self.model.encoder.text_tower
        x = tower.parts.token_embedding(tokens) + tower.parts.positional_embedding[: tokens.shape[1]]
        for block in tower.blocks:
            x = run_block(block, x, causal=tower.causal)
        return (tower.project(tower.parts.ln_final(x[torch.arange(len(x)), ends])),)


class HeadGraph(nn.Module):
    """Features and texts [T, C] → the classes under the cap [t], and their logits [t, 4H, 4W]."""

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.head = model.head

    def forward(self, embedding: Tensor, early: Tensor, late: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        features = ImageFeatures(embedding, early, late)
        maps = self.head.class_maps(embedding, *self.head.global_similarity(embedding, texts))
        decoded = self.head.decode(features, maps)
        selection = decoded.packing.selection
        return torch.arange(len(texts)) if selection is None else selection.rows, decoded.logits


GRAPHS: dict[str, type[nn.Module]] = {"image tower": ImageGraph, "text tower": TextGraph, "head": HeadGraph}


@contextlib.contextmanager
def plain_ops(model: FGASeg) -> Iterator[None]:
    """Every op of fgaseg.kernels in its reference form, and the selector that can be exported."""
    ops, selector = dict(_dispatch.OPS), model.head.selector
    _dispatch.OPS.update({name: backends[-1:] for name, backends in ops.items()})
    model.head.selector = TopKSelector()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _dispatch.OPS.update(ops)
        model.head.selector = selector


def export(model: FGASeg, part: str, inputs: tuple[Tensor, ...], path: Path) -> Path:
    """Write a part as an ONNX graph for inputs of these sizes. Raises Unavailable with the exporter's words."""
    try:
        with plain_ops(model), torch.no_grad(), silence():
            torch.onnx.export(
                GRAPHS[part](model).eval(), inputs, str(path), dynamo=True, external_data=True, verbose=False
            )
    except Exception as error:  # its exceptions have no common type
        raise Unavailable(f"torch.onnx.export: {last_line(error)}") from error
    return path


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without the remarks of exporters and quantisers on every node."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("(Refer")]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:200]


def needed(module: str) -> Any:
    """An optional package. Raises Unavailable if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Unavailable(f"{module.partition('.')[0]} is not installed") from None


class OnnxRuntime:
    """ONNX Runtime on the CPU; int8 by quantize_dynamic, for products (its int8 convolutions are slower than float32).

    All sessions share one arena, as they would in a server: otherwise each keeps the memory of its largest run.
    """

    package = "onnxruntime"

    def __init__(self, threads: int) -> None:
        self.ort = needed("onnxruntime")
        self.ort.set_default_logger_severity(3)
        memory = self.ort.OrtMemoryInfo("Cpu", self.ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                        self.ort.OrtMemType.DEFAULT)  # fmt: skip
        with contextlib.suppress(Exception):  # it exists already
            self.ort.create_and_register_allocator(memory, None)
        self.threads = threads

    def build(self, path: Path, precision: str, inputs: tuple[Tensor, ...]) -> Run:
        if precision == "bfloat16":
            self.check_bfloat16()
        if precision == "int8":
            path = self._quantised(path)
        session = self._session(str(path))
        names = [one.name for one in session.get_inputs()]

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            outputs = session.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})
            return tuple(map(torch.from_numpy, outputs))

        return run

    def _session(self, model: Any) -> Any:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.add_session_config_entry("session.use_env_allocators", "1")
        return self.ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def check_bfloat16(self) -> None:
        """Raise Unavailable with ONNX Runtime's words if its CPU provider has no product in bfloat16."""
        onnx = needed("onnx")
        kind = onnx.TensorProto.BFLOAT16
        a, b, c = (onnx.helper.make_tensor_value_info(name, kind, [2, 2]) for name in "abc")
        node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"])
        graph = onnx.helper.make_graph([node], "product", [a, b], [c])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        try:
            self._session(model.SerializeToString())
        except Exception as error:  # NotImplemented, of its own
            raise Unavailable(f"its CPU provider: {last_line(error)}") from error
        raise Unavailable("its CPU provider has a product in bfloat16; exporting to it is not in this benchmark")

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


class OpenVino:
    """OpenVINO's CPU plugin; bfloat16 by its precision hint, int8 by NNCF's quantisation, calibrated on one sample."""

    package = "openvino"
    largest = 150  # classes of a head that NNCF calibrates: of 847 it takes minutes and 8 GB

    def __init__(self, threads: int) -> None:
        self.ov, self.threads = needed("openvino"), threads

    def build(self, path: Path, precision: str, inputs: tuple[Tensor, ...]) -> Run:
        core = self.ov.Core()
        model = core.read_model(str(path))
        if precision == "int8":
            model = self._quantised(model, inputs)
        hint = "bf16" if precision == "bfloat16" else "f32"
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(model, "CPU", settings)
        chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if chosen != hint:
            raise Unavailable(f"its CPU plugin runs {chosen} where {hint} is asked for")
        request = compiled.create_infer_request()

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = request.infer([x.numpy() for x in tensors], share_inputs=True)
            return tuple(torch.from_numpy(found[i]) for i in range(len(found)))

        return run

    def _quantised(self, model: Any, inputs: tuple[Tensor, ...]) -> Any:
        texts = len(inputs[3]) if len(inputs) == 4 else 0
        if texts > self.largest:
            raise Unavailable(f"NNCF calibrates a head of {texts} classes in minutes and 8 GB; left out")
        os.environ.setdefault("NNCF_CI", "1")  # it would report its use to its makers
        nncf = needed("nncf")
        with silence():
            return nncf.quantize(
                model,
                nncf.Dataset([[x.numpy() for x in inputs]]),
                subset_size=1,
                model_type=nncf.ModelType.TRANSFORMER,
                advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
            )


PROGRAMS: dict[str, Callable[[int], Any]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
