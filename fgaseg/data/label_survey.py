"""What label files hold: how many pixels have which value, and whatever about a file could make labels wrong."""

from __future__ import annotations

import filecmp
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError, ImageError
from ..progress import track
from .class_names import LabelSpace, percent
from .coco import CocoLabels
from .datasets import Labels, Pair, PairDataset, read_source, upright_labels
from .images import orientation, stored_size
from .label_formats import COLOURS, describe, read_palette

_SHOWN = 12  # classes in one line


@dataclass
class LabelFacts:
    """What one label file holds, and how it lies on its photo.

    counts     pixels of each stored value
    palette    the colour of each index of a palette image, as stored values
    turned     labels were turned as the EXIF orientation of the photo says, whose stored form they fit
    doubtful   the photo has an EXIF orientation, and the sizes do not tell on which form the labels were drawn
    several    pixels that belong to annotations of several categories
    is_photo   the file is the photo itself, or a copy
    """

    photo: Path
    source: Labels
    counts: dict[int, int] = field(default_factory=dict)
    palette: tuple[int, ...] = ()
    turned: bool = False
    doubtful: bool = False
    several: int = 0
    is_photo: bool = False
    problem: str = ""  # photo and labels do not fit
    unreadable: str = ""


def inspect_pair(photo: Path, source: Labels, label_space: LabelSpace, rotated: bool | None = None) -> LabelFacts:
    """Read the labels of a photo, of which only the size and the orientation are read."""
    facts = LabelFacts(photo, source)
    try:
        size, upright = stored_size(photo)
        if isinstance(source, CocoLabels):
            stored, facts.several = source.paint()
        else:
            stored = read_source(source, label_space)
            facts.is_photo = _same_file(photo, source)
            facts.palette = () if (palette := read_palette(source)) is None else tuple(palette.tolist())
        facts.counts = count_values(stored)
        upright &= size == stored.shape[::-1]  # the orientation of a PNG is known only after decoding it
        turn = 1 if upright else orientation(photo)
        _compare_with_photo(facts, stored, size[::-1] if turn > 4 else size, turn, rotated)
    except ImageError as error:
        facts.unreadable = str(error)
    except DataError as error:
        facts.problem = str(error)
    return facts


def _compare_with_photo(
    facts: LabelFacts, stored: np.ndarray, size: tuple[int, int], turn: int, rotated: bool | None
) -> None:
    """Whether stored values [H, W] lie on a photo: its upright (width, height), and its EXIF orientation ``turn``."""
    upright = upright_labels(stored, facts.photo, size, rotated)
    fits = upright.shape[::-1] == size
    if not fits:
        width, height = stored.shape[::-1]
        facts.problem = f"{facts.photo} is {size[0]}x{size[1]} (upright), {facts.source} is {width}x{height}"
    facts.turned = rotated is None and upright is not stored
    facts.doubtful = rotated is None and fits and turn > 1 and (turn < 5 or size[0] == size[1])


