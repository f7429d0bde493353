"""What `segment --save` writes of one photo, and where below the folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ImageError, UsageError
from ..files import atomic_write
from .photos import PICTURES, Photo

if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Result

FOLDERS = {  # of each kind; there is a file in it for every photo
    "mask": ("masks",),
    "overlay": ("overlays",),
    "coco": (),
    "probabilities": ("probabilities",),
    "dataset": ("images", "labels"),
}
SUFFIXES = {  # what a single file of a kind may be
    "mask": (".png", ".tif", ".tiff", ".npz", ".geojson", ".gpkg"),
    "overlay": tuple(PICTURES),
    "coco": (".json",),
    "probabilities": (".npz",),
}


def read_kinds(text: str) -> tuple[str, ...]:
    """The kinds that --save names, each once. Raises UsageError that lists them."""
    kinds = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",")))
    for kind in kinds:
        if kind not in FOLDERS:
            raise UsageError(f"--save {text}: {kind!r} is none of {', '.join(FOLDERS)}: give some, commas between them")
    return kinds


def write_photo(
    folder: Path, kinds: Sequence[str], photo: Photo, name: Path, result: Result, copies: bool
) -> dict[str, str]:
    """Write all kinds of results of a photo; returns their paths below ``folder``, by what they are.

    name    of the files below the folder of each kind, without suffix
    copies  the photo itself may be copied byte for byte, where that is the picture that was labelled
    """
    from ..data import plain_suffix
    from ..inference import write_index_png
    from ..inference.formats import write_arrays

    files: dict[str, str] = {}

    def path(kind: str, below: str, suffix: str = ".png") -> Path:
        files[kind] = (Path(below) / name.with_name(name.name + suffix)).as_posix()
        return folder / files[kind]

    if "mask" in kinds:
        write_index_png(result.labels, len(result.classes), path("mask", "masks"))
    if "overlay" in kinds:
        write_picture(result.overlay(legend=False), path("overlay", "overlays"))
    if "probabilities" in kinds:
        write_arrays(result, path("probabilities", "probabilities", ".npz"))
    if "dataset" in kinds:
        if photo.path is not None and copies and (suffix := plain_suffix(photo.path, result.image.size)):
            _copy(photo.path, path("image", "images", suffix))
        else:
            write_picture(result.image, path("image", "images"))
        write_index_png(result.labels, len(result.classes), path("label", "labels"))
    return files


def write_picture(picture: Image.Image, path: Path) -> None:
    kind = PICTURES[path.suffix.lower()]
    try:
        atomic_write(path, lambda file: picture.save(file, format=kind))
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None):  # a full disk
            raise
        size = f"{picture.width}x{picture.height}"
        raise ImageError(f"{path}: {size} cannot be written as {kind} ({error}): give --out a .png") from error


def _copy(photo: Path, path: Path) -> None:
    with photo.open("rb") as source:
        atomic_write(path, lambda file: shutil.copyfileobj(source, file))
