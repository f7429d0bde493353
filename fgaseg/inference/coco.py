"""Labels as COCO annotations: one of each class found in each photo, in compressed run lengths."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import ResultError
from ..files import atomic_write
from .labelled import Labelled
from .pictures import palette

_IN_MEMORY = 1 << 24  # bytes of annotations, beyond which they wait in a temporary file


class CocoWriter:
    """Collects the labels of photos, and writes one JSON file of COCO annotations.

        with CocoWriter(classes) as coco:
            for file in files:
                coco.add(model.segment(file, classes), file.name)
            coco.write("labels.json")

    classes  the names of all classes, those of the results

    Each class found in a photo is one annotation with ``iscrowd`` 0: compressed run lengths, ``area`` in pixels,
    ``bbox`` [left, top, width, height], and as ``score`` the mean score of its pixels. Category ids are 1 to T in the
    order of the classes, each with its colour; a name that occurs again is the category of its first class. The label
    "nothing" is a category like the others; pixels without a label (void) are in no annotation. Memory does not grow
    with the annotations.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes = tuple(classes)
        self.categories = _categories(self.classes)
        self._images: list[dict[str, Any]] = []
        self._names: set[str] = set()
        self._count = 0
        self._lines: IO[str] = tempfile.SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="ascii")

    def __enter__(self) -> CocoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def add(self, result: Labelled, file_name: str) -> None:
        """Add the labels of a photo. ``file_name``: its path as the file is to name it, below the folder of photos.

        Raises ResultError for other classes than the writer's, and for a name that was added before.
        """
        if tuple(result.classes) != self.classes:
            raise ResultError(
                f"{file_name}: its result has other classes ({len(result.classes)}) than the file of COCO annotations "
                f"({len(self.classes)}): use one vocabulary, background and threshold for all photos"
            )
        self.add_labels(result.labels, file_name, result.scores)

    def add_labels(self, labels: np.ndarray, file_name: str, scores: np.ndarray | None = None) -> None:
        """Add labels [H, W], indices into the classes; other values are void. ``scores`` [H, W], if there are any."""
        if file_name in self._names:
            raise ResultError(f"{file_name}: was added before: give every photo a name of its own")
        image = _image(len(self._images) + 1, file_name, labels)
        found = list(_annotations(labels, self.classes, scores, image["id"], self._count))
        self._lines.seek(0, os.SEEK_END)
        self._lines.writelines(json.dumps(one, allow_nan=False) + "\n" for one in found)
        self._count += len(found)
        self._names.add(file_name)
        self._images.append(image)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, whole or not at all. More photos may be added later, and the file written again."""

        def write(file: IO[bytes]) -> None:
            head = {**_ABOUT, "categories": self.categories, "images": self._images}
            file.write(json.dumps(head).encode().removesuffix(b"}") + b', "annotations": [')
            self._lines.seek(0)
            for number, line in enumerate(self._lines):
                file.write((b",\n" if number else b"\n") + line.rstrip("\n").encode())
            file.write(b"\n]}\n")

        atomic_write(Path(path), write)


_ABOUT: dict[str, Any] = {"info": {"description": "labels by fgaseg"}, "licenses": []}


def coco_of(result: Labelled, file_name: str) -> dict[str, Any]:
    """The COCO file of one photo, as `CocoWriter` would write it."""
    image = _image(1, file_name, result.labels)
    annotations = list(_annotations(result.labels, result.classes, result.scores, 1, 0))
    return {**_ABOUT, "categories": _categories(result.classes), "images": [image], "annotations": annotations}


def _categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    colours = palette(len(classes)).tolist()
    first = _first_of_name(classes)
    return [
        {"id": i + 1, "name": name, "supercategory": "", "color": colours[i]}
        for i, name in enumerate(classes)
        if first[i] == i
    ]


def _first_of_name(classes: Sequence[str]) -> np.ndarray:
    """int64 [T]: the first class of the same name. Readers of COCO look categories up by name."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(name, i) for i, name in enumerate(classes)], np.int64)


def _image(number: int, file_name: str, labels: np.ndarray) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "height": labels.shape[0], "width": labels.shape[1]}


def _annotations(
    labels: np.ndarray, classes: Sequence[str], scores: np.ndarray | None, image: int, before: int
) -> Iterator[dict[str, Any]]:
    """One class at a time. ``before``: how many annotations there are already."""
    from pycocotools import mask as masks  # type: ignore[import-untyped]

    known = (labels >= 0) & (labels < len(classes))
    # run lengths go down the columns
    columns = np.asfortranarray(np.where(known, _first_of_name(classes)[np.where(known, labels, 0)], -1))
    for number, value in enumerate(np.unique(columns[columns >= 0]).tolist(), before + 1):
        inside = columns == value
        runs = masks.encode(inside.view(np.uint8))
        annotation = {
            "id": number,
            "image_id": image,
            "category_id": value + 1,
            "iscrowd": 0,
            "area": int(masks.area(runs)),
            "bbox": masks.toBbox(runs).tolist(),
            "segmentation": {"size": list(labels.shape), "counts": runs["counts"].decode("ascii")},
        }
        if scores is not None and np.isfinite(score := float(scores[inside].mean(dtype=np.float64))):
            annotation["score"] = round(score, 6)
        yield annotation
