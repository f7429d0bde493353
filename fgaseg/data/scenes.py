"""Procedurally drawn scenes with per-pixel labels: the data set of ``fgaseg demo``, drawn as it is read.

One to four coloured, textured shapes ("red star", "blue ring") lie on one or two textured grounds ("grass", "bricks").
A fifth of the colour-shape pairs, ``UNSEEN``, never occurs in a training scene although every colour and every shape
does: to recognise them takes an open vocabulary. Sizes are relative to the shorter side, so that a scene looks the same
at any resolution.

In the drawing functions h and w are sizes in pixels, and px is the size of 1/96 of the shorter side.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from .datasets import EpochDataset, Item
from .images import to_pixels

COLOURS = {  # hue, saturation, value
    "red": (0.990, 0.86, 0.84),
    "orange": (0.070, 0.92, 0.97),
    "yellow": (0.145, 0.82, 0.97),
    "green": (0.370, 0.80, 0.62),
    "cyan": (0.500, 0.75, 0.90),
    "blue": (0.620, 0.82, 0.86),
    "purple": (0.765, 0.62, 0.70),
    "pink": (0.890, 0.45, 0.98),
    "white": (0.120, 0.05, 0.97),
    "rainbow": (0.0, 0.80, 0.92),  # every hue in turn: these can be told apart by shape alone
}


def _polygon(corners: int, start: float, radius: float = 1.0) -> np.ndarray:
    """Corners [n, 2] of a regular polygon; the first is at the angle ``start``."""
    angles = start + 2 * math.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    outline = _polygon(10, -math.pi / 2, 1.08)
    outline[1::2] *= 0.42
    return outline


def _cross(arm: float = 0.33, end: float = 0.96) -> np.ndarray:
    quarter = np.array([(arm, -end), (arm, -arm), (end, -arm)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, n) for n in range(4)])


SHAPES: dict[str, tuple[np.ndarray, ...]] = {  # outline, and the outline of a hole; x right, y down, radius about 1
    "star": (_star(),),
    "ring": (_polygon(48, 0.0), _polygon(48, 0.0, 0.54)),
    "square": (_polygon(4, math.pi / 4, 1.12),),
    "triangle": (_polygon(3, -math.pi / 2, 1.15),),
    "cross": (_cross(),),
}

_PAIRS = [(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))]
_PAIR_NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
RAINBOW = [name for name in _PAIR_NAMES if name.startswith("rainbow ")]
# A diagonal of period five: a fifth of the pairs, and one or two of every colour and of every shape.
_HELD_OUT = [name for (c, s), name in zip(_PAIRS, _PAIR_NAMES, strict=True) if (3 * c + s) % 5 == 0]
UNSEEN = [name for name in _HELD_OUT if name not in RAINBOW]
SEEN = [name for name in _PAIR_NAMES if name not in UNSEEN]


def _noise(rng: np.random.Generator, h: int, w: int, cell_h: float, cell_w: float) -> np.ndarray:
    """Smooth noise, float32 [h, w] in about -1..1, with blobs of ``cell_h`` by ``cell_w`` pixels."""
    grid = rng.uniform(-1, 1, (math.ceil(h / max(cell_h, 1)) + 2, math.ceil(w / max(cell_w, 1)) + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((w, h), Image.Resampling.BICUBIC))


def _mix(low: Sequence[float], high: Sequence[float], t: np.ndarray) -> np.ndarray:
    """Colours between ``low`` (t = 0) and ``high`` (t = 1), float32 [h, w, 3], for t [h, w]."""
    low_, high_ = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return low_ + np.clip(t, 0, 1)[..., None] * (high_ - low_)


def _grass(rng: np.random.Generator, h: int, w: int, px: float) -> np.ndarray:
    blades = _noise(rng, h, w, 7 * px, 1.2 * px)
    return _mix((44, 84, 28), (152, 182, 76), 0.45 + 0.42 * blades + 0.2 * _noise(rng, h, w, 28 * px, 28 * px))


def _sand(rng: np.random.Generator, h: int, w: int, px: float) -> np.ndarray:
    y = np.arange(h, dtype=np.float32)[:, None]
    ripples = np.sin(y / (1.9 * px) + 4 * _noise(rng, h, w, 26 * px, 34 * px))
    return _mix((176, 142, 96), (238, 212, 164), 0.55 + 0.22 * ripples + 0.3 * _noise(rng, h, w, 1.5 * px, 1.5 * px))


def _water(rng: np.random.Generator, h: int, w: int, px: float) -> np.ndarray:
    crests = 1 - np.abs(_noise(rng, h, w, 5 * px, 17 * px)) * 2.2
    return _mix((24, 84, 124), (150, 208, 222), 0.3 + 0.45 * crests * np.abs(crests))


def _bricks(rng: np.random.Generator, h: int, w: int, px: float) -> np.ndarray:
    brick_h, brick_w, mortar = 9 * px, 19 * px, max(1.3 * px, 1.0)
    y = np.arange(h, dtype=np.float32)[:, None] + rng.uniform(0, brick_h)
    course = np.floor(y / brick_h)
    x = np.arange(w, dtype=np.float32)[None] + rng.uniform(0, brick_w) + (course % 2) * brick_w / 2
    column = np.floor(x / brick_w)
    tone = rng.uniform(0.1, 0.9, (int(course.max()) + 1, int(column.max()) + 1)).astype(np.float32)
    tone = tone[course.astype(np.intp), column.astype(np.intp)] + 0.16 * _noise(rng, h, w, 2 * px, 2 * px)
    walls = _mix((122, 58, 46), (178, 104, 80), tone)
    joint = np.minimum(np.clip(y % brick_h / mortar, 0, 1), np.clip(x % brick_w / mortar, 0, 1))
    return _mix((190, 182, 170), (0, 0, 0), joint**4) + walls * (joint**4)[..., None]


def _snow(rng: np.random.Generator, h: int, w: int, px: float) -> np.ndarray:
    drifts = _noise(rng, h, w, 14 * px, 30 * px)
    return _mix((186, 202, 226), (250, 251, 254), 0.62 + 0.5 * drifts + 0.12 * _noise(rng, h, w, px, px))


_GROUND: dict[str, Callable[[np.random.Generator, int, int, float], np.ndarray]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "bricks": _bricks,
    "snow": _snow,
}
GROUNDS = list(_GROUND)
NAMES = SEEN + UNSEEN + GROUNDS


def _draw_grounds(rng: np.random.Generator, h: int, w: int, px: float) -> tuple[np.ndarray, np.ndarray]:
    """One ground, or two that meet along a wavy line: float32 [h, w, 3] in 0..255, and labels uint8 [h, w]."""
    first, second = rng.choice(len(GROUNDS), 2, replace=False)
    image = _GROUND[GROUNDS[first]](rng, h, w, px)
    labels = np.full((h, w), NAMES.index(GROUNDS[first]), np.uint8)
    if rng.random() < 0.5:
        y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None]
        along, across, length, breadth = (x, y, w, h) if rng.random() < 0.7 else (y, x, h, w)
        part = along / length - 0.5
        wave = rng.uniform(0.02, 0.06) * np.sin(math.tau * (rng.uniform(1, 2.2) * part + rng.random()))
        line = breadth * (rng.uniform(0.3, 0.7) + rng.uniform(-0.3, 0.3) * part + wave)
        cover = np.clip(across - line + 0.5, 0, 1)
        image += cover[..., None] * (_GROUND[GROUNDS[second]](rng, h, w, px) - image)
        labels[cover > 0.5] = NAMES.index(GROUNDS[second])
    return image, labels


def _mask(
    shape: str, radius: float, angle: float, stretch: float, side: int, offset: tuple[float, float]
) -> Image.Image:
    """Coverage 0..255 of a shape in a patch of side x side, antialiased: drawn four times larger and averaged.

    radius, offset  in pixels; offset (x, y) of the shape's centre from that of the patch
    angle           in radians
    stretch         the width is multiplied, the height divided by it
    """
    fine = 4
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    mask = Image.new("L", (side * fine, side * fine))
    draw = ImageDraw.Draw(mask)
    for outline, fill in zip(SHAPES[shape], (255, 0), strict=False):
        points = (outline * (stretch, 1 / stretch)) @ turn * radius + side / 2 + offset
        draw.polygon((points * fine).ravel().tolist(), fill=fill)
    return mask.reduce(fine)


def _surface(rng: np.random.Generator, colour: str, side: int, px: float) -> np.ndarray:
    """A square of the colour, its hue jittered; plain, striped, dotted or mottled, and lit from the upper left.

    Returns float32 [side, side, 3] in about 0..255.
    """
    hue, saturation, value = COLOURS[colour]
    hue = (hue + rng.uniform(-0.014, 0.014)) % 1
    rgb = colorsys.hsv_to_rgb(hue, saturation * rng.uniform(0.86, 1.0), min(value * rng.uniform(0.88, 1.08), 1))
    y, x = np.arange(side, dtype=np.float32)[:, None] / px, np.arange(side, dtype=np.float32)[None] / px
    angle, pitch = rng.uniform(0, math.pi), rng.uniform(0.7, 1.2)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    texture = rng.integers(4)
    if texture == 0:  # stripes
        tone = np.clip(2 * np.sin(u * pitch), -1, 1)
    elif texture == 1:  # dots
        tone = np.clip(4 * (np.sin(u * pitch) * np.sin(v * pitch) - 0.35), -0.5, 1)
    elif texture == 2:  # mottled
        tone = _noise(rng, side, side, 3 * px, 3 * px)
    else:
        tone = np.zeros((side, side), np.float32)
    if colour == "rainbow":
        turn = (rng.random() + 0.8 * px / side * u)[..., None] - np.array([0, 1 / 3, 2 / 3])
        paint = (140 + 115 * np.cos(math.tau * turn)).astype(np.float32)
    else:
        paint = np.asarray(rgb, np.float32) * 255
    light = 1 - 0.3 * ((x + y) * (px / side) - 1)
    return light[..., None] * (paint + tone[..., None] * (0.084 * paint + 5))  # + 5: black has texture too


def _choose_places(rng: np.random.Generator, h: int, w: int, count: int) -> list[tuple[float, float, float]]:
    """(y, x, radius) of up to ``count`` objects that overlap only a little and lie mostly inside the image."""
    places: list[tuple[float, float, float]] = []
    for _ in range(8 * count):
        radius = min(h, w) * rng.uniform(0.18, 0.30)
        y, x = rng.uniform(0.8 * radius, h - 0.8 * radius), rng.uniform(0.8 * radius, w - 0.8 * radius)
        if all(math.hypot(y - y0, x - x0) > 0.85 * (radius + r0) for y0, x0, r0 in places):
            places.append((y, x, radius))
        if len(places) == count:
            break
    return places


def _draw_object(
    rng: np.random.Generator,
    image: np.ndarray,
    labels: np.ndarray,
    name: str,
    place: tuple[float, float, float],
    px: float,
) -> None:
    """Draw an object and its shadow into ``image`` [h, w, 3], and its label into ``labels`` [h, w], in place.

    name   a colour and a shape
    place  (y, x, radius) in pixels
    """
    y, x, radius = place
    colour, shape = name.split(" ")
    side = math.ceil(2.7 * radius) + 2
    top, left = math.floor(y - side / 2), math.floor(x - side / 2)
    offset = (x - left - side / 2, y - top - side / 2)
    mask = _mask(shape, radius, rng.uniform(-0.3, 0.3), rng.uniform(0.92, 1.09), side, offset)
    small = max(1, round(side / (2.5 * px)))
    soft = np.asarray(mask.resize((small, small), Image.Resampling.BOX).resize(mask.size, Image.Resampling.BICUBIC))
    soft = soft.astype(np.float32) / 255
    drop = round(2 * px)
    shadow = np.zeros_like(soft)
    shadow[drop:, drop:] = soft[: side - drop, : side - drop]
    surface = _surface(rng, colour, side, px) * (0.62 + 0.4 * soft)[..., None]  # darker towards the rim
    inner = np.asarray(mask.filter(ImageFilter.MinFilter(2 * max(1, round(px)) + 1)), np.float32) / 255
    surface *= (0.14 + 0.86 * inner)[..., None]  # a dark outline, one pixel of 96
    rows = slice(max(top, 0), min(top + side, image.shape[0]))
    columns = slice(max(left, 0), min(left + side, image.shape[1]))
    patch = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    cover = np.asarray(mask, np.float32)[patch] / 255
    target = image[rows, columns]
    target *= 1 - 0.45 * shadow[patch][..., None]
    target += cover[..., None] * (surface[patch] - target)
    labels[rows, columns][cover > 0.5] = NAMES.index(name)


def scene(
    seed: int | Sequence[int], size: int | tuple[int, int], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene; the same arguments give the same scene.

    seed      one or several non-negative integers
    size      side, or (height, width), in pixels; at least 16
    names     the colour-shape pairs to choose from, out of SEEN and UNSEEN; any ground may occur
    returns   image uint8 [H, W, 3] in RGB, and labels uint8 [H, W], indices into ``NAMES``; a ring's hole shows ground

    Raises ValueError for a smaller size, no names, or other names.
    """
    h, w = (size, size) if isinstance(size, int) else size
    if min(h, w) < 16:
        raise ValueError(f"scene: size {h}x{w} is too small to draw in: give at least 16 pixels a side")
    wrong = [name for name in names if name not in _PAIR_NAMES]
    if wrong or not names:
        raise ValueError(f"scene: names holds {wrong or 'nothing'}: give colour-shape pairs out of SEEN and UNSEEN")
    rng = np.random.default_rng(seed)
    px = min(h, w) / 96
    image, labels = _draw_grounds(rng, h, w, px)
    for place in _choose_places(rng, h, w, int(rng.integers(1, 5))):
        _draw_object(rng, image, labels, names[int(rng.integers(len(names)))], place, px)
    slope_y, slope_x = rng.uniform(-0.14, 0.14, 2)
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)[None]
    image *= (rng.uniform(0.9, 1.05) + np.float32(slope_y) * y + np.float32(slope_x) * x)[..., None].astype(np.float32)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(2, 6))
    return np.clip(image, 0, 255).astype(np.uint8), labels


