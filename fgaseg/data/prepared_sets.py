"""Opening a prepared benchmark set as a data set."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from ..config import DataConfig
from ..errors import DataError
from .benchmark_sets import BenchmarkSet, find_set, shorten
from .datasets import PairDataset
from .pairing import find_pairs
from .set_files import SplitFiles, default_root


def open_set(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "val",
    *,
    config: DataConfig | None = None,
    seed: int = 0,
) -> PairDataset:
    """Open a benchmark set that `fgaseg data prepare` has prepared.

    name    "coco-stuff", "a150", "a847", "pc59", "pc459", "pas20" or "pas20b"
    root    the folder that holds the sets; None: $DETECTRON2_DATASETS, or ./datasets
    split   "val", or "train" (coco-stuff, a150, a847)
    config  None: items are whole photos, for evaluation. Else training items, augmented as it says with ``seed``
            (see PairDataset)

    ``names`` are the T prompts, ``classes`` the S <= T classes scored, ``class_of`` the class of each prompt (None:
    prompt i is class i), ``ignore`` the label that is not scored. A-847's photos are as prepared: shorter side <= 512.
    Raises DataError when a folder is missing or labels are not prepared, with the command to run; warns when photos
    have no labels, and when the set is not whole.
    """
    benchmark = find_set(name, split)
    files = SplitFiles(benchmark, split, Path(root or default_root()))
    photos, labels = files.scored_photos(), files.prepared_labels()
    _require_prepared(files, set(labels))
    stems = [stem for stem in photos if stem in labels]
    if not stems:
        raise DataError(
            f"{name}: {files.root / files.layout.images} has no photo for the labels in "
            f"{files.root / files.layout.prepared}: run {files.check_command()}"
        )
    empty = files.empty()
    unpaired = sorted((photos.keys() - labels.keys() - empty) | (labels.keys() - photos.keys()))
    if unpaired:
        warnings.warn(f"{name}: {len(unpaired)} files without a partner left out: {shorten(unpaired)}", stacklevel=2)
    _warn_if_incomplete(benchmark, split, len(stems) + len(empty & photos.keys()))
    pairs = [(stem, photos[stem], labels[stem]) for stem in stems]
    augmentation = config.model_copy(update={"ignore": benchmark.ignore}) if config else None
    return PairDataset(name, pairs, benchmark.label_space, augmentation, seed)


def open_set_in_folders(name: str, photos: str | os.PathLike[str], labels: str | os.PathLike[str]) -> PairDataset:
    """Open a benchmark set whose photos and prepared labels lie in folders of another layout (SAN, MAFT, FC-CLIP,
    mmseg), paired by their paths.

    Items and attributes are those of ``open_set(name)``. Raises DataError as ``find_pairs`` does; warns when files were
    left out, and when the set is not whole.
    """
    benchmark = find_set(name)
    pairs, skipped = find_pairs(photos, labels)
    if skipped:
        warnings.warn(f"{name}: {len(skipped)} files left out, the first: {skipped[0]}", stacklevel=2)
    _warn_if_incomplete(benchmark, "val", len(pairs))
    return PairDataset(name, pairs, benchmark.label_space)


def _warn_if_incomplete(benchmark: BenchmarkSet, split: str, photos: int) -> None:
    whole = benchmark.splits[split].count
    if photos != whole:
        warnings.warn(
            f"{benchmark.name}: {photos} photos, and the whole set has {whole}: scores are not comparable",
            stacklevel=3,
        )


def _require_prepared(files: SplitFiles, prepared: set[str]) -> None:
    """Raise DataError if photos are missing or published labels are not prepared yet."""
    name, root, layout = files.benchmark.name, files.root, files.layout
    if not (root / layout.images).is_dir() and not prepared:
        raise DataError(
            f"{name}: {root / layout.images} is missing; it comes from {layout.images_from}. "
            f"{files.check_command()} shows what else is needed"
        )
    published = set(files.published_photos())
    if (root / layout.labels).is_dir():
        published &= files.published_labels().keys()
    elif not (root / layout.labels).exists():
        published = set()
    unprepared = published - prepared - files.empty()
    if unprepared or not prepared:
        what = f"{len(unprepared)} of {len(published)} labels are" if prepared else "the set is"
        raise DataError(f"{name}: {what} not prepared: run {files.prepare_command()}")
