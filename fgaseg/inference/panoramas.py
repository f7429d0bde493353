"""Photos much longer than broad, which are seen in overlapping tiles: where these are."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import NamedTuple

TILE_ASPECT = 2  # of a tile: twice as long as the photo is broad
OVERLAP = 4  # a tile shares a quarter of its length with the next


class Tile(NamedTuple):
    """A part of a photo along its long side: pixels start..stop are seen, and first..last get their labels from it."""

    start: int
    stop: int
    first: int
    last: int


def tiles(length: int, breadth: int, shortest: int) -> list[Tile]:
    """Tiles of equal size, evenly spread, that cover ``length``; labels change hands in the middle of an overlap.

    shortest  pixels of a tile at least: a photo a few pixels broad is not enlarged without end
    """
    size = min(max(TILE_ASPECT * breadth, shortest), length)
    count = ceil((length - size) / (size - size // OVERLAP)) + 1
    starts = [round(i * (length - size) / max(count - 1, 1)) for i in range(count)]
    cuts = [0, *((after + before + size) // 2 for before, after in pairwise(starts)), length]
    return [Tile(start, start + size, *cut) for start, cut in zip(starts, pairwise(cuts), strict=True)]
