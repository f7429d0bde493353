"""Class maps as packed rows: which (image, class) pairs have one, and how they are cut into chunks."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import Selection, gather_classes, scatter_classes

# Pixels of class maps that are computed at once. On a CPU, 8 maps of 24×24 and their intermediate results stay in the
# caches: chunks of 64 maps take 1.4 times as long. On a GPU this bounds the memory only (not measured).
PIXELS_PER_CHUNK = {"cpu": 8 * 24 * 24, "cuda": 1024 * 24 * 24}
DROPPED = -100.0  # logit of a class that the cap or the pruning left out


class Chunk(NamedTuple):
    """Rows that are computed together, of images that have equally many of them."""

    images: slice
    rows: slice

    def offsets(self, device: torch.device) -> Tensor:
        """Where the rows of each image begin within the chunk, int64 [images + 1]."""
        images = self.images.stop - self.images.start
        return torch.arange(images + 1, device=device) * ((self.rows.stop - self.rows.start) // images)


class PackedMaps(NamedTuple):
    """Which (image, class) pairs have a class map: rows, image after image, classes ascending.

    images     B
    classes    T
    counts     rows of every image: one number where all have equally many, else a number for each. They are known on
               the host, so that cutting into chunks never waits for the device
    selection  which rows; None: all B * T
    """

    images: int
    classes: int
    counts: int | tuple[int, ...]
    selection: Selection | None = None

    @classmethod
    def all(cls, images: int, classes: int) -> "PackedMaps":
        return cls(images, classes, classes)

    def gather(self, x: Tensor) -> Tensor:
        """[B, T, ...] → [R, ...]."""
        return x.flatten(0, 1) if self.selection is None else gather_classes(x, self.selection)

    def scatter(self, x: Tensor, fill: float) -> Tensor:
        """[R, ...] → [B, T, ...]."""
        if self.selection is None:
            return x.unflatten(0, (self.images, self.classes))
        return scatter_classes(x, self.selection, fill)

    def select(self, selection: Selection) -> tuple["PackedMaps", Tensor]:
        """The maps among these that `selection` names, and their positions among these. Waits for the device."""
        if self.selection is None:
            return self._replace(counts=_counts(selection.counts), selection=selection), selection.rows
        # a union over the batch also names classes that an image has already dropped
        rows = selection.rows[torch.isin(selection.rows, self.selection.rows)]
        counts = torch.bincount(rows // self.classes, minlength=self.images)
        positions = torch.searchsorted(self.selection.rows, rows)
        selection = Selection(rows, counts, self.images, self.classes)
        return self._replace(counts=_counts(counts), selection=selection), positions

    def chunks(self, area: int, limit: int, whole_images: bool = False) -> list[Chunk]:
        """Chunks of at most about `limit` pixels, `area` a map: a single one if all rows fit, else chunks of one image.

        whole_images  where several images fit, chunks of as many as do; not on a CPU, where small chunks are no slower

        Under torch.compile and torch.export there is a single one, so that T stays dynamic.
        """
        size = max(limit // area, 1)
        if not isinstance(self.counts, tuple):
            total = self.images * self.counts
            if torch.compiler.is_compiling() or total * area <= limit:
                return [Chunk(slice(0, self.images), slice(0, total))]
            several = size // self.counts
            if whole_images and several:
                spans = (slice(i, min(i + several, self.images)) for i in range(0, self.images, several))
                return [Chunk(one, slice(one.start * self.counts, one.stop * self.counts)) for one in spans]
        chunks, start = [], 0
        for image, count in ((image, self.rows_of(image)) for image in range(self.images)):
            for first in range(start, start + count, size):
                rows = slice(first, min(first + size, start + count))
                chunks.append(Chunk(slice(image, image + 1), rows))
            start += count
        return chunks

    def rows_of(self, image: int) -> int:
        """How many rows an image has."""
        return self.counts[image] if isinstance(self.counts, tuple) else self.counts

    def positions(self, classes: Tensor) -> Tensor:
        """Positions of the rows in [B, c, ...], flattened over both, for `classes` [c], ascending, that name them."""
        if self.selection is None:
            rows = torch.arange(self.images * self.classes, device=classes.device)
        else:
            rows = self.selection.rows
        return rows // self.classes * len(classes) + torch.searchsorted(classes, rows % self.classes)

    def present_classes(self, device: torch.device) -> Tensor:
        """The classes that any image has, int64, ascending."""
        if self.selection is None:
            return torch.arange(self.classes, device=device)
        if self.images == 1:  # `unique` would wait for the device
            return self.selection.rows
        return (self.selection.rows % self.classes).unique()


def _counts(counts: Tensor) -> int | tuple[int, ...]:
    found = counts.tolist()
    return found[0] if len(set(found)) == 1 else tuple(found)


class ClassMaps(NamedTuple):
    """The cost maps that are propagated, packed, and the guidance of their texts."""

    packing: PackedMaps
    gcs: Tensor  # S_g [R, H, W]
    lcs: Tensor | None  # S_l [R, H, W]; None without LCS
    text_guidance: Tensor  # [R, hidden]

    def select(self, selection: Selection) -> tuple["ClassMaps", Tensor]:
        """Those that `selection` names, and their positions among these."""
        packing, at = self.packing.select(selection)
        return ClassMaps(packing, self.gcs[at], None if self.lcs is None else self.lcs[at], self.text_guidance[at]), at

    def chunks(self) -> list[Chunk]:
        limit = PIXELS_PER_CHUNK.get(self.gcs.device.type, PIXELS_PER_CHUNK["cuda"])
        return self.packing.chunks(self.gcs.shape[1] * self.gcs.shape[2], limit, whole_images=self.gcs.is_cuda)


class DecodedMaps(NamedTuple):
    """The logits that were computed, and which classes they belong to."""

    logits: Tensor  # [R, 4H, 4W]; scores, after a sigmoid, with released_fast_scores
    packing: PackedMaps
    capped: PackedMaps  # the maps under the class cap, of which pruning has left those of `packing`
    pruned_value: float  # of classes that pruning left out; those beyond the cap are DROPPED
    aux: list[Tensor]

    def dense(self) -> Tensor:
        """[B, T, 4H, 4W]."""
        if self.pruned_value == DROPPED or self.capped.selection is None:
            return self.packing.scatter(self.logits, self.pruned_value)
        return self.expand_to(torch.arange(self.packing.classes, device=self.logits.device))

    def expand_to(self, classes: Tensor) -> Tensor:
        """[B, c, 4H, 4W] for `classes` [c], ascending, which name those of every row."""
        images = self.packing.images
        if self.packing.selection is None or (images == 1 and len(classes) == len(self.logits)):
            return self.logits.unflatten(0, (images, -1))
        out = self.logits.new_full((images * len(classes), *self.logits.shape[1:]), DROPPED)
        if self.pruned_value != DROPPED:
            out[self._capped_among(classes)] = self.pruned_value
        out[self.packing.positions(classes)] = self.logits
        return out.unflatten(0, (images, -1))

    def _capped_among(self, classes: Tensor) -> Tensor:
        selection = self.capped.selection
        rows = self.capped.images * self.capped.classes if selection is None else len(selection.rows)
        present = self.capped.scatter(self.logits.new_ones(rows), 0.0)[:, classes]
        return present.flatten().nonzero()[:, 0]

    def kept(self) -> Tensor | None:
        """[B, T] bool: the classes computed to the end; None: all of them."""
        if self.packing.selection is None:
            return None
        return self.packing.scatter(torch.ones_like(self.logits[:, 0, 0]), 0.0) > 0
