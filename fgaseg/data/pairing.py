"""Which photo and which labels belong together: by paths without suffixes, or by the photos that a COCO file lists."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import DataError
from ..files import read_limited
from .coco import read_coco
from .datasets import Labels, Pair
from .label_spaces import is_coco

PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
LABELS = (".png", ".tif", ".tiff", ".bmp", ".gif")
_LOSSY = "compression has changed label values: export labels as PNG"
_JSON = "COCO annotations are given as the file itself, not as its folder (export LabelMe's to COCO)"
_UNREAD = {".jpg": _LOSSY, ".jpeg": _LOSSY, ".webp": _LOSSY, ".json": _JSON}
_COMPARED = 200  # files of each kind, when suffixes are guessed

_Needed = tuple[str, Path, Collection[str]]  # a kind of file, its folder, the stems in it


@dataclass(frozen=True)
class NamePattern:
    """What a file name has before and after the part that a photo and its labels share, and its extension ("": any)."""

    before: str = ""
    after: str = ""
    extension: str = ""

    @classmethod
    def parse(cls, text: str | None) -> NamePattern:
        """``_mask``, ``_mask.png``, or with a star for the shared part: ``mask_*``."""
        text = text or ""
        extension = next((one for one in {*PHOTOS, *LABELS} if text.lower().endswith(one)), "")
        before, star, after = text[: len(text) - len(extension)].rpartition("*")
        return cls(before if star else "", after, extension)

    def stem(self, path: PurePosixPath) -> str | None:
        """The shared part of a path, with its folders; None if the name does not fit."""
        name = path.stem
        if self.extension and path.suffix.lower() != self.extension:
            return None
        if len(name) <= len(self.before) + len(self.after):
            return None
        if not (name.startswith(self.before) and name.endswith(self.after)):
            return None
        return path.with_name(name[len(self.before) : len(name) - len(self.after)]).as_posix()

    def __bool__(self) -> bool:
        return bool(self.before or self.after or self.extension)

    def __str__(self) -> str:
        return (f"{self.before}*" if self.before else "") + self.after + self.extension


@dataclass(frozen=True)
class PairNames:
    """``data.image_suffix`` and ``data.label_suffix``: which files are photos and which are labels."""

    photos: NamePattern = NamePattern()
    labels: NamePattern = NamePattern()

    @classmethod
    def parse(cls, image_suffix: str | None, label_suffix: str | None) -> PairNames:
        return cls(NamePattern.parse(image_suffix), NamePattern.parse(label_suffix))


def find_pairs(
    photos: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    listed: Path | None = None,
    excluded: Path | None = None,
    names: PairNames = PairNames(),
) -> tuple[list[Pair], list[str]]:
    """Photos and labels whose paths below their folders are equal up to suffixes; sub-folders are searched.

    The labels of a.jpg are a.png or a.jpg.png.

    labels    a folder of label images, which may be that of the photos, or a JSON file of COCO annotations
    listed    text file of paths below ``photos``, one per line, with or without suffix: these pairs, in this order.
              None: every pair, sorted
    excluded  the same: pairs that are left out
    names     the suffixes of photos and labels before their extension
    returns   (stem, photo, labels) of each pair, the stem being the path without suffixes; and for every file that
              belongs to no pair a line that names it and the reason

    Raises DataError if a folder is missing, a list names a file that is not there, there is no pair, or none is left.
    """
    photos, labels = Path(photos), Path(labels)
    photo_of, label_of, skipped = _search(photos, labels, names)
    needed: list[_Needed] = [("photo", photos, photo_of), ("label image", labels, label_of)]
    if listed is not None:
        stems = _read_list(listed, needed, names)
    else:
        both = photo_of.keys() & label_of.keys()
        stems = sorted(both)
        skipped += [f"{photo_of[stem]}: has no label image in {labels}" for stem in photo_of.keys() - both]
        skipped += [f"{label_of[stem]}: has no photo in {photos}" for stem in label_of.keys() - both]
    if not stems:
        raise DataError(_explain_no_pair(photos, labels, photo_of, label_of, names, skipped))
    left_out = set(_read_list(excluded, needed, names)) if excluded is not None else set()
    pairs = [(stem, photo_of[stem], label_of[stem]) for stem in stems if stem not in left_out]
    if not pairs:
        raise DataError(
            f"{excluded}: lists all {len(stems)} photos of {photos}, so none is left to validate on: list fewer, or "
            "give data.val_list, or data.val_images and data.val_labels"
        )
    return pairs, sorted(skipped)


def _search(photos: Path, labels: Path, names: PairNames) -> tuple[dict[str, Path], Mapping[str, Labels], list[str]]:
    """Photos and labels by stem, and a line for every file that is neither."""
    if is_coco(labels):
        photo_of, skipped = _files_by_stem(photos, "photos", PHOTOS, names.photos)
        return photo_of, _place(read_coco(labels).photos, photo_of), skipped
    if photos.resolve() == labels.resolve():
        return _search_one_folder(photos, names)
    inner = labels if photos in labels.parents else photos if labels in photos.parents else None
    photo_of, skipped = _files_by_stem(photos, "photos", PHOTOS, names.photos, without=inner)
    label_of, skipped_labels = _files_by_stem(labels, "label images", LABELS, names.labels, without=inner)
    whole = {photo.relative_to(photos).as_posix(): stem for stem, photo in photo_of.items()}  # a.jpg.png is of a.jpg
    found: dict[str, Labels] = {}
    for stem, label in label_of.items():
        target = whole[stem] if stem in whole and stem not in photo_of else stem
        if target in found:
            raise DataError(f"{label} and {found[target]} have the same photo: keep one of them")
        found[target] = label
    return photo_of, found, skipped + skipped_labels


def _place(listed: Mapping[str, Labels], photo_of: Mapping[str, Path]) -> dict[str, Labels]:
    """The labels of a COCO file by the stem of their photo: its path in the file or, if no other has it, its name."""
    count = Counter(Path(stem).name for stem in photo_of)
    by_name = {Path(stem).name: stem for stem in photo_of if count[Path(stem).name] == 1}
    placed: dict[str, Labels] = {}
    for stem, labels in listed.items():
        target = stem if stem in photo_of else by_name.get(Path(stem).name, stem)
        if target in placed:
            raise DataError(f"{labels} and {placed[target]} have the same photo: rename one of the two")
        placed[target] = labels
    return placed


def _search_one_folder(folder: Path, names: PairNames) -> tuple[dict[str, Path], dict[str, Labels], list[str]]:
    """Photos and labels in one folder: apart by the suffixes, else x.jpg is the photo of x.png."""
    if names.labels or names.photos:
        photo_of, _ = _files_by_stem(folder, "photos", PHOTOS, names.photos, other=names.labels)
        label_of, _ = _files_by_stem(folder, "label images", LABELS, names.labels, other=names.photos)
        return photo_of, dict(label_of), []
    files: dict[str, list[Path]] = {}
    for file in _files(folder, PHOTOS):
        files.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
    photo_of = {}
    found: dict[str, Labels] = {}
    for stem, some in files.items():
        images = [file for file in some if file.suffix.lower() in LABELS]
        if len(some) == 2 and len(images) == 1:
            found[stem] = images[0]
            photo_of[stem] = next(file for file in some if file not in images)
        else:
            photo_of[stem] = some[0]
    return photo_of, found, []


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return [file for file in sorted(folder.rglob("[!.]*")) if file.suffix.lower() in suffixes and file.is_file()]


def _files_by_stem(
    folder: Path,
    kind: str,
    suffixes: tuple[str, ...],
    pattern: NamePattern,
    without: Path | None = None,
    other: NamePattern = NamePattern(),
) -> tuple[dict[str, Path], list[str]]:
    """Files below ``folder`` by stem, and a line for every file of another kind.

    without   a folder inside ``folder`` that holds the files of the other kind
    other     the names of files of the other kind in the same folder
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is {'not a folder' if folder.exists() else 'missing'}: name a folder of {kind}")
    found: dict[str, Path] = {}
    skipped = []
    for file in sorted(folder.rglob("[!.]*")):
        if file.is_dir() or (without and without != folder and without in file.parents):
            continue
        path = PurePosixPath(file.relative_to(folder).as_posix())
        if other and other.stem(path) is not None and file.suffix.lower() in suffixes:
            continue
        if file.suffix.lower() not in suffixes:
            why = f"has none of the suffixes {', '.join(suffixes)}"
            skipped.append(f"{file}: {why if kind == 'photos' else _UNREAD.get(file.suffix.lower(), why)}")
        elif (stem := pattern.stem(path)) is None:
            continue  # the caller said which names count
        elif stem in found:
            raise DataError(f"{file} and {found[stem]} have the same name: keep one of them")
        else:
            found[stem] = file
    return found, skipped


