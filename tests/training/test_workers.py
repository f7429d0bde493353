"""Loader workers that die."""

import contextlib
import multiprocessing
import os
import signal
import time

import psutil
import pytest
import torch
from runs import STEPS, assert_same_run, configure, state, weights

import fgaseg.training.trainer
from fgaseg.errors import Interrupted, TrainingError
from fgaseg.training import Callback, train


def before_batch(step, act, monkeypatch):
    """The loader calls `act` where it should give the batch of a step (1-based)."""
    make = fgaseg.training.trainer.make_loader

    def make_loader(*arguments):
        for number, batch in enumerate(make(*arguments), 1):
            if number == step:
                act()
            yield batch

    monkeypatch.setattr(fgaseg.training.trainer, "make_loader", make_loader)


def test_a_dead_worker_is_one_message_and_a_saved_step(uninterrupted, data, tmp_path):
    config = configure(data, tmp_path, ["data.workers=2", "train.save_every=0"])

    def kill_a_worker(event):
        if event["step"] == 3:
            workers = multiprocessing.active_children()
            assert len(workers) >= 2
            for worker in workers:
                worker.kill()

    with pytest.raises(TrainingError, match=r"a loader worker died before step .*data\.workers \(now 2\)") as caught:
        train(config, progress=False, callbacks=[kill_a_worker])
    with contextlib.suppress(RuntimeError):  # PyTorch's, if the signal of the other worker's end comes only now
        for worker in multiprocessing.active_children():
            worker.join(10)
    assert len(str(caught.value).splitlines()) == 1
    assert 3 <= state(tmp_path)["step"] < STEPS  # what had been fetched was still trained on
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


@pytest.mark.parametrize("error", [RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly"), EOFError(),
                                   ConnectionResetError(104, "Connection reset by peer")], ids=repr)  # fmt: skip
def test_every_way_that_a_dead_worker_shows_is_the_same_message(data, tmp_path, monkeypatch, error):
    """The last two: it dies while a batch passes to the trainer."""

    def die():
        raise error

    before_batch(4, die, monkeypatch)
    with pytest.raises(TrainingError, match=r"a loader worker died before step 4 \(.*\w\): .*data\.workers"):
        train(configure(data, tmp_path, ["train.eval_every=0"]), progress=False)
    assert state(tmp_path)["step"] == 3


@pytest.mark.parametrize("step, saved", [(1, []), (2, [1]), (3, [2]), (4, [2, 3])])
def test_what_was_trained_is_saved_once_when_there_is_no_next_batch(data, tmp_path, monkeypatch, step, saved):
    class Saves(Callback):
        steps = ()

        def on_save(self, step, folder):
            self.steps = [*self.steps, step]

    def die():
        raise EOFError

    saves = Saves()
    before_batch(step, die, monkeypatch)
    with pytest.raises(TrainingError):
        train(configure(data, tmp_path, ["train.eval_every=0"]), progress=False, callbacks=[saves])
    assert list(saves.steps) == saved and (tmp_path / "checkpoint").exists() == bool(saved)


@pytest.mark.parametrize("worker", ["dies later", "dies first"])
def test_a_signal_to_the_trainer_and_its_workers_is_an_orderly_stop(uninterrupted, data, tmp_path, monkeypatch, worker):
    """As `timeout` and service managers send it."""

    def kill(event):
        if event["step"] == 3 and worker == "dies later":
            children = [psutil.Process(worker.pid) for worker in multiprocessing.active_children()]
            assert children
            os.kill(os.getpid(), signal.SIGTERM)
            for child in children:
                child.kill()
            while any(child.status() != psutil.STATUS_ZOMBIE for child in children):
                time.sleep(0.002)

    def die():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")

    config = configure(data, tmp_path, ["data.workers=1", "train.save_every=0", "train.eval_every=0"])
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step [34] of"):
        if worker == "dies first":
            before_batch(4, die, patch)
        train(config, progress=False, callbacks=[kill])
    train(config.override("train.eval_every=4"), progress=False)
    got, want = weights(tmp_path), weights(uninterrupted[0])
    assert got.keys() == want.keys() and all(torch.equal(value, want[key]) for key, value in got.items())
