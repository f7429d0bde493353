"""ONNX graphs in 8 bits: static, with ranges of activations from photos, or dynamic, for the text tower."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data import read_image, stuff_names, to_pixels
from ..errors import ExportError, FGASegError
from ..inference.prediction import input_size
from ..model import FGASeg
from ..model.precision import KeptInFloat32
from ..notes import note_once
from ..vocabulary import Vocabulary
from .graphs import Part, encode_image
from .onnx import SCOPES, silence
from .tracing import last_line

Photo = Image.Image | str | Path
Sample = dict[str, np.ndarray]  # inputs of a graph by name

# 4, 16 and 48 photos give the same labels but for 0.03 % of the pixels; of classes, of which there may be any number,
# few are enough
PHOTOS, FEWEST, CLASSES = 16, 4, 16
LAYERS = ("Conv", "Gemm", "MatMul")  # with constant weights; ONNX Runtime has no ConvTranspose in 8 bits
# What reads the similarities, which decide between classes, and what writes the logits: few weights, and the largest
# errors if they are quantised.
KEPT = ("head.embed_global", "head.embed_local", "decoder.head")
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # a normalisation that leaves values in 0..1


def write_int8(part: Part, graph: Path, photos: Sequence[Photo], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Quantise the float32 ONNX file of a part, in place.

    Weights become int8 with a scale for every output channel, and use 7 bits of it: with 8, processors without VNNI
    overflow silently. The activations that they are multiplied with become uint8, with ranges that `photos` give, or,
    in the text graph, with those of the call. Inputs, outputs, P2Tformer, LCS, cosines, norms, softmax, KEPT and
    products of two activations stay in float32.

    photos      for calibration; PHOTOS of them, evenly spaced, are used, and fewer where many classes are built in
    vocabulary  the classes to calibrate with; None: those of `stuff_names`

    Returns what the manifest says of it: "operators", and "int8", the numbers of layers in int8, of layers with
    weights that stay in float32, and of photos. Raises ExportError, ImageError.
    """
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise ExportError(f"int8 needs onnx and onnxruntime ({error}): pip install 'fgaseg[export]'") from None
    if graph.with_name(f"{graph.name}.data").exists():
        raise ExportError(f"{part.name}: int8 is for graphs of up to 1.9 GB; this one is larger: take float16")
    model = onnx.load(graph)
    fold_splits(model)
    layers, kept = layers_of(model, part)
    if not layers:  # the quantiser would take an empty list for all of them
        note_once(("int8", part.name), f"{part.name}: no layer of it can be quantised: it stays in float32")
        return {"precision": "float32"}
    chosen = [] if part.name == "text" else spaced(photos, photos_for(part))
    common = {"per_channel": True, "reduce_range": True, "weight_type": quantization.QuantType.QInt8}
    out = graph.with_suffix(".int8.onnx")
    try:
        with silence():
            if part.name == "text":
                shrink_embedding(model)
                quantization.quantize_dynamic(model, out, op_types_to_quantize=["MatMul"], **common)
            else:
                reader = Reader(samples(part, chosen, vocabulary))
                quantization.quantize_static(
                    model,
                    out,
                    reader,
                    activation_type=quantization.QuantType.QUInt8,
                    op_types_to_quantize=list(LAYERS),
                    nodes_to_quantize=layers,
                    # what is added to products keeps float32's steps; integer convolutions write 8 bits
                    extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
                    **common,
                )
    except FGASegError:
        raise
    except Exception as error:  # its exceptions have no common type
        raise ExportError(f"{part.name}: int8: {last_line(error)}") from error
    os.replace(out, graph)
    types = Counter(node.op_type for node in onnx.load(graph).graph.node)
    counts = {"layers": len(layers), "float32": len(kept), "photos": len(chosen)}
    return {"operators": dict(sorted(types.items())), "int8": counts}


class Reader:
    """Calibration data as onnxruntime.quantization reads them, one photo in memory at a time."""

    def __init__(self, inputs: Iterator[Sample]) -> None:
        self.inputs = inputs

    def get_next(self) -> Sample | None:
        return next(self.inputs, None)


def fold_splits(model: Any) -> None:
    """Weights that are parts of one, as of q, k and v, as weights of their own: the quantiser knows only these."""
    from onnx import numpy_helper

    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Split" and node.input[0] in weights]:
        value = numpy_helper.to_array(weights[node.input[0]])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        sizes = numpy_helper.to_array(weights[node.input[1]]) if len(node.input) > 1 else None
        cuts = len(node.output) if sizes is None else np.cumsum(sizes)[:-1]
        for name, own in zip(node.output, np.split(value, cuts, axis), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(own), name))
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    used = [weight for weight in graph.initializer if weight.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)


