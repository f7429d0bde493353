"""The benchmark sets of the field: where their files lie, what their labels mean, and how a prepared set is opened."""

from __future__ import annotations

import functools
import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DataConfig
from ..errors import DataError
from .class_names import read_names
from .folders import FolderDataset, PairDataset, read_labels
from .label_formats import RunLengths, read_label_map, read_run_lengths, read_seg

CLASSES = Path(__file__).parent / "class_lists"  # names, id tables, PASCAL Context's list


@dataclass(frozen=True)
class Split:
    """One split of a set: its folders below the root, how many images it has, and the archives they come from."""

    images: str
    labels: str  # the labels as published: a folder, or a JSON file
    prepared: str  # the label pictures that `fgaseg data prepare` writes
    count: int
    images_from: str
    labels_from: str
    prepared_images: str | None = None  # where photos are changed too
    list: str | None = None  # file of stems, below the root or (without a folder) shipped with the package


@dataclass(frozen=True)
class BenchmarkSet:
    """A set and its label conversion, after the protocol of CAT-Seg and FGAseg (detectron2's layouts).

    ``table[v]`` is the label of the published value v, -1 for a value that the set does not define. ``read`` gives the
    published values of one label [H, W] from what ``published_labels`` found for it.
    """

    name: str
    title: str
    names_file: str
    ignore: int
    splits: dict[str, Split]
    read: Callable[[Any], np.ndarray]
    make_table: Callable[[], np.ndarray]
    published_suffix: str = ".png"
    suffix: str = ".png"  # of the prepared labels; .tif holds 16 bits
    usual_splits: tuple[str, ...] = ("val",)
    drop_empty: bool = False  # images without any labelled pixel are left out
    scored: int | None = None  # prompts beyond the first so many count as one more class, "background"

    @functools.cached_property
    def table(self) -> np.ndarray:
        return self.make_table()

    @functools.cached_property
    def names(self) -> list[str]:
        """The prompts that the model is given."""
        return read_names(CLASSES / self.names_file)

    @property
    def classes(self) -> list[str]:
        """The classes that are scored."""
        return self.names if self.scored is None else [*self.names[: self.scored], "background"]

    @property
    def class_of(self) -> list[int] | None:
        """The class of each prompt; None where prompt i is class i."""
        return None if self.scored is None else [min(index, self.scored) for index in range(len(self.names))]

    def unexpected(self, published: np.ndarray) -> list[int]:
        """Values that the set does not define, ascending."""
        values = np.unique(published)
        return [int(v) for v in values if not 0 <= v < len(self.table) or self.table[v] < 0]

    def convert(self, published: np.ndarray) -> np.ndarray:
        """Published values [H, W] to labels [H, W], uint8 or uint16. Raises DataError naming undefined values."""
        if wrong := self.unexpected(published):
            raise DataError(f"holds the values {_some(wrong)}, which {self.title} does not define")
        return self.table[published].astype(np.uint8 if self.suffix == ".png" else np.uint16)

    def published_photos(self, split: str, root: Path) -> dict[str, Path]:
        """Photos by stem; where the set has a list, those on it."""
        return self._on_list(split, root, _files(root / self.splits[split].images, ".jpg"))

    def published_labels(self, split: str, root: Path) -> dict[str, Any]:
        """What ``read`` takes, by stem: paths, or run lengths from a JSON file. Raises DataError if it is damaged."""
        source = root / self.splits[split].labels
        if source.suffix == ".json":
            return self._on_list(split, root, read_run_lengths(source) if source.exists() else {})
        return self._on_list(split, root, _files(source, self.published_suffix))

    def photos(self, split: str, root: Path) -> dict[str, Path]:
        """The photos that are scored, by stem: the published ones, or those that were prepared."""
        folder = self.splits[split].prepared_images
        return _files(root / folder, ".jpg") if folder else self.published_photos(split, root)

    def prepared_labels(self, split: str, root: Path) -> dict[str, Path]:
        return _files(root / self.splits[split].prepared, self.suffix)

    def empty(self, split: str, root: Path) -> set[str]:
        """Stems that ``prepare`` left out as they have no labelled pixel."""
        file = self.empty_file(split, root)
        return set(file.read_text(encoding="utf-8").splitlines()) if file.exists() else set()

    def empty_file(self, split: str, root: Path) -> Path:
        folder = root / self.splits[split].prepared
        return folder.with_name(f"{folder.name}_empty.txt")

    def _on_list(self, split: str, root: Path, found: dict[str, Any]) -> dict[str, Any]:
        stems = self.listed(split, root)
        return found if stems is None else {stem: found[stem] for stem in stems if stem in found}

    def listed(self, split: str, root: Path) -> list[str] | None:
        """The stems of the split in its order; None where every photo of the folder belongs to it."""
        name = self.splits[split].list
        if name is None:
            return None
        file = root / name if "/" in name else CLASSES / name
        return file.read_text().split() if file.exists() else None


