"""A run that is interrupted at any moment resumes, and ends in the weights of one that was not."""

import logging
import os
import shutil
import signal

import pytest
import torch
from runs import STEPS, assert_same_run, configure, fail_at, kill_when, log, start, state, weights

import fgaseg.training.gradients
import fgaseg.training.state
import fgaseg.training.trainer
import fgaseg.training.validation
from fgaseg.errors import CheckpointError, Interrupted, ProcessLostError, TrainingError
from fgaseg.training import Signals, Trainer, train
from fgaseg.training.optimizer import Optimizer


def test_the_layout_of_a_checkpoint_is_what_it_was(uninterrupted):
    """Checkpoints of earlier versions resume."""
    folder = uninterrupted[0] / "checkpoint"
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "model.safetensors", "state.pt"]
    content = state(uninterrupted[0])
    assert list(content) == ["step", "optimizer", "scaler", "config", "samples", "names", "history", "losses", "means",
                             "seconds", "skipped", "changes"]  # fmt: skip
    assert (
        content["means"] == {"sums": {}, "counts": {}}
        and content["optimizer"].keys() <= weights(uninterrupted[0]).keys()
    )


def test_killed_while_saving_and_in_a_step_ends_in_the_same_weights(uninterrupted, data, tmp_path):
    out = tmp_path / "out"
    config = configure(data, out)
    process = start(config, tmp_path)
    # a temporary checkpoint while an older one exists: the second save is under way
    kill_when(process, lambda: (out / "checkpoint").exists() and any(out.glob(".checkpoint.*.tmp")))
    assert state(out)["step"] in (2, 4)  # 4: it was renamed between our look and the signal
    process = start(config, tmp_path)
    # the line of step 5 or 6: in a step, or on the way to the next
    kill_when(process, lambda: process.stderr.readline().startswith(("step 5/", "step 6/")))
    assert state(out)["step"] < STEPS
    train(config, progress=False)
    assert_same_run(out, uninterrupted[0])
    assert not list(out.glob(".*"))  # the leftovers of the killed processes are gone


def test_the_means_of_a_line_of_the_log_reach_over_an_interruption(uninterrupted, data, tmp_path, monkeypatch):
    config = configure(data, tmp_path, ["train.log_every=4", "train.eval_every=0"])
    original, calls = fgaseg.training.gradients.segmentation_losses, []

    def failing(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs) if len(calls) < 4 else 1 / 0

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(fgaseg.training.gradients, "segmentation_losses", failing)
        train(config, progress=False)
    assert state(tmp_path)["step"] == 2
    train(config, progress=False)
    whole = [row for row in log(uninterrupted[0]) if row["set"] == "train"][:4]
    first = log(tmp_path)[0]
    assert first["step"] == 4
    for name in ("loss", "gradient_norm"):
        assert first[name] == pytest.approx(sum(row[name] for row in whole) / 4, rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["step", "evaluation", "save"])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(
    uninterrupted, data, tmp_path, monkeypatch, number, when
):
    config = configure(data, tmp_path)
    module, target = {
        "step": (fgaseg.training.gradients, "segmentation_losses"),
        "evaluation": (fgaseg.training.validation, "evaluate"),
        "save": (fgaseg.training.state, "save_training"),
    }[when]
    original, calls = getattr(module, target), []

    def signalling(*args, **kwargs):
        calls.append(1)
        if len(calls) == {"step": 3, "evaluation": 1, "save": 1}[when]:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="Run the same command again") as caught:
        patch.setattr(module, target, signalling)
        train(config, progress=False)
    assert caught.value.signal == number and number.name in str(caught.value)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    # the step under way is finished; an evaluation under way is not, and is done after the resume
    assert state(tmp_path)["step"] == {"step": 3, "evaluation": 4, "save": 3}[when]
    assert state(tmp_path)["history"] == []
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(data, tmp_path, monkeypatch):
    # a job started in the background of a shell ignores SIGINT: give it Python's usual meaning here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = configure(data, tmp_path)
    original, calls = fgaseg.training.gradients.segmentation_losses, []

    def impatient(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)  # in this thread, one after the other: os.kill's two may become one
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(fgaseg.training.gradients, "segmentation_losses", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False)
    assert state(tmp_path)["step"] == 2


def test_the_message_of_a_lost_process_comes_before_torchruns_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ProcessLostError), Signals() as signals:
            raise ProcessLostError("Connection closed by peer")
        assert signal.getsignal(signal.SIGTERM) == signals._note  # noted only: the process is at its end
    finally:
        signal.signal(signal.SIGTERM, before)


def test_scoring_that_fails_loses_no_training(uninterrupted, data, tmp_path, monkeypatch):
    config = configure(data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fgaseg.training.validation, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, progress=False)
    assert state(tmp_path)["step"] == 4
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


