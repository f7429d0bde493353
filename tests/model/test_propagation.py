"""Phases over chunks of class maps: what is kept between them, what is computed again, and sums over all classes."""

import weakref

import pytest
import torch
from torch import Tensor

from fgaseg.kernels import Selection
from fgaseg.model import packed_maps, propagation
from fgaseg.model.aggregation import ClassSums
from fgaseg.model.packed_maps import Chunk, ClassMaps, PackedMaps
from fgaseg.model.propagation import Guidance, KeptMaps, MapState, Phase, Propagation, SumOverClasses


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_kept_maps_of_several_chunks_come_back_together(chunks, local, gradients):
    spans = [Chunk(slice(0, 1), slice(2 * i, 2 * i + 2)) for i in range(chunks)]
    x, more = rand(2 * chunks, 3, 4), rand(2 * chunks, 3, 4, 5, seed=1) if local else None
    with torch.set_grad_enabled(gradients):
        kept = KeptMaps(spans)
        given = [MapState(x, more).select(chunk.rows) for chunk in spans]
        states = [kept.put(number, state) for number, state in enumerate(given)]
        for state, before in zip(states, given, strict=True):
            same(state.x, before.x)
            assert (state.x is before.x) == (gradients or chunks == 1)  # else copied into the one tensor for all
        together = kept.all()
    same(together.x, x)
    assert (together.local is None) == (more is None)
    if more is not None:
        same(together.local, more)
    if not gradients:  # nothing is copied a second time
        assert together.x.data_ptr() == states[0].x.data_ptr()
        assert all(kept.pop(number).x is state.x for number, state in enumerate(states))
        assert kept.pop(0) is None


@torch.no_grad()
def test_kept_maps_are_written_over_until_their_shape_changes():
    spans = [Chunk(slice(0, 1), slice(0, 2)), Chunk(slice(0, 1), slice(2, 3))]
    kept = KeptMaps(spans, MapState(rand(3, 4), rand(3, 5)))
    first = kept.pop(0)
    again = kept.put(0, MapState(first.x + 1, first.local))
    assert again.x.data_ptr() == first.x.data_ptr() and again.local.data_ptr() == first.local.data_ptr()
    wider = kept.put(0, MapState(rand(2, 6), None))
    assert wider.local is None and wider.x.data_ptr() != first.x.data_ptr()
    kept.put(1, MapState(rand(1, 6, seed=1), None))
    same(kept.all().x, torch.cat([rand(2, 6), rand(1, 6, seed=1)]))
    assert kept.all().local is None


def class_maps(*counts: int) -> ClassMaps:
    """Of images that have so many of four classes."""
    rows = torch.tensor([4 * image + one for image, count in enumerate(counts) for one in range(count)])
    selection = Selection(rows, torch.tensor(counts), len(counts), 4)
    equal = counts[0] if len(set(counts)) == 1 else counts
    return ClassMaps(PackedMaps(len(counts), 4, equal, selection), rand(sum(counts), 2, 2), None, rand(sum(counts), 1))


def passed(maps: ClassMaps, calls: list[str], keep: bool = True, checkpointing: bool = False) -> Propagation:
    """Doubles every map, and adds the mean over the classes of its image."""

    def double(state, inputs):
        calls.append("double")
        assert len(inputs.text_guidance) == len(state.x) and inputs.offsets[-1] == len(state.x)
        assert len(inputs.guidance.early) == len(inputs.offsets) - 1
        return MapState(2 * state.x, None)

    def per_image(x: Tensor, offsets: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in x.tensor_split(offsets[1:-1].tolist())])

    def summarize(state, inputs):
        return ClassSums(per_image(state.x, inputs.offsets), per_image(state.x, inputs.offsets))

    def add(state, inputs):
        rows = (inputs.offsets[1:] - inputs.offsets[:-1]).tolist()
        return MapState(state.x + inputs.sums[0].total.repeat_interleave(torch.tensor(rows))[:, None, None], None)

    ending = SumOverClasses(summarize, lambda sums, rows: ClassSums(sums.summary, sums.total / (4 * rows)))
    images = torch.zeros(maps.packing.images, 1)
    return Propagation([Phase((double,), ending), Phase((add,), None)], maps, Guidance((), images, images), keep,
                       checkpointing)  # fmt: skip


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("counts, pixels, chunks", [((3, 3), 24, 1), ((3, 3), 8, 4), ((3, 2), 8, 3), ((4,), 4, 4)])
def test_sums_are_over_all_classes_of_each_image_and_no_others(counts, pixels, chunks, keep, gradients, monkeypatch):
    monkeypatch.setitem(packed_maps.PIXELS_PER_CHUNK, "cpu", pixels)
    maps, calls = class_maps(*counts), []
    with torch.set_grad_enabled(gradients):
        got = passed(maps, calls, keep).run()
    same(got, torch.cat([2 * part + 2 * part.mean() for part in maps.gcs.split(counts)]))
    assert len(calls) == chunks * (1 if keep else 2)


@torch.no_grad()
def test_parts_are_forgotten_once_they_are_given(monkeypatch):
    monkeypatch.setitem(packed_maps.PIXELS_PER_CHUNK, "cpu", 4)
    parts = passed(class_maps(3), []).parts()
    rows, logits = next(parts)
    assert rows == slice(0, 1)
    alive = weakref.ref(logits)
    del logits
    assert next(parts)[0] == slice(1, 2) and alive() is None


def test_checkpoints_are_made_where_there_are_gradients(monkeypatch):
    made = []

    def checkpoint(function, *args, use_reentrant=None):
        made.append(use_reentrant)
        return function(*args)

    monkeypatch.setattr(propagation, "checkpoint", checkpoint)
    passed(class_maps(3), []).run()
    with torch.no_grad():
        passed(class_maps(3), [], checkpointing=True).run()
    assert made == []
    passed(class_maps(3), [], checkpointing=True).run()
    assert made == [False, False]  # a phase each; torch asks for the choice to be said


def test_sums_are_added_in_place_without_gradients_alone():
    one, other = (ClassSums(rand(2, seed=seed), rand(3, seed=seed)) for seed in (0, 1))
    added = one.plus(other)
    same(added.summary, rand(2) + rand(2, seed=1))
    same(added.total, rand(3) + rand(3, seed=1))
    same(one.summary, rand(2))
    with torch.no_grad():
        again = one.plus(other)
    assert again.summary is one.summary and again.total is one.total
    same(again, added)