def shrink_embedding(model: Any) -> None:
    """The table of token embeddings in int8 with a scale for every row; it is most of a small text tower.

    The quantiser's own form of it has one scale for all tokens.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    index, lookup = next((i, node) for i, node in enumerate(graph.node) if list(node.input[1:]) == ["tokens"])
    table = next(weight for weight in graph.initializer if weight.name == lookup.input[0])
    rows = numpy_helper.to_array(table)
    scales = np.maximum(np.abs(rows).max(1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    names = [f"{table.name}_{what}" for what in ("int8", "scale", "rows", "scales", "values")]
    graph.initializer.remove(table)
    graph.initializer.append(numpy_helper.from_array(np.round(rows / scales).astype(np.int8), names[0]))
    graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32), names[1]))
    nodes = [
        helper.make_node("Gather", [names[0], "tokens"], [names[2]], name=names[2]),
        helper.make_node("Gather", [names[1], "tokens"], [names[3]], name=names[3]),
        helper.make_node("Cast", [names[2]], [names[4]], name=names[4], to=TensorProto.FLOAT),
        helper.make_node("Mul", [names[4], names[3]], list(lookup.output), name=lookup.name),
    ]
    graph.node.remove(lookup)
    for place, node in enumerate(nodes, index):
        graph.node.insert(place, node)


def layers_of(model: Any, part: Part) -> tuple[list[str], list[str]]:
    """Names of the nodes that are quantised, and of those with weights that are not."""
    modules = part.module.named_modules()
    scopes = [name for name, module in modules if isinstance(module, KeptInFloat32) or name.endswith(KEPT)]
    weights = {weight.name for weight in model.graph.initializer}
    chosen: list[str] = []
    kept: list[str] = []
    named = False
    for node in model.graph.node:
        if node.op_type not in LAYERS or node.input[1] not in weights:
            continue
        inside = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
        named = named or "model." in inside
        biases = [name for name in node.input[2:] if name]
        stays = any(f"'{scope}'" in inside for scope in scopes) or not weights.issuperset(biases)
        (kept if stays else chosen).append(node.name)
    if chosen and not named:
        raise ExportError(f"{part.name}: int8: torch.onnx.export names no modules, so those that stay in float32 are "
                          "not known: a newer PyTorch does")  # fmt: skip
    return chosen, kept


def spaced(photos: Sequence[Photo], count: int) -> list[Photo]:
    """`count` of the photos, or all if they are fewer, evenly spaced."""
    if len(photos) <= count:
        return list(photos)
    return [photos[i] for i in np.linspace(0, len(photos) - 1, count).round().astype(int)]


def photos_for(part: Part) -> int:
    """A graph with many classes built in computes them all: it sees fewer photos."""
    classes = part.outputs[0].shape[1] if part.name == "whole" else CLASSES
    return max(FEWEST, PHOTOS * CLASSES // max(classes, CLASSES)) if isinstance(classes, int) else PHOTOS


@torch.no_grad()
def samples(part: Part, photos: Sequence[Photo], vocabulary: Vocabulary | None) -> Iterator[Sample]:
    """The inputs of a graph for each photo, as labelling prepares them: of its own size, batches of one."""
    model: Any = part.module.model
    texts = (model.encode(stuff_names()) if vocabulary is None else vocabulary).embeddings.float()
    names = [port.name for port in part.inputs]
    for photo in photos:
        image = photo if isinstance(photo, Image.Image) else read_image(photo)
        found = sample_of(model, part, image, texts)
        yield {name: found[name].numpy() for name in names}


def sample_of(model: FGASeg, part: Part, image: Image.Image, texts: Tensor) -> dict[str, Tensor]:
    side = part.inputs[0].shape[2]
    if isinstance(side, int):  # tiles of one size
        image, size = ImageOps.fit(image, (side, side)), (side, side)
    else:
        size = input_size(image.height, image.width, model.config.image_size, model.patch)
    raw = to_pixels(image, size, normalization=UNIT)[None]
    mean, std = (x[:, None, None] for x in (model.mean, model.std))
    pixels = (raw - mean) / std
    if part.name == "image":
        return {"pixels": pixels}
    embedding, early, late = encode_image(model, pixels)
    found = {"image": raw, "embedding": embedding, "early": early, "late": late}
    return found | {"texts": spread(model, embedding, texts)}


def spread(model: FGASeg, embedding: Tensor, texts: Tensor) -> Tensor:
    """At most CLASSES of the texts [T, C]: from the one most similar to a pixel of the photo to the least, evenly."""
    best = model.head.global_similarity(embedding, texts)[1].flatten(2).amax(2)[0]
    ranks = torch.linspace(0, len(texts) - 1, min(CLASSES, len(texts))).round().long()
    return texts[best.argsort(descending=True)[ranks]]
