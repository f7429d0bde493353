"""What a run logs, writes and tells its callbacks."""

import io
import json
import logging
import os
import stat
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from runs import LR, assert_same_run, configure, fail_at, log
from tiny import NAMES, tiny_model

import fgaseg.training.tensorboard
from fgaseg.evaluation import Scores
from fgaseg.training import Callback, Trainer, metrics, reporting, train
from fgaseg.training.metrics import Speed
from fgaseg.training.reporting import JsonLines
from fgaseg.training.schedule import learning_rate_factor
from fgaseg.training.state import Means
from fgaseg.training.tensorboard import TensorBoard
from fgaseg.training.validation import rows


def test_the_log_has_every_step_once_with_speed_and_memory(data, tmp_path):
    config = configure(data, tmp_path)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(7)])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "set": "tr')  # a line that a killed process did not finish
    train(config, progress=False)
    rows = log(tmp_path)
    steps = {of: [row["step"] for row in rows if row["set"] == of] for of in ("train", "val")}
    assert steps == {"train": list(range(1, 9)), "val": [4, 8]} and len(rows) == 10
    assert all(row["images_per_second"] > 0 and row["peak_memory_mb"] > 50 for row in rows)
    assert {"loss", "seg", "align", "gradient_norm", "lr"} <= rows[0].keys()
    assert next(row for row in rows if row["set"] == "val")["miou_gt"] >= 0
    train(config, progress=False)  # finished: scored once more, but no line twice
    again = log(tmp_path)
    assert again[:9] == rows[:9] and [row["step"] for row in again] == [row["step"] for row in rows]
    train(config.override("train.steps=1"), resume=False, progress=False)  # started over
    assert [row["step"] for row in log(tmp_path)] == [1, 1]


def test_the_bar_of_a_terminal_ends_with_the_run(data, tmp_path, monkeypatch, caplog):
    shown = io.StringIO()
    monkeypatch.setattr(reporting, "Console", lambda stderr: stderr and Console(file=shown, force_terminal=True))
    reporter = reporting.ProgressReporter(configure(data, tmp_path))
    reporter.on_start(2, [])
    assert reporter.bar.live.is_started and (reporter.bar.tasks[0].completed, reporter.bar.tasks[0].total) == (2, 8)
    reporter.on_step(3, {"loss": 1.5, "images_per_second": 2.0})
    (task,) = reporter.bar.tasks
    assert task.completed == 3 and "loss 1.500  2.0 images/s" in task.description
    with caplog.at_level(logging.INFO, "fgaseg"):
        reporter.on_log(3, {"loss": 1.5, "images_per_second": 2.0})
    reporter.on_end()
    assert not reporter.bar.live.is_started and not caplog.messages  # the line of the log is the bar
    assert "step 3/8" in shown.getvalue()


def test_the_time_left_is_told_from_the_steps_since_the_start(data, tmp_path, monkeypatch, caplog):
    clock = iter([1000.0, 1060.0])
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    reporter = reporting.ProgressReporter(configure(data, tmp_path, ["train.steps=30"]))
    reporter.on_start(10, [])
    with caplog.at_level(logging.INFO, "fgaseg"):
        reporter.on_log(15, {"loss": 1.0, "images_per_second": 2.0})  # a minute for 5 steps, and 15 to go
    assert "step 15/30" in caplog.text and "0:03:00 left" in caplog.text


