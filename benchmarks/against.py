"""The model beside the same model in other programs, part by part, in every precision, interleaved in one run.

    python benchmarks/against.py --csv FILE [--against onnxruntime,openvino] [--classes 20,150,847]

`fgaseg bench model --against onnxruntime,openvino` runs it and prints one table. ViT-B/16 with random weights in the
released preset, 384×384 pixels of noise to labels at 480×640. All programs get the same number of threads, and take
turns: one view each, round after round. The other programs run the graphs that `fgaseg export` writes (exported.py),
the image tower and the head as two, each one graph for all sizes, and their logits become labels by our
`upsample_argmax`.

Rows: the machine's roof in every precision; the text tower, for TEXTS names; for every number of classes the image
tower, the head (all between image tower and logits) and the whole view, and of ours also every stage. Every row has the
relative error of its output (features, embeddings, logits) against `fgaseg/model/reference.py` in float32, of a head
with that reference's features as its input, and where there are labels the share that agrees with the reference's.
These are labels of random weights, whose classes nearly tie: with trained weights more of them agree. Memory is
what the process grows by in the first run of a head or, of ONNX Runtime, whose sessions share an arena, the size of
that after the run in float32. What a program cannot run is a row with the reason.
"""

import argparse
import copy
import csv
import gc
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from exported import PROGRAMS, export
from machine import machine
from rich.progress import Progress
from torch import Tensor

from fgaseg import FGASeg
from fgaseg.errors import ExportError
from fgaseg.export.runtimes import Run
from fgaseg.inference import ScoreRule, prediction
from fgaseg.model import reference as plain
from fgaseg.model import set_precision
from fgaseg.model.encoders import ImageFeatures
from fgaseg.model.packed_maps import DROPPED
from fgaseg.reproduce import random_model
from fgaseg.reproduce.profiling import Rate, peak, product_rate, stage_gflop, stage_seconds, without_values
from fgaseg.threads import fixed_threads
from fgaseg.vocabulary import Vocabulary

SIZE, PHOTO, TEXTS, CLASSES = 384, (480, 640), 150, (20, 150, 847)
CALIBRATED = 20  # classes of the head that NNCF calibrates: of 847 it takes minutes and 8 GB
ROUNDS, SECONDS = 3, 12  # rounds of a view; a program stops earlier once it has taken so many seconds
PAUSE = 0.05  # seconds between two programs, in which the threads of the first stop waiting for work
FIELDS = ("part", "stage", "classes", "program", "precision", "seconds", "rounds", "gflop", "gflop_per_second",
          "share_of_roof", "error", "labels_agree", "peak_mb", "reason")  # fmt: skip
IMAGE, TEXT, HEAD, WHOLE, ROOF = "image tower", "text tower", "head", "whole view", "roof"


class Views(NamedTuple):
    """The inputs for one number of classes, and what the reference makes of them."""

    pixels: Tensor
    vocabulary: Vocabulary
    features: ImageFeatures
    logits: Tensor  # [T, 4H, 4W]
    labels: Tensor  # [h, w]
    seconds: float

    @classmethod
    def of(cls, model: FGASeg, classes: int) -> "Views":
        generator = torch.Generator().manual_seed(classes)
        pixels = torch.randn(1, 3, SIZE, SIZE, generator=generator)
        texts = F.normalize(torch.randn(classes, model.encoder.channels, generator=generator), dim=-1)
        begin = time.perf_counter()
        features = model.image_encoder(pixels)
        logits = plain.run_head(model.head, features, texts)
        labels = labels_of(model, torch.arange(classes), logits[0])
        seconds = time.perf_counter() - begin
        names = tuple(f"thing number {i}" for i in range(classes))
        return cls(pixels, Vocabulary(names, texts), features, logits[0], labels, seconds)


class Measured(NamedTuple):
    """Seconds of the parts of one view, and its labels."""

    seconds: dict[str, float]  # of IMAGE, HEAD and WHOLE
    stages: dict[str, float]
    labels: Tensor


