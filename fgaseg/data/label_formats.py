"""The benchmark sets of the field: where their files lie, what their labels mean, and how a prepared set is opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ImageError
from ..kernels import decode_runs
from .images import PIXEL_LIMIT, open_image


def read_seg(file: Path) -> np.ndarray:
    """Class ids [H, W] of a ``_seg.png`` of ADE20K 2021: R // 10 * 256 + G."""
    with open_image(file) as image:
        if image.mode != "RGB":
            raise DataError(f"{file}: is a {image.mode} picture: ADE20K's _seg.png is RGB")
        try:
            values = np.asarray(image)
        except Exception as error:  # every reader of Pillow has its own
            raise ImageError(f"{file}: is truncated or corrupt ({error}): fetch or copy it again") from error
    return values[..., 0].astype(np.int64) // 10 * 256 + values[..., 1]


def read_label_map(file: Path) -> np.ndarray:
    """``LabelMap`` [H, W] of a .mat file of PASCAL Context. SciPy reads such files as plain data."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError("PC-459's .mat files are read by SciPy: pip install 'fgaseg[data]'") from error
    try:
        values = loadmat(file, variable_names=["LabelMap"])["LabelMap"]
    except KeyError as error:
        raise DataError(f"{file}: holds no LabelMap: it is no label file of PASCAL Context") from error
    except Exception as error:  # SciPy's reader raises a dozen types
        raise DataError(f"{file}: is truncated or no .mat file ({error}): fetch or copy it again") from error
    if values.ndim != 2 or values.dtype.kind not in "iuf" or 0 in values.shape or (values != values.astype(int)).any():
        raise DataError(f"{file}: LabelMap is {values.dtype}{list(values.shape)}, not whole numbers [H, W]")
    return values.astype(np.int64)


@dataclass(frozen=True)
class RunLengths:
    """The annotations of one photo in trainval_merged.json: (COCO run lengths, category), in the order of the file."""

    height: int
    width: int
    masks: list[tuple[dict[str, Any], int]]

    def paint(self) -> np.ndarray:
        """Category ids int64 [H, W]; later annotations overwrite earlier ones, 0 is background."""
        if min(self.height, self.width) < 1 or self.height * self.width > PIXEL_LIMIT:
            raise DataError(f"a photo cannot be {self.height} high and {self.width} wide")
        values = np.zeros((self.height, self.width), np.int64)
        for mask, category in self.masks:
            try:
                if list(mask["size"]) != [self.height, self.width]:
                    raise DataError(f"its size is {mask['size']}, the photo's {[self.height, self.width]}")
                counts = mask["counts"]
                counts = decode_counts(counts) if isinstance(counts, str) else np.asarray(counts)
                values[decode_runs(counts, self.height, self.width).astype(bool)] = category
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                raise DataError(f"a mask of category {category} is damaged ({error})") from error
        return values


def decode_counts(text: str) -> np.ndarray:
    """COCO's compressed run lengths as int64 counts.

    Each number is in groups of five bits, lowest first, as characters from "0" on; 32 marks that more follow, 16 of the
    last group the sign. From the fourth on, a number is the difference to the count two before it.
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
            Path(row["file_name"]).stem: RunLengths(int(row["height"]), int(row["width"]), masks[image])
            for image, row in photos.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: is not PASCAL in Detail's trainval_merged.json ({type(error).__name__}: {error}): fetch it again"
        ) from error
