"""Photos and label pictures in folders, as training and validation items."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..config import DataConfig

_PAD = 128


def augment(
    image: Image.Image, labels: np.ndarray, config: DataConfig, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Random scale, crop, flip and colour jitter; an RGB image and int64 labels [H, W], both become crop x crop.

    The shorter side becomes ``short_edge`` (``crop`` if None) times a random number in ``scale``; what the crop does
    not fill is padded right and below, the image with 128 and the labels with ``ignore``.
    """
    crop = config.crop
    short = (config.short_edge or crop) * rng.uniform(*config.scale)
    factor = short / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    left, top = int(rng.integers(max(width - crop, 0) + 1)), int(rng.integers(max(height - crop, 0) + 1))
    out = min(width, crop), min(height, crop)
    # Resizing only the part that the crop keeps; the fractions are those of the resized picture.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + out[0]) * across, (top + out[1]) * down)
    image = image.resize(out, Image.Resampling.BILINEAR, box=box)
    x = np.minimum((left + np.arange(out[0]) + 0.5) * across, labels.shape[1] - 1).astype(np.int64)
    y = np.minimum((top + np.arange(out[1]) + 0.5) * down, labels.shape[0] - 1).astype(np.int64)
    labels = labels[y][:, x]  # in two steps: faster than pairs of indices
    if config.flip and rng.random() < 0.5:
        image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
    if config.color_jitter:
        image = _jitter(image, rng)
    padded = Image.new("RGB", (crop, crop), (_PAD, _PAD, _PAD))
    padded.paste(image)
    filled = np.full((crop, crop), config.ignore, np.int64)
    filled[: out[1], : out[0]] = labels
    return padded, filled


def _jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """SSD's colour distortion: each step in one case of two, contrast before or after saturation and hue."""
    steps = [(_brightness, (-32.0, 32.0)), (_saturation, (0.5, 1.5)), (_hue, (-25.6, 25.6))]  # a tenth of a turn
    steps.insert(1 if rng.random() < 0.5 else 3, (_contrast, (0.5, 1.5)))
    for adjust, (low, high) in steps:
        if rng.random() < 0.5:
            image = adjust(image, rng.uniform(low, high))
    return image


_VALUES = np.arange(256)


def _brightness(image: Image.Image, by: float) -> Image.Image:
    return _mapped(image, _VALUES + by)


def _contrast(image: Image.Image, by: float) -> Image.Image:
    return _mapped(image, _VALUES * by)


def _saturation(image: Image.Image, by: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue, _mapped(saturation, _VALUES * by), value)).convert("RGB")


def _hue(image: Image.Image, by: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (_mapped(hue, (_VALUES + round(by)) % 256), saturation, value)).convert("RGB")


def _mapped(image: Image.Image, table: np.ndarray) -> Image.Image:
    """Every value v of the image becomes table[v], cut to 0..255."""
    return image.point(np.clip(table, 0, 255).astype(np.uint8).tolist() * len(image.getbands()))
