"""A folder of photos and a folder of label images: which files belong together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from pathlib import Path

from ..config import DataConfig
from ..errors import DataError
from .class_names import LabelSpace
from .datasets import Pair, PairDataset

_PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_LABELS = (".png", ".tif", ".tiff", ".bmp")

_Needed = tuple[str, Path, Collection[str]]  # a kind of file, its folder, the stems in it


class FolderDataset(PairDataset):
    """A folder of photos, a folder of label images and a names file, as they stand in a configuration.

    config    ``images``, ``labels`` and ``names``; ``train_list`` and ``val_list`` restrict a split to the paths they
              list; ``val_images`` and ``val_labels`` are the validation split's own folders; see DataConfig
    split     "train": augmented items {"pixels" float32 [3, crop, crop] normalised, "labels" int64 [crop, crop],
              "stem"}. "val": whole photos {"image" uint8 [H, W, 3], "labels" int64 [H, W], "stem"}, without those of
              ``train_list`` where the two splits share a folder and ``val_list`` is not given
    seed      of the augmentation; item i depends only on (seed, epoch, i), and ``set_epoch`` sets the epoch

    ``skipped`` holds a line for every file that was left out, and why; a warning gives their number. Raises DataError
    if a path is missing, a list names a file that is not there, or nothing can be paired.
    """

    def __init__(self, config: DataConfig, split: str, seed: int = 0) -> None:
        if split not in ("train", "val"):
            raise DataError(f"FolderDataset: split is {split!r}: give 'train' or 'val'")
        validation = split == "val"
        label_space = LabelSpace.from_file(_required(config, "names"), config.ignore)
        photos = (config.val_images if validation else None) or _required(config, "images")
        labels = (config.val_labels if validation else None) or _required(config, "labels")
        listed, excluded = config.train_list, None
        if validation:
            listed = config.val_list
            excluded = None if config.val_list or config.val_images else config.train_list
        pairs, self.skipped = find_pairs(photos, labels, listed, excluded)
        if self.skipped:
            warnings.warn(f"{split}: {len(self.skipped)} files left out, the first: {self.skipped[0]}", stacklevel=2)
        super().__init__(str(photos), pairs, label_space, None if validation else config, seed)


def find_pairs(
    photos: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    listed: Path | None = None,
    excluded: Path | None = None,
) -> tuple[list[Pair], list[str]]:
    """Photos and label images whose paths below their folders are equal up to the suffix; sub-folders are searched.

    listed    text file of paths below ``photos``, one per line, with or without suffix: these pairs, in this order.
              None: every pair, sorted
    excluded  the same: pairs that are left out
    returns   (stem, photo, label image) of each pair, the stem being the path without suffix; and for every file that
              belongs to no pair a line that names it and the reason

    Raises DataError if a folder is missing, a list names a file that is not there, or there is no pair.
    """
    photos, labels = Path(photos), Path(labels)
    photo_of, skipped = _files_by_stem(photos, "photos", _PHOTOS)
    label_of, skipped_labels = _files_by_stem(labels, "label images", _LABELS)
    skipped += skipped_labels
    needed: list[_Needed] = [("photo", photos, photo_of), ("label image", labels, label_of)]
    if listed is not None:
        stems = _read_list(listed, needed)
    else:
        both = photo_of.keys() & label_of.keys()
        stems = sorted(both)
        skipped += [f"{photo_of[stem]}: has no label image in {labels}" for stem in photo_of.keys() - both]
        skipped += [f"{label_of[stem]}: has no photo in {photos}" for stem in label_of.keys() - both]
    if not stems:
        examples = " and ".join(str(next(iter(found.values()), "no file")) for found in (photo_of, label_of))
        raise DataError(
            f"{photos} ({len(photo_of)} photos) and {labels} ({len(label_of)} label images) have no pair, "
            f"for example {examples}: a photo and its label image have the same name up to the suffix"
        )
    left_out = set(_read_list(excluded, needed)) if excluded is not None else set()
    pairs = [(stem, photo_of[stem], label_of[stem]) for stem in stems if stem not in left_out]
    return pairs, sorted(skipped)


def _required(config: DataConfig, key: str) -> Path:
    value = getattr(config, key)
    if value is None:
        raise DataError(f"data.{key} is not set: set it to a path, for example data.{key}=my_data/{key}")
    return Path(value)


def _files_by_stem(folder: Path, kind: str, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[str]]:
    """Files below ``folder`` by path without suffix, and a line for every file with another suffix."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is {'not a folder' if folder.exists() else 'missing'}: name a folder of {kind}")
    found: dict[str, Path] = {}
    skipped = []
    for file in sorted(folder.rglob("[!.]*")):
        if file.suffix.lower() not in suffixes:
            if not file.is_dir():
                skipped.append(f"{file}: has none of the suffixes {', '.join(suffixes)}")
            continue
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"{file} and {found[stem]} have the same name: keep one of them")
        found[stem] = file
    return found, skipped


def _read_list(file: Path, needed: list[_Needed]) -> list[str]:
    """The stems that a text file lists, one per line, repeated ones once; each must be there in every kind."""
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}): give a text file with one file name per line") from error
    paths = [Path(line.strip()) for line in lines if line.strip()]
    stems = [(path.with_suffix("") if path.suffix.lower() in _PHOTOS else path).as_posix() for path in paths]
    if not stems:
        raise DataError(f"{file}: is empty: list the files of this split, one per line")
    for stem in stems:
        for kind, folder, found in needed:
            if stem not in found:
                raise DataError(
                    f"{file}: lists {stem!r}, which has no {kind} in {folder}: add the file or remove the line"
                )
    return list(dict.fromkeys(stems))
