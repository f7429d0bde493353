"""The model of the best evaluation is kept, whatever happens to the run, and training stops when none is better."""

import json
import math
import shutil

import pytest
import torch
from runs import assert_same_run, configure, fail_at, kill_when, start, state
from tiny import tiny_model

import fgaseg
import fgaseg.training.validation
from fgaseg import FGASeg
from fgaseg.cli import main
from fgaseg.config import TrainConfig
from fgaseg.errors import CheckpointError, ConfigError, TrainingError
from fgaseg.evaluation import FIGURES, Scores
from fgaseg.evaluation.scores import ClassScore
from fgaseg.training import train
from fgaseg.training.best import BestModel, evaluations_without_rise, figure

OFTEN = ["train.keep_best=miou", "train.eval_every=1", "train.save_every=2"]


def scripted(monkeypatch, values, samples="a"):
    """Evaluations whose mIoU at each step is given; returns the steps that were scored."""
    seen, trainers = [], []
    original = fgaseg.training.Trainer.__init__

    def remember(self, *args, **kwargs):
        trainers.append(self)
        original(self, *args, **kwargs)

    def evaluate(model, dataset, count, stop):
        step = trainers[-1].state.step
        seen.append(step)
        correct = round(1000 * values[step])
        return Scores(3, [ClassScore("cat", correct, 1000, correct)], samples)

    monkeypatch.setattr(fgaseg.training.Trainer, "__init__", remember)
    monkeypatch.setattr(fgaseg.training.validation, "evaluate", evaluate)
    return seen


def kept(out):
    return json.loads((out / "best" / "score.json").read_text())


def weights_at(step, data, folder):
    """The weights of a run at a step."""
    train(
        configure(data, folder, ["train.schedule=constant", f"train.steps={step}", "train.eval_every=0"]),
        progress=False,
    )
    return FGASeg.from_pretrained(folder / "model").state_dict()


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[key]) for key, value in left.items())


def test_the_best_model_is_kept_beside_the_last(data, tmp_path, monkeypatch):
    expected = weights_at(3, data, tmp_path / "three")
    values = {1: 0.2, 2: 0.1, 3: 0.6, 4: 0.6, 5: 0.5, 6: 0.4, 7: 0.1, 8: 0.3}
    scripted(monkeypatch, values)
    out = tmp_path / "run"
    summary = train(configure(data, out, [*OFTEN, "train.schedule=constant"]), progress=False)
    assert summary.best == {"model": str(out / "best" / "model"), "step": 3, "metric": "miou_gt", "score": 0.6}
    assert json.loads((out / "summary.json").read_text())["best"] == summary.best
    record = kept(out)
    assert (record["step"], record["score"], record["scores"]["val"]["pixel_accuracy"]) == (3, 0.6, 0.6)
    best = fgaseg.load(out / "best")
    assert same(best.state_dict(), expected) and best.facts["training"]["steps"] == 3
    assert best.facts["results"]["val"]["miou_gt"] == 0.6
    last = fgaseg.load(out / "model")
    assert not same(last.state_dict(), expected) and last.facts["results"]["val"]["miou_gt"] == 0.3
    assert sorted(path.name for path in out.iterdir() if "best" in path.name) == ["best"]


def test_nothing_is_kept_by_default(uninterrupted):
    out, summary = uninterrupted
    assert summary.best is None and summary.stopped_early == "" and not (out / "best").exists()


@pytest.mark.parametrize("broken_at", [3, 4, 5, 6])
def test_interrupted_and_resumed_the_same_is_kept(data, tmp_path, monkeypatch, broken_at):
    values = {1: 0.1, 2: 0.2, 3: 0.7, 4: 0.3, 5: 0.7, 6: 0.1, 7: 0.1, 8: 0.6}
    scripted(monkeypatch, values)
    whole = train(configure(data, tmp_path / "whole", OFTEN), progress=False)
    config = configure(data, tmp_path / "parts", OFTEN)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(broken_at)])
    parts = train(config, progress=False)
    assert whole.best["step"] == parts.best["step"] == 3 and whole.history == parts.history
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")
    assert same(*(fgaseg.load(tmp_path / name / "best").state_dict() for name in ("whole", "parts")))


def test_killed_while_it_is_written_one_whole_model_is_left(uninterrupted, data, tmp_path):
    out = tmp_path / "out"
    config = configure(data, out, ["train.keep_best=miou", "train.eval_every=1", "train.save_every=2"])
    process = start(config, tmp_path)
    kill_when(process, lambda: (out / "checkpoint").exists() and any(out.glob(".best.*.tmp")))
    summary = train(config, progress=False)
    assert not list(out.glob(".*")) and not (out / "best.old").exists()
    scores = {entry["step"]: entry["val"]["miou_gt"] for entry in summary.history}
    assert summary.best["score"] == max(scores.values()) == scores[summary.best["step"]] == kept(out)["score"]
    assert fgaseg.load(out / "best") is not None


