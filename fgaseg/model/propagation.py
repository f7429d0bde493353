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

    def select(self, rows: slice | Tensor) -> "MapState":
        return MapState(self.x[rows], None if self.local is None else self.local[rows])


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
    finish: Callable[[ClassSums, int | Tensor], ClassSums]  # the sums of images, and the rows that each has (or [B])


class ChooseClasses(NamedTuple):
    """Ends a phase with scores of all classes, by which some may be dropped."""

    score: Callable[[MapState], Tensor]  # [r, h, w]
    # scores of all maps [R, h, w] → the maps that go on, and their positions among all; None: all go on
    choose: Callable[[Tensor, ClassMaps], tuple[ClassMaps, Tensor] | None]


class Phase(NamedTuple):
    """Stages that need one map at a time, and what follows that needs all classes (None at the end)."""

    stages: tuple[Stage, ...]
    ending: SumOverClasses | ChooseClasses | None


class KeptMaps:
    """The maps of all chunks between two phases.

    Without gradients, those of several chunks are written into one tensor for all: chunks that were allocated one by
    one between short-lived tensors would fragment the heap, to twice the memory.

    state  the maps of all chunks, to begin with; None: none yet
    """

    def __init__(self, chunks: list[Chunk], state: MapState | None = None):
        self.chunks = chunks
        self._x: Tensor | None = None if state is None else state.x
        self._local: Tensor | None = None if state is None else state.local
        self._states = [None if state is None else state.select(chunk.rows) for chunk in chunks]

    def pop(self, number: int) -> MapState | None:
        state, self._states[number] = self._states[number], None
        return state

    def put(self, number: int, state: MapState) -> MapState:
        """Keep the maps of a chunk, and return them as they are kept."""
        if len(self.chunks) > 1 and not torch.is_grad_enabled():
            rows = self.chunks[number].rows
            self._x = self._written(self._x, rows, state.x)
            if state.local is not None:
                self._local = self._written(self._local, rows, state.local)
            state = MapState(self._x[rows], None if self._local is None or state.local is None else self._local[rows])
        self._states[number] = state
        return state

    def _written(self, kept: Tensor | None, rows: slice, values: Tensor) -> Tensor:
        """The tensor for all chunks with `values` [r, ...] in its rows, a new one where the shape of a map changes."""
        if kept is None or kept.shape[1:] != values.shape[1:]:
            kept = values.new_empty(self.chunks[-1].rows.stop, *values.shape[1:])
        if kept[rows].data_ptr() != values.data_ptr():
            kept[rows] = values
        return kept

    def all(self) -> MapState:
        """The maps of all chunks together."""
        states = [state for state in self._states if state is not None]
        if len(states) == 1:
            return states[0]
        if self._x is not None:
            return MapState(self._x, None if states[0].local is None else self._local)
        x, local = torch.cat([s.x for s in states]), [s.local for s in states if s.local is not None]
        return MapState(x, torch.cat(local) if local else None)


class Propagation:
    """One pass of class maps through the phases.

    maps           the maps that are propagated; after `run`, those that no choice has dropped
    keep           keep all maps between two phases. False: drop them and compute every chunk again from the first
                   phase on, so that memory does not grow with the number of classes (without `ChooseClasses`)
    checkpointing  the backward pass computes the phases again (torch.utils.checkpoint)
    """

    def __init__(self, phases: list[Phase], maps: ClassMaps, guidance: Guidance, keep: bool, checkpointing: bool):
        self.phases, self.maps, self.guidance = phases, maps, guidance
        self.keep, self.checkpointing = keep, checkpointing
        self._cut()
        self._kept = KeptMaps(self.chunks)
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
            yield chunk.rows, self._advance(len(self.phases) - 1, number).x

    def _advance(self, phase: int, number: int) -> MapState:
        """The maps of a chunk after a phase, from those after the phase before or, where these are not kept, anew."""
        chunk, state, first = self.chunks[number], self._kept.pop(number), phase
        if state is None:
            lcs = self.maps.lcs
            state, first = MapState(self.maps.gcs[chunk.rows], None if lcs is None else lcs[chunk.rows]), 0
        inputs = self._inputs(number)
        for index in range(first, phase + 1):
            if self.checkpointing and torch.is_grad_enabled():
                state = checkpoint(_run_stages, self.phases[index], state, inputs, use_reentrant=False)
            else:
                state = _run_stages(self.phases[index], state, inputs)
        if self.keep and phase < len(self.phases) - 1:
            state = self._kept.put(number, state)
        return state

    def _cut(self) -> None:
        self.chunks = self.maps.chunks()
        self._offsets = [chunk.offsets(self.maps.gcs.device) for chunk in self.chunks]

    def _inputs(self, number: int) -> StageInputs:
        chunk = self.chunks[number]
        return StageInputs(
            self.maps.text_guidance[chunk.rows],
            self.guidance.of(chunk.images),
            self._offsets[number],
            [sums[chunk.images.start] for sums in self._sums],
        )

    def _sum(self, phase: int, ending: SumOverClasses) -> None:
        totals: dict[int, ClassSums] = {}
        for number, chunk in enumerate(self.chunks):
            state, first = self._advance(phase, number), chunk.images.start
            sums = ending.summarize(state, self._inputs(number))
            totals[first] = totals[first].plus(sums) if first in totals else sums
        packing = self.maps.packing
        self._sums.append({first: ending.finish(sums, packing.rows_of(first)) for first, sums in totals.items()})

    def _choose(self, phase: int, ending: ChooseClasses) -> None:
        scores = torch.cat([ending.score(self._advance(phase, number)) for number in range(len(self.chunks))])
        chosen = ending.choose(scores, self.maps)
        if chosen is None:
            return
        self.maps, at = chosen
        state = self._kept.all().select(at)
        self._cut()
        self._sums = []  # over classes that may be gone; no stage reads them past a choice
        self._kept = KeptMaps(self.chunks, state)


def _run_stages(phase: Phase, state: MapState, inputs: StageInputs) -> MapState:
    for stage in phase.stages:
        state = stage(state, inputs)
    return state
