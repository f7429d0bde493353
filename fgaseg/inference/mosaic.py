"""Labelling what is too large for one view: overlapping tiles, whose logits are blended before labels are decided.

Every tile begins on a patch of one grid over the whole raster, so tiles agree on what a patch is, and their logits lie
on one grid too, four to a patch along each axis. There they are averaged, with weights that fall to nothing towards the
border of a tile, where the model sees the least around a pixel. Only the rows of the grid that tiles still to come can
change are kept, in stripes of columns where even these would be too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, isqrt, pi

import torch
from torch import Tensor

CELLS = 4  # logits of a patch along an axis
STRIPE_BYTES = 512_000_000  # of blended logits that are kept
BLOCK_BYTES, BLOCK_PIXELS = 64_000_000, 4_000_000  # logits and labels that are decided at a time
ALIGNMENT = 512  # pixels; stripes begin at multiples, so that blocks of a file belong to one

See = Callable[[int, int], Tensor | None]
Decide = Callable[[Tensor, tuple[int, int]], Tensor]
Write = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of a raster are; all are squares of one size.

    height, width  of the raster, in pixels
    patch          pixels of the raster that a patch of the network's input is made from, along an axis
    side           patches along a tile
    rows, columns  where the tiles begin, in patches; the last ones may reach less than a patch beyond the raster, and
                   those of a raster smaller than a tile more
    """

    height: int
    width: int
    patch: int
    side: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def spread(cls, height: int, width: int, patch: int, side: int, overlap: int) -> TilePlan:
        """Tiles that share at least `overlap` patches (0 to side - 1) with the next, evenly spread."""
        rows, columns = (starts(ceil(length / patch), side, overlap) for length in (height, width))
        return cls(height, width, patch, side, rows, columns)

    @property
    def tile(self) -> int:
        """Pixels along a tile."""
        return self.side * self.patch

    def stripes(self, classes: int, budget: int = STRIPE_BYTES) -> list[tuple[int, int]]:
        """Columns of pixels (first, last + 1) whose blended logits (float32) fit into `budget` bytes."""
        rows = self.side + 2
        of_a_column = (classes + 1) * CELLS**2 * rows * 4
        most = (budget // of_a_column - 4) * self.patch  # a neighbour and a part of a patch on either side
        most = max(most // ALIGNMENT, 1) * ALIGNMENT
        count = ceil(self.width / most)
        width = ceil(self.width / count / ALIGNMENT) * ALIGNMENT
        return [(left, min(left + width, self.width)) for left in range(0, self.width, width)]

    def columns_of(self, stripe: tuple[int, int]) -> list[int]:
        """The tiles that logits of a stripe, and those beside it, depend on: where they begin, in patches."""
        first, last = self.patches_of(stripe)
        return [column for column in self.columns if column < last and column + self.side > first]

    def patches_of(self, stripe: tuple[int, int]) -> tuple[int, int]:
        """Columns of patches (first, last + 1) that pixels of a stripe are interpolated from."""
        left, right = stripe
        return max(left // self.patch - 1, 0), min(ceil(right / self.patch) + 1, ceil(self.width / self.patch))

    def count(self, classes: int, budget: int = STRIPE_BYTES) -> int:
        """How many tiles `label_tiles` sees."""
        return len(self.rows) * sum(len(self.columns_of(stripe)) for stripe in self.stripes(classes, budget))


def starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """Where parts of `side` begin that cover `length`, evenly spread, and share at least `overlap` with the next."""
    if length <= side:
        return (0,)
    count = ceil((length - side) / (side - overlap)) + 1
    return tuple(round(i * (length - side) / (count - 1)) for i in range(count))


def weights(cells: int, like: Tensor) -> Tensor:
    """[cells, cells], largest in the middle of a tile and almost nothing at its border, but nowhere zero."""
    along = torch.sin(pi * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells) ** 2
    return (along[:, None] * along).to(like)


def label_tiles(
    plan: TilePlan, classes: int, see: See, decide: Decide, write: Write, budget: int = STRIPE_BYTES
) -> Iterator[None]:
    """Label a raster, from its top to its bottom, stripe by stripe; yields once for every tile.

    see     the logits [classes, 4·side, 4·side] of the tile that begins at a row and a column (in patches), float32 or
            float64, or None where the tile holds no pixel of interest. Where no other tile is, logits count as 0 then,
            which favours no class beside it
    decide  labels [H, W] of logits [classes, h, w] at a size (H, W)
    write   called with row and column of the first pixel, and labels [H, W]; every pixel once. Pixels that no tile has
            seen are 0
    budget  bytes of blended logits that are kept, as long as a stripe is 512 pixels broad
    """
    for stripe in plan.stripes(classes, budget):
        strip = _Strip(plan, stripe, classes)
        # the last row of patches above the next tiles is interpolated with what these will change
        finals = [*(following - 1 for following in plan.rows[1:]), ceil(plan.height / plan.patch)]
        for row, final in zip(plan.rows, finals, strict=True):
            for column in plan.columns_of(stripe):
                logits = see(row, column)
                if logits is not None:
                    strip.add(row, column, logits)
                yield
            strip.label_until(final, decide, write)


class _Strip:
    """The blended logits of a stripe, from one row of patches above those that have no labels yet."""

    def __init__(self, plan: TilePlan, stripe: tuple[int, int], classes: int):
        self.plan, self.stripe, self.classes = plan, stripe, classes
        self.first, self.last = plan.patches_of(stripe)
        self.top = 0  # row of patches that the sums begin at
        self.labelled = 0  # rows of patches that have labels
        self.sums: Tensor | None = None  # [T, rows, columns] of the grid of logits
        self.total: Tensor  # of the weights [rows, columns]

    def add(self, row: int, column: int, logits: Tensor) -> None:
        """Add the part of a tile that lies in the stripe."""
        weight = weights(logits.shape[-1], logits)
        if self.sums is None:
            size = ((self.plan.side + 2) * CELLS, (self.last - self.first) * CELLS)
            self.sums, self.total = logits.new_zeros((self.classes, *size)), logits.new_zeros(size)
        left, right = max(column, self.first), min(column + self.plan.side, self.last)
        y = (row - self.top) * CELLS
        there = (slice(y, y + logits.shape[1]), slice((left - self.first) * CELLS, (right - self.first) * CELLS))
        part = (slice(None), slice((left - column) * CELLS, (right - column) * CELLS))
        self.total[there] += weight[part]
        for summed, logit in zip(self.sums, logits, strict=True):  # one class at a time: no second copy of all
            summed[there].addcmul_(logit[part], weight[part])

    def label_until(self, until: int, decide: Decide, write: Write) -> None:
        """Decide the labels above a row of patches, and drop the logits that are not needed any more."""
        step = max(min(isqrt(BLOCK_PIXELS) // self.plan.patch, self._patches_at_a_time()), 1)
        for top in range(self.labelled, until, step):
            for left in range(self.first, self.last, step):
                self._label(top, min(top + step, until), left, min(left + step, self.last), decide, write)
        self.labelled = max(until, self.labelled)
        self._drop(max(self.labelled - 1, self.top))

    def _patches_at_a_time(self) -> int:
        return isqrt(BLOCK_BYTES // (4 * self.classes * CELLS**2)) - 2

    def _label(self, top: int, bottom: int, left: int, right: int, decide: Decide, write: Write) -> None:
        """Labels of patches, decided together with a neighbour on every side, which bilinear interpolation reads."""
        patch = self.plan.patch
        rows = (top * patch, min(bottom * patch, self.plan.height))
        columns = (max(left * patch, self.stripe[0]), min(right * patch, self.stripe[1]))
        if columns[0] >= columns[1]:
            return
        above, before = max(top - 1, self.top), max(left - 1, self.first)
        below, after = min(bottom + 1, ceil(self.plan.height / patch)), min(right + 1, self.last)
        y, x = (above - self.top) * CELLS, (before - self.first) * CELLS
        there = (slice(y, y + (below - above) * CELLS), slice(x, x + (after - before) * CELLS))
        if self.sums is None or not self.total[there].any():
            write(rows[0], columns[0], torch.zeros(rows[1] - rows[0], columns[1] - columns[0], dtype=torch.int64))
            return
        blended = self.sums[(slice(None), *there)] / self.total[there].clamp(min=torch.finfo(self.total.dtype).tiny)
        labels = decide(blended, ((below - above) * patch, (after - before) * patch))
        y, x = rows[0] - above * patch, columns[0] - before * patch
        write(rows[0], columns[0], labels[y : y + rows[1] - rows[0], x : x + columns[1] - columns[0]])

    def _drop(self, top: int) -> None:
        """Let the sums begin at a lower row of patches; rows that come in are empty."""
        gone, self.top = (top - self.top) * CELLS, top
        if self.sums is None or gone == 0:
            return
        for rows in (*self.sums, self.total):
            kept = rows[gone:].clone()
            rows[: len(kept)] = kept
            rows[len(kept) :] = 0
