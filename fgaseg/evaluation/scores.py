"""The confusion matrix of a labelled data set, and the figures that follow from it: both definitions of mIoU."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import atomic_write


class ConfusionMatrix:
    """Pixel counts over images in any order. Pixels that the ground truth ignores are not counted at all.

    matrix  [T, T] int64: rows are the classes of the ground truth, columns those of the prediction
    """

    def __init__(self, classes: int, ignore: int = 255, device: torch.device | str = "cpu") -> None:
        self.classes, self.ignore = classes, ignore
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count one image. Integer tensors of the same shape; predicted in 0..T-1, labels too or `ignore`.

        Raises ValueError naming the shapes or the value that is out of range; nothing is then counted.
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

    def rows(self, names: Sequence[str]) -> list[ClassScore]:
        """The counts of each class; `names` [T] are those of the classes, in order."""
        if len(names) != self.classes:
            raise ValueError(f"{len(names)} names for {self.classes} classes")
        counts = torch.stack([self.matrix.diagonal(), self.matrix.sum(1), self.matrix.sum(0)], dim=1).tolist()
        return [ClassScore(name, *row) for name, row in zip(names, counts, strict=True)]


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
        """Share of the class's pixels that are predicted correctly; NaN where it is not in the ground truth."""
        return _ratio(self.correct, self.labelled)


@dataclass(frozen=True)
class Scores:
    """Figures in 0..1 of a whole data set. Those that have nothing to average over are NaN (null in JSON).

    images        number of images that were scored
    rows          counts of each class
    samples_hash  identifies the images that were scored, by pixels and labels (`sample_hash`): 64 hexadecimal digits
    """

    images: int
    rows: list[ClassScore]
    samples_hash: str = ""

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
        """Mean IoU over the classes that occur in the ground truth (detectron2 since 2022-07; the papers' figure)."""
        return _mean(row.iou for row in self.rows if row.labelled)

    @property
    def miou_union(self) -> float:
        """Mean IoU to which a class predicted but absent from the ground truth contributes 0 (mmseg, HF evaluate)."""
        return _mean(row.iou for row in self.rows if row.labelled or row.predicted)

    @property
    def fwiou(self) -> float:
        """IoU weighted by the number of pixels that each class has in the ground truth."""
        return _ratio(sum(row.labelled * row.iou for row in self.rows if row.labelled), self.pixels)

    @property
    def mean_accuracy(self) -> float:
        """Mean over the classes of the ground truth of the share of their pixels predicted correctly."""
        return _mean(row.accuracy for row in self.rows if row.labelled)

    @property
    def pixel_accuracy(self) -> float:
        """Share of all scored pixels predicted correctly."""
        return _ratio(sum(row.correct for row in self.rows), self.pixels)

    def subset(self, names: Iterable[str]) -> Scores:
        """The same predictions, averaged over some of the classes only (say the unseen ones).

        All classes still competed for every pixel. Raises KeyError naming a class that was not scored.
        """
        wanted = set(names)
        if missing := wanted - {row.name for row in self.rows}:
            raise KeyError(f"classes that were not scored: {', '.join(sorted(missing))}")
        return Scores(self.images, [row for row in self.rows if row.name in wanted], self.samples_hash)

    def dump(self) -> dict[str, Any]:
        """As plain JSON types: all figures, and the rows of the classes."""
        figures = {name: _number(getattr(self, name)) for name in FIGURES}
        rows = [asdict(row) | {"iou": _number(row.iou), "accuracy": _number(row.accuracy)} for row in self.rows]
        return {"images": self.images, "pictures": self.samples_hash, "pixels": self.pixels, "classes": len(self.rows),
                "present": self.present, **figures, "per_class": rows}  # fmt: skip

    @classmethod
    def load(cls, data: dict[str, Any]) -> Scores:
        """Read what `dump` gave. Raises KeyError or TypeError when it is something else."""
        counts = ("name", "correct", "labelled", "predicted")
        rows = [ClassScore(**{key: row[key] for key in counts}) for row in data["per_class"]]
        return cls(data["images"], rows, data["pictures"])

    def write_csv(self, path: str | Path) -> None:
        """Write one row per class: name, IoU, accuracy (empty where undefined) and the pixel counts. Atomic."""
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
