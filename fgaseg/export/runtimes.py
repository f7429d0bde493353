"""The programs that run the files of an export: load(path, precision) gives a function of tensors to tensors."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ExportError

Run = Callable[..., tuple[Tensor, ...]]

HINTS = {"float32": "f32", "bfloat16": "bf16"}  # what OpenVINO computes in; of other files the device's plugin decides


class Runtime(Protocol):
    """A program that runs the files of one target."""

    name: str

    def load(self, path: Path, precision: str = "float32") -> Run:
        """A file as a function of its inputs, on the CPU. Raises what the program raises for a file that it refuses."""
        ...


def needed(module: str) -> Any:
    """An optional package. Raises ExportError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise ExportError(f"{name} is not installed: pip install 'fgaseg[export]'") from None


class OnnxRuntime:
    """ONNX Runtime's CPU provider.

    threads  None: as many as it chooses
    arena    keep the memory of the largest run for the next one, once for all sessions, as in a server; otherwise every
             run gives its memory back
    """

    name = "onnxruntime"

    def __init__(self, threads: int | None = None, arena: bool = False) -> None:
        self.ort, self.threads, self.arena = needed("onnxruntime"), threads, arena
        if arena:
            _register_arena()

    def load(self, path: Path, precision: str = "float32") -> Run:
        session = self.session(str(path))
        names = [one.name for one in session.get_inputs()]

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            outputs = session.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})
            return tuple(map(torch.from_numpy, outputs))

        return run

    def session(self, model: str | bytes) -> Any:
        options = self.ort.SessionOptions()
        options.log_severity_level = 3  # errors: not a remark on every node
        options.inter_op_num_threads = 1
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.arena:
            options.add_session_config_entry("session.use_env_allocators", "1")
        else:
            options.enable_cpu_mem_arena = False
        return self.ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@functools.cache
def _register_arena() -> None:
    """Once in a process."""
    ort = needed("onnxruntime")
    kinds = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", *kinds), None)


class OpenVino:
    """OpenVINO's CPU plugin. Its own choice of precision would be bfloat16 where the processor has it.

    threads  None: as many as it chooses
    """

    name = "openvino"

    def __init__(self, threads: int | None = None) -> None:
        self.core, self.threads = needed("openvino").Core(), threads

    def load(self, path: Path, precision: str = "float32") -> Run:
        return self.compiled(self.core.read_model(path), precision)

    def compiled(self, model: Any, precision: str) -> Run:
        """A model in memory as a function. Raises ExportError where the plugin computes in another precision."""
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if hint := HINTS.get(precision):
            settings["INFERENCE_PRECISION_HINT"] = hint
        if self.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self.threads
        compiled = self.core.compile_model(model, "CPU", settings)
        chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if hint and chosen != hint:
            raise ExportError(f"openvino: its CPU plugin runs {chosen} where {hint} is asked for")
        request = compiled.create_infer_request()

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = request.infer([x.numpy() for x in tensors], share_inputs=True)
            return tuple(torch.from_numpy(found[i]) for i in range(len(found)))

        return run


class TorchExport:
    """PyTorch, by torch.export.load. Guards that a size is not 1 are notes of the tracer: programs hold for 1 too."""

    name = "torch"

    def load(self, path: Path, precision: str = "float32") -> Run:
        module = torch.export.load(path).module(check_guards=False)

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                found = module(*tensors)
            return found if isinstance(found, tuple) else (found,)

        return run


class Aoti:
    """PyTorch, by AOTInductor's loader."""

    name = "aoti"

    def load(self, path: Path, precision: str = "float32") -> Run:
        program = torch._inductor.aoti_load_package(str(path))

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = program(*tensors)
            return tuple(found) if isinstance(found, (list, tuple)) else (found,)

        return run


RUNTIMES: dict[str, type[OnnxRuntime | OpenVino | TorchExport | Aoti]] = {
    "onnx": OnnxRuntime,
    "openvino": OpenVino,
    "torch": TorchExport,
    "aoti": Aoti,
}