def _some(values: Iterable[Any], most: int = 5) -> str:
    values = list(values)
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """Files whose names end in suffix, by the rest of their names; sub-folders are searched."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("[!.]*")):
        if file.name.lower().endswith(suffix):
            stem = file.name[: -len(suffix)]
            if stem in found:
                raise DataError(f"{file} and {found[stem]} have the same name: keep one of them")
            found[stem] = file
    return found


def _table(size: int, labels: dict[int, int], others: int = -1) -> np.ndarray:
    table = np.full(size, others, np.int64)
    table[list(labels)] = list(labels.values())
    return table


def _shipped_ids(name: str) -> dict[int, int]:
    return {int(key): value for key, value in json.loads((CLASSES / name).read_text()).items()}


def _voc_table(background: int) -> np.ndarray:
    return _table(256, {0: background, **{value: value - 1 for value in range(1, 21)}, 255: 255})


_COCO, _ADE, _FULL = "coco-stuff", "ADEChallengeData2016", "ADE20K_2021_17_01"
_VOC12, _VOC10 = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
_ADE_ZIP = "ADEChallengeData2016.zip (page of the MIT Scene Parsing Benchmark)"
_FULL_ZIP = "ADE20K_2021_17_01.zip (page of ADE20K, after a free registration)"
_VOC12_TAR = "VOCtrainval_11-May-2012.tar (page of the PASCAL VOC Challenge 2012)"
_AUGMENTED = "SegmentationClassAug.zip (VOC's and SBD's masks in one form, as first given with DeepLab)"
_VOC10_TAR = "VOCtrainval_03-May-2010.tar (page of the PASCAL VOC Challenge 2010)"
_CONTEXT = "trainval.tar.gz (page of the PASCAL-Context Dataset, full annotations)"
_DETAIL = "trainval_merged.json (page of the PASCAL in Detail Challenge)"


def _coco(folder: str, count: int) -> Split:
    return Split(
        f"{_COCO}/images/{folder}",
        f"{_COCO}/annotations/{folder}",
        f"{_COCO}/annotations_detectron2/{folder}",
        count,
        f"{folder}.zip (download page of COCO), unpacked in {_COCO}/images",
        f"stuffthingmaps_trainval2017.zip (page of COCO-Stuff), unpacked in {_COCO}/annotations",
    )


def _ade(folder: str, count: int) -> Split:
    return Split(f"{_ADE}/images/{folder}", f"{_ADE}/annotations/{folder}", f"{_ADE}/annotations_detectron2/{folder}",
                 count, _ADE_ZIP, _ADE_ZIP)  # fmt: skip


def _full(folder: str, count: int) -> Split:
    here = f"{_FULL}/images/ADE/{folder}"
    return Split(here, here, f"{_FULL}/annotations_detectron2/{folder}", count, _FULL_ZIP, _FULL_ZIP,
                 f"{_FULL}/images_detectron2/{folder}")  # fmt: skip


def _voc(prepared: str) -> Split:
    return Split(f"{_VOC12}/JPEGImages", f"{_VOC12}/SegmentationClassAug", f"{_VOC12}/{prepared}/val", 1449, _VOC12_TAR,
                 _AUGMENTED, list=f"{_VOC12}/ImageSets/Segmentation/val.txt")  # fmt: skip


def _context(labels: str, labels_from: str, prepared: str) -> Split:
    return Split(f"{_VOC10}/JPEGImages", f"{_VOC10}/{labels}", f"{_VOC10}/annotations_detectron2/{prepared}", 5104,
                 _VOC10_TAR, labels_from, list="pascalcontext_val.txt")  # fmt: skip


SETS: dict[str, BenchmarkSet] = {
    one.name: one
    for one in (
        BenchmarkSet(
            "coco-stuff", "COCO-Stuff", "coco.json", 255,
            {"train": _coco("train2017", 118_287), "val": _coco("val2017", 5000)}, read_labels,
            lambda: _table(256, _shipped_ids("coco_stuff_id_to_train_id.json") | {255: 255}),
            usual_splits=("train", "val"), drop_empty=True,
        ),
        BenchmarkSet(
            "a150", "ADE20K with 150 classes", "ade150.json", 255,
            {"train": _ade("training", 20_210), "val": _ade("validation", 2000)}, read_labels,
            lambda: _table(256, {0: 255, **{value: value - 1 for value in range(1, 151)}}),
        ),
        BenchmarkSet(
            "a847", "ADE20K with 847 classes", "ade847.json", 65535,
            {"train": _full("training", 25_574), "val": _full("validation", 2000)}, read_seg,
            # all of the 3000 classes that are none of the 847 are ignored
            lambda: _table(26 * 256, _shipped_ids("ade847_id_to_train_id.json"), others=65535),
            published_suffix="_seg.png", suffix=".tif",
        ),
        BenchmarkSet(
            "pc59", "PASCAL Context with 59 classes", "pc59.json", 255,
            {"val": _context("trainval_merged.json", _DETAIL, "pc59_val")}, RunLengths.paint,
            lambda: _table(460, _shipped_ids("pc59_id_to_train_id.json")),
        ),
        BenchmarkSet(
            "pc459", "PASCAL Context with 459 classes", "pc459.json", 459,
            {"val": _context("trainval", _CONTEXT, "pc459_val")}, read_label_map,
            lambda: _table(460, {0: 459, **{value: value - 1 for value in range(1, 460)}}),
            published_suffix=".mat", suffix=".tif",
        ),
        BenchmarkSet(
            "pas20", "PASCAL VOC with 20 classes", "voc20.json", 255,
            {"val": _voc("annotations_detectron2")}, read_labels, lambda: _voc_table(255), drop_empty=True,
        ),
        BenchmarkSet(
            "pas20b", "PASCAL VOC with background", "voc20b.json", 255,
            {"val": _voc("annotations_detectron2_bg")}, read_labels, lambda: _voc_table(20), scored=20,
        ),
    )
}  # fmt: skip


def find_set(name: str, split: str = "val") -> BenchmarkSet:
    """The set of that name. Raises DataError with the names that exist, or the splits that it has."""
    if name not in SETS:
        raise DataError(f"{name!r} is none of the sets: give one of {', '.join(SETS)}")
    if split not in SETS[name].splits:
        raise DataError(f"{name} has no split {split!r}: give one of {', '.join(SETS[name].splits)}")
    return SETS[name]


def default_root() -> Path:
    """$DETECTRON2_DATASETS, or ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def prepare_command(name: str, split: str, root: Path) -> str:
    """What to type so that this set is prepared."""
    which = "" if split in SETS[name].usual_splits else f" --split {split}"
    return f"fgaseg data prepare {name}{which} --root {shlex.quote(str(root))}"


