"""Experiment trackers get what the log gets, through accelerate's own classes, and never stop a training."""

import math
import sys

import pytest
from runs import configure, fail_at, log

from fgaseg.errors import ConfigError, TrainingError
from fgaseg.training import train

STAND_IN = '''
"""Stands in for Weights & Biases: remembers what it is told."""
import os
told = []
broken = set()

class Config:
    def update(self, values, **options):
        told.append(("config", values))

config = Config()

class Run:
    def log(self, values, step):
        if step in broken:
            raise ConnectionError("no route to\\nhost")
        told.append(("log", step, values))

    def finish(self):
        told.append(("finish",))

def init(project, **options):
    if os.environ.get("WANDB_API_KEY") == "wrong":
        raise RuntimeError("invalid key")
    told.append(("init", project, options))
    return Run()
'''


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    import wandb

    yield wandb
    del sys.modules["wandb"]


def test_a_tracker_is_told_what_the_log_is_told(data, tmp_path, wandb):
    out = tmp_path / "run"
    train(configure(data, out, ["train.trackers=wandb", "train.project=stars", "train.log_every=2"]), progress=False)
    (first, project, options), (second, values), *logged, last = wandb.told
    assert (first, project, options) == ("init", "stars", {"name": "run", "dir": str(out)})
    assert second == "config" and values["train.steps"] == 8 and values["train.init"] is None
    assert values["data.scale"] == "[0.8, 1.5]" and values["model.loss.lambda_align"] == 0.5
    assert all(isinstance(value, bool | int | float | str | None) for value in values.values())
    rows = [(row["step"], {f"{row['set']}/{key}": value for key, value in row.items()
                           if key not in ("step", "set") and value is not None}) for row in log(out)]  # fmt: skip
    assert [found[1:] for found in logged] == rows and {step for step, _ in rows} == {2, 4, 6, 8}
    assert any("val/miou_gt" in row for _, row in rows) and last == ("finish",)
    assert not any(math.isnan(value) for _, row in rows for value in row.values())


def test_a_resumed_run_tells_the_steps_to_come(data, tmp_path, wandb):
    config = configure(data, tmp_path / "run", ["train.trackers=[wandb]"])
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(5)])
    assert wandb.told[-1] == ("finish",)
    wandb.told.clear()
    train(config, progress=False)
    assert min(found[1] for found in wandb.told if found[0] == "log") == 4  # the evaluation of step 4 is repeated


def test_a_tracker_that_breaks_is_left_behind(data, tmp_path, wandb, caplog):
    wandb.broken.add(3)
    summary = train(configure(data, tmp_path / "run", ["train.trackers=wandb"]), progress=False)
    assert summary.steps == 8 and "wandb stops at step 3: no route to host" in caplog.text
    assert [found[1] for found in wandb.told if found[0] == "log"] == [1, 2]
    assert len([message for message in caplog.messages if "wandb stops" in message]) == 1


def test_one_that_cannot_start_is_one_line_before_the_first_step(data, tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "wrong")
    with pytest.raises(TrainingError, match=r"train\.trackers: wandb cannot start: invalid key; or leave it out"):
        train(configure(data, tmp_path / "run", ["train.trackers=wandb"]), progress=False)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_missing_package_is_one_line_before_anything_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setattr("fgaseg.training.trackers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"^train\.trackers: mlflow is not installed: pip install mlflow, or leave"):
        train(configure(data, tmp_path / "run", ["train.trackers=mlflow"]), progress=False)
    assert not (tmp_path / "run").exists()


def test_tensorboard_in_the_list_is_our_own(data, tmp_path, wandb):
    words = ["train.trackers=[tensorboard, wandb]", "train.steps=1", "train.eval_every=0", "train.pictures=0"]
    train(configure(data, tmp_path / "run", words), progress=False)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1 and ("finish",) in wandb.told


def test_nothing_is_sent_by_default(uninterrupted, data, tmp_path, wandb):
    config = configure(data, tmp_path / "run", ["train.steps=1", "train.eval_every=0"])
    assert config.train.trackers == () and configure(data, tmp_path, ["train.trackers=null"]).train.trackers == ()
    train(config, progress=False)
    assert wandb.told == []
    with pytest.raises(ConfigError, match="'wandb'"):
        configure(data, tmp_path, ["train.trackers=wandbb"])


def test_the_names_are_accelerates():
    from typing import get_args

    from accelerate import tracking

    from fgaseg.config.train import TrackerName

    assert set(get_args(TrackerName)) == set(tracking.LOGGER_TYPE_TO_CLASS)
