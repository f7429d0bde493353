"""Learning rates, weight decay, mixed precision, micro-batches."""

import math

import numpy as np
import pytest
import torch
from runs import TINY_MODEL, assert_same_run, configure, distance, fail_at, state, weights
from tiny import ARCHITECTURE
from torch import nn

from fgaseg import Config, FGASeg
from fgaseg.training import train
from fgaseg.training.optimizer import Optimizer
from fgaseg.training.precision import autocast
from fgaseg.training.random_streams import CAPTIONS, CLASSES, SHUFFLE, generator, torch_seed
from fgaseg.training.schedule import is_due, learning_rate_factor
from fgaseg.training.sharding import load_optimizer_state


@pytest.mark.parametrize("amp, dtype", [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_are_computed_in_what_train_amp_names(amp, dtype):
    with autocast(torch.device("cpu"), amp):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_learning_rate(data, tmp_path):
    config = configure(data, tmp_path, ["train.steps=10", "train.warmup=2"])
    factors = [learning_rate_factor(step, config.train) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors[10] == pytest.approx(0, abs=1e-12)
    assert factors[6] == pytest.approx(0.5) and factors[2:] == sorted(factors[2:], reverse=True)
    assert learning_rate_factor(9, config.override("train.schedule=constant").train) == 1


def test_norms_and_embeddings_do_not_decay():
    torch.manual_seed(0)
    model = FGASeg(Config(model=TINY_MODEL | {"encoder": {"architecture": ARCHITECTURE, "finetune": "scratch"}}).model)
    groups = model.parameter_groups(2e-4, 0.01, 1e-4)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    norms = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d | nn.Embedding
    plain = [p for m in model.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)]
    assert plain and all(decay[id(p)] == 0 for p in plain)
    assert decay[id(model.clip.positional_embedding)] == decay[id(model.clip.visual.positional_embedding)] == 0
    spared = {id(p) for p in plain}
    rest = [p for n, p in model.named_parameters() if p.requires_grad and "embedding" not in n and id(p) not in spared]
    assert id(model.head.p2t.gamma) in map(id, rest) and all(decay[id(p)] == 1e-4 for p in rest)
    for name, p in model.named_parameters():
        assert not p.requires_grad or rate[id(p)] == pytest.approx(2e-6 if name.startswith("clip.") else 2e-4)


def test_an_optimizer_state_of_other_parameters_is_refused():
    """As versions before the names of parameters were in it left it: nothing of it would fit, in silence."""
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="optimizer state of 'state', which is no parameter"):
        load_optimizer_state(model, torch.optim.AdamW(model.parameters()), {"state": {}, "param_groups": []})


def test_the_scale_of_a_loss_is_taken_off_before_gradients_are_clipped(data, tmp_path):
    recipe = configure(data, tmp_path, ["train.amp=fp16", "train.clip_norm=0.5"]).train
    optimizer = Optimizer(FGASeg(Config(model=TINY_MODEL).model), recipe, torch.device("cpu"))
    weight = optimizer.parameters[0]
    optimizer.backward(3 * weight.sum())
    assert optimizer.reduce_gradients().item() == pytest.approx(3 * weight.numel() ** 0.5, rel=1e-5)
    assert weight.grad.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_a_step_that_overflows_is_skipped_and_scaled_less_and_the_scale_is_kept(data, tmp_path):
    recipe = configure(data, tmp_path, ["train.amp=fp16"]).train
    optimizer, other = (Optimizer(FGASeg(Config(model=TINY_MODEL).model), recipe, torch.device("cpu")) for _ in "12")
    weight, scale = optimizer.parameters[0], optimizer.scaler.get_scale()
    for factor, moved in ((float("inf"), False), (1.0, True)):
        before = weight.detach().clone()
        optimizer.backward(factor * weight.sum())
        optimizer.reduce_gradients()
        optimizer.step()
        assert torch.equal(weight, before) != moved and weight.grad is None
        assert optimizer.scaler.get_scale() == scale / 2
    other.load_state(optimizer.state())
    assert other.scaler.get_scale() == scale / 2
    plain = Optimizer(FGASeg(Config(model=TINY_MODEL).model), configure(data, tmp_path).train, torch.device("cpu"))
    assert not plain.scaler.is_enabled()


def test_the_learning_rate_is_that_of_all_but_clip(data, tmp_path):
    recipe = configure(data, tmp_path, ["train.lr=0.002", "train.warmup=4", "train.encoder_lr_factor=0.5"]).train
    optimizer = Optimizer(FGASeg(Config(model=TINY_MODEL).model), recipe, torch.device("cpu"))
    assert optimizer.learning_rate == 0.002
    optimizer.set_learning_rate(1)
    assert optimizer.learning_rate == 0.001
    assert {group["lr"] for group in optimizer.adamw.param_groups} == {0.001, 0.0005}


@pytest.mark.parametrize("every, due", [(0, [6]), (1, [1, 2, 3, 4, 5, 6]), (4, [4, 6])])
def test_what_is_due_after_a_step(every, due):
    assert [step for step in range(7) if is_due(step, every, 6)] == due


def test_what_a_seed_means_stays():
    """Runs of earlier versions resume."""
    assert [SHUFFLE, CLASSES, CAPTIONS] == [1, 2, 4]
    assert generator(7, SHUFFLE, 3).random() == np.random.default_rng([7, 1, 3]).random()
    assert torch_seed(7, 5, 2) == np.random.SeedSequence((7, 3, 5, 2)).generate_state(4)[0]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_and_resumes(data, tmp_path, amp):
    config = configure(data, tmp_path / "whole", [f"train.amp={amp}", "train.steps=3", "train.eval_every=0"])
    summary = train(config, progress=False)
    assert math.isfinite(summary.losses["loss"])
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(tmp_path / "whole").values())
    config = config.override(f"train.out={tmp_path / 'parts'}")
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(3)])
    assert state(tmp_path / "parts")["step"] == 2
    train(config, progress=False)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_micro_batches_equal_the_whole_batch(data, tmp_path):
    """But for BatchNorm, which sees one at a time: without the T2P branch there is none."""
    recipe = ["model.t2p=false", "train.steps=1", "train.eval_every=0"]
    for switches in ([], ["model.loss.seg=bce", "model.fast=true", "model.loss.aux_heads=3"]):
        gradients, losses = {}, {}
        for parts in (1, 2, 4):
            out = tmp_path / f"{len(switches)}-{parts}"
            config = configure(data, out, [*recipe, *switches, f"train.accumulate={parts}"])
            losses[parts] = train(config, progress=False).losses
            gradients[parts] = [values["exp_avg"] for values in state(out)["optimizer"].values()]
        for parts in (2, 4):
            assert distance(gradients[parts], gradients[1]) < 1e-5
            assert losses[parts] == pytest.approx(losses[1], rel=1e-5)


def test_micro_batches_and_batch_norm(uninterrupted, data, tmp_path):
    """With the T2P branch the align loss differs by BatchNorm's statistics; the rest is the same to first order."""
    summary = train(configure(data, tmp_path, ["train.accumulate=2"]), progress=False)
    whole = uninterrupted[1].losses
    assert summary.losses["seg"] == pytest.approx(whole["seg"], rel=0.02)
    assert summary.losses["align"] == pytest.approx(whole["align"], rel=0.2)
    assert not torch.equal(weights(tmp_path)["head.t2p.first.0.weight"],
                           weights(uninterrupted[0])["head.t2p.first.0.weight"])  # fmt: skip
