"""How labels are stored: one reader for every format that the data sets use.

    format                                                    reader               used by
    grey or palette image, value = label                      read_labels          prepared sets, VOC, ...
    the same, or colours                                      read_stored          own folders
    RGB image of ADE20K 2021 (``_seg.png``)                   read_ade_segments    a847 as published
    MATLAB file with a ``LabelMap``                           read_label_map       pc459 as published
    COCO run lengths in one JSON file                         read_run_lengths     pc59 as published

Which set uses which format, and what its values mean, is in ``benchmark_sets.py``; COCO's annotations of own folders
are in ``coco.py``.

A *stored* value is what a pixel of a label image holds before it has a meaning, one number for all kinds of files: the
value of a grey image, the index of a palette image, ``colour(r, g, b)``, or ``UNPAINTED``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError, FGASegError
from ..files import ANNOTATION_LIMIT, read_limited
from ..kernels import decode_runs
from .images import PIXEL_LIMIT, load_pixels, open_image, pixel_limit

# what files of annotations raise that hold other things than they should, at any depth
WRONG_CONTENT = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
COLOURS = 1 << 32  # stored colours count from here on, beyond all values
UNPAINTED = COLOURS + (1 << 24)  # transparent pixels, and pixels outside all annotations of a COCO file


def colour(red: int, green: int, blue: int) -> int:
    """The stored value of a colour."""
    return COLOURS + (red << 16) + (green << 8) + blue


def describe(stored: int) -> str:
    """A stored value as people write it: "7", "0,0,142" or "unpainted"."""
    if stored == UNPAINTED:
        return "unpainted"
    if stored < COLOURS:
        return str(stored)
    return ",".join(str(stored >> shift & 255) for shift in (16, 8, 0))


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """The values of a label image, int64 [H, W]: grey, or palette indices. EXIF is not applied.

    A colour image whose three channels are equal is grey. Raises ImageError if the file cannot be read, DataError if it
    has colours or transparency; both name the file.
    """
    values = read_stored(path)
    if (values >= COLOURS).any():
        raise DataError(f"{path}: is partly transparent: a label image has one value per pixel")
    return values


def read_stored(path: str | os.PathLike[str], named: Collection[int] = ()) -> np.ndarray:
    """The stored values of a label image, int64 [H, W]. EXIF is not applied.

    named   the stored values that have a name. Where colours are among them, palette images are read by colour (by
            index, if that alone gives names to all pixels), and grey images as grey colours if no values are

    Fully transparent pixels are UNPAINTED. Raises ImageError if the file cannot be read, DataError if it has colours
    and none are named, or is of another kind; both name the file.
    """
    with open_image(path) as image:
        load_pixels(image, path)
        by_colour = any(COLOURS <= one < UNPAINTED for one in named)
        if image.mode == "P":
            if by_colour:
                return _palette_values(image, named)
            return _gif_values(image, path) if image.format == "GIF" else np.asarray(image).astype(np.int64)
        if image.mode in ("L", "1", "I", "F") or image.mode.startswith("I;16"):
            values = _whole_numbers(np.asarray(image), path)
            only_colours = by_colour and not any(one < COLOURS for one in named)
            return COLOURS + values * 0x010101 if only_colours else values
        if image.mode in ("RGB", "RGBA", "LA", "PA"):
            return _colour_values(np.asarray(image.convert("RGBA")), named, image.mode, path)
    raise DataError(f"{path}: is a {image.mode} image: a label image is grey, RGB or RGBA, or has a palette")


def read_palette(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The colours of a palette image, as stored values [N] by index; None for other images."""
    with open_image(path) as image:
        return _palette(image) if image.mode == "P" else None


