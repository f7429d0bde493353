"""Data augmentation of training photos: random scale, crop, flip and colour jitter."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..config import DataConfig

_PADDING = 128  # grey value of what lies outside the photo


def augment(
    image: Image.Image, labels: np.ndarray, config: DataConfig, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Randomly scale, crop, flip and colour-jitter a photo, and its labels with it.

    image     RGB, H x W
    labels    int64 [H, W]
    config    ``crop``, ``short_edge``, ``scale``, ``flip``, ``color_jitter`` and ``void`` are used
    rng       the only source of randomness: the same state gives the same result
    returns   RGB image of crop x crop, labels int64 [crop, crop]

    The shorter side is resized to ``short_edge`` (``crop`` if None) times a factor drawn uniformly from ``scale``:
    bilinear for the image, nearest for the labels. Where the resized photo is smaller than the crop, it is padded on
    the right and below: the image with grey 128, the labels with ``void``.
    """
    crop = config.crop
    short = (config.short_edge or crop) * rng.uniform(*config.scale)
    factor = short / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    left, top = int(rng.integers(max(width - crop, 0) + 1)), int(rng.integers(max(height - crop, 0) + 1))
    out = min(width, crop), min(height, crop)
    # Resize only the part that the crop keeps; dividing by these gives the resized photo's coordinates.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + out[0]) * across, (top + out[1]) * down)
    image = image.resize(out, Image.Resampling.BILINEAR, box=box)
    x = np.minimum((left + np.arange(out[0]) + 0.5) * across, labels.shape[1] - 1).astype(np.int64)
    y = np.minimum((top + np.arange(out[1]) + 0.5) * down, labels.shape[0] - 1).astype(np.int64)
    labels = labels[y][:, x]  # rows, then columns: faster than indexing with both
    if config.flip and rng.random() < 0.5:
        image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
    if config.color_jitter:
        image = _jitter_colours(image, rng)
    padded = Image.new("RGB", (crop, crop), (_PADDING, _PADDING, _PADDING))
    padded.paste(image)
    filled = np.full((crop, crop), config.void, np.int64)
    filled[: out[1], : out[0]] = labels
    return padded, filled


def _jitter_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """SSD's photometric distortion (Liu et al., 2016) of an RGB image.

    Brightness, contrast, saturation and hue are each changed with probability 1/2; contrast before saturation and hue
    or after them, with probability 1/2.
    """
    steps = [(_brightness, (-32.0, 32.0)), (_saturation, (0.5, 1.5)), (_hue, (-25.6, 25.6))]  # hue: a tenth of a turn
    steps.insert(1 if rng.random() < 0.5 else 3, (_contrast, (0.5, 1.5)))
    for adjust, (low, high) in steps:
        if rng.random() < 0.5:
            image = adjust(image, rng.uniform(low, high))
    return image


_VALUES = np.arange(256)


def _brightness(image: Image.Image, by: float) -> Image.Image:
    return _map_values(image, _VALUES + by)


def _contrast(image: Image.Image, by: float) -> Image.Image:
    return _map_values(image, _VALUES * by)


def _saturation(image: Image.Image, by: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue, _map_values(saturation, _VALUES * by), value)).convert("RGB")


def _hue(image: Image.Image, by: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (_map_values(hue, (_VALUES + round(by)) % 256), saturation, value)).convert("RGB")


def _map_values(image: Image.Image, table: np.ndarray) -> Image.Image:
    """Replace every value v of every band by table[v], clipped to 0..255."""
    return image.point(np.clip(table, 0, 255).astype(np.uint8).tolist() * len(image.getbands()))