def open_set(
    name: str, root: Path, split: str = "val", *, config: DataConfig | None = None, seed: int = 0
) -> PairDataset:
    """A prepared set: the pairs of photos and prepared labels below ``root``.

    name      "coco-stuff", "a150", "a847", "pc59", "pc459", "pas20" or "pas20b"
    split     "val", or "train" (coco-stuff, a150, a847)
    config    None: items are whole, {"image" uint8 [H, W, 3], "labels" int64 [H, W], "stem"}. Else items are those of a
              training set (see FolderDataset), cropped and jittered as it says; ``seed`` is theirs

    ``names`` are the T prompts, ``classes`` the S <= T classes scored, ``class_of`` the class of each prompt (None:
    prompt i is class i), ``ignore`` the label that is not scored. A-847's photos are as prepared: shorter side <= 512.
    Raises DataError when a folder is missing or labels are not prepared, with the command to run; warns when images
    have no label, and when the set is not whole.
    """
    one, root = find_set(name, split), Path(root)
    photos, labels = one.photos(split, root), one.prepared_labels(split, root)
    _refuse_unprepared(one, split, root, set(labels))
    stems = [stem for stem in photos if stem in labels]
    if not stems:
        raise DataError(
            f"{name}: {root / one.splits[split].images} has no photo for the labels in "
            f"{root / one.splits[split].prepared}: run fgaseg data check {name} --root {shlex.quote(str(root))}"
        )
    empty = one.empty(split, root)
    dropped = [stem for stem in photos if stem not in labels and stem not in empty]
    dropped += [stem for stem in labels if stem not in photos]
    if dropped:
        warnings.warn(f"{name}: {len(dropped)} files without partner left out: {_some(sorted(dropped))}", stacklevel=2)
    _warn_of_part(one, split, len(stems), len(empty & photos.keys()))
    return PairDataset(
        (config or DataConfig()).model_copy(update={"ignore": one.ignore}),
        "train" if config else "val",
        seed,
        name=name,
        names=one.names,
        classes=one.classes,
        class_of=one.class_of,
        pairs=[(stem, photos[stem], labels[stem]) for stem in stems],
        names_from=f"the classes of {name}",
    )


