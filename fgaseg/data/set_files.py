"""Finding the files of a benchmark set below a root folder: photos and labels, as published and as prepared."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .benchmark_sets import CLASS_LISTS, BenchmarkSet, SplitLayout
from .label_formats import read_run_lengths


def default_root() -> Path:
    """$DETECTRON2_DATASETS, or ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split of a benchmark set below ``root``. Each method looks at the disk again.

    Files are found by their stems; sub-folders are searched. Raises DataError where two files have the same stem.
    """

    benchmark: BenchmarkSet
    split: str
    root: Path

    @property
    def layout(self) -> SplitLayout:
        return self.benchmark.splits[self.split]

    @property
    def title(self) -> str:
        return f"{self.benchmark.name} {self.split}"

    def published_photos(self) -> dict[str, Path]:
        """Photos by stem; where the set lists its stems, those listed, in that order."""
        return self._listed_ones(_files_by_stem(self.root / self.layout.images, ".jpg"))

    def published_labels(self) -> dict[str, Any]:
        """What ``BenchmarkSet.read`` takes, by stem: paths, or RunLengths from a JSON file.

        Raises DataError if the JSON file is damaged.
        """
        source = self.root / self.layout.labels
        if source.suffix == ".json":
            return self._listed_ones(read_run_lengths(source) if source.exists() else {})
        return self._listed_ones(_files_by_stem(source, self.benchmark.published_suffix))

    def scored_photos(self) -> dict[str, Path]:
        """The photos that are scored, by stem: the prepared ones where the set prepares photos, else the published."""
        folder = self.layout.prepared_images
        return _files_by_stem(self.root / folder, ".jpg") if folder else self.published_photos()

    def prepared_labels(self) -> dict[str, Path]:
        return _files_by_stem(self.root / self.layout.prepared, self.benchmark.suffix)

    def listed(self) -> list[str] | None:
        """The stems of the split, in its order; None where every photo of the folder belongs to it."""
        name = self.layout.stems
        if name is None:
            return None
        file = self.root / name if "/" in name else CLASS_LISTS / name
        return file.read_text().split() if file.exists() else None

    @property
    def empty_file(self) -> Path:
        """Where ``prepare`` lists the stems that it left out because they have no labelled pixel."""
        folder = self.root / self.layout.prepared
        return folder.with_name(f"{folder.name}_empty.txt")

    def empty(self) -> set[str]:
        """The stems in ``empty_file``."""
        return set(self.empty_file.read_text(encoding="utf-8").splitlines()) if self.empty_file.exists() else set()

    def missing(self) -> list[str]:
        """What has to be downloaded before the split can be prepared, and from where; nothing if it is prepared."""
        layout = self.layout
        missing = [] if (self.root / layout.images).is_dir() else [f"{layout.images}, from {layout.images_from}"]
        if not self.prepared_labels():
            if not (self.root / layout.labels).exists() and layout.labels != layout.images:
                missing.append(f"{layout.labels}, from {layout.labels_from}")
            if layout.stems and self.listed() is None:
                missing.append(f"{layout.stems}, from {layout.images_from}")
        elif layout.prepared_images and (self.root / layout.prepared_images).is_dir():
            return []  # the published photos are not needed any more
        return missing

    def prepare_command(self) -> str:
        """The command that prepares this split."""
        which = "" if self.split in self.benchmark.usual_splits else f" --split {self.split}"
        return f"fgaseg data prepare {self.benchmark.name}{which} --root {shlex.quote(str(self.root))}"

    def check_command(self) -> str:
        """The command that checks this set."""
        return f"fgaseg data check {self.benchmark.name} --root {shlex.quote(str(self.root))}"

    def _listed_ones(self, found: dict[str, Any]) -> dict[str, Any]:
        stems = self.listed()
        return found if stems is None else {stem: found[stem] for stem in stems if stem in found}


def require_root(root: Path) -> None:
    """Raises DataError if the root folder of the benchmark sets is not there."""
    if not root.is_dir():
        raise DataError(
            f"root {root}: {'is not a folder' if root.exists() else 'is missing'}: give the folder that holds "
            "coco-stuff, ADEChallengeData2016, ADE20K_2021_17_01 or VOCdevkit"
        )


def _files_by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    """Files whose names end in ``suffix``, by the rest of their names; sub-folders are searched."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("[!.]*")):
        if file.name.lower().endswith(suffix):
            stem = file.name[: -len(suffix)]
            if stem in found:
                raise DataError(f"{file} and {found[stem]} have the same name: keep one of them")
            found[stem] = file
    return found
