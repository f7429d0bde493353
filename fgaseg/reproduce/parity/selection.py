"""Class selection that answers with the recorded choices, so that a tie broken the other way spoils no later stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels import Selection
from ...model import ClassSelector
from .results import MEDIAN_LIMIT, StageResult

TIE = 1e-4  # at a head, scores of two classes nearer than this are tied (README of the recordings)


class RecordedSelector(ClassSelector):
    """Returns the recorded class cap and prunings, and compares what our selection would have chosen.

    usual    the selector of our model
    levels   class indices [B, R] that were recorded: under the cap, then after each pruning
    results  is appended one StageResult per choice; its error is the share of the chosen classes that only one of the
             two has, without those within rounding of the cut
    """

    def __init__(self, usual: ClassSelector, levels: Sequence[Tensor], results: list[StageResult]):
        self.usual, self.levels, self.results = usual, levels, results
        self.prunings = 0

    def cap(self, scores: Tensor, count: int) -> Selection:
        """The classes that were recorded under the cap; scores S_g [B, T, H, W]."""
        theirs = _selection(self.levels[0], scores.shape[1])
        best = scores.flatten(2).amax(-1)
        cut = best.sort(dim=1, descending=True).values[:, count - 1 : count]
        tied = (best - cut).abs() <= MEDIAN_LIMIT * best.abs().max()
        self._compare("padlen_classes", self.usual.cap(scores, count), theirs, tied, "classes kept by the cap")
        return theirs

    def prune(self, scores: Tensor, k: int, union: str) -> Selection:
        """The classes that were recorded after the next pruning; scores of a head [B, T, h, w]."""
        self.prunings += 1
        theirs = _selection(self.levels[self.prunings], scores.shape[1])
        flat = scores.flatten(2)
        cut = flat.topk(min(k, flat.shape[1]), dim=1).values[:, -1:]
        tied = ((flat - cut).abs() <= TIE).any(-1)
        name = "valid_idx" + (f"#{self.prunings}" if self.prunings > 1 else "")
        self._compare(name, self.usual.prune(scores, k, union), theirs, tied, "classes survive")
        return theirs

    def _compare(self, name: str, ours: Selection, theirs: Selection, tied: Tensor, what: str) -> None:
        """tied [B, T]: classes that rounding may move over the cut."""
        differ = set(ours.rows.tolist()) ^ set(theirs.rows.tolist())
        may_differ = tied.flatten()
        wrong = [row for row in differ if not may_differ[row]]
        note = f"{len(theirs.rows)} {what}"
        if differ:
            note += f", {len(differ)} differ, {len(differ) - len(wrong)} of them tied"
        self.results.append(StageResult(name, len(wrong) / len(theirs.rows), note))


def _selection(classes: Tensor, total: int) -> Selection:
    """Packed rows of class indices [B, R], of `total` classes an image."""
    batch, kept = classes.shape
    rows = classes.sort(dim=1).values + torch.arange(batch)[:, None] * total
    return Selection(rows.flatten(), torch.full((batch,), kept), batch, total)


@contextlib.contextmanager
def recorded_selection(head: Any, levels: Sequence[Tensor], results: list[StageResult]) -> Iterator[None]:
    """The head of a model selects the recorded classes inside the block; see RecordedSelector."""
    usual = head.selector
    head.selector = RecordedSelector(usual, levels, results)
    try:
        yield
    finally:
        head.selector = usual
