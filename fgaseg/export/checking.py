"""Whether the files of an export compute what the model computes, at sizes that they were not traced with."""

from __future__ import annotations

import copy
import gc
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ..data import BENCHMARK_SETS
from ..errors import ExportError, UsageError
from ..inference.prediction import input_size
from ..model import FGASeg
from ..progress import track
from .manifest import FORMAT, MANIFEST, write_json
from .references import Found, Outputs, References, Sample
from .runtimes import RUNTIMES, Run
from .tracing import last_line

CLASSES = (1, 3, 150, 847)
SIZES = 3
LARGEST_ERROR = 1e-4  # in float32, of the largest absolute value
LARGEST_CHANGE = 5e-3  # in float32, of labels where a graph gives nothing else: of random weights, classes nearly tie
NEAR_TIE = 1e-5  # of cosines: classes that are so close at the cap may be chosen one for the other
PARTS = ("image", "text", "head", "whole")  # in this order: a head also gets what its program's image graph gave
FEATURES = "image+head"  # the name of those rows
PROMPTS = (1, 3, 150)  # of the text graph
HEAD_MEMORY = 75  # class maps of `hidden` channels that a head keeps at once: ONNX Runtime 54, OpenVINO 71 (ViT-B/16)
MEMORY = Path("/proc/meminfo")


