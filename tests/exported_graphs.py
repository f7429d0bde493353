"""One part of a model in every program that runs it, and what its labels have to be."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fgaseg.export.onnx import write_onnx
from fgaseg.export.tracing import trace
from fgaseg.inference.prediction import decide, view_logits
from fgaseg.inference.scores import ScoreRule


def assert_equal_but_for_ties(found: np.ndarray, model, image: Image.Image, vocabulary) -> np.ndarray:
    """Labels [H, W] of an image seen whole are the model's, which are returned, or of a class as good as the best one.

    How many pixels have two best classes up to rounding depends on the processor: a few in a thousand at most.
    """
    with torch.inference_mode():
        logits = view_logits(model, image, vocabulary)
        expected = decide(model, logits, vocabulary, found.shape)[0].numpy()
        maps = F.interpolate(ScoreRule.of(model.config).prepare(logits)[None], found.shape, mode="bilinear")[0].numpy()
    chosen = np.take_along_axis(maps, found[None].astype(np.int64), axis=0)[0]
    assert (maps.max(axis=0) - chosen).max() <= 1e-5 * np.abs(maps).max()
    assert (found != expected).mean() <= 2e-3
    return expected


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