class SceneDataset(EpochDataset):
    """Scenes as a data set; item i depends only on (split, seed, epoch, i).

    split     "train": objects out of SEEN; names = SEEN + GROUNDS. "seen" and "unseen": for evaluation, with objects
              out of SEEN or UNSEEN alone; names = SEEN + UNSEEN + GROUNDS, so that all pairs compete
    length    scenes per epoch
    size      side, or (height, width), in pixels

    Items hold "pixels" float32 [3, H, W] (normalised), "labels" int64 [H, W] (indices into ``names``), "stem", and
    for evaluation "image" uint8 [H, W, 3]. ``set_epoch`` changes the training scenes; those for evaluation stay the
    same. ``scored`` are the names that a split's mIoU is computed over.
    """

    def __init__(
        self, split: str = "train", length: int = 1000, size: int | tuple[int, int] = 96, seed: int = 0
    ) -> None:
        if split not in ("train", "seen", "unseen"):
            raise ValueError(f"SceneDataset: split is {split!r}: give 'train', 'seen' or 'unseen'")
        super().__init__()
        self.split, self.length, self.size, self.seed = split, length, size, seed
        self.backdrops = GROUNDS
        self.names = SEEN + GROUNDS if split == "train" else list(NAMES)
        # more rainbows in training: they hold any hue, so that only the outline says which shape it is
        self.allowed = {"train": SEEN + 2 * RAINBOW, "seen": SEEN, "unseen": UNSEEN}[split]
        # the classes seen in training, or the pairs that training never showed
        self.scored = UNSEEN if split == "unseen" else SEEN + GROUNDS
        self._label_of = np.array([self.names.index(name) if name in self.names else -1 for name in NAMES])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        evaluation = self.split != "train"
        stream = ("train", "seen", "unseen").index(self.split)
        epoch = 0 if evaluation else self.epoch
        image, labels = scene([self.seed, stream, epoch, index], self.size, self.allowed)
        item: Item = {
            "pixels": to_pixels(image, normalization=self.normalization),
            "labels": torch.from_numpy(self._label_of[labels]),
            "stem": f"{self.split}-{epoch}-{index}",
        }
        return item | {"image": torch.from_numpy(image)} if evaluation else item
