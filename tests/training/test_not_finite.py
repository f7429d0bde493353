"""A loss or gradient that is NaN or infinite ends a run before it is saved."""

import json
from types import SimpleNamespace

import pytest
import safetensors
import torch
from runs import LR, STEPS, assert_same_run, configure, keys_by_step, nan_at, state, weights

import fgaseg.training.finite
import fgaseg.training.gradients
from fgaseg.data import data_sets
from fgaseg.errors import TrainingError
from fgaseg.training import train
from fgaseg.training.batches import Batch
from fgaseg.training.finite import FiniteCheck

INFINITE = float("inf")


def test_nan_loss_stops_with_the_step_and_keeps_the_checkpoint(uninterrupted, data, tmp_path, monkeypatch):
    config = configure(data, tmp_path)
    with monkeypatch.context() as patch:
        nan_at(4, patch)
        with pytest.raises(TrainingError) as caught:
            train(config, progress=False)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in ("step 4", "seg nan", "checkpoint of step 2", str(tmp_path), f"train.lr (now {LR})", "train.amp"):
        assert part in message
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


def test_the_batch_of_a_nan_is_named_and_kept(data, tmp_path, monkeypatch):
    config = configure(data, tmp_path)
    nan_at(4, monkeypatch)
    with pytest.raises(TrainingError) as caught:
        train(config, progress=False)
    keys = keys_by_step(config)[3]
    stems = [str(index) for _, index in keys]
    assert f"the batch was {', '.join(stems)}" in str(caught.value)
    with safetensors.safe_open(tmp_path / "nan_batch.safetensors", "pt") as file:
        assert json.loads(file.metadata()["stems"]) == stems and file.metadata()["step"] == "4"
        train_set = data_sets(config)[0]
        for place, (epoch, index) in enumerate(keys):
            train_set.set_epoch(epoch)
            assert torch.equal(file.get_tensor("pixels")[place], train_set[index]["pixels"])
            assert torch.equal(file.get_tensor("labels")[place], train_set[index]["labels"])


@pytest.mark.parametrize(
    "loss, norm, enabled, scale, found",
    [(1.0, 2.0, False, 1.0, ["loss", "gradient_norm"]), (1.0, INFINITE, True, 2.0, ["loss"]),
     (1.0, INFINITE, True, 1.0, None), (1.0, INFINITE, False, 2.0, None), (INFINITE, INFINITE, True, 2.0, None)],
)  # fmt: skip
def test_an_infinite_gradient_is_expected_where_losses_are_scaled(data, tmp_path, loss, norm, enabled, scale, found):
    scaler = SimpleNamespace(is_enabled=lambda: enabled, get_scale=lambda: scale)
    check = FiniteCheck(configure(data, tmp_path), scaler, torch.device("cpu"))
    values, batch = {"loss": loss, "gradient_norm": norm}, Batch(torch.zeros(1), torch.zeros(1), ["a"], {})
    if found:
        assert list(check.check(values, batch, 3, "saved")) == found
    else:
        with pytest.raises(TrainingError, match=r"step 3: .*gradient_norm inf.*the batch was a .*; saved\. Try"):
            check.check(values, batch, 3, "saved")


def test_only_the_first_process_writes_the_batch(data, tmp_path, monkeypatch):
    scaler = SimpleNamespace(is_enabled=lambda: False)
    check = FiniteCheck(configure(data, tmp_path), scaler, torch.device("cpu"))
    batch = Batch(torch.zeros(1), torch.zeros(1), ["a"], {})
    for rank in (1, 0):
        monkeypatch.setattr(fgaseg.training.finite, "rank", lambda rank=rank: rank)
        with pytest.raises(TrainingError, match=r"kept in .*nan_batch\.safetensors"):
            check.check({"loss": INFINITE}, batch, 1, "saved")
        assert (tmp_path / "nan_batch.safetensors").exists() == (rank == 0)


def test_a_real_divergence_is_caught_before_it_is_saved(data, tmp_path):
    config = configure(data, tmp_path, ["train.lr=1e30", "train.save_every=1", "model.encoder.finetune=scratch"])
    with pytest.raises(TrainingError, match="not finite"):
        train(config, progress=False)
    if (tmp_path / "checkpoint").exists():
        assert state(tmp_path)["step"] < STEPS


def test_a_gradient_that_is_not_finite_is_caught_too(data, tmp_path, monkeypatch):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    original = fgaseg.training.gradients.segmentation_losses
    monkeypatch.setattr(
        fgaseg.training.gradients,
        "segmentation_losses",
        lambda *a, **k: {key: Poison.apply(v) for key, v in original(*a, **k).items()},
    )
    with pytest.raises(TrainingError, match=r"step 1: .*gradient_norm (inf|nan).*nothing was saved yet"):
        train(configure(data, tmp_path), progress=False)
    assert not (tmp_path / "checkpoint").exists()