def test_resuming_another_configuration_is_refused(uninterrupted, data, tmp_path):
    out = shutil.copytree(uninterrupted[0], tmp_path / "run")
    before = weights(out)
    both = r"\(model\.loss\.class_weights was None, now {'sky': 2\.0}; train\.seed was 0, now 1\)"
    with pytest.raises(CheckpointError, match=rf"{both}.*train\.steps and train\.lr may change"):
        changed = ["train.seed=1", "train.lr=0.1", "model.loss.class_weights={sky: 2}"]
        train(configure(data, out, changed), progress=False)
    with pytest.raises(CheckpointError, match=r"\(train\.steps is 7, but 8 are done\)"):
        train(configure(data, out, ["train.steps=7"]), progress=False)
    with pytest.raises(CheckpointError, match="do not fit"):
        train(configure(data, out, ["model.hidden=64"]), progress=False)
    assert all(torch.equal(value, before[key]) for key, value in weights(out).items())
    train(configure(data, out, ["train.log_every=3", "data.workers=1", "train.eval_every=0"]), progress=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_done_otherwise_is_said_once_and_nothing_where_nothing_is(
    uninterrupted, data, monkeypatch, caplog, rank
):
    monkeypatch.setattr(fgaseg.training.state, "rank", lambda: rank)
    out, _ = uninterrupted
    for words, said in (([], 0), (["train.lr=2e-4"], 1 - rank)):
        caplog.clear()
        trainer = Trainer(configure(data, out, words), progress=False)
        content = trainer.store.load(trainer.model)
        assert len(caplog.messages) == said and bool(trainer.store.announcement) == bool(words)
        optimizer = Optimizer(trainer.model, trainer.config.train, torch.device("cpu"))
        found = trainer.store.restore(content, optimizer)
        assert (found.step, found.history, found.losses) == (8, content["history"], content["losses"])
        assert trainer.store.saved == 8 and len(found.changes) == bool(words)
    assert trainer.store.describe() == f"the checkpoint of step 8 in {out / 'checkpoint'} is intact"


def test_a_signal_to_another_process_is_sigterm(data, tmp_path, monkeypatch):
    signalled = torch.tensor([0.0] * 3 + [15.0])  # loss, seg, align, and the other's signal
    monkeypatch.setattr(fgaseg.training.trainer, "sum_over_processes", lambda values: values + signalled)
    with pytest.raises(Interrupted, match=r"^stopped by SIGTERM after step 1 of 8; everything is saved") as caught:
        train(configure(data, tmp_path), progress=False)
    assert caught.value.signal == signal.SIGTERM and state(tmp_path)["step"] == 1


def test_starting_over_keeps_the_old_checkpoint_until_the_first_new_one(data, tmp_path, monkeypatch):
    config = configure(data, tmp_path, ["train.steps=2", "train.save_every=1"])
    train(config, progress=False)
    old = state(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fgaseg.training.gradients, "segmentation_losses", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, resume=False, progress=False)
    assert state(tmp_path)["seconds"] == old["seconds"]
    train(config.override("train.steps=1"), resume=False, progress=False)
    assert state(tmp_path)["step"] == 1 and not (tmp_path / "checkpoint.old").exists()  # which is of the other run


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(uninterrupted, data, tmp_path, caplog):
    config = configure(data, tmp_path)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(5)])
    path = tmp_path / "checkpoint" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4  # in the last weight: nothing else would notice
    path.write_bytes(content)
    caplog.set_level(logging.INFO, "fgaseg")
    train(config)
    said = caplog.text
    assert "model.safetensors: damaged" in said and "Resuming from the previous checkpoint" in said
    assert "at step 2/8" in said
    assert_same_run(tmp_path, uninterrupted[0])
    assert [row["step"] for row in log(tmp_path) if row["set"] == "val"] == [4, 8]


def test_no_undamaged_checkpoint_is_an_error(data, tmp_path):
    config = configure(data, tmp_path, ["train.steps=2", "train.eval_every=0"])
    train(config, progress=False)
    (tmp_path / "checkpoint" / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state\.pt: damaged.*no previous checkpoint.*--restart"):
        train(config, progress=False)


def test_processes_that_do_not_share_a_disk_are_an_error(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fgaseg.training.state, "gather_objects", lambda step: [step, 4])  # what another machine found
    with pytest.raises(CheckpointError, match=r"checkpoints of steps 0, 4; .*train\.out .*all machines share"):
        train(configure(data, tmp_path), progress=False)


def test_a_process_that_dies_before_the_first_step_is_one_message(data, tmp_path, monkeypatch):
    def gone(_):
        raise ProcessLostError("Connection closed by peer")

    monkeypatch.setattr(fgaseg.training.state, "gather_objects", gone)
    with pytest.raises(TrainingError, match=r"another training process is gone \(Connection closed by peer\)"):
        train(configure(data, tmp_path), progress=False)
