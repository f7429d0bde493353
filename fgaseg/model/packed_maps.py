"""FGASeg: photo and class names to per-class logits. Every stage of the paper in the order it is computed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import Selection, gather_classes, scatter_classes

# Class-map pixels computed at once. On a CPU, 8 maps of 24×24 and what is made of them stay in the caches, and the
# allocator has the memory at hand: 64 take 1.4 times as long. On a GPU nothing was measured.
PIXELS_PER_STEP = {"cpu": 8 * 24 * 24, "cuda": 256 * 24 * 24}
DROPPED = -100.0  # logit of a class that the cap or the pruning left out


class Rows(NamedTuple):
    """Which (image, class) maps are being computed, as packed rows; `selection` None means all."""

    batch: int
    classes: int
    selection: Selection | None = None

    def counts(self) -> list[int]:
        return [self.classes] * self.batch if self.selection is None else self.selection.counts.tolist()

    def gather(self, x: Tensor) -> Tensor:
        """[B, T, ...] → [R, ...]."""
        return x.flatten(0, 1) if self.selection is None else gather_classes(x, self.selection)

    def scatter(self, x: Tensor, fill: float) -> Tensor:
        """[R, ...] → [B, T, ...]."""
        if self.selection is None:
            return x.unflatten(0, (self.batch, self.classes))
        return scatter_classes(x, self.selection, fill)

    def narrow(self, selection: Selection) -> tuple["Rows", Tensor]:
        """The rows of `selection`, a subset of these, and their positions among these."""
        if self.selection is None:
            return self._replace(selection=selection), selection.rows
        # a union over the batch also names classes that an image has already dropped
        inner = selection.rows[torch.isin(selection.rows, self.selection.rows)]
        counts = torch.bincount(inner // self.classes, minlength=self.batch)
        selection = Selection(inner, counts, self.batch, self.classes)
        return self._replace(selection=selection), torch.searchsorted(self.selection.rows, inner)

    def pieces(self, area: int, step: int) -> list[tuple[slice, slice]]:
        """(images, rows) to compute at once, at most about `step` pixels: all rows if they fit, else of one image."""
        counts = self.counts()
        total = sum(counts)
        if len(set(counts)) == 1 and total * area <= step:
            return [(slice(0, self.batch), slice(0, total))]
        rows = max(step // area, 1)
        pieces, start = [], 0
        for image, count in enumerate(counts):
            for a in range(start, start + count, rows):
                pieces.append((slice(image, image + 1), slice(a, min(a + rows, start + count))))
            start += count
        return pieces

    def positions(self, classes: Tensor) -> Tensor:
        """Where the rows lie in [B, c, ...], flattened over both, if c are `classes` [c], ascending."""
        if self.selection is None:
            rows = torch.arange(self.batch * self.classes, device=classes.device)
        else:
            rows = self.selection.rows
        return rows // self.classes * len(classes) + torch.searchsorted(classes, rows % self.classes)

    def named(self) -> Tensor:
        """The classes that any image has, ascending."""
        if self.selection is None:
            return torch.arange(self.classes)
        return (self.selection.rows % self.classes).unique()


def strongest_classes(scores: Tensor, count: int) -> Selection:
    """Per image the `count` classes with the largest maximum over the map; ties go to the lowest index."""
    batch, classes = scores.shape[:2]
    order = scores.flatten(2).amax(-1).sort(dim=1, descending=True, stable=True).indices
    kept = order[:, :count].sort(dim=1).values
    rows = (kept + torch.arange(batch, device=kept.device)[:, None] * classes).flatten()
    return Selection(rows, torch.full((batch,), count, device=rows.device), batch, classes)


class Maps(NamedTuple):
    """The pseudo-masks being propagated, one packed row per (image, class)."""

    rows: Rows
    gcs: Tensor  # [R, H, W]
    local: Tensor | None  # [R, H, W]; None without LCS
    texts: Tensor  # text guidance [R, hidden]

    def pieces(self) -> list[tuple[slice, slice]]:
        """The rows to compute at once."""
        step = PIXELS_PER_STEP.get(self.gcs.device.type, PIXELS_PER_STEP["cuda"])
        return self.rows.pieces(self.gcs.shape[1] * self.gcs.shape[2], step)

    def narrow(self, selection: Selection) -> tuple["Maps", Tensor]:
        rows, at = self.rows.narrow(selection)
        return Maps(rows, self.gcs[at], None if self.local is None else self.local[at], self.texts[at]), at


class Guides(NamedTuple):
    """What the classes of an image share."""

    image: Tensor  # [B, H, W, hidden]
    early: Tensor  # [B, G1, 2H, 2W]
    late: Tensor  # [B, G2, 4H, 4W]


class Decoded(NamedTuple):
    """The logits that were computed, and which those are."""

    logits: Tensor  # [R, 4H, 4W]; scores, after a sigmoid, with released_fast_scores
    rows: Rows
    entered: Rows  # the rows under the class cap, of which `rows` are left
    pruned: float  # value of a class that pruning has left out; beyond the cap it is DROPPED
    aux: list[Tensor]

    def dense(self) -> Tensor:
        """[B, T, 4H, 4W]"""
        if self.pruned == DROPPED or self.entered.selection is None:
            return self.rows.scatter(self.logits, self.pruned)
        return self.over(torch.arange(self.rows.classes, device=self.logits.device))

    def over(self, classes: Tensor) -> Tensor:
        """[B, c, 4H, 4W] over `classes` [c], ascending, which name those of every row."""
        size = (self.rows.batch * len(classes), *self.logits.shape[1:])
        if self.rows.selection is None:
            return self.logits.unflatten(0, (self.rows.batch, -1))
        out = self.logits.new_full(size, DROPPED)
        if self.pruned != DROPPED:
            out[self._entered_among(classes)] = self.pruned
        out[self.rows.positions(classes)] = self.logits
        return out.unflatten(0, (self.rows.batch, -1))

    def _entered_among(self, classes: Tensor) -> Tensor:
        present = self.entered.scatter(self.logits.new_ones(sum(self.entered.counts())), 0.0)[:, classes]
        return present.flatten().nonzero()[:, 0]

    def kept(self) -> Tensor | None:
        if self.rows.selection is None:
            return None
        return self.rows.scatter(torch.ones_like(self.logits[:, 0, 0]), 0.0) > 0


def offsets(images: slice, rows: slice, x: Tensor) -> Tensor:
    """Where the rows of each image begin, among those of a piece, whose images have equally many."""
    count = images.stop - images.start
    return torch.arange(count + 1, device=x.device) * ((rows.stop - rows.start) // count)


def each(pieces: list[tuple[slice, slice]], compute: Callable[[slice, slice], Tensor]) -> Tensor:
    """compute(images, rows) of every piece, concatenated over rows."""
    parts = [compute(i, r) for i, r in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def update(x: Tensor, pieces: list[tuple[slice, slice]], compute: Callable[..., Tensor]) -> Tensor:
    """compute(images, rows, x[rows]) in place of x[rows]; written into x itself when there are several pieces."""
    if len(pieces) == 1:
        return compute(*pieces[0], x)
    if torch.is_grad_enabled():
        return torch.cat([compute(i, r, x[r]) for i, r in pieces])
    for i, r in pieces:
        x[r] = compute(i, r, x[r])
    return x
