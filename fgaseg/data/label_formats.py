"""How labels are stored: one reader for every format that the data sets use.

    format                                                    reader               used by
    grey or palette image, value = label                      read_labels          own folders, prepared sets, VOC, ...
    RGB image of ADE20K 2021 (``_seg.png``)                   read_ade_segments    a847 as published
    MATLAB file with a ``LabelMap``                           read_label_map       pc459 as published
    COCO run lengths in one JSON file                         read_run_lengths     pc59 as published

Which set uses which format, and what its values mean, is in ``benchmark_sets.py``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..kernels import decode_runs
from .images import PIXEL_LIMIT, load_pixels, open_image


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """The values of a label image, int64 [H, W]: 8 or 16-bit grey, or palette indices. EXIF is not applied.

    Raises ImageError if the file cannot be read, DataError if it is a colour image; both name the file.
    """
    with open_image(path) as image:
        if image.mode not in ("L", "P", "1", "I") and not image.mode.startswith("I;16"):
            raise DataError(
                f"{path}: is a {image.mode} image: a label image has one value per pixel, 8 or 16-bit grey or a palette"
            )
        load_pixels(image, path)
        return np.asarray(image).astype(np.int64)


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
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError("PC-459's .mat files are read by SciPy: pip install 'fgaseg[data]'") from error
    try:
        values = loadmat(file, variable_names=["LabelMap"])["LabelMap"]
    except KeyError as error:
        raise DataError(f"{file}: holds no LabelMap: it is not a label file of PASCAL Context") from error
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
                if list(mask["size"]) != [self.height, self.width]:
                    raise DataError(f"its size is {mask['size']}, the photo's {[self.height, self.width]}")
                counts = mask["counts"]
                counts = decode_counts(counts) if isinstance(counts, str) else np.asarray(counts)
                values[decode_runs(counts, self.height, self.width).astype(bool)] = category
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                raise DataError(f"{self}: a mask of category {category} is damaged ({error})") from error
        return values


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
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return np.array(counts, np.int64)


def read_run_lengths(file: Path) -> dict[str, RunLengths]:
    """The validation photos of PASCAL in Detail's trainval_merged.json, by stem. Raises DataError naming the file."""
    try:
        with file.open(encoding="utf-8") as text:
            data = json.load(text)
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: is not PASCAL in Detail's trainval_merged.json ({type(error).__name__}: {error}): fetch it again"
        ) from error