def test_between_two_renames_the_model_of_before_is_found(data, tmp_path, monkeypatch):
    scripted(monkeypatch, dict.fromkeys(range(1, 9), 0.1) | {2: 0.9})
    config = configure(data, tmp_path, OFTEN)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(5)])
    (tmp_path / "best").rename(tmp_path / "best.old")
    assert train(config, progress=False).best["step"] == 2 and kept(tmp_path)["score"] == 0.9
    assert not (tmp_path / "best.old").exists()


def test_another_run_does_not_inherit_it(data, tmp_path, monkeypatch):
    """Started over, and killed before and after its first checkpoint."""
    scripted(monkeypatch, dict.fromkeys(range(1, 9), 0.9))
    config = configure(data, tmp_path, OFTEN)
    train(config, progress=False)
    scripted(monkeypatch, dict.fromkeys(range(1, 9), 0.1) | {8: 0.2})
    config = config.override("train.eval_every=8")
    with pytest.raises(ZeroDivisionError):
        train(config, resume=False, progress=False, callbacks=[fail_at(1)])
    assert kept(tmp_path)["score"] == 0.9  # until the first checkpoint replaces that of the run before
    with pytest.raises(ZeroDivisionError):
        train(config, resume=False, progress=False, callbacks=[fail_at(3)])
    assert not (tmp_path / "best").exists()
    assert train(config, progress=False).best["score"] == kept(tmp_path)["score"] == 0.2


def test_scores_on_other_photos_are_not_compared(data, tmp_path, monkeypatch):
    values = dict.fromkeys(range(1, 9), 0.1) | {2: 0.9}
    scripted(monkeypatch, values)
    config = configure(data, tmp_path, OFTEN)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(5)])
    scripted(monkeypatch, values, samples="b")
    assert train(config, progress=False).best["score"] == 0.1


def test_a_damaged_record_is_replaced(data, tmp_path, monkeypatch, caplog):
    scripted(monkeypatch, dict.fromkeys(range(1, 9), 0.1) | {2: 0.9})
    config = configure(data, tmp_path, OFTEN)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(5)])
    (tmp_path / "best" / "score.json").write_text("[]")
    assert train(config, progress=False).best["score"] == 0.1 and "the next evaluation replaces it" in caplog.text


def test_a_full_disk_is_one_line_and_the_model_of_before_stays(data, tmp_path, monkeypatch):
    scripted(monkeypatch, {step: step / 10 for step in range(1, 9)})
    config, save = configure(data, tmp_path, OFTEN), FGASeg.save_pretrained

    def full(self, folder, *rest):
        if kept(tmp_path)["step"] == 2:
            raise OSError(28, "No space left on device")
        save(self, folder, *rest)

    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(2)])
    monkeypatch.setattr(FGASeg, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"best: could not be written: No space left .* of before is intact"):
        train(config, progress=False)
    assert kept(tmp_path)["step"] == 2 and fgaseg.load(tmp_path / "best").facts["training"]["steps"] == 2


def test_the_command_says_where_it_is(data, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, dict.fromkeys(range(1, 9), 0.1) | {2: 0.9})
    configure(data, tmp_path / "run", OFTEN).save(tmp_path / "run.yaml")
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert f"best: {tmp_path}/run/best/model (miou_gt 0.9000 at step 2)" in capsys.readouterr().out


# --- early stop


def test_it_stops_when_patience_has_run_out_and_says_so(data, tmp_path, monkeypatch, caplog):
    values = {1: 0.2, 2: 0.1, 3: 0.6, 4: 0.6, 5: 0.5, 6: 0.4, 7: 0.9, 8: 0.3}
    seen = scripted(monkeypatch, values)
    config = configure(data, tmp_path, ["train.patience=3", "train.eval_every=1"])
    summary = train(config, progress=False)
    assert seen == [1, 2, 3, 4, 5, 6] and summary.steps == 6 and summary.best["step"] == 3
    line = "miou_gt has not risen in 3 evaluations (train.patience=3) since 0.6000 at step 3"
    assert summary.stopped_early == line and f"stopped after step 6 of 8: {line}" in caplog.text
    assert json.loads((tmp_path / "summary.json").read_text())["stopped_early"] == line
    assert summary.scores["val"].miou_gt == 0.4 and state(tmp_path)["step"] == 6
    assert FGASeg.from_pretrained(tmp_path / "model").facts["training"]["steps"] == 6