def test_lines_of_a_log_that_are_kept_when_a_run_resumes(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [(1, "train"), (2, "train"), (2, "val"), (3, "val"), (3, "train"), (4, "train"), (4, "val")]
    lines = [json.dumps({"step": step, "set": name}) + "\n" for step, name in rows]
    path.write_text("".join(lines) + "[1]\n7\n{}\n" + lines[0].strip())
    JsonLines(path, 3, [2, 4])
    assert path.read_text() == "".join(lines[:3]) + lines[4]
    before = path.stat().st_mtime_ns, path.stat().st_ino
    log = JsonLines(path, 3, [2, 4])  # nothing to drop: not written again
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    open_files = len(os.listdir("/proc/self/fd"))
    log.add({"step": 4, "set": "train", "loss": float("nan")})
    assert path.read_text().splitlines()[-1] == '{"step": 4, "set": "train", "loss": null}'
    assert len(os.listdir("/proc/self/fd")) == open_files
    JsonLines(tmp_path / "new.jsonl", 0, []).add({"step": 1})
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.jsonl").stat().st_mode) == 0o666 & ~mask


def test_memory_is_in_megabytes_on_every_system(monkeypatch):
    usage = SimpleNamespace(getrusage=lambda who: SimpleNamespace(ru_maxrss=3_000_000), RUSAGE_SELF=0)
    monkeypatch.setattr(metrics, "resource", usage)
    for platform, expected in (("linux", 3072), ("darwin", 3)):  # kilobytes there, bytes here
        monkeypatch.setattr(metrics, "sys", SimpleNamespace(platform=platform))
        assert metrics.peak_memory_mb() == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert metrics.peak_memory_mb() == 3  # a GPU that this process does not use
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5_000_000)
    assert metrics.peak_memory_mb() == 5


def test_the_speed_of_an_evaluation_is_that_of_all_sets():
    found = rows({"seen": Scores(4, []), "unseen": Scores(2, [])}, 2.0)
    assert [found[name]["images_per_second"] for name in ("seen", "unseen")] == [3, 3]


def test_the_picture_shows_the_classes_of_the_photo_by_the_model_of_an_evaluation(monkeypatch):
    """Photo, labels, prediction, and the maps of the largest class; the model goes on training."""
    monkeypatch.setattr(fgaseg.training.tensorboard, "panel", lambda shown, below: (shown, below))
    model = tiny_model().train()
    labels = torch.full((64, 64), len(NAMES))  # the ignored value is the one after the last class
    labels[:4], labels[4:5] = 1, 2
    item = {"image": torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8), "labels": labels}
    (shown,), below = fgaseg.training.tensorboard.picture(model, item, NAMES)
    assert [title for title, _ in shown] == ["photo", "labels", "prediction", "S_g: dog", "S_l: dog"]
    assert len({picture.size for _, picture in shown}) == 1 and below.width == 5 * 240
    assert model.training
    (again,), _ = fgaseg.training.tensorboard.picture(model.eval(), item, NAMES)
    assert np.array_equal(again[2][1], shown[2][1]) and not model.training
    item["labels"] = torch.full_like(labels, 255)
    (shown,), _ = fgaseg.training.tensorboard.picture(model, item, NAMES)
    assert shown[3][0] == "S_g: cat"
    model = tiny_model(lcs=False)
    (shown,), below = fgaseg.training.tensorboard.picture(model, item, NAMES)
    assert len(shown) == 4 and below.width == 4 * 240


def test_speed_is_photos_over_seconds_since_the_last_reset():
    speed = Speed(batch=4)
    speed.add(1.0)
    speed.reset()
    speed.add(0.5)
    speed.add(1.5)
    assert speed.images_per_second == pytest.approx(4.0)


def test_means_are_over_the_steps_that_had_the_value():
    means = Means()
    means.add({"loss": 1.0})  # fp16: the gradient was infinite, the step skipped
    means.add({"loss": 3.0, "gradient_norm": 5.0})
    assert means.values() == {"loss": 2.0, "gradient_norm": 5.0}


