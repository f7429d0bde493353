"""Runs the stages of propagation over chunks of class maps.

A stage computes one map from the same map. Where something is needed of all classes, a phase ends: the class attention
sums keys and values over them, and fast mode compares their scores. `propagate` runs one phase after the other, over
one chunk of maps or over many. Between two phases it keeps the maps, or drops them and computes them again from the
start, so that never more than one chunk of maps exists.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .aggregation import ClassSums, LayerGuidance
from .packed_maps import Chunk, ClassMaps


class Guidance(NamedTuple):
    """What all classes of an image share, projected once for all of them."""

    layers: tuple[LayerGuidance, ...]  # of every aggregation layer
    early: Tensor  # [B, channels, 2H, 2W], what guidance adds to the first convolution of decoder stage 1
    late: Tensor  # [B, channels, 4H, 4W], likewise of stage 2

    def of(self, images: slice) -> "Guidance":
        return Guidance(tuple(layer.of(images) for layer in self.layers), self.early[images], self.late[images])


class MapState(NamedTuple):
    """Some class maps between two stages."""

    x: Tensor  # at first S_g [r, H, W], then [r, H, W, D], and the logits [r, 4H, 4W] after the last stage
    local: Tensor | None  # S_l [r, H, W], then embedded [r, H, W, hidden], until the decoder has read it


class StageInputs(NamedTuple):
    """What a stage reads besides the maps themselves; everything belongs to the same r rows."""

    text_guidance: Tensor  # [r, hidden]
    guidance: Guidance  # of the rows' images
    offsets: Tensor  # int64 [images + 1]: where the rows of each image begin
    sums: list[ClassSums]  # of every class attention so far, over all classes of the rows' images


Stage = Callable[[MapState, StageInputs], MapState]


class SumOverClasses(NamedTuple):
    """Ends a phase with sums over all classes of an image."""

    summarize: Callable[[MapState, StageInputs], ClassSums]  # what these rows contribute
    finish: Callable[[ClassSums, int], ClassSums]  # the whole sums of images, and the number of rows that each has


class ChooseClasses(NamedTuple):
    """Ends a phase with scores of all classes, by which some may be dropped."""

    score: Callable[[MapState], Tensor]  # [r, h, w]
    # scores of all maps [R, h, w] → the maps that go on, and their positions among all; None: all go on
    choose: Callable[[Tensor, ClassMaps], tuple[ClassMaps, Tensor] | None]


class Phase(NamedTuple):
    """Stages that need one map at a time, and what follows that needs all classes (None at the end)."""

    stages: tuple[Stage, ...]
    ending: SumOverClasses | ChooseClasses | None


class Propagation:
    """One pass of class maps through the phases.

    maps           the maps that are propagated; after `run`, those that no choice has dropped
    keep           keep all maps between two phases. False: drop them and compute every chunk again from the first
                   phase on, so that memory does not grow with the number of classes (without `ChooseClasses`)
    checkpointing  the backward pass computes the phases again (torch.utils.checkpoint)
    """

    def __init__(
        self, phases: list[Phase], maps: ClassMaps, guidance: Guidance, keep: bool = True, checkpointing: bool = False
    ):
        self.phases, self.maps, self.guidance = phases, maps, guidance
        self.keep, self.checkpointing = keep, checkpointing
        self.chunks = maps.chunks()
        self._states: list[MapState | None] = [None] * len(self.chunks)
        self._sums: list[dict[int, ClassSums]] = []  # of every class attention so far, by first image of the chunks

    def run(self) -> Tensor:
        """The logits of all maps that are left, [R, 4H, 4W]."""
        parts = [logits for _, logits in self.parts()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, logits [r, 4H, 4W]) of one chunk after the other."""
        for phase in range(len(self.phases) - 1):
            ending = self.phases[phase].ending
            if isinstance(ending, SumOverClasses):
                self._sum(phase, ending)
            elif isinstance(ending, ChooseClasses):
                self._choose(phase, ending)
        for number, chunk in enumerate(self.chunks):
            state = self._advance(len(self.phases) - 1, number)
            self._states[number] = None
            yield chunk.rows, state.x

    def _advance(self, phase: int, number: int) -> MapState:
        """The maps of a chunk after a phase, from those after the phase before or, where these are not kept, anew."""
        chunk, state, first = self.chunks[number], self._states[number], phase
        if state is None:
            lcs = self.maps.lcs
            state, first = MapState(self.maps.gcs[chunk.rows], None if lcs is None else lcs[chunk.rows]), 0
        inputs = self._inputs(chunk)
        for index in range(first, phase + 1):
            if self.checkpointing and torch.is_grad_enabled():
                state = checkpoint(_run_stages, self.phases[index], state, inputs, use_reentrant=False)
            else:
                state = _run_stages(self.phases[index], state, inputs)
        if self.keep:
            self._states[number] = state
        return state

    def _inputs(self, chunk: Chunk) -> StageInputs:
        return StageInputs(
            self.maps.text_guidance[chunk.rows],
            self.guidance.of(chunk.images),
            chunk.offsets(self.maps.gcs.device),
            [sums[chunk.images.start] for sums in self._sums],
        )

    def _sum(self, phase: int, ending: SumOverClasses) -> None:
        totals: dict[int, ClassSums] = {}
        for number, chunk in enumerate(self.chunks):
            state, first = self._advance(phase, number), chunk.images.start
            sums = ending.summarize(state, self._inputs(chunk))
            totals[first] = totals[first].plus(sums) if first in totals else sums
        packing = self.maps.packing
        self._sums.append({first: ending.finish(sums, packing.rows_of(first)) for first, sums in totals.items()})

    def _choose(self, phase: int, ending: ChooseClasses) -> None:
        scores = torch.cat([ending.score(self._advance(phase, number)) for number in range(len(self.chunks))])
        chosen = ending.choose(scores, self.maps)
        if chosen is None:
            return
        self.maps, at = chosen
        x = torch.cat([state.x for state in self._states if state is not None])[at]
        locals_ = [state.local for state in self._states if state is not None and state.local is not None]
        local = torch.cat(locals_)[at] if locals_ else None
        self.chunks = self.maps.chunks()
        self._sums = []  # over classes that may be gone; no stage reads them past a choice
        self._states = [MapState(x[c.rows], None if local is None else local[c.rows]) for c in self.chunks]


def _run_stages(phase: Phase, state: MapState, inputs: StageInputs) -> MapState:
    for stage in phase.stages:
        state = stage(state, inputs)
    return state
