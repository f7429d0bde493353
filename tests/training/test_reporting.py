"""What a run logs, writes and tells its callbacks."""

import io
import logging
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console
from runs import LR, assert_same_run, configure, fail_at, log

import fgaseg.training.tensorboard
from fgaseg.training import Callback, Trainer, reporting, train
from fgaseg.training.metrics import Speed
from fgaseg.training.schedule import learning_rate_factor
from fgaseg.training.state import Means
from fgaseg.training.tensorboard import TensorBoard


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


def test_the_bar_of_a_terminal_ends_with_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "Console", lambda stderr: Console(file=io.StringIO(), force_terminal=True))
    reporter = reporting.ProgressReporter(configure(data, tmp_path))
    reporter.on_start(0, [])
    assert reporter.bar.live.is_started
    reporter.on_step(3, {"loss": 1.5, "images_per_second": 2.0})
    (task,) = reporter.bar.tasks
    assert task.completed == 3 and "loss 1.500  2.0 images/s" in task.description
    reporter.on_end()
    assert not reporter.bar.live.is_started


def test_the_time_left_is_told_from_the_steps_since_the_start(data, tmp_path, monkeypatch, caplog):
    clock = iter([1000.0, 1060.0])
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    reporter = reporting.ProgressReporter(configure(data, tmp_path, ["train.steps=30"]))
    reporter.on_start(10, [])
    with caplog.at_level(logging.INFO, "fgaseg"):
        reporter.on_log(15, {"loss": 1.0, "images_per_second": 2.0})  # a minute for 5 steps, and 15 to go
    assert "step 15/30" in caplog.text and "0:03:00 left" in caplog.text


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
        self.calls = []

    def on_start(self, step, history):
        self.calls.append(("start", step, [entry["step"] for entry in history]))

    def on_step(self, step, metrics):
        assert {"loss", "lr", "images_per_second", "peak_memory_mb"} <= metrics.keys()
        self.calls.append(("step", step))

    def on_log(self, step, metrics):
        self.calls.append(("log", step))

    def on_evaluation(self, step, scores, seconds):
        assert scores["val"].images == 3 and seconds > 0
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
    trainer.train()
    assert recorder.calls == [("start", 2, []), ("evaluation", 2), ("step", 3), ("step", 4), ("log", 4), ("save", 4),
                              ("evaluation", 4), ("end",)]  # fmt: skip