def _palette(image: Image.Image) -> np.ndarray:
    colours = np.array(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
    stored: np.ndarray = COLOURS + (colours @ np.array([1 << 16, 1 << 8, 1]))
    return stored


def _palette_values(image: Image.Image, named: Collection[int]) -> np.ndarray:
    """By colour, or by index if only the indices all have names."""
    indices = np.asarray(image).astype(np.int64)
    colours = _palette(image)
    palette = np.arange(256)  # indices beyond the palette have no colour: they stay values
    palette[: len(colours)] = colours
    transparent = image.info.get("transparency", b"")  # an index, or the opacity of each
    if isinstance(transparent, bytes):
        transparent = np.flatnonzero(np.frombuffer(transparent, np.uint8) == 0)
    palette[transparent] = UNPAINTED
    return _better_named(palette, indices, named)


def _better_named(colours: np.ndarray, values: np.ndarray, named: Collection[int]) -> np.ndarray:
    """The colours [256] of values [H, W] in a byte, or the values where only they all have names."""
    used = np.unique(values)
    if not set(colours[used].tolist()) <= {*named, UNPAINTED} and set(used.tolist()) <= set(named):
        return values
    return colours[values]


def _gif_values(image: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    """The greys of a GIF: its indices are renumbered whenever it is saved."""
    colours = _palette(image)[np.asarray(image)] - COLOURS
    if (colours % 0x010101).any():
        raise DataError(
            f"{path}: is a GIF in colours, whose indices mean nothing: say which colour has which name with "
            "data.label_map (--label-map)"
        )
    greys: np.ndarray = colours // 0x010101
    return greys


def _whole_numbers(values: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    if values.dtype.kind == "f" and not (values == np.round(values)).all():
        raise DataError(f"{path}: holds fractions: a label image holds whole numbers")
    return values.astype(np.int64)


def _colour_values(rgba: np.ndarray, named: Collection[int], mode: str, path: str | os.PathLike[str]) -> np.ndarray:
    """Stored values of an image uint8 [H, W, 4]; grey ones are values where no colours are asked for."""
    parts = rgba.astype(np.int64)
    painted = parts[..., 3] > 0
    grey = (((parts[..., 0] == parts[..., 1]) & (parts[..., 1] == parts[..., 2])) | ~painted).all()
    if any(COLOURS <= one < UNPAINTED for one in named):
        stored = COLOURS + (parts[..., 0] << 16) + (parts[..., 1] << 8) + parts[..., 2]
        if grey and any(one < COLOURS for one in named):
            stored = _better_named(COLOURS + np.arange(256) * 0x010101, parts[..., 0], named)
    elif grey:
        stored = parts[..., 0]
    else:
        raise DataError(
            f"{path}: is a {mode} image: a label image has one value per pixel, 8 or 16-bit grey or a palette; say "
            "which colour has which name with data.label_map (--label-map)"
        )
    return np.where(painted, stored, UNPAINTED)


def read_ade_segments(file: Path) -> np.ndarray:
    """Class ids int64 [H, W] of a ``_seg.png`` of ADE20K 2021: R // 10 * 256 + G. Raises as ``read_labels`` does."""
    with open_image(file) as image:
        if image.mode != "RGB":
            raise DataError(f"{file}: is a {image.mode} image: ADE20K's _seg.png is RGB")
        load_pixels(image, file)
        values = np.asarray(image)
    return values[..., 0].astype(np.int64) // 10 * 256 + values[..., 1]


def read_label_map(file: Path) -> np.ndarray:
    """``LabelMap`` int64 [H, W] of a .mat file of PASCAL Context. Raises DataError naming the file.

    SciPy reads such files as plain data: nothing in them is executed.
    """
    try:
        from scipy.io import loadmat, whosmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError("PC-459's .mat files are read by SciPy: pip install 'fgaseg[data]'") from error
    try:
        shapes = {name: shape for name, shape, _ in whosmat(file)}
        if "LabelMap" not in shapes:
            raise DataError(f"{file}: holds no LabelMap: it is not a label file of PASCAL Context")
        if prod(shapes["LabelMap"]) > pixel_limit():
            size = "x".join(map(str, shapes["LabelMap"]))
            raise DataError(f"{file}: LabelMap says {size}, more than {pixel_limit():,} pixels: refused")
        values = loadmat(file, variable_names=["LabelMap"])["LabelMap"]
    except FGASegError:
        raise
    except Exception as error:  # SciPy's reader raises a dozen types
        raise DataError(f"{file}: is truncated or not a .mat file ({error}): fetch or copy it again") from error
    if values.ndim != 2 or values.dtype.kind not in "iuf" or 0 in values.shape or (values != values.astype(int)).any():
        raise DataError(f"{file}: LabelMap is {values.dtype}{list(values.shape)}, not whole numbers [H, W]")
    return values.astype(np.int64)


@dataclass(frozen=True)
class RunLengths:
    """The annotations of one photo in trainval_merged.json.

    source  file and photo, for error messages
    masks   COCO run lengths and category id of each annotation, in the order of the file
    """

    source: str
    height: int
    width: int
    masks: list[tuple[dict[str, Any], int]]

    def __str__(self) -> str:
        return self.source

    def paint(self) -> np.ndarray:
        """Category ids int64 [H, W]; later annotations overwrite earlier ones, 0 is background.

        Raises DataError naming the photo if a mask is damaged.
        """
        if min(self.height, self.width) < 1 or self.height * self.width > PIXEL_LIMIT:
            raise DataError(f"{self}: a photo cannot be {self.height} high and {self.width} wide")
        values = np.zeros((self.height, self.width), np.int64)
        for mask, category in self.masks:
            try:
                values[decode_mask(mask, self.height, self.width)] = category
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                raise DataError(f"{self}: a mask of category {category} is damaged ({error})") from error
        return values


def decode_mask(mask: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """bool [H, W] of COCO's run lengths. Raises ValueError, TypeError, KeyError or OverflowError for damaged ones."""
    if list(mask["size"]) != [height, width]:
        raise ValueError(f"its size is {mask['size']}, the photo's {[height, width]}")
    counts = mask["counts"]
    counts = decode_counts(counts) if isinstance(counts, str) else np.asarray(counts)
    if counts.dtype.kind != "i":
        raise ValueError("its counts are no whole numbers of 64 bits")
    return decode_runs(counts, height, width).astype(bool)


def decode_counts(text: str) -> np.ndarray:
    """COCO's compressed run lengths as int64 counts (pycocotools, rleFrString).

    A number is a sequence of five-bit groups, lowest first, each written as the character with code 48 + group; 32 is
    added to all but the last group, and bit 16 of the last group is the sign. From the fourth number on, the difference
    to the count two before is stored.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode():
        group = character - 48
        value |= (group & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a number of its counts has more than 60 bits")
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return np.array(counts, np.int64)


def read_run_lengths(file: Path) -> dict[str, RunLengths]:
    """The validation photos of PASCAL in Detail's trainval_merged.json, by stem. Raises DataError naming the file."""
    try:
        data = json.loads(read_limited(file, ANNOTATION_LIMIT))
        photos = {row["image_id"]: row for row in data["images"] if row["phase"] == "val"}
        masks: dict[Any, list[tuple[dict[str, Any], int]]] = {image: [] for image in photos}
        for row in data["annos_segmentation"]:
            if row["image_id"] in masks:
                masks[row["image_id"]].append((row["segmentation"], row["category_id"]))
        return {
            (stem := Path(row["file_name"]).stem): RunLengths(
                f"{file.name}, {stem}", int(row["height"]), int(row["width"]), masks[image]
            )
            for image, row in photos.items()
        }
    except WRONG_CONTENT as error:
        raise DataError(
            f"{file}: is not PASCAL in Detail's trainval_merged.json ({type(error).__name__}: {error}): fetch it again"
        ) from error