def set_in_folders(name: str, images: Path, labels: Path) -> FolderDataset:
    """A set whose photos and prepared labels lie in folders of another layout (SAN, MAFT, FC-CLIP, mmseg), paired by
    their paths. Attributes as of ``open_set``. Raises DataError as ``FolderDataset`` does; warns if it is not whole.
    """
    one = find_set(name)
    names = CLASSES / one.names_file
    data = FolderDataset(DataConfig(images=images, labels=labels, names=names, ignore=one.ignore), "val")
    data.name, data.classes, data.class_of = name, one.classes, one.class_of
    _warn_of_part(one, "val", len(data))
    return data


def _warn_of_part(one: BenchmarkSet, split: str, images: int, empty: int = 0) -> None:
    whole = one.splits[split].count
    if images + empty != whole:
        warnings.warn(
            f"{one.name}: {images} images, and {whole} are the whole set: numbers will not be those of the set",
            stacklevel=3,
        )


def _refuse_unprepared(one: BenchmarkSet, split: str, root: Path, prepared: set[str]) -> None:
    place = one.splits[split]
    if not (root / place.images).is_dir() and not prepared:
        raise DataError(
            f"{one.name}: {root / place.images} is missing; it comes from {place.images_from}. "
            f"fgaseg data check {one.name} --root {shlex.quote(str(root))} says what else is needed"
        )
    published = set(one.published_photos(split, root))
    if (root / place.labels).is_dir():
        published &= one.published_labels(split, root).keys()
    elif not (root / place.labels).exists():
        published = set()
    missing = published - prepared - one.empty(split, root)
    if missing or not prepared:
        what = f"{len(missing)} of {len(published)} labels are" if prepared else "is"
        raise DataError(f"{one.name}: {what} not prepared: run {prepare_command(one.name, split, root)}")
