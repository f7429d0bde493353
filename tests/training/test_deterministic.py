"""train.deterministic."""

import pytest
import torch
from runs import assert_same_run, configure, distance, initial, weights

import fgaseg.training.gradients
from fgaseg.training import train
from fgaseg.training.processes import deterministic


def test_deterministic_runs_are_equal_to_the_bit(data, tmp_path, monkeypatch):
    seen, original = [], fgaseg.training.gradients.segmentation_losses
    monkeypatch.setattr(
        fgaseg.training.gradients,
        "segmentation_losses",
        lambda *a, **k: (seen.append(torch.are_deterministic_algorithms_enabled()), original(*a, **k))[1],
    )
    for name in ("one", "two"):
        recipe = ["train.deterministic=true", "train.steps=3", "train.eval_every=0"]
        train(configure(data, tmp_path / name, recipe), progress=False)
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert seen == [True] * 6 and not torch.are_deterministic_algorithms_enabled()
    train(configure(data, tmp_path / "plain", recipe[1:]), progress=False)
    ends = (weights(tmp_path / "plain"), weights(tmp_path / "one"), initial())
    plain, one, begin = ([end[key] for key in sorted(end)] for end in ends)
    assert distance(plain, one, begin) < 1e-3


def test_deterministic_leaves_the_mode_that_it_found():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("timed", [False, True])
def test_cudnn_chooses_no_algorithm_by_its_time_meanwhile(timed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", timed)
    with deterministic(True):
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == timed
    with deterministic(False):
        assert torch.backends.cudnn.benchmark == timed
