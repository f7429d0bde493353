"""The cache of CUDA graphs, with a stand-in for the recording: there is no GPU where these tests run."""

import copy

import numpy as np
import pytest
import torch
from tiny import NAMES, pixels, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode

import fgaseg
from fgaseg.model.cuda_graphs import RecordedCalls, Recording


class Recorder:
    """Replays a call as a graph does: from the memory of its inputs into that of its outputs."""

    def __init__(self):
        self.shapes = []

    def __call__(self, function, inputs):
        self.shapes.append([tuple(x.shape) for x in inputs])
        own = tuple(torch.full_like(x, 7) for x in inputs)  # what a graph was recorded with is in no result
        outputs = function(*own)

        def replay():
            for old, new in zip(outputs, function(*own), strict=True):
                old.copy_(new)

        return Recording(own, outputs, replay)


def calls_of(weight, kept=2):
    recorder = Recorder()
    return RecordedCalls(lambda x: (x * weight, x + 1), lambda: [weight], kept, recorder), recorder


def test_results_are_the_function_s_and_outlive_the_next_call():
    weight = torch.tensor([3.0])
    calls, recorder = calls_of(weight)
    first = calls(torch.ones(4))
    second = calls(torch.full((4,), 2.0))
    assert [x.tolist() for x in (*first, *second)] == [[3.0] * 4, [2.0] * 4, [6.0] * 4, [3.0] * 4]
    assert len(recorder.shapes) == 1
    weight.fill_(5)  # in place: a graph reads the weights where they are
    assert calls(torch.ones(4))[0].tolist() == [5.0] * 4 and len(recorder.shapes) == 1


def test_one_recording_for_every_shape_type_and_setting():
    calls, recorder = calls_of(torch.tensor([3.0]), kept=10)
    for x in (torch.ones(4), torch.ones(5), torch.ones(4, dtype=torch.float64), torch.ones(2, 2)):
        for _ in range(2):
            assert calls(x)[0].dtype == x.dtype
    assert len(recorder.shapes) == 4
    with torch.autocast("cpu", torch.bfloat16):
        calls(torch.ones(4))
    assert len(recorder.shapes) == 5


def test_the_latest_recordings_are_kept():
    calls, recorder = calls_of(torch.tensor([3.0]), kept=2)
    for size in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, which was used before 1
        calls(torch.ones(size))
    assert recorder.shapes == [[(1,)], [(2,)], [(3,)], [(2,)]] and len(calls._recordings) == 2


def test_weights_that_moved_are_not_read_where_they_were():
    weights = [torch.tensor([3.0])]
    recorder = Recorder()
    calls = RecordedCalls(lambda x: (x * weights[0],), lambda: weights, 4, recorder)
    calls(torch.ones(4)), calls(torch.ones(5))
    weights[0] = torch.tensor([4.0])
    assert calls(torch.ones(4))[0].tolist() == [4.0] * 4
    assert len(recorder.shapes) == 3 and len(calls._recordings) == 1


@pytest.fixture
def recorded(monkeypatch):
    """A model whose views are replayed, and its recorder."""
    monkeypatch.setattr(fgaseg.FGASeg, "_is_static", lambda *_: True)
    model, recorder = tiny_model(), Recorder()
    model._recorded = RecordedCalls(model._view, model._weights, 4, recorder)
    return model, recorder


def test_a_model_labels_by_replayed_views(recorded):
    (model, recorder), plain = recorded, tiny_model()
    photos = [np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8) for seed in (0, 1)]
    for names in (NAMES, ["cat | dog", "red star", "blue ring"]):
        for photo in photos:
            found, expected = (one.segment(photo, names) for one in (model, plain))
            assert np.array_equal(found.labels, expected.labels) and np.array_equal(found.scores, expected.scores)
    assert [shapes[1] for shapes in recorder.shapes] == [(5, 32), (4, 32)]


def test_a_copy_records_with_its_own_weights(recorded):
    model, _ = recorded
    model.segment(np.zeros((64, 64, 3), np.uint8), NAMES)
    other = copy.deepcopy(model)
    assert not other._recorded._recordings and other._recorded.function.__self__ is other
    assert other._recorded.weights()[0] is next(other.parameters())
    assert len(model._recorded._recordings) == 1


def test_what_cannot_be_replayed_runs_as_it_is():
    with FakeTensorMode():
        x, texts = torch.empty(2, 3, 64, 64, device="cuda"), torch.empty(5, 32, device="cuda")
    with torch.no_grad():
        assert tiny_model()._is_static(x, texts)
        assert not tiny_model()._is_static(pixels(), texts)
        assert not tiny_model().train()._is_static(x, texts)
        assert not tiny_model(class_maps_budget=1)._is_static(x, texts)
        assert not tiny_model(fast=True)._is_static(x, texts)
        assert not tiny_model(class_cap=4)._is_static(x, texts) and tiny_model(class_cap=4)._is_static(x[:1], texts)
    assert not tiny_model()._is_static(x, texts)  # gradients are recorded


def test_on_a_cpu_there_are_none():
    model = tiny_model()
    with pytest.raises(fgaseg.UsageError, match=r"cuda graphs: the model is on cpu: move it to a GPU first") as error:
        model.use_cuda_graphs()
    assert "\n" not in str(error.value)
    model.use_cuda_graphs(0)