def count_values(stored: np.ndarray) -> dict[int, int]:
    """The number of pixels of each value."""
    flat = stored.ravel()
    if flat.size and flat.min() >= 0 and flat.max() < COLOURS >> 12:
        counts = np.bincount(flat)
        values = counts.nonzero()[0]
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(flat, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _same_file(photo: Path, label: Path) -> bool:
    return photo.stat().st_size == label.stat().st_size and filecmp.cmp(photo, label, shallow=False)


@dataclass
class LabelSurvey:
    """What is known of many label files.

    files      that were read, of ``total``
    counts     pixels by stored value
    in_files   files by stored value
    first      a file that holds a stored value
    colour_at  the index that a palette gives to a colour that is used, and the file
    reordered  two files whose palettes have one colour at different indices
    greys      a file whose palette shows other greys than its indices, and (index, grey) of each
    """

    total: int
    files: int = 0
    counts: Counter[int] = field(default_factory=Counter)
    in_files: Counter[int] = field(default_factory=Counter)
    first: dict[int, str] = field(default_factory=dict)
    colour_at: dict[int, tuple[int, str]] = field(default_factory=dict)
    reordered: str = ""
    greys: tuple[str, list[tuple[int, int]]] | None = None
    turned: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    photos: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    several: int = 0

    @property
    def complete(self) -> bool:
        return self.files == self.total

    @property
    def pixels(self) -> int:
        return self.counts.total()

    def add(self, facts: LabelFacts) -> None:
        self.files += 1
        source = str(facts.source)
        if facts.unreadable:
            self.unreadable.append(facts.unreadable)
            return
        for value, count in facts.counts.items():
            self.counts[value] += count
            self.in_files[value] += 1
            self.first.setdefault(value, source)
        used = [value for value in facts.counts if 0 <= value < len(facts.palette)]
        self._compare_palettes(facts.palette, used, source)
        self.several += facts.several
        for flag, files in ((facts.turned, self.turned), (facts.doubtful, self.doubtful)):
            files += [str(facts.photo)] if flag else []
        self.photos += [source] if facts.is_photo else []
        self.problems += [facts.problem] if facts.problem else []

    def _compare_palettes(self, palette: tuple[int, ...], used: list[int], source: str) -> None:
        seen = [(index, palette[index] - COLOURS) for index in sorted(used)]
        if seen and not self.greys and not any(rgb % 0x010101 for _, rgb in seen):
            greys = [(index, rgb // 0x010101) for index, rgb in seen]
            # equal greys show nothing: a palette that nobody has set
            if any(index != grey for index, grey in greys) and len({grey for _, grey in greys}) == len(greys) > 1:
                self.greys = source, greys
        for index in used:
            before, file = self.colour_at.setdefault(palette[index], (index, source))
            elsewhere = before >= len(palette) or palette[before] != palette[index]
            if before != index and elsewhere and not self.reordered:
                shown = describe(palette[index])
                self.reordered = f"the colour {shown} is index {before} in {file} and index {index} in {source}"

    def by_label(self, label_space: LabelSpace) -> tuple[dict[int, int], dict[int, int]]:
        """Pixels of each label (void: ``label_space.ignore``), and pixels of each stored value that has no label."""
        labels: dict[int, int] = {}
        missing: dict[int, int] = {}
        if self.counts:
            stored = np.array(list(self.counts), np.int64)
            meant, without = label_space.labels(stored)
            for value, label, wrong in zip(stored.tolist(), meant.tolist(), without.tolist(), strict=True):
                into, key = (missing, value) if wrong else (labels, label)
                into[key] = into.get(key, 0) + self.counts[value]
        return labels, missing

    def summary(self, label_space: LabelSpace) -> str:
        """The share of the pixels of each class, of void, and the names that do not occur, in one line."""
        labels, missing = self.by_label(label_space)
        void = labels.pop(label_space.ignore, 0)
        order = sorted(labels, key=lambda label: -labels[label])
        pixels = max(self.pixels, 1)
        parts = [f"{label_space.classes[label]} {percent(labels[label] / pixels)}" for label in order[:_SHOWN]]
        parts += [f"{len(order) - _SHOWN} more classes"] if len(order) > _SHOWN else []
        parts += [f"void {percent(void / pixels)}"]
        parts += [f"without a name {percent(sum(missing.values()) / pixels)}"] if missing else []
        never = [name for label, name in enumerate(label_space.classes) if label not in labels]
        shown = ", ".join(never[:_SHOWN]) + (f" and {len(never) - _SHOWN} more" if len(never) > _SHOWN else "")
        files = f"{self.files} of {self.total} label files" if not self.complete else f"{self.files} label files"
        return f"{files}: {', '.join(parts)}" + (f"; never: {shown}" if never else "")


def survey(
    dataset: PairDataset,
    seconds: float | None = None,
    count: int | None = None,
    known: LabelSurvey | None = None,
    progress: str = "",
) -> LabelSurvey:
    """Read the label files of a data set.

    seconds  about so long, spread over the set; None: all
    count    of the first so many items; None: all
    known    what an earlier call found, which is completed
    progress title of a progress bar; "": none
    """
    found = known or LabelSurvey(len(dataset) if count is None else min(count, len(dataset)))
    order = np.random.default_rng(0).permutation(found.total)[found.files :]
    until = None if seconds is None else time.monotonic() + seconds
    read = _read(dataset, [dataset.pairs[index] for index in order], until)
    for facts in track(read, f"reading {progress}", len(order), shown=bool(progress)):
        found.add(facts)
    return found


def _read(dataset: PairDataset, pairs: list[Pair], until: float | None) -> Iterator[LabelFacts]:
    """Facts in the order of the pairs, read by threads, until the time is over."""
    threads = min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(pairs), threads):
            if until is not None and start and time.monotonic() > until:
                return
            some = pairs[start : start + threads]
            yield from pool.map(lambda pair: inspect_pair(pair[1], pair[2], dataset.label_space, dataset.rotated), some)
