"""Scores of a model on a labelled data set: both definitions of mIoU from one confusion matrix for the whole set."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ..distributed import sum_over_processes
from ..files import atomic_write


class Confusion:
    """Pixel counts [T, T] int64, rows ground truth, columns prediction. Ignored pixels are in neither."""

    def __init__(self, classes: int, ignore: int = 255, device: torch.device | str = "cpu") -> None:
        self.classes, self.ignore = classes, ignore
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add one picture. Both integer tensors of one shape; predicted in 0..T-1, labels too or `ignore`.

        Raises ValueError naming the shapes or the value that is out of range.
        """
        if predicted.shape != labels.shape:
            raise ValueError(f"predicted {list(predicted.shape)} and labels {list(labels.shape)} differ in shape")
        device = self.matrix.device
        predicted, labels = predicted.to(device, torch.int64), labels.to(device, torch.int64)
        valid = labels != self.ignore
        predicted, labels = predicted[valid], labels[valid]
        for name, values in (("predicted", predicted), ("label", labels)):
            if values.numel() and (values.min() < 0 or values.max() >= self.classes):
                wrong = values[(values < 0) | (values >= self.classes)][0]
                raise ValueError(
                    f"{name} {int(wrong)} is none of the {self.classes} classes, nor {self.ignore} (ignore)"
                )
        pairs = labels * self.classes + predicted
        self.matrix += torch.bincount(pairs, minlength=self.classes**2).view_as(self.matrix)

    def all_reduce(self) -> None:
        """Add up the matrices of all processes, in place; without several processes nothing happens."""
        self.matrix = sum_over_processes(self.matrix)

    def scores(self, names: Sequence[str], images: int = 0) -> Scores:
        """The figures; `names` [T] are those of the classes, in order."""
        if len(names) != self.classes:
            raise ValueError(f"{len(names)} names for {self.classes} classes")
        counts = torch.stack([self.matrix.diagonal(), self.matrix.sum(1), self.matrix.sum(0)], dim=1).tolist()
        return Scores(images, [ClassScore(name, *row) for name, row in zip(names, counts, strict=True)])


@dataclass(frozen=True)
class ClassScore:
    """Pixels of one class: correctly predicted, in the ground truth, in the prediction."""

    name: str
    correct: int
    labelled: int
    predicted: int

    @property
    def iou(self) -> float:
        """Intersection over union; NaN where the class is in neither the ground truth nor the prediction."""
        return _ratio(self.correct, self.labelled + self.predicted - self.correct)

    @property
    def accuracy(self) -> float:
        """Share of the class's pixels that are labelled right; NaN where it is not in the ground truth."""
        return _ratio(self.correct, self.labelled)


@dataclass(frozen=True)
class Scores:
    """Figures in 0..1 of a whole data set. Those that have nothing to average are NaN (null in JSON)."""

    images: int
    rows: list[ClassScore]
    pictures: str = ""  # identifies what was scored, pixels and labels (`fingerprint`), 64 hexadecimal digits

    @property
    def present(self) -> int:
        """Classes that occur in the ground truth."""
        return sum(row.labelled > 0 for row in self.rows)

    @property
    def pixels(self) -> int:
        """Pixels that were scored."""
        return sum(row.labelled for row in self.rows)

    @property
    def miou_gt(self) -> float:
        """Mean IoU over the classes that occur in the ground truth (detectron2 since 2022-07; the papers' number)."""
        return _mean(row.iou for row in self.rows if row.labelled)

    @property
    def miou_union(self) -> float:
        """Mean IoU in which a class predicted but absent from the ground truth counts as 0 (mmseg, HF evaluate)."""
        return _mean(row.iou for row in self.rows if row.labelled or row.predicted)

    @property
    def fwiou(self) -> float:
        """IoU weighted by the pixels of each class in the ground truth."""
        return _ratio(sum(row.labelled * row.iou for row in self.rows if row.labelled), self.pixels)

    @property
    def mean_accuracy(self) -> float:
        """Mean over the classes of the ground truth of the share of pixels labelled right."""
        return _mean(row.accuracy for row in self.rows if row.labelled)

    @property
    def pixel_accuracy(self) -> float:
        """Share of all scored pixels labelled right."""
        return _ratio(sum(row.correct for row in self.rows), self.pixels)

    def over(self, names: Iterable[str]) -> Scores:
        """The same prediction scored on some of the classes only (say the unseen): all classes competed for a pixel,
        and the averages run over these. Raises KeyError naming a class that was not scored."""
        wanted = set(names)
        if missing := wanted - {row.name for row in self.rows}:
            raise KeyError(f"classes that were not scored: {', '.join(sorted(missing))}")
        return Scores(self.images, [row for row in self.rows if row.name in wanted], self.pictures)

    def dump(self) -> dict[str, Any]:
        """Plain JSON types: all figures, and the per-class rows."""
        figures = {name: _number(getattr(self, name)) for name in FIGURES}
        rows = [asdict(row) | {"iou": _number(row.iou), "accuracy": _number(row.accuracy)} for row in self.rows]
        return {"images": self.images, "pictures": self.pictures, "pixels": self.pixels, "classes": len(self.rows),
                "present": self.present, **figures, "per_class": rows}  # fmt: skip

    @classmethod
    def load(cls, data: dict[str, Any]) -> Scores:
        """What `dump` wrote. Raises KeyError or TypeError when it is something else."""
        counts = ("name", "correct", "labelled", "predicted")
        rows = [ClassScore(**{key: row[key] for key in counts}) for row in data["per_class"]]
        return cls(data["images"], rows, data["pictures"])

    def table(self, title: str = "", per_class: bool = True) -> Table:
        """For people: the classes that occur anywhere, most frequent first, and the figures below them."""
        table = Table(title=escape(title) or None, caption=self._caption(), caption_justify="left")
        for heading in ("class", "IoU", "accuracy", "share of pixels"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        seen = [row for row in self.rows if row.labelled or row.predicted]
        for row in sorted(seen, key=lambda row: -row.labelled) if per_class else []:
            share = _ratio(row.labelled, self.pixels)
            table.add_row(escape(row.name), *(_percent(value) for value in (row.iou, row.accuracy, share)))
        if per_class:
            table.add_section()
        for name, label in FIGURES.items():
            table.add_row(label, _percent(getattr(self, name)), "", "")
        return table

    def _caption(self) -> str:
        return f"{self.images} pictures; {self.present} of {len(self.rows)} classes occur in the ground truth"

    def write_csv(self, path: str | Path) -> None:
        """One row per class: name, IoU, accuracy (empty where undefined) and the three pixel counts. Atomic."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["class", "iou", "accuracy", "correct_pixels", "labelled_pixels", "predicted_pixels"])
        for row in self.rows:
            ratios = ["" if math.isnan(value) else value for value in (row.iou, row.accuracy)]
            writer.writerow([row.name, *ratios, row.correct, row.labelled, row.predicted])
        atomic_write(path, lambda file: file.write(text.getvalue().encode()))


FIGURES = {
    "miou_gt": "mIoU (classes in the ground truth)",
    "miou_union": "mIoU (or in the prediction)",
    "fwiou": "frequency-weighted IoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return _ratio(sum(values), len(values))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