@pytest.mark.parametrize("save_every", [1, 4, 0])
def test_stopped_early_the_same_command_does_nothing_more(data, tmp_path, monkeypatch, save_every):
    scripted(monkeypatch, dict.fromkeys(range(1, 9), 0.1))
    config = configure(data, tmp_path, ["train.patience=2", "train.eval_every=1", f"train.save_every={save_every}"])
    first = train(config, progress=False)
    assert state(tmp_path)["step"] == 3
    weights = FGASeg.from_pretrained(tmp_path / "model").state_dict()
    again = train(config, progress=False)
    assert first.steps == again.steps == 3 and first.history == again.history and first.scores == again.scores
    assert same(FGASeg.from_pretrained(tmp_path / "model").state_dict(), weights)
    assert [entry["step"] for entry in again.history] == [1, 2, 3]


@pytest.mark.parametrize("broken_at", [2, 3, 5])
def test_interrupted_it_stops_where_it_would_have(data, tmp_path, monkeypatch, broken_at):
    values = {1: 0.2, 2: 0.1, 3: 0.6, 4: 0.5, 5: 0.5, 6: 0.4, 7: 0.9, 8: 0.3}
    scripted(monkeypatch, values)
    words = ["train.patience=3", "train.eval_every=1", "train.save_every=2"]
    whole = train(configure(data, tmp_path / "whole", words), progress=False)
    with pytest.raises(ZeroDivisionError):
        train(configure(data, tmp_path / "parts", words), progress=False, callbacks=[fail_at(broken_at)])
    parts = train(configure(data, tmp_path / "parts", words), progress=False)
    assert whole.steps == parts.steps == 6 and whole.history == parts.history
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_patience_that_has_run_out_when_a_run_resumes_ends_it_with_scores(data, tmp_path, monkeypatch):
    """Also between two evaluations, where the model of this step has none yet; a good one goes on."""
    for at_five, steps in ((0.2, 5), (0.95, 8)):
        scripted(monkeypatch, {2: 0.9, 4: 0.1, 5: at_five, 6: 0.99, 8: 0.999})
        out = tmp_path / str(steps)
        config = configure(data, out, ["train.eval_every=2", "train.save_every=1"])
        with pytest.raises(ZeroDivisionError):
            train(config, progress=False, callbacks=[fail_at(6)])
        summary = train(config.override("train.patience=1"), progress=False)
        assert summary.steps == steps and summary.scores["val"].miou_gt == {5: 0.2, 8: 0.999}[steps]
        assert bool(summary.stopped_early) == (steps == 5)


def test_more_patience_goes_on(data, tmp_path, monkeypatch):
    values = {1: 0.5, 2: 0.1, 3: 0.1, 4: 0.9, 5: 0.5, 6: 0.4, 7: 0.1, 8: 0.3}
    scripted(monkeypatch, values)
    config = configure(data, tmp_path, ["train.patience=2", "train.eval_every=1"])
    assert train(config, progress=False).steps == 3
    more = train(config.override("train.patience=4"), progress=False)  # which runs out at the last step
    assert more.steps == 8 and more.stopped_early == "" and more.best["step"] == 4
    assert [entry["step"] for entry in more.history] == list(range(1, 9))


def test_the_figure_is_the_mean_over_the_validation_sets():
    def entry(step, **values):
        return {"step": step, **{name: {"miou_gt": value} for name, value in values.items()}}

    history = [entry(1, seen=0.9, unseen=0.1), entry(2, seen=0.5, unseen=0.6), entry(3, seen=0.8, unseen=0.2)]
    assert evaluations_without_rise(history, "miou_gt") == (1, {"step": 2, "score": 0.55})
    # equal is no rise; evaluations on other sets do not count; NaN never wins
    assert evaluations_without_rise([entry(1, val=0.5), entry(2, val=0.5)], "miou_gt")[0] == 1
    assert evaluations_without_rise([entry(1, a150=0.9), entry(2, val=0.5), entry(3, val=0.6)], "miou_gt")[0] == 0
    assert evaluations_without_rise([entry(1, val=float("nan")), entry(2, val=0.1)], "miou_gt")[0] == 0
    assert figure({"a": {"miou_gt": 0.5}, "b": {"miou_gt": 0.25}}, "miou_gt") == 0.375


def test_only_evaluations_on_the_last_sets_count_and_no_figure_is_none():
    def entry(step, name, value):
        return {"step": step, name: {"miou_gt": value}}

    history = [entry(1, "val", 0.9), entry(2, "a150", 0.5), entry(3, "a150", 0.4), entry(4, "val", 0.5)]
    assert evaluations_without_rise(history, "miou_gt") == (1, {"step": 1, "score": 0.9})
    assert math.isnan(figure({"a": {"miou_gt": None}, "b": {"miou_gt": 0.5}}, "miou_gt"))