def test_lines_callback_and_tensorboard(data, tmp_path, capfd, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = []
    config = configure(data, tmp_path, ["train.tensorboard=true", "train.steps=4", "train.log_every=2"])
    caplog.set_level(logging.INFO, "fgaseg")
    train(config, callbacks=[events.append])
    assert capfd.readouterr().out == ""  # stdout is for programs
    lines = [line for line in caplog.messages if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["2/4", "4/4", "4/4"]
    assert "loss" in lines[0] and "images/s" in lines[0] and "left" in lines[0] and "mIoU" in lines[2]
    rates = [LR * learning_rate_factor(step - 1, config.train) for step in (2, 4)]
    assert [event["lr"] for event in events[:2]] == pytest.approx(rates)
    assert [event["step"] for event in events] == [2, 4, 4] and events[2]["val"]["miou_gt"] >= 0
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert {"train/loss", "train/seg", "train/align", "train/lr", "val/miou_gt"} <= set(accumulator.Tags()["scalars"])
    assert [event.step for event in accumulator.Scalars("train/loss")] == [2, 4]


def test_pictures_of_fixed_validation_items(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(configure(data, tmp_path, ["train.tensorboard=true", "train.steps=4", "train.eval_every=2"]), progress=False)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    assert accumulator.Tags()["images"] == ["val/0", "val/1"]
    pictures = accumulator.Images("val/0")
    assert [event.step for event in pictures] == [2, 4]
    picture = Image.open(io.BytesIO(pictures[0].encoded_image_string))
    assert picture.width > 5 * 240  # photo, labels, prediction, S_g, S_l
    assert {"train/images_per_second", "train/peak_memory_mb"} <= set(accumulator.Tags()["scalars"])


def test_a_picture_that_cannot_be_drawn_is_reported_and_training_goes_on(
    uninterrupted, data, tmp_path, monkeypatch, caplog
):
    def failing(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fgaseg.training.tensorboard, "picture", failing)
    train(configure(data, tmp_path, ["train.tensorboard=true"]), progress=False)
    assert caplog.text.count("no picture 0 of val at step") == 2
    assert_same_run(tmp_path, uninterrupted[0])


def test_a_picture_that_cannot_be_drawn_ends_a_sharded_training(data, tmp_path, monkeypatch):
    """One process has left a block half-way: the next step would wait for ever."""

    def failing(*_):
        raise RuntimeError("out of memory")

    trainer = Trainer(configure(data, tmp_path), progress=False)
    trainer.callbacks.append(TensorBoard(trainer.config, trainer.model, trainer.val_sets, sharded=True))
    monkeypatch.setattr(fgaseg.training.tensorboard, "picture", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()


class Recorder(Callback):
    def __init__(self):
        self.calls, self.seconds = [], []

    def on_start(self, step, history):
        self.calls.append(("start", step, [entry["step"] for entry in history]))

    def on_step(self, step, metrics):
        assert {"loss", "lr", "images_per_second", "peak_memory_mb"} <= metrics.keys()
        self.calls.append(("step", step))

    def on_log(self, step, metrics):
        self.calls.append(("log", step))

    def on_evaluation(self, step, scores, seconds):
        assert scores["val"].images == 3 and seconds > 0
        self.seconds.append(seconds)
        self.calls.append(("evaluation", step))

    def on_save(self, step, folder):
        assert (folder / "state.pt").exists()
        self.calls.append(("save", step))

    def on_end(self):
        self.calls.append(("end",))


def test_callbacks_are_called_in_order(data, tmp_path):
    config = configure(data, tmp_path, ["train.steps=4", "train.log_every=2", "train.eval_every=2"])
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[recorder, fail_at(4)])
    assert recorder.calls == [("start", 0, []), ("step", 1), ("step", 2), ("log", 2), ("save", 2), ("evaluation", 2),
                              ("step", 3), ("step", 4), ("log", 4), ("end",)]  # fmt: skip
    recorder = Recorder()
    trainer = Trainer(config, progress=False)
    trainer.callbacks.append(recorder)
    began = time.monotonic()
    trainer.train()
    assert max(recorder.seconds) < time.monotonic() - began and trainer.speed.steps == 0  # counted anew after a line
    assert recorder.calls == [("start", 2, []), ("evaluation", 2), ("step", 3), ("step", 4), ("log", 4), ("save", 4),
                              ("evaluation", 4), ("end",)]  # fmt: skip