def _read_list(file: Path, needed: list[_Needed], names: PairNames) -> list[str]:
    """The stems that a text file lists, one per line, repeated ones once; each must be there in every kind."""
    try:
        lines = read_limited(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}): give a text file with one file name per line") from error
    paths = [Path(line.strip()) for line in lines if line.strip()]
    bare = [(path.with_suffix("") if path.suffix.lower() in PHOTOS else path).as_posix() for path in paths]
    photos = needed[0][2]
    stems = [one if one in photos else names.photos.stem(PurePosixPath(f"{one}.png")) or one for one in bare]
    if not stems:
        raise DataError(f"{file}: is empty: list the files of this split, one per line")
    for stem in stems:
        for kind, folder, found in needed:
            if stem not in found:
                raise DataError(
                    f"{file}: lists {stem!r}, which has no {kind} in {folder}: add the file or remove the line"
                )
    return list(dict.fromkeys(stems))


def _explain_no_pair(
    photos: Path,
    labels: Path,
    photo_of: Mapping[str, Path],
    label_of: Mapping[str, Labels],
    names: PairNames,
    skipped: list[str],
) -> str:
    one_folder = photos.resolve() == labels.resolve()
    others = [*photo_of] if one_folder and not label_of else [*label_of]
    suggestion = _guess([*photo_of], others) if not (names.photos or names.labels) else ""
    if one_folder and photo_of and not (names.photos or names.labels):
        return (
            f"{photos}: photos and labels are in one folder and nothing says which are the labels: give "
            f"{suggestion or 'data.label_suffix, such as _mask'}, or put them in a folder of their own"
        )
    examples = " and ".join(str(next(iter(found.values()), "no file")) for found in (photo_of, label_of))
    reason = f" ({skipped[0]})" if skipped and not (photo_of and label_of) else ""
    options = (("image_suffix", names.photos), ("label_suffix", names.labels))
    given = [f"data.{key}={one}" for key, one in options if one]
    return (
        f"{photos} ({len(photo_of)} photos) and {labels} ({len(label_of)} label images) have no pair{reason}, "
        f"for example {examples}: a photo and its label image have the same name up to the suffix"
        + (f" and, as given, {' and '.join(given)}" if given else "")
        + (f"; give {suggestion}" if suggestion else "")
    )


