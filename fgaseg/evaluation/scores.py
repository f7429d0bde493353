"""The confusion matrix of a labelled data set, and the figures that follow from it: both definitions of mIoU."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import ResultError
from ..files import atomic_write
from ..inference import confusion_picture
from ..visible import visible


class ConfusionMatrix:
    """Pixel counts over images in any order. Pixels that the ground truth ignores are not counted at all.

    matrix  [T, T] int64: rows are the classes of the ground truth, columns those of the prediction
    """

    def __init__(self, classes: int, ignore: int = 255, device: torch.device | str = "cpu") -> None:
        self.classes, self.ignore = classes, ignore
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Count one image. Integer tensors of the same shape; predicted in 0..T-1, labels too or `ignore`.

        Returns the counts of the k classes that occur in it, int64 [k, 4] on the CPU: class, and pixels that are
        predicted correctly, in the ground truth, in the prediction. Raises ValueError naming the shapes or the value
        that is out of range; nothing is then counted.
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
        counts = torch.bincount(pairs, minlength=self.classes**2).view_as(self.matrix)
        self.matrix += counts
        found = torch.stack([counts.diagonal(), counts.sum(1), counts.sum(0)], dim=1)
        occurring = found.any(dim=1).nonzero()
        return torch.cat([occurring, found[occurring[:, 0]]], dim=1).cpu()

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
    confusion     [T, T] int64, pixels: rows are the classes of the ground truth, columns those of the prediction; None
                  in a `subset`, and in results of earlier versions
    per_image     the scores of each image alone, by its stem; their rows are the classes that occur in it
    """

    images: int
    rows: list[ClassScore]
    samples_hash: str = ""
    confusion: Tensor | None = field(default=None, compare=False, repr=False)
    per_image: dict[str, Scores] = field(default_factory=dict, repr=False)

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
        each = {
            stem: Scores(1, [row for row in one.rows if row.name in wanted]) for stem, one in self.per_image.items()
        }
        return Scores(self.images, [row for row in self.rows if row.name in wanted], self.samples_hash, None, each)

    def dump(self) -> dict[str, Any]:
        """As plain JSON types: all figures, and the rows of the classes."""
        figures = {name: _number(getattr(self, name)) for name in FIGURES}
        rows = [asdict(row) | {"iou": _number(row.iou), "accuracy": _number(row.accuracy)} for row in self.rows]
        return {"images": self.images, "pictures": self.samples_hash, "pixels": self.pixels, "classes": len(self.rows),
                "present": self.present, **figures, "per_class": rows}  # fmt: skip

    def details(self) -> dict[str, Any]:
        """As plain JSON types: the confusion matrix, and figures and classes of each image.

        A class of an image is [name, correct, labelled, predicted].
        """
        each = [
            {"image": stem, "pixels": one.pixels, **{name: _number(getattr(one, name)) for name in FIGURES},
             "per_class": [list(asdict(row).values()) for row in one.rows]}
            for stem, one in self.per_image.items()
        ]  # fmt: skip
        return {"confusion": None if self.confusion is None else self.confusion.tolist(), "per_image": each}

    @classmethod
    def load(cls, data: dict[str, Any], details: dict[str, Any] | None = None) -> Scores:
        """Read what `dump` and `details` gave. Raises KeyError or TypeError when it is something else."""
        counts = ("name", "correct", "labelled", "predicted")
        rows = [ClassScore(**{key: row[key] for key in counts}) for row in data["per_class"]]
        if details is None:
            return cls(data["images"], rows, data["pictures"])
        confusion = None if details["confusion"] is None else torch.tensor(details["confusion"])
        each = {one["image"]: cls(1, [ClassScore(*row) for row in one["per_class"]]) for one in details["per_image"]}
        return cls(data["images"], rows, data["pictures"], confusion, each)

    def write_csv(self, path: str | Path) -> None:
        """Write one row per class: name, IoU, accuracy (empty where undefined) and the pixel counts. Atomic."""
        head = ["class", "iou", "accuracy", "correct_pixels", "labelled_pixels", "predicted_pixels"]
        rows = [[row.name, row.iou, row.accuracy, row.correct, row.labelled, row.predicted] for row in self.rows]
        _write_table(path, [head, *rows])

    def write_images_csv(self, path: str | Path) -> None:
        """Write one row per image: figures, and the IoU of each class that occurs in it (else empty). Atomic.

        Classes whose name another class has too get no column. Raises ResultError where the images were not kept.
        """
        if self.images and not self.per_image:
            raise ResultError(MISSING)
        names = Counter(row.name for row in self.rows)
        occurring = {row.name for one in self.per_image.values() for row in one.rows}
        columns = [name for name, number in names.items() if number == 1 and name in occurring]
        table: list[list[Any]] = [["image", "pixels", "miou_gt", "miou_union", "pixel_accuracy", *columns]]
        for stem, one in self.per_image.items():
            ious = {row.name: row.iou for row in one.rows}
            figures = [stem, one.pixels, one.miou_gt, one.miou_union, one.pixel_accuracy]
            table.append([*figures, *(ious.get(name, math.nan) for name in columns)])
        _write_table(path, table)

    def write_confusion_csv(self, path: str | Path) -> None:
        """Write the confusion matrix in pixels, a row per class of the ground truth, names in front. Atomic.

        Raises ResultError where there is none.
        """
        names, matrix = [row.name for row in self.rows], self._matrix()
        head = ["ground truth / prediction", *names]
        _write_table(path, [head, *([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))])

    def confusion_picture(self, most: int = 40) -> Image.Image:
        """The confusion matrix, drawn as shares of the pixels of each class; `most` classes at most.

        Raises ResultError where there is none.
        """
        return confusion_picture(self._matrix().numpy(), [row.name for row in self.rows], most)

    def write_confusion_png(self, path: str | Path) -> None:
        """Write `confusion_picture`, atomically. Raises ResultError where there is no matrix."""
        picture = self.confusion_picture()
        atomic_write(path, lambda file: picture.save(file, "PNG"))

    def _matrix(self) -> Tensor:
        if self.confusion is None:
            raise ResultError(MISSING)
        return self.confusion


MISSING = (
    "these scores have neither confusion matrix nor images: a subset of the classes keeps none, and results that "
    "earlier versions wrote have none (fgaseg eval --restart scores again)"
)
FIGURES = {
    "miou_gt": "mIoU (classes in the ground truth)",
    "miou_union": "mIoU (or in the prediction)",
    "fwiou": "frequency-weighted IoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
}


def _write_table(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write CSV, atomically; NaN is an empty cell, and text that a spreadsheet would compute has a ' in front."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{visible(value)}" if value.startswith(("=", "+", "-", "@")) else visible(value)
    return "" if isinstance(value, float) and math.isnan(value) else value


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return _ratio(sum(values), len(values))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
