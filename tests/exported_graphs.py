"""One part of a model in every program that runs it."""

import torch

from fgaseg.export.onnx import write_onnx
from fgaseg.export.tracing import trace


def runners(part, folder):
    """{"torch", "onnxruntime", "openvino"}: functions from tensors to a list of tensors."""
    import onnxruntime
    import openvino

    program, path = trace(part), folder / f"{part.name}.onnx"
    write_onnx(part, program, path, None, {})
    run, session = program.module(check_guards=False), onnxruntime.InferenceSession(path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def torch_run(*inputs):
        found = run(*inputs)
        return list(found) if isinstance(found, tuple) else [found]

    def onnx_run(*inputs):
        named = {port.name: x.numpy() for port, x in zip(part.inputs, inputs, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, named)]

    def openvino_run(*inputs):
        found = compiled({port.name: x.numpy() for port, x in zip(part.inputs, inputs, strict=True)})
        return [torch.from_numpy(found[i].copy()) for i in range(len(part.outputs))]

    return {"torch": torch_run, "onnxruntime": onnx_run, "openvino": openvino_run}