def check_export(
    model: FGASeg, folder: str | Path, *, classes: Sequence[int] = CLASSES, sizes: int = SIZES
) -> list[dict[str, Any]]:
    """Run every file of an export and compare it with the model in float32, op by op in PyTorch.

    model    that the export was made of
    folder   of the export; its manifest gets the rows as "check"
    classes  numbers of classes, the first names of ADE20K's 847; graphs with classes built in are run with these
    sizes    how many of three image sizes: the model's own square, landscape (4:3), and portrait (3:2) that whole
             patches do not fill; graphs of one size are run at that size

    Images are drawn scenes. Returns rows, one for each file and sample, with the keys
        part, runtime, precision    "image+head" is the head with the features of the image graph in the same program;
                                    otherwise the head gets the model's own features
        classes, batch, height, width   of the text graph, classes is the number of prompts
        error                       the largest absolute difference from the model's output, divided by the output's
                                    largest absolute value; None: there is no number
        labels_changed              share of pixels with another label at the size of the image; None: no labels
        classes_differ              under a class cap or in fast mode: how many classes of the images only one of both
                                    chose. At the cap, error is then that of the model with the graph's choice
        failed                      why the row does not pass, one line; empty: it does

    A row of float32 fails with an error above 1e-4; where a graph gives labels only, if more than 0.5 % of them differ;
    and if other classes were chosen that do not tie. Any row fails that cannot be run, for want of memory too, or whose
    values are not finite.
    Raises UsageError for a folder that is no export, and for numbers that cannot be checked.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    names = BENCHMARK_SETS["a847"].names
    if not classes or not all(1 <= n <= len(names) for n in classes):
        raise UsageError(f"classes: {list(classes)} cannot be checked: give numbers between 1 and {len(names)}")
    if not 1 <= sizes <= SIZES:
        raise UsageError(f"sizes: {sizes} cannot be checked: give 1 to {SIZES}")
    with torch.inference_mode():
        check = Check(model, folder, manifest, sorted(set(classes)), sizes)
        rows = list(track(check.rows(), "checking", check.total, unit="comparisons"))
    write_json(folder / MANIFEST, manifest | {"check": rows})
    return rows


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises UsageError for a folder that is no export."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: is no export: {MANIFEST}: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UsageError(f"{folder}: is no export: {MANIFEST} is of something else")
    return cast(dict[str, Any], manifest)


class Check:
    """One check of a folder; `rows` runs it, of `total` rows."""

    def __init__(
        self, model: FGASeg, folder: Path, manifest: dict[str, Any], classes: Sequence[int], sizes: int
    ) -> None:
        self.model = copy.deepcopy(model).float().eval().to("cpu")
        self.folder, self.classes = folder, classes
        self.references = References(self.model, folder)
        self.sizes = image_sizes(model.config.image_size, model.patch)[:sizes]
        self.files = {path: entry for part in PARTS for path, entry in manifest["files"].items()
                      if entry["part"] == part}  # fmt: skip
        self.total = sum(len(self.samples(entry)) for entry in self.files.values())
        self.encoded: dict[tuple[str, str, Sample], Outputs] = {}  # features by target, precision and sample

    def rows(self) -> Iterator[dict[str, Any]]:
        for path, entry in self.files.items():
            yield from self.rows_of(path, entry)
            gc.collect()  # the program with its weights

    def rows_of(self, path: str, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        samples = self.samples(entry)
        try:
            runtime = RUNTIMES[entry["to"]]()
            run = runtime.load(self.folder / path, entry["precision"])
        except Exception as error:  # the programs' exceptions have no common type
            why = str(error) if isinstance(error, ExportError) else f"{path}: {last_line(error)}"
            for part, sample in samples:
                yield row(part, entry, sample, {"failed": why})
            return
        for part, sample in samples:
            yield row(part, entry, sample, self.compared(part, entry, sample, run))

    def compared(self, part: str, entry: dict[str, Any], sample: Sample, run: Run) -> dict[str, Any]:
        """The keys of a row that say how well the graph does."""
        origin = entry["to"], entry["precision"]
        if sample.classes is not None and part != "text" and (why := self.too_large(sample)):
            return {"failed": why}
        case = self.references.case("head" if part == FEATURES else part, entry["outputs"][0]["name"], sample)
        inputs = case.inputs
        if part == FEATURES:
            features = self.encoded.get((*origin, sample._replace(classes=None)))
            if features is None:
                return {"failed": "the image graph did not run"}
            inputs = (*features, inputs[-1])
        try:
            outputs = tuple(x.float() if x.is_floating_point() else x for x in run(*inputs))
        except Exception as error:  # as above
            return {"failed": last_line(error)}
        if part == "image":
            self.encoded[*origin, sample] = outputs
        return verdict(case.compare(outputs), entry["precision"])

    def too_large(self, sample: Sample) -> str:
        """Why a head is not run: it would take more memory than there is; empty: it fits, or this is not known."""
        config, (height, width) = self.model.config, cast("tuple[int, int]", sample.size)
        if not config.propagation or not MEMORY.exists():
            return ""
        maps = sample.batch * min(cast(int, sample.classes), config.class_cap or len(BENCHMARK_SETS["a847"].names))
        cells = math.ceil(height / self.model.patch) * math.ceil(width / self.model.patch)
        needed = HEAD_MEMORY * 4 * config.hidden * maps * cells
        lines = (line.split() for line in MEMORY.read_text().splitlines())
        available = next((1024 * int(line[1]) for line in lines if line[0] == "MemAvailable:"), needed)
        if needed <= available:
            return ""
        return f"not run: it takes about {needed / 1e9:.0f} GB of memory and {available / 1e9:.0f} GB are available"

    def samples(self, entry: dict[str, Any]) -> list[tuple[str, Sample]]:
        """What a file is compared at, with the part that its rows name: every size, and one batch of two."""
        part, ports = entry["part"], entry["inputs"]
        if part == "text":
            return [(part, Sample(count)) for count in PROMPTS]
        fixed = ports[0]["shape"][-2:]
        sizes = self.sizes if part == "head" or isinstance(fixed[0], str) else [tuple(fixed)]
        counts: Sequence[int | None] = self.classes if ports[-1]["name"] == "texts" else (None,)
        found = [(part, Sample(count, 1, size)) for size in sizes for count in counts]
        found.append((part, Sample(counts[len(counts) // 3], 2, sizes[0])))
        encoders = [other["to"] for other in self.files.values() if other["part"] == "image"]
        if part == "head" and entry["to"] in encoders:
            found += [(FEATURES, Sample(counts[-2:][0], 1, size)) for size in sizes]
        return found


def image_sizes(short: int, patch: int) -> list[tuple[int, int]]:
    """Height and width of the images: square, landscape, and portrait that is a few pixels short of whole patches."""
    height, width = input_size(3, 2, short, patch)
    return [input_size(1, 1, short, patch), input_size(3, 4, short, patch), (height - patch // 2, width - 1)]


def row(part: str, entry: dict[str, Any], sample: Sample, found: dict[str, Any]) -> dict[str, Any]:
    height, width = sample.size or (None, None)
    return {
        "part": part,
        "runtime": RUNTIMES[entry["to"]].name if entry["to"] in RUNTIMES else entry["to"],
        "precision": entry["precision"],
        "classes": sample.classes,
        "batch": None if sample.size is None else sample.batch,
        "height": height,
        "width": width,
        "error": None,
        "labels_changed": None,
        "classes_differ": 0,
        "failed": "",
    } | found


def verdict(found: Found, precision: str) -> dict[str, Any]:
    """The numbers of a comparison as keys of a row, and whether they pass."""
    numbers = {"error": found.error, "labels_changed": found.labels_changed, "classes_differ": found.classes_differ}
    if found.error is not None and not math.isfinite(found.error):
        return numbers | {"error": None, "failed": "its values are not finite"}
    failed = ""
    if precision == "float32":
        if found.error is not None and found.error > LARGEST_ERROR:
            failed = f"the error {found.error:.1e} is above {LARGEST_ERROR:g}"
        elif found.gap > NEAR_TIE:
            failed = f"it chose classes whose S_g is {found.gap:.1e} below that of classes which it left out"
        elif found.error is None and (found.labels_changed or 0) > LARGEST_CHANGE:
            failed = f"{found.labels_changed:.1%} of the labels differ, more than {LARGEST_CHANGE:.1%}"
    return numbers | {"failed": found.wrong or failed}
