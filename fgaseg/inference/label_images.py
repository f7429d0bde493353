"""Labels as images whose pixel values are the labels: what the values are, and index PNGs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..files import atomic_write
from .pictures import UNLABELLED, palette


def value_type(count: int) -> np.dtype:
    """uint8 for up to 255 classes, else uint16: void is the largest value. Raises UsageError beyond 65,535 classes."""
    if count > 65_535:
        raise UsageError(f"{count:,} classes: 16-bit labels hold 65,535 at most: save them as .npz, or use fewer names")
    return np.dtype(np.uint8 if count <= 255 else np.uint16)


def label_values(labels: np.ndarray, count: int) -> np.ndarray:
    """Labels [H, W] as they are stored, in the type of `value_type`: what is no index of the classes is void."""
    dtype = value_type(count)
    return np.where((labels >= 0) & (labels < count), labels, np.iinfo(dtype).max).astype(dtype)


def write_index_png(labels: np.ndarray, count: int, path: str | os.PathLike[str]) -> None:
    """Write labels [H, W] of ``count`` classes as a PNG whose pixel values are the labels, as `label_values` says.

    With up to 255 classes it has a palette: the colours of `palette`, and grey for void; with more it is 16-bit grey.
    """
    image = Image.fromarray(label_values(labels, count))
    if image.mode == "L":
        colours = np.full((256, 3), UNLABELLED, np.uint8)
        colours[:count] = palette(count)
        image.putpalette(colours.tobytes())
    atomic_write(Path(path), lambda file: image.save(file, format="PNG"))
