"""The benchmark sets: which folders and archives each of them needs, which classes it has, what its labels mean.

The layouts are detectron2's and the label conversion is that of CAT-Seg and FGAseg; see ``BENCHMARK_SETS`` below.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .class_names import LabelSpace, read_names
from .label_formats import RunLengths, read_ade_segments, read_label_map, read_labels

CLASS_LISTS = Path(__file__).parent / "class_lists"  # names, tables of ids, PASCAL Context's validation list


@dataclass(frozen=True)
class SplitLayout:
    """Where the files of one split are below the root folder, how many pairs it has, and where they are published."""

    images: str
    labels: str  # as published: a folder, or a JSON file
    prepared: str  # folder of the label images that `fgaseg data prepare` writes
    count: int
    images_from: str
    labels_from: str
    prepared_images: str | None = None  # folder of the photos that `fgaseg data prepare` writes, if it does
    stems: str | None = None  # file that lists the split's stems: below the root, or (without a folder) a class list


@dataclass(frozen=True)
class BenchmarkSet:
    """A benchmark set: its classes, its splits, and how published labels are converted.

    name              on the command line and in results
    names_file        the prompts, in ``class_lists``
    ignore            label value that is not scored
    read              gives the published label values of one photo, int64 [H, W], for a value of
                      ``SplitFiles.published_labels()``
    make_table        table of int64 whose entry v is the label of the published value v; -1: v is not defined
    published_suffix  of published label files
    suffix            of prepared label images: .png holds 8 bits, .tif 16
    usual_splits      the splits that the protocol uses
    drop_empty        photos without a labelled pixel are left out
    scored            None: every prompt is a class of its own; else the prompts from this one on are one more class,
                      "background"
    """

    name: str
    title: str
    names_file: str
    ignore: int
    splits: dict[str, SplitLayout]
    read: Callable[[Any], np.ndarray]
    make_table: Callable[[], np.ndarray]
    published_suffix: str = ".png"
    suffix: str = ".png"
    usual_splits: tuple[str, ...] = ("val",)
    drop_empty: bool = False
    scored: int | None = None

    @functools.cached_property
    def table(self) -> np.ndarray:
        return self.make_table()

    @functools.cached_property
    def names(self) -> list[str]:
        """The T prompts that the model is given."""
        return read_names(CLASS_LISTS / self.names_file)

    @property
    def classes(self) -> list[str]:
        """The S <= T classes that are scored."""
        return self.names if self.scored is None else [*self.names[: self.scored], "background"]

    @property
    def prepares_photos(self) -> bool:
        """Photos are shrunk by the preparation too, and the shrunk ones are scored."""
        return any(layout.prepared_images for layout in self.splits.values())

    @property
    def label_space(self) -> LabelSpace:
        class_of = None if self.scored is None else [min(index, self.scored) for index in range(len(self.names))]
        return LabelSpace(self.names, self.classes, self.ignore, class_of, f"the classes of {self.name}")

    def undefined(self, published: np.ndarray) -> list[int]:
        """The values of ``published`` (int64, any shape) that the set does not define, ascending."""
        values = np.unique(published)
        return [int(v) for v in values if not 0 <= v < len(self.table) or self.table[v] < 0]

    def convert(self, published: np.ndarray, source: object) -> np.ndarray:
        """Published values int64 [H, W] as labels [H, W], uint8 (uint16 where they are prepared as .tif).

        Raises DataError naming ``source`` and the values that the set does not define.
        """
        if wrong := self.undefined(published):
            raise DataError(f"{source}: holds the values {shorten(wrong)}, which {self.title} does not define")
        return self.table[published].astype(np.uint8 if self.suffix == ".png" else np.uint16)


def shorten(values: Iterable[Any], most: int = 5) -> str:
    """The first values, separated by commas, and how many more there are."""
    values = list(values)
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")


def find_set(name: str, split: str = "val") -> BenchmarkSet:
    """The set of that name. Raises DataError with the names that exist, or with the splits that it has."""
    if name not in BENCHMARK_SETS:
        raise DataError(f"{name!r} is not a benchmark set: give one of {', '.join(BENCHMARK_SETS)}")
    if split not in BENCHMARK_SETS[name].splits:
        raise DataError(f"{name} has no split {split!r}: give one of {', '.join(BENCHMARK_SETS[name].splits)}")
    return BENCHMARK_SETS[name]


def find_splits(names: Sequence[str], split: str | None = None) -> list[tuple[BenchmarkSet, str]]:
    """Pairs of a set and a split: the named sets (none: all) with ``split`` (None: those that the protocol uses).

    Raises DataError for an unknown set, or for a named one that has no such split.
    """
    if not names:
        every = BENCHMARK_SETS.values()
        return [(one, part) for one in every for part in ([split] if split else one.usual_splits) if part in one.splits]
    return [
        (find_set(name, part), part)
        for name in dict.fromkeys(names)
        for part in ([split] if split else find_set(name).usual_splits)
    ]


def _table_from_file(file: str, size: int, others: int = -1, keep: tuple[int, ...] = ()) -> np.ndarray:
    """The labels in a JSON file of ``class_lists``; values in ``keep`` stay the same, the rest becomes ``others``."""
    table = np.full(size, others, np.int64)
    for value, label in json.loads((CLASS_LISTS / file).read_text()).items():
        table[int(value)] = label
    table[list(keep)] = keep
    return table


def _table_from_one(classes: int, zero: int, size: int = 256, keep: tuple[int, ...] = ()) -> np.ndarray:
    """Published classes count from 1, labels from 0; the published value 0 becomes the label ``zero``."""
    table = np.full(size, -1, np.int64)
    table[0] = zero
    table[1 : classes + 1] = np.arange(classes)
    table[list(keep)] = keep
    return table


_COCO, _ADE, _FULL = "coco-stuff", "ADEChallengeData2016", "ADE20K_2021_17_01"
_VOC12, _VOC10 = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
_ADE_ZIP = "ADEChallengeData2016.zip (page of the MIT Scene Parsing Benchmark)"
_FULL_ZIP = "ADE20K_2021_17_01.zip (page of ADE20K, after a free registration)"
_VOC12_TAR = "VOCtrainval_11-May-2012.tar (page of the PASCAL VOC Challenge 2012)"
_AUGMENTED = "SegmentationClassAug.zip (VOC's and SBD's masks in one form, first published with DeepLab)"
_VOC10_TAR = "VOCtrainval_03-May-2010.tar (page of the PASCAL VOC Challenge 2010)"
_CONTEXT = "trainval.tar.gz (page of the PASCAL-Context Dataset, full annotations)"
_DETAIL = "trainval_merged.json (page of the PASCAL in Detail Challenge)"


def _coco(folder: str, count: int) -> SplitLayout:
    return SplitLayout(
        images=f"{_COCO}/images/{folder}",
        labels=f"{_COCO}/annotations/{folder}",
        prepared=f"{_COCO}/annotations_detectron2/{folder}",
        count=count,
        images_from=f"{folder}.zip (download page of COCO), unpacked in {_COCO}/images",
        labels_from=f"stuffthingmaps_trainval2017.zip (page of COCO-Stuff), unpacked in {_COCO}/annotations",
    )


def _ade(folder: str, count: int) -> SplitLayout:
    return SplitLayout(
        images=f"{_ADE}/images/{folder}",
        labels=f"{_ADE}/annotations/{folder}",
        prepared=f"{_ADE}/annotations_detectron2/{folder}",
        count=count,
        images_from=_ADE_ZIP,
        labels_from=_ADE_ZIP,
    )


def _ade_full(folder: str, count: int) -> SplitLayout:
    return SplitLayout(
        images=f"{_FULL}/images/ADE/{folder}",
        labels=f"{_FULL}/images/ADE/{folder}",
        prepared=f"{_FULL}/annotations_detectron2/{folder}",
        count=count,
        images_from=_FULL_ZIP,
        labels_from=_FULL_ZIP,
        prepared_images=f"{_FULL}/images_detectron2/{folder}",
    )


def _voc(prepared: str) -> SplitLayout:
    return SplitLayout(
        images=f"{_VOC12}/JPEGImages",
        labels=f"{_VOC12}/SegmentationClassAug",
        prepared=f"{_VOC12}/{prepared}/val",
        count=1449,
        images_from=_VOC12_TAR,
        labels_from=_AUGMENTED,
        stems=f"{_VOC12}/ImageSets/Segmentation/val.txt",
    )


def _context(labels: str, labels_from: str, prepared: str) -> SplitLayout:
    return SplitLayout(
        images=f"{_VOC10}/JPEGImages",
        labels=f"{_VOC10}/{labels}",
        prepared=f"{_VOC10}/annotations_detectron2/{prepared}",
        count=5104,
        images_from=_VOC10_TAR,
        labels_from=labels_from,
        stems="pascalcontext_val.txt",
    )


_ALL = (
    BenchmarkSet(
        "coco-stuff", "COCO-Stuff", "coco.json", ignore=255,
        splits={"train": _coco("train2017", 118_287), "val": _coco("val2017", 5000)},
        read=read_labels,
        make_table=partial(_table_from_file, "coco_stuff_id_to_train_id.json", 256, keep=(255,)),
        usual_splits=("train", "val"), drop_empty=True,
    ),
    BenchmarkSet(
        "a150", "ADE20K with 150 classes", "ade150.json", ignore=255,
        splits={"train": _ade("training", 20_210), "val": _ade("validation", 2000)},
        read=read_labels,
        make_table=partial(_table_from_one, 150, zero=255),
    ),
    BenchmarkSet(
        "a847", "ADE20K with 847 classes", "ade847.json", ignore=65535,
        splits={"train": _ade_full("training", 25_574), "val": _ade_full("validation", 2000)},
        read=read_ade_segments,
        # the rest of the 3000 classes is ignored
        make_table=partial(_table_from_file, "ade847_id_to_train_id.json", 26 * 256, others=65535),
        published_suffix="_seg.png", suffix=".tif",
    ),
    BenchmarkSet(
        "pc59", "PASCAL Context with 59 classes", "pc59.json", ignore=255,
        splits={"val": _context("trainval_merged.json", _DETAIL, "pc59_val")},
        read=RunLengths.paint,
        make_table=partial(_table_from_file, "pc59_id_to_train_id.json", 460),
    ),
    BenchmarkSet(
        "pc459", "PASCAL Context with 459 classes", "pc459.json", ignore=459,
        splits={"val": _context("trainval", _CONTEXT, "pc459_val")},
        read=read_label_map,
        make_table=partial(_table_from_one, 459, zero=459, size=460),
        published_suffix=".mat", suffix=".tif",
    ),
    BenchmarkSet(
        "pas20", "PASCAL VOC with 20 classes", "voc20.json", ignore=255,
        splits={"val": _voc("annotations_detectron2")},
        read=read_labels,
        make_table=partial(_table_from_one, 20, zero=255, keep=(255,)),
        drop_empty=True,
    ),
    BenchmarkSet(
        "pas20b", "PASCAL VOC with background", "voc20b.json", ignore=255,
        splits={"val": _voc("annotations_detectron2_bg")},
        read=read_labels,
        make_table=partial(_table_from_one, 20, zero=20, keep=(255,)),
        scored=20,
    ),
)  # fmt: skip

BENCHMARK_SETS: dict[str, BenchmarkSet] = {one.name: one for one in _ALL}