def test_what_beats_the_best(tmp_path):
    def scores(correct, samples="a"):
        return {"val": Scores(1, [ClassScore("cat", correct, 10, correct)] if correct is not None else [], samples)}

    recipe, device = TrainConfig(out=tmp_path, keep_best="miou"), torch.device("cpu")
    assert not BestModel(TrainConfig(out=tmp_path), {}, device).is_beaten_by(scores(10))
    best = BestModel(recipe, {"val": None}, device)
    assert best.summary() is None
    best.write(tiny_model(), tiny_model().state_dict(), 3, scores(0))
    assert (tmp_path / "best" / "score.json").read_text().startswith('{\n  "step": 3,\n')
    assert [best.is_beaten_by(one) for one in (scores(0), scores(1), scores(0, "b"), scores(None))] == [
        False, True, True, False]  # fmt: skip
    again = BestModel(recipe, {"val": None}, device)
    assert [again.is_beaten_by(one) for one in (scores(0), scores(None))] == [True, False]
    again.start(resumed=True)
    assert again.summary() == best.summary() == {"model": str(tmp_path / "best" / "model"), "step": 3,
                                                 "metric": "miou_gt", "score": 0.0}  # fmt: skip
    (tmp_path / "best.old").mkdir()  # left where a process was killed after the new one was in its place
    again.start(resumed=True)
    assert again.record == best.record and not (tmp_path / "best.old").exists()


@pytest.mark.parametrize("left_out", ["step", "metric", "score", "scores", "samples", None])
def test_a_record_that_is_not_whole_is_none(tmp_path, caplog, left_out):
    record = {"step": 1, "metric": "miou_gt", "score": 0.5, "scores": {"val": {"miou_gt": 0.5}}, "samples": {}}
    (tmp_path / "best" / "model").mkdir(parents=True)
    content = {key: value for key, value in record.items() if key != left_out}
    (tmp_path / "best" / "score.json").write_text(json.dumps(content))
    best = BestModel(TrainConfig(out=tmp_path, keep_best="miou"), {"val": None}, torch.device("cpu"))
    best.start(resumed=True)
    assert best.record == (None if left_out else record)
    assert ("the next evaluation replaces it" in caplog.text) == bool(left_out)


def test_only_the_first_process_reads_and_removes_and_tells(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "fgaseg")
    scores = {"val": Scores(1, [ClassScore("cat", 5, 10, 5)], "a")}
    best = BestModel(TrainConfig(out=tmp_path, keep_best="miou"), {"val": None}, torch.device("cpu"))
    best.discard_other()  # there is none
    best.write(tiny_model(), tiny_model().state_dict(), 3, scores)
    folder = tmp_path / "best"
    assert caplog.messages == [f"best so far: miou_gt 0.5000 at step 3, in {folder / 'model'}"]
    best.discard_other()
    assert folder.exists()  # it is this run's own
    for name in ("best", "processes"):
        monkeypatch.setattr(f"fgaseg.training.{name}.rank", lambda: 1)
    best.write(tiny_model(), {}, 4, scores)
    assert best.record["step"] == 4 and kept(tmp_path)["step"] == 3 and len(caplog.messages) == 1
    best.start(resumed=True)
    assert best.record is None
    best.discard_other()
    assert folder.exists()
    monkeypatch.setattr("fgaseg.training.best.rank", lambda: 0)
    best.start(resumed=False)
    assert best.record is None
    best.discard_other()
    assert not folder.exists()


def test_the_keys_of_the_configuration(data, tmp_path):
    assert configure(data, tmp_path, ["train.keep_best=miou"]).train.keep_best == "miou_gt"
    assert configure(data, tmp_path, ["train.patience=3"]).train.keep_best == "miou_gt"
    assert configure(data, tmp_path).train.keep_best is None
    for name in FIGURES:
        assert TrainConfig(keep_best=name).keep_best == name
    for words, said in [
        (["train.keep_best=iou"], "should be 'miou_gt', 'miou_union', 'fwiou', 'mean_accuracy' or 'pixel_accuracy'"),
        (["train.patience=3", "train.keep_best=null"], "patience: 3 needs keep_best"),
        (["train.patience=3", "train.eval_every=0"], "patience: 3 needs evaluations to count"),
    ]:
        with pytest.raises(ConfigError, match=said):
            configure(data, tmp_path, words)


def test_without_validation_there_is_no_best_model(data, tmp_path, monkeypatch):
    original = fgaseg.training.trainer.data_sets
    monkeypatch.setattr(fgaseg.training.trainer, "data_sets", lambda config: (original(config)[0], {}))
    with pytest.raises(TrainingError, match=r"train\.keep_best=miou_gt: nothing is scored"):
        train(configure(data, tmp_path, OFTEN), progress=False)
    shutil.rmtree(tmp_path)
