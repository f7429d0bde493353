"""A model to a folder of graphs for other programs, with a manifest."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..errors import UsageError
from ..files import atomic_directory
from ..model import FGASeg
from ..model.encoders import Tokenizer
from ..progress import track
from ..vocabulary import Vocabulary
from .aoti import LIMIT as AOTI_LIMIT
from .aoti import write_package
from .exportable import check_exportable
from .graphs import OutputKind, Part, head_part, image_part, text_part, text_tower, whole_part
from .int8 import Photo, write_int8
from .manifest import (
    FORMAT,
    MANIFEST,
    VOCABULARY,
    describe,
    describe_file,
    graph_metadata,
    sha256_of,
    write_json,
    write_vocabulary,
)
from .onnx import write_onnx
from .openvino import LIMIT as OPENVINO_LIMIT
from .openvino import write_openvino
from .tokenizer import TOKENIZER, write_tokenizer
from .tracing import trace

PARTS = ("image", "text", "head", "whole")
TARGETS = ("onnx", "openvino", "torch", "aoti")
PRECISIONS = ("float32", "float16", "int8")
LARGEST_TILE = 4096
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "aoti": ".aoti.pt2"}
WEIGHTS = {"onnx": ".data", "openvino": ".bin"}  # of files that weights may be in, beside the graph


@dataclass(frozen=True)
class Tiles:
    """Square images of one size, for programs that cut rasters into tiles, as QGIS's plugin Deepness.

    size        pixels, up to 4096: time grows with its fourth power
    resolution  centimetres a pixel on the ground; None: not said
    overlap     of neighbouring tiles, percent

    Raises UsageError for others.
    """

    size: int
    resolution: float | None = None
    overlap: int = 15

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST_TILE:
            raise UsageError(f"tile {self.size}: is the side of a tile in pixels: give 1 to {LARGEST_TILE}")
        if self.resolution is not None and not 0 < self.resolution < math.inf:
            raise UsageError(f"resolution {self.resolution}: is in centimetres a pixel: give a number above 0")
        if not 0 <= self.overlap < 100:
            raise UsageError(f"overlap {self.overlap}: is a share in percent: give 0 to 99")

    def metadata(self) -> dict[str, str]:
        """What Deepness reads, besides the names of the classes. It has read both spellings of the size."""
        found = {"model_type": "Segmentor", "tile_size": self.size, "tiles_size": self.size,
                 "tiles_overlap": self.overlap, "resolution": self.resolution}  # fmt: skip
        return {key: json.dumps(value) for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class ExportOptions:
    """What is exported.

    to          targets among TARGETS
    parts       among PARTS
    vocabulary  classes that the whole graph has built in, and that are written beside the graphs; None: none
    output      of the whole graph
    tiles       of the whole graph
    precision   of weights and arithmetic: float16 keeps P2Tformer and LCS in float32, int8 more (docs/guides/export.md)
    calibration photos for int8: images or paths, such as a model will see, and not those that it is judged by
    opset       of ONNX; None: the exporter's choice
    """

    to: tuple[str, ...] = ("onnx",)
    parts: tuple[str, ...] = ("image", "text", "head")
    vocabulary: Vocabulary | None = None
    output: OutputKind = "logits"
    tiles: Tiles | None = None
    precision: Literal["float32", "float16", "int8"] = "float32"
    calibration: Sequence[Photo] = ()
    opset: int | None = None
    name: str = field(default="model")

    def __post_init__(self) -> None:
        for title, given, known in (("to", self.to, TARGETS), ("parts", self.parts, PARTS)):
            if not given:
                raise UsageError(f"{title}: is empty; give some of {', '.join(known)}")
            if unknown := [one for one in given if one not in known]:
                raise UsageError(f"{title}: {unknown[0]!r} is none of {', '.join(known)}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision: {self.precision!r} is none of {', '.join(PRECISIONS)}")
        self._check_calibration()
        if "whole" not in self.parts and (self.output != "logits" or self.tiles):
            raise UsageError("output and tiles are of the part whole: add it to the parts")
        if "aoti" in self.to and (self.parts != ("whole",) or not self.tiles or self.precision != "float32"):
            raise UsageError(
                "to: aoti compiles the part whole for images of one size, in float32: give that part, tiles"
            )
        if self.tiles and (self.vocabulary is None or self.output != "probabilities"):
            raise UsageError("tiles: programs that cut tiles need classes built in, and the output probabilities")

    def _check_calibration(self) -> None:
        if self.precision != "int8":
            if self.calibration:
                raise UsageError(f"calibration: photos are for the precision int8, not for {self.precision}")
            return
        if "torch" in self.to:
            raise UsageError("precision int8 is for onnx and openvino: torch.export programs are not quantised here")
        if self.tiles and "openvino" in self.to:
            raise UsageError("precision int8 with tiles is for onnx: OpenVINO 2026.4 fails to compile such a graph")
        if not self.calibration and set(self.parts) != {"text"}:
            raise UsageError("precision int8 needs calibration: photos such as the model will see; a dozen are enough")


def export_model(model: FGASeg, folder: str | Path, options: ExportOptions) -> dict[str, Any]:
    """Write the graphs of a model, and return the manifest, which is written beside them.

    A folder that is an export already is replaced, as a whole and at once. Raises ExportError for what cannot be
    exported, UsageError for a folder that holds something else, OSError.
    """
    folder = Path(folder)
    check_replaceable(folder)
    check_exportable(model, options.parts)
    model = copy.deepcopy(model).float().eval().requires_grad_(False).to("cpu")
    manifest: dict[str, Any] = describe(model, options.name, options.precision)
    manifest["files"] = {}
    manifest["limits"] += [OPENVINO_LIMIT] if "openvino" in options.to else []
    manifest["limits"] += [AOTI_LIMIT] if "aoti" in options.to else []
    with atomic_directory(folder) as target, tempfile.TemporaryDirectory() as scratch:
        if options.vocabulary is not None:
            write_vocabulary(options.vocabulary, model.first_of_equals(options.vocabulary), target)
        if "text" in options.parts:
            tokenizer = cast(Tokenizer, text_tower(model).tokenizer)
            manifest["text"] |= {"length": tokenizer.length, "tokenizer": TOKENIZER}
            manifest["limits"] += write_tokenizer(tokenizer, target / TOKENIZER)
        jobs = track(parts_of(model, options), "exporting", len(options.parts), unit="graphs")
        for part in jobs:
            for path, entry in write_part(part, target, Path(scratch), options, manifest):
                manifest["files"][path.name] = entry
        write_json(target / MANIFEST, manifest)
    return manifest


def parts_of(model: FGASeg, options: ExportOptions) -> Iterator[Part]:
    """The parts that are asked for; in lower precision their arithmetic is, and what goes in and out is float32."""
    lowered = copy.deepcopy(model).half() if options.precision == "float16" else model
    for name in options.parts:
        if name == "image":
            yield image_part(lowered)
        elif name == "text":
            yield text_part(lowered)
        elif name == "head":
            yield head_part(lowered)
        else:
            size = options.tiles.size if options.tiles else None
            yield whole_part(lowered, options.vocabulary, options.output, size)


def write_part(
    part: Part, folder: Path, scratch: Path, options: ExportOptions, manifest: dict[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write one part for every target; yields the files with their entries in the manifest."""
    with torch.random.fork_rng(devices=[]):
        program = trace(part)
    names = _built_in(part, options)
    metadata = graph_metadata(manifest, names, [] if names is None else cast(Tensor, part.module.first).tolist())
    if part.name == "whole" and options.tiles:
        metadata |= options.tiles.metadata()
    graph = (folder if "onnx" in options.to else scratch) / f"{part.name}.onnx"
    facts: dict[str, Any] = {}
    if {"onnx", "openvino"} & set(options.to):
        facts = write_onnx(part, program, graph, options.opset, metadata)
    if options.precision == "int8":
        facts |= write_int8(part, graph, options.calibration, options.vocabulary)
    for to in options.to:
        path = folder / f"{part.name}{SUFFIXES[to]}"
        if to == "openvino":
            write_openvino(graph, path, options.precision == "float16")
        elif to == "torch":
            write_program(program, path)
        elif to == "aoti":
            write_package(program, path, metadata)
        entry = describe_file(path, part, to, options.precision, facts if to == "onnx" else {})
        weights = [folder / f"{part.name}.bin", folder / f"{part.name}.onnx.data"]
        if beside := [file for file in weights if file.exists() and file.suffix == WEIGHTS.get(to)]:
            entry["data"] = {file.name: sha256_of(file) for file in beside}
        yield path, entry


def _built_in(part: Part, options: ExportOptions) -> Sequence[str] | None:
    return options.vocabulary.names if part.name == "whole" and options.vocabulary is not None else None


def write_program(program: ExportedProgram, path: Path) -> None:
    """A file that torch.export.load reads; without the lines of source code that its nodes come from."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def check_replaceable(folder: Path) -> None:
    """Raise UsageError for a folder that holds anything but an export: replacing it would lose the rest."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give a folder to export to")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        found = {}
    own = {MANIFEST, TOKENIZER, *VOCABULARY}
    if isinstance(found, dict) and found.get("format") == FORMAT:
        for name, entry in found.get("files", {}).items():
            own |= {name, *entry.get("data", ())}
    if others := sorted(file.name for file in folder.iterdir() if file.name not in own):
        raise UsageError(f"{folder}: holds other files than an export ({', '.join(others[:3])}); give a new folder")
