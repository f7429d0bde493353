"""A run resumes with more steps or another learning rate: what that means is said, recorded, and done."""

import json
import logging
import shutil

import pytest
import torch
from runs import STEPS, assert_same_run, configure, log, state

from fgaseg import Config, FGASeg
from fgaseg.training import train
from fgaseg.training.changes import differences

LONGER = ["train.steps=12"]


def test_twelve_steps_in_two_parts_are_twelve_steps(data, tmp_path):
    """With a constant learning rate nothing else may differ; with a cosine the first part had another one."""
    constant = ["train.schedule=constant", *LONGER]
    train(configure(data, tmp_path / "whole", constant), progress=False)
    train(configure(data, tmp_path / "parts", [*constant, "train.steps=8"]), progress=False)
    summary = train(configure(data, tmp_path / "parts", constant), progress=False)
    assert summary.steps == 12
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert [row["step"] for row in log(tmp_path / "parts") if row["set"] == "val"] == [4, 8, 12]


def test_the_schedule_goes_on_as_it_is_said(uninterrupted, data, tmp_path, caplog):
    out = shutil.copytree(uninterrupted[0], tmp_path / "run")
    caplog.set_level(logging.WARNING, "fgaseg")
    summary = train(configure(data, out, [*LONGER, "train.lr=2e-4"]), progress=False)
    (said,) = [message for message in caplog.messages if "learning rate" in message]
    assert "train.steps was 8, now 12" in said and "train.lr was 0.0001, now 0.0002" in said
    assert "from step 9 on the learning rate is that of the cosine schedule of 12 steps" in said
    assert said.endswith("step 8 had 3.81e-06, step 9 has 5e-05")  # 1e-4 (1 + cos(7/8 pi))/2, 2e-4 (1 + cos(2/3 pi))/2
    rates = {row["step"]: row["lr"] for row in log(out) if row["set"] == "train"}
    assert rates[8] == pytest.approx(3.806e-6, rel=1e-4) and rates[9] == pytest.approx(5e-5)
    assert max(rates) == 12
    # recorded, also after another resume, in the summary and on the model's card
    again = train(configure(data, out, [*LONGER, "train.lr=2e-4"]), progress=False)
    assert summary.changes == again.changes == [f"after step 8: {said.split('step 8: ')[1]}"]
    assert json.loads((out / "summary.json").read_text())["changes"] == summary.changes
    assert FGASeg.from_pretrained(out / "model").facts["training"]["recipe"]["changed"] == summary.changes
    assert "train.lr was 0.0001" in (out / "model" / "README.md").read_text()


def test_the_optimizers_state_goes_on(uninterrupted, data, tmp_path):
    out = shutil.copytree(uninterrupted[0], tmp_path / "run")
    train(configure(data, out, ["train.steps=9"]), progress=False)
    before, after = state(uninterrupted[0])["optimizer"], state(out)["optimizer"]
    assert all(after[name]["step"] == before[name]["step"] + 1 for name in before)


def test_fewer_steps_are_possible_down_to_those_that_are_done(data, tmp_path, caplog):
    config = configure(data, tmp_path, ["train.save_every=4"])
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[lambda event: 1 / (6 - event["step"])])
    assert state(tmp_path)["step"] == 4
    summary = train(config.override("train.steps=4"), progress=False)
    assert summary.steps == 4 and "no step is left to take" in summary.changes[0]
    assert summary.scores["val"].images == 3


def test_a_checkpoint_of_an_earlier_version_resumes(uninterrupted, data, tmp_path):
    """It knows neither the new keys of the configuration nor "changes"."""
    out = shutil.copytree(uninterrupted[0], tmp_path / "run")
    content = state(out)
    old = json.loads(content["config"])
    for key in ("patience", "keep_best", "trackers", "project"):
        old["train"].pop(key, None)
    old["model"]["loss"].pop("class_weights")
    del content["changes"]
    torch.save(content | {"config": json.dumps(old)}, out / "checkpoint" / "state.pt")
    from fgaseg.weights.training_state import write_sums

    write_sums(out / "checkpoint")
    assert train(configure(data, out), progress=False).changes == []
    assert state(out)["step"] == STEPS


@pytest.mark.parametrize(
    "words, step, refused, announced",
    [([], 4, [], ""), (["train.log_every=7", "data.val_count=1", "train.patience=2"], 4, [], ""),
     (["train.batch=2"], 4, ["train.batch was 4, now 2"], ""),
     (["train.schedule=constant", "train.steps=20"], 4, ["train.schedule was 'cosine', now 'constant'"], "train.steps"),
     (["model.loss.class_weights={sky: 2.0}"], 4, ["model.loss.class_weights was None, now {'sky': 2.0}"], ""),
     (["train.steps=9"], 0, [], "from step 1 on the learning rate is that of the cosine schedule of 9 steps from the "
      "first to the last")],
)  # fmt: skip
def test_what_differs(data, tmp_path, words, step, refused, announced):
    config = configure(data, tmp_path)
    found, said = differences(json.loads(config.to_json()), config.override(*words), step)
    assert found == refused and announced in said and bool(said) == bool(announced)


def test_what_is_announced_word_by_word(data, tmp_path):
    """Rates of one schedule before and after the step; before the first step there is none."""
    config, start = configure(data, tmp_path), "weights and optimizer state go on; from step"
    constant, before = config.override("train.schedule=constant"), "train.lr was 0.0001, now 0.0002"
    for old, words, step, said in (
        (config, ["train.steps=9"], 0, f"train.steps was 8, now 9: {start} 1 on the learning rate is that of the "
         "cosine schedule of 9 steps from the first to the last"),
        (constant, ["train.lr=2e-4"], 1, f"{before}: {start} 2 on the learning rate is that of the constant schedule: "
         "step 1 had 0.0001, step 2 has 0.0002"),
        (constant, ["train.lr=2e-4"], 8, f"{before}: no step is left to take"),
    ):  # fmt: skip
        assert differences(json.loads(old.to_json()), old.override(*words), step) == ([], said)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_a_key_that_a_checkpoint_does_not_know_had_the_default_of_its_preset(preset):
    config = Config(model={"preset": preset})
    before = config.dump()
    del before["model"]["resize"], before["model"]["inference"]
    assert differences(before, config, 0) == ([], "")
    other = Config(model={"preset": preset, "resize": "logits" if preset == "released" else "scores"})
    (refused,) = differences(before, other, 0)[0]
    assert "model.resize was" in refused