def _guess(photos: list[str], labels: list[str]) -> str:
    """The options with which most photos have a label, such as data.label_suffix=_mask; "" if none helps.

    Tried are all ways in which two names begin or end alike.
    """
    tried: Counter[tuple[NamePattern, NamePattern]] = Counter()
    for photo in photos[:_COMPARED]:
        for label in labels[:_COMPARED]:
            one, other = PurePosixPath(photo), PurePosixPath(label)
            if one.parent != other.parent or one == other:
                continue
            for ends in (False, True):
                tried[_patterns(one.name, other.name, ends)] += 1
    best, most = "", 0
    paths = [[PurePosixPath(f"{name}.png") for name in some] for some in (photos, labels)]
    for (of_photo, of_label), _ in tried.most_common(20):
        stems = [{one.stem(path) for path in some} for one, some in zip((of_photo, of_label), paths, strict=True)]
        pairs = len((stems[0] & stems[1]) - {None})
        if pairs > most and not any(word in str(of_label).lower() for word in ("color", "instance", "vis")):
            given = (("image_suffix", of_photo), ("label_suffix", of_label))
            best, most = " ".join(f"data.{key}={one}" for key, one in given if one), pairs
    enough = most * 5 >= min(len(photos), len(labels)) * 2  # in one folder, half of the files are labels
    return f"{best} ({most} pairs)" if best and enough else ""


def _patterns(photo: str, label: str, ends: bool) -> tuple[NamePattern, NamePattern]:
    """What two names have before their common end, or after their common beginning, with the mark between the two."""
    if ends:
        length = len(photo[len(photo) - _common(photo[::-1], label[::-1]) :].lstrip("_-. "))
        return NamePattern(photo[: len(photo) - length]), NamePattern(label[: len(label) - length])
    length = len(photo[: _common(photo, label)].rstrip("_-. "))
    return NamePattern(after=photo[length:]), NamePattern(after=label[length:])


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