class Ours:
    """This package, by the functions that a user's call goes through."""

    def __init__(self, model: FGASeg) -> None:
        self.model = model

    def features(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.image_encoder(pixels.to(self.model.dtype)))

    def text(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.model.encoder.text_tower.run(tokens).float(), dim=-1)

    def head(self, views: Views) -> tuple[Tensor, Tensor]:
        features = ImageFeatures(*(x.to(self.model.dtype) for x in views.features))
        classes, logits = next(self.model.head.stream(features, views.vocabulary.embeddings))
        return classes, logits[0]

    def view(self, views: Views) -> Measured:
        labels: list[Tensor] = []

        def step() -> None:
            pixels = views.pixels.to(self.model.dtype)
            labels.append(prediction.label(self.model, pixels, views.vocabulary, PHOTO)[0][0])

        stages = stage_seconds(step)
        whole = sum(stages.values())
        seconds = {IMAGE: stages[IMAGE], HEAD: whole - stages[IMAGE] - stages["tail"], WHOLE: whole}
        return Measured(seconds, stages, labels[0])


class Theirs:
    """Another program, by its graphs of the parts of a model."""

    def __init__(self, model: FGASeg, parts: dict[str, Run]) -> None:
        self.model, self.parts = model, parts

    def features(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.parts[IMAGE](pixels)

    def text(self, tokens: Tensor) -> Tensor:
        return self.parts[TEXT](tokens)[0]

    def head(self, views: Views) -> tuple[Tensor, Tensor]:
        return self.kept(self.parts[HEAD](*views.features, views.vocabulary.embeddings))

    def kept(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The classes [t] that the graph has computed, and their logits [t, 4H, 4W]."""
        logits = outputs[0][0]
        classes = (logits[:, 0, 0] != DROPPED).nonzero().flatten()
        return classes, logits if len(classes) == len(logits) else logits[classes]

    def view(self, views: Views) -> Measured:
        begin = time.perf_counter()
        features = self.parts[IMAGE](views.pixels)
        encoded = time.perf_counter()
        classes, logits = self.kept(self.parts[HEAD](*features, views.vocabulary.embeddings))
        decoded = time.perf_counter()
        labels = labels_of(self.model, classes, logits)
        seconds = {IMAGE: encoded - begin, HEAD: decoded - encoded, WHOLE: time.perf_counter() - begin}
        return Measured(seconds, {}, labels)


def labels_of(model: FGASeg, classes: Tensor, logits: Tensor) -> Tensor:
    """Labels [h, w] of logits [t, 4H, 4W], as `FGASeg.segment` makes them."""
    rule = ScoreRule.of(model.config)
    return classes[prediction.upsample_argmax(rule.prepare(logits[None]), PHOTO, total=rule.needs_total)[0][0]]


def lowered(model: FGASeg, precision: str) -> FGASeg:
    """The model as `--precision` makes it."""
    set_precision(model, precision)
    return model


OURS: dict[str, Callable[[FGASeg], FGASeg]] = {  # precision → a model of float32 in that precision
    "float32": lambda model: model,
    "bfloat16": lambda model: copy.deepcopy(model).to(torch.bfloat16),
    "int8": lambda model: lowered(copy.deepcopy(model), "int8"),
}
PRECISIONS = ("float32", "bfloat16", "int8")


class Against:
    """The forms that are compared, and the rows of what they took.

    rows  takes every row as it is made
    """

    def __init__(self, programs: list[str], folder: Path, rows: Callable[[dict[str, Any]], None]) -> None:
        self.model, self.folder, self.rows = random_model("cpu"), folder, rows
        self.ours = {precision: Ours(make(self.model)) for precision, make in OURS.items()}
        self.bare = without_values(self.model)
        self.programs = {name: PROGRAMS[name](torch.get_num_threads()) for name in programs}
        self.runs: dict[str, dict[tuple[str, str], Run | str]] = {}  # of each part, or the reason why there is none
        self.arena = 0.0  # bytes of ONNX Runtime's, which its sessions share

    def roof(self) -> None:
        """The machine's fastest product in every precision."""
        for precision in PRECISIONS:
            rate, why = product(precision)
            per_second = round(rate.per_second / 1e9, 1) if rate else ""
            self.rows({"part": ROOF, "stage": rate.product if rate else "", "precision": precision,
                       "gflop_per_second": per_second, "reason": why})  # fmt: skip

    def text(self) -> None:
        tower = self.model.encoder.text_tower
        tokens = tower.tokenizer([f"a photo of a thing number {i}" for i in range(TEXTS)])
        length = int(tower.ends(tokens).max()) + 1
        tokens = tokens[:, :length].contiguous()
        exact = F.normalize(tower.run(tokens), dim=-1)
        blocks, width, count = len(tower.blocks), tower.parts.ln_final.weight.numel(), len(tokens)
        gflop = 2e-9 * count * (blocks * (12 * width**2 * length + 2 * length**2 * width) + width * tower.channels)
        forms: dict[tuple[str, str], Any] = {("fgaseg", p): ours for p, ours in self.ours.items()}
        for key, run in self.built(TEXT, (tokens,), TEXTS).items():
            forms[key] = Theirs(self.model, {TEXT: run})
        errors = {key: difference(form.text(tokens), exact) for key, form in forms.items()}
        times: dict[tuple[str, str], list[float]] = {key: [] for key in forms}
        for key in rounds(times):
            begin = time.perf_counter()
            forms[key].text(tokens)
            times[key].append(time.perf_counter() - begin)
        for key in forms:
            self.row(TEXT, TEXTS, key, times[key], gflop, error=errors[key])

    def views(self, classes: int) -> None:
        """The image tower, the head and the whole view for one number of classes."""
        views = Views.of(self.model, classes)
        self.rows({"part": WHOLE, "classes": classes, "program": "reference", "precision": "float32",
                   "seconds": round(views.seconds, 4), "rounds": 1, "error": 0, "labels_agree": 1})  # fmt: skip
        gflop = stage_gflop(self.bare, views.pixels.shape, classes)
        counted = {IMAGE: gflop[IMAGE], WHOLE: sum(gflop.values())}
        counted[HEAD] = counted[WHOLE] - counted[IMAGE]
        forms = self.forms(views)
        accuracy = {key: self.accuracy(key, form, views) for key, form in forms.items()}
        taken: dict[tuple[str, str], list[Measured]] = {key: [] for key in forms}
        times: dict[tuple[str, str], list[float]] = {key: [] for key in forms}
        for key in rounds(times):
            taken[key].append(forms[key].view(views))
            times[key].append(taken[key][-1].seconds[WHOLE])
        for part in (IMAGE, HEAD, WHOLE):
            for key, measured in taken.items():
                agree = float((measured[0].labels == views.labels).float().mean())
                known = accuracy[key][part] if part != WHOLE else {"labels_agree": round(agree, 5)}
                self.row(part, classes, key, [one.seconds[part] for one in measured], counted[part], **known)
        for key, measured in taken.items():
            median = sorted(measured, key=lambda one: one.seconds[WHOLE])[(len(measured) - 1) // 2]
            for stage, seconds in median.stages.items():
                self.row(WHOLE, classes, key, [seconds], gflop.get(stage, 0.0), stage=stage)

    def forms(self, views: Views) -> dict[tuple[str, str], Any]:
        """Every form that can run a view; for the others a row with the reason."""
        forms: dict[tuple[str, str], Any] = {("fgaseg", p): ours for p, ours in self.ours.items()}
        count = len(views.vocabulary)
        image = self.built(IMAGE, (views.pixels,), count)
        sample = (*views.features, views.vocabulary.embeddings[:CALIBRATED])
        for key, run in self.built(HEAD, sample, count).items():
            if key in image:
                forms[key] = Theirs(self.model, {IMAGE: image[key], HEAD: run})
        return forms

    def built(self, part: str, sample: tuple[Tensor, ...], classes: int) -> dict[tuple[str, str], Run]:
        """A part in every program and precision that can run it; for the others a row with the reason.

        sample  of its inputs, to quantise with
        """
        if part not in self.runs:
            self.runs[part] = dict(self.build(part, sample))
        for key, run in self.runs[part].items():
            if isinstance(run, str):
                self.rows({"part": part, "classes": classes, "program": key[0], "precision": key[1], "reason": run})
        return {key: run for key, run in self.runs[part].items() if not isinstance(run, str)}

    def build(self, part: str, sample: tuple[Tensor, ...]) -> Iterator[tuple[tuple[str, str], Run | str]]:
        keys = [(name, precision) for precision in PRECISIONS for name in self.programs]
        try:
            path = export(self.model, part, self.folder)
        except ExportError as error:
            yield from ((key, str(error)) for key in keys)
            return
        for name, precision in keys:
            try:
                yield (name, precision), self.programs[name].build(path, precision, sample)
            except ExportError as error:
                yield (name, precision), str(error)

    def accuracy(self, key: tuple[str, str], form: Any, views: Views) -> dict[str, dict[str, Any]]:
        """Errors and labels of the parts, each with the reference's inputs, and the memory of the head."""
        features = form.features(views.pixels)
        outputs: list[tuple[Tensor, Tensor]] = []
        memory = peak(lambda: outputs.append(form.head(views)), "cpu")
        classes, logits = outputs[0]
        labels = labels_of(self.model, classes, logits.float())
        if key[0] == "onnxruntime":
            self.arena += memory
            memory = self.arena if key[1] == "float32" else math.nan
        exact = views.logits[classes]
        both = exact[:, 0, 0] != DROPPED  # near the cap another precision may choose other classes
        head = {
            "error": difference(logits[both], exact[both]),
            "labels_agree": round(float((labels == views.labels).float().mean()), 5),
            "peak_mb": "" if math.isnan(memory) else round(memory / 1e6),
        }
        return {IMAGE: {"error": difference(features[0], views.features.embedding)}, HEAD: head}

    def row(self, part: str, classes: int, key: tuple[str, str], times: list[float], gflop: float, **more: Any) -> None:
        seconds = statistics.median(times)
        roof, _ = product(key[1])
        per_second = gflop / seconds if seconds else 0.0
        rates = {"gflop": round(gflop, 3), "gflop_per_second": round(per_second, 1)}
        if roof:
            rates["share_of_roof"] = round(1e9 * per_second / roof.per_second, 4)
        self.rows({"part": part, "classes": classes, "program": key[0], "precision": key[1],
                   "seconds": round(seconds, 4), "rounds": len(times), **rates, **more})  # fmt: skip


def product(precision: str) -> tuple[Rate | None, str]:
    """The machine's fastest product, or why it has none."""
    try:
        return product_rate(precision, "cpu"), ""
    except RuntimeError as error:
        return None, str(error)


def rounds(times: dict[tuple[str, str], list[float]]) -> Iterator[tuple[str, str]]:
    """The forms in turn, round after round, without those that have taken long enough."""
    for _ in range(ROUNDS):
        for key, taken in times.items():
            if sum(taken) < SECONDS:
                time.sleep(PAUSE)
                yield key


def difference(x: Tensor, exact: Tensor) -> float:
    """The relative error |x - exact| / |exact|, over all elements."""
    return float(f"{float((x.double() - exact.double()).norm() / exact.double().norm()):.2e}")


def main() -> None:
    def several(of: type) -> Callable[[str], list]:
        return lambda text: [of(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--against", type=several(str), default=list(PROGRAMS))
    parser.add_argument("--classes", type=several(int), default=list(CLASSES))
    options = parser.parse_args()
    here = machine() | {name: version(name) for name in options.against}
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with (
        fixed_threads(torch.get_num_threads()), torch.inference_mode(), Progress(transient=True) as progress,
        tempfile.TemporaryDirectory(dir=options.csv.parent) as folder, open(options.csv, "w", newline="") as file,
    ):  # fmt: skip
        writer = csv.DictWriter(file, [*FIELDS, *here], lineterminator="\n")
        writer.writeheader()

        def rows(row: dict[str, Any]) -> None:
            writer.writerow(row | here)
            file.flush()

        against = Against(options.against, Path(folder), rows)
        steps = [("roof", against.roof), (TEXT, against.text)]
        steps += [(f"{n} classes", lambda n=n: against.views(n)) for n in options.classes]
        task = progress.add_task("", total=len(steps))
        for name, step in steps:
            progress.update(task, description=name)
            step()
            gc.collect()  # the graphs of the step
            progress.advance(task)


if __name__ == "__main__":
    sys.exit(main())
