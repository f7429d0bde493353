"""What a training run does and leaves behind."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from runs import LR, NAMES, STEPS, TINY_MODEL, assert_same_run, configure, log, state, weights
from tiny import ARCHITECTURE

import fgaseg.model.text_encoder
import fgaseg.training.gradients
import fgaseg.training.trainer
from fgaseg import Config, FGASeg
from fgaseg.data.scenes import GROUNDS, SEEN, UNSEEN
from fgaseg.errors import CheckpointError
from fgaseg.training import Trainer, train
from fgaseg.training.gradients import resized
from fgaseg.training.random_streams import torch_seed
from fgaseg.training.reporting import ProgressReporter

FILES = ["checkpoint", "checkpoint.old", "config.yaml", "log.jsonl", "model", "summary.json"]


def test_a_run_learns_and_leaves_a_model(uninterrupted, data):
    out, summary = uninterrupted
    model = FGASeg.from_pretrained(out / "model")
    assert summary.model == str(out / "model") and summary.steps == STEPS
    trained = weights(out)
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    plain = json.loads((out / "summary.json").read_text())
    assert plain == json.loads(json.dumps(summary.dump(), allow_nan=False))
    assert (out / "summary.json").read_text().startswith('{\n  "out": ')
    assert [entry["step"] for entry in plain["history"]] == [4, 8]
    assert plain["history"][-1]["val"]["miou_gt"] == plain["scores"]["val"]["miou_gt"] == summary.scores["val"].miou_gt
    assert plain["scores"]["val"]["images"] == 3 and 0 < plain["trained_parameters"] < plain["parameters"]
    assert summary.images_per_second == pytest.approx(STEPS * 4 / summary.seconds) and summary.seconds > 0
    assert sorted(path.name for path in out.iterdir()) == FILES


@pytest.mark.slow
def test_loss_falls(data, tmp_path):
    losses = []
    recipe = ["train.steps=100", "train.lr=5e-4", "train.eval_every=0", "train.save_every=0"]
    config = configure(data, tmp_path, [*recipe, "data.color_jitter=false"])  # the classes are colours
    train(config, progress=False, callbacks=[lambda event: losses.append(event.get("seg"))])
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 100 and np.mean(losses[-8:]) < 0.85 * np.mean(losses[:8])


def test_only_what_should_train_does(uninterrupted):
    out, _ = uninterrupted
    torch.manual_seed(0)
    fresh = FGASeg(Config(model=TINY_MODEL).model)
    trained = weights(out)
    moved = {key for key, value in fresh.state_dict().items() if not torch.equal(value, trained[key])}
    frozen = {key for key, parameter in fresh.named_parameters() if not parameter.requires_grad}
    last = f"clip.visual.transformer.resblocks.{ARCHITECTURE['vision_cfg']['layers'] - 1}.attn.q_proj_weight"
    assert last not in frozen and last not in moved  # no gradient ever: the last block runs without attention
    assert not moved & frozen
    unmoved = {key for key, parameter in fresh.named_parameters() if parameter.requires_grad} - moved
    assert unmoved == {last}


def test_first_step_has_the_learning_rates_and_the_clipped_gradient(data, tmp_path):
    config = configure(data, tmp_path, ["train.steps=1", "train.clip_norm=0.01", "train.weight_decay=0"])
    summary = train(config, progress=False)
    torch.manual_seed(0)
    fresh, trained = FGASeg(config.model).state_dict(), weights(tmp_path)
    moved = {key: float((trained[key] - fresh[key]).abs().max()) for key in fresh if "running" not in key}
    clip = max(value for key, value in moved.items() if key.startswith("clip."))
    head = max(value for key, value in moved.items() if key.startswith("head.") and "num_batches" not in key)
    assert head == pytest.approx(LR, rel=0.01) and clip == pytest.approx(LR / 2, rel=0.05)  # Adam's first step is lr
    gradients = [values["exp_avg"] / 0.1 for values in state(tmp_path)["optimizer"].values()]
    assert torch.cat([gradient.flatten() for gradient in gradients]).norm() == pytest.approx(0.01, rel=1e-3)
    assert summary.losses["gradient_norm"] > 0.1  # the norm that is reported is the one before clipping


def test_a_finished_run_started_again_does_nothing_more(uninterrupted, data, tmp_path):
    finished, summary = uninterrupted
    out = shutil.copytree(finished, tmp_path / "run")
    before = weights(out)
    again = train(configure(data, out), progress=False)
    assert again.scores == summary.scores and again.history == summary.history and again.losses == summary.losses
    assert all(torch.equal(value, before[key]) for key, value in weights(out).items())


def test_workers_change_nothing(uninterrupted, data, tmp_path):
    train(configure(data, tmp_path, ["data.workers=2"]), progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


def test_times_are_those_that_passed_and_a_finished_run_is_neither_checked_nor_stopped(data, tmp_path, caplog):
    caplog.set_level("INFO", "fgaseg")
    config, began = configure(data, tmp_path, ["train.steps=2", "train.eval_every=0"]), time.monotonic()
    summary = train(config, progress=False)
    passed = time.monotonic() - began
    assert 0 < summary.seconds <= passed and summary.images_per_second >= 2 * 4 / passed
    assert all(row["images_per_second"] >= 4 / passed for row in log(tmp_path) if row["set"] == "train")
    assert "label files: " in caplog.text
    caplog.clear()
    again = train(config, progress=False)
    assert again.steps == 2 and not caplog.messages
    trainer = Trainer(config)  # progress is shown unless it is declined
    assert isinstance(trainer.callbacks[0], ProgressReporter) and trainer.resume


@pytest.mark.parametrize("processes, fsdp, finetune, said", [
    (1, True, "none", []), (2, False, "none", ["norm"]), (2, True, "none", ["norm", "texts", "shards"]),
    (2, True, "attention", ["norm", "shards"]),
])  # fmt: skip
def test_what_is_shared_among_processes(data, tmp_path, monkeypatch, processes, fsdp, finetune, said):
    """Frozen texts are embedded while every process has the whole text tower."""
    module, done = fgaseg.training.trainer, []
    monkeypatch.setattr(module, "world_size", lambda: processes)
    for name, what in (("use_global_batch_norm", "norm"), ("shard_encoders", "shards")):
        monkeypatch.setattr(module, name, lambda model, what=what: done.append(what))
    monkeypatch.setattr(module.StepVocabulary, "frozen", lambda _: done.append("texts"))
    words = [f"train.fsdp={str(fsdp).lower()}", f"model.encoder.finetune={finetune}"]
    trainer = Trainer(configure(data, tmp_path, words), progress=False)
    trainer._prepare()
    assert done == said and trainer.sharded == (processes == 2 and fsdp)


def test_a_crop_is_shrunk_by_means_and_a_step_draws_numbers_of_its_own(data, tmp_path):
    photos = torch.randn(2, 3, 8, 8)
    assert resized(photos, None) is photos
    torch.testing.assert_close(resized(photos, 4), torch.nn.functional.avg_pool2d(photos, 2))
    trainer = Trainer(configure(data, tmp_path), progress=False)
    trainer._prepare()
    trainer.gradients.compute(trainer.batches.next(1), 5)
    assert torch.initial_seed() == torch_seed(0, 5, 0)


def test_another_seed_is_another_run(uninterrupted, data, tmp_path):
    train(configure(data, tmp_path, ["train.seed=1"]), progress=False)
    assert state(tmp_path)["losses"] != state(uninterrupted[0])["losses"]


def test_runs_outside_the_main_thread(data, tmp_path):
    """Where Python allows no signal handlers (a notebook's worker, a web server)."""
    done = []
    config = configure(data, tmp_path, ["train.steps=1"])
    thread = threading.Thread(target=lambda: done.append(train(config, progress=False)))
    thread.start()
    thread.join()
    assert done[0].steps == 1


def test_large_crops_are_seen_small_and_judged_large(data, tmp_path, monkeypatch):
    seen, original = [], fgaseg.training.gradients.segmentation_losses
    forward = FGASeg.forward
    monkeypatch.setattr(FGASeg, "forward", lambda self, x, v: (seen.append(x.shape), forward(self, x, v))[1])
    monkeypatch.setattr(
        fgaseg.training.gradients,
        "segmentation_losses",
        lambda out, labels, *a, **k: (seen.append(labels.shape), original(out, labels, *a, **k))[1],
    )
    train(configure(data, tmp_path, ["train.steps=1", "train.eval_every=0", "train.image_size=24"]), progress=False)
    assert seen[:2] == [(4, 3, 24, 24), (4, 32, 32)]


def test_scenes_are_scored_seen_and_unseen(tmp_path):
    config = Config(model=TINY_MODEL, data={"scenes": True, "crop": 32, "val_count": 2},
                    train={"out": tmp_path, "steps": 1, "batch": 2, "tensorboard": False})  # fmt: skip
    summary = train(config, progress=False)
    assert {name: scores.images for name, scores in summary.scores.items()} == {"seen": 2, "unseen": 2}
    assert [row.name for row in summary.scores["unseen"].rows] == UNSEEN
    assert {row.name for row in summary.scores["seen"].rows} == {*SEEN, *GROUNDS}


def test_frozen_texts_are_embedded_once(data, tmp_path, monkeypatch):
    calls, embed = [], fgaseg.model.text_encoder.TextEncoder._embed
    monkeypatch.setattr(
        fgaseg.model.text_encoder.TextEncoder,
        "_embed",
        lambda self, prompts: (calls.append(prompts), embed(self, prompts))[1],
    )
    train(configure(data, tmp_path, ["model.encoder.finetune=none"]), progress=False)
    assert calls == [tuple(NAMES)]  # eight steps with other classes each, two evaluations


@pytest.mark.parametrize("tensorboard", ["true", "false"])
def test_a_folder_that_cannot_be_written_is_named_before_training(data, tmp_path, tensorboard):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"train\.out=.*file/run: cannot be written to: Not a directory"):
        train(configure(data, tmp_path / "file" / "run", [f"train.tensorboard={tensorboard}"]), progress=False)
