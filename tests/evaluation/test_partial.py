"""An evaluation that was interrupted ends in the figures of one that was not."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model

from fgaseg import FGASeg
from fgaseg.cli import main
from fgaseg.errors import ProcessLostError, UnfinishedError
from fgaseg.evaluation import EvalOptions, evaluate, evaluate_with_provenance
from fgaseg.evaluation.evaluator import run_evaluation
from fgaseg.evaluation.partial import PartialCounts
from fgaseg.evaluation.scores import ConfusionMatrix
from fgaseg.evaluation.state import EvalState
from fgaseg.weights import read_weights


def as_process(monkeypatch, rank, processes):
    for name, value in (("rank", rank), ("world_size", processes)):
        monkeypatch.setattr(f"fgaseg.evaluation.evaluator.{name}", lambda value=value: value)
    monkeypatch.setattr("fgaseg.evaluation.partial.rank", lambda: rank)


def test_resumes_where_it_was_stopped(model, dataset, interrupted, tmp_path, monkeypatch):
    whole = evaluate_with_provenance(model, dataset, "val")
    interrupted(model, dataset, 4, out=tmp_path)
    interrupted(model, dataset, 3, out=tmp_path)
    predicted = []
    predict = FGASeg.predict_labels
    monkeypatch.setattr(FGASeg, "predict_labels", lambda self, *a: predicted.append(1) or predict(self, *a))
    result = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    assert len(predicted) == 12 - 7
    assert result.scores == whole.scores and result.hash == whole.hash
    evaluate_with_provenance(model, dataset, "val", out=tmp_path, restart=True)
    assert len(predicted) == 5 + 12


def test_the_saved_format_stays(model, dataset, interrupted, tmp_path):
    """Those of an earlier version lacked the last three."""
    interrupted(model, dataset, 4, out=tmp_path)
    tensors = read_weights(tmp_path / "val.part0.safetensors")
    assert {key: list(value.shape) for key, value in tensors.items()} == {
        "matrix": [5, 5],
        "pictures": [4],
        "done": [4],
        "lengths": [4],
        "counts": [20, 4],
        "stems": [len('["0", "1", "10", "11"]')],
    }
    empty = EvalState(ConfusionMatrix(5)).tensors()
    for found in (tensors, empty):  # stopped at the first sample, too
        assert {key for key, value in found.items() if value.dtype != torch.int64} == {"stems"}
        assert found["stems"].dtype == torch.uint8


def test_parts_of_several_processes_are_added_once(model, dataset, interrupted, tmp_path, monkeypatch):
    """Two processes were killed; a third merged their parts and was killed before it removed one of them."""
    whole = evaluate_with_provenance(model, dataset, "val")
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            as_process(patch, rank, 2)
            patch.setattr(PartialCounts, "restore", lambda *_: None)  # they ran at the same time
            interrupted(model, dataset, 3, out=tmp_path)
    parts = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert [file.name for file in sorted(parts)] == ["val.part0.safetensors", "val.part1.safetensors"]
    interrupted(model, dataset, 0, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["val.part0.safetensors"]
    (tmp_path / "val.part1.safetensors").write_bytes(parts[tmp_path / "val.part1.safetensors"])
    assert evaluate_with_provenance(model, dataset, "val", out=tmp_path).scores == whole.scores


def test_a_process_that_finished_its_share_saves_it_when_another_was_stopped(model, dataset, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        as_process(patch, 0, 2)
        assert evaluate_with_provenance(model, dataset, "val", out=tmp_path) is None
    assert read_weights(tmp_path / "val.part0.safetensors")["done"].tolist() == [0, 2, 4, 6, 8, 10]


def test_an_error_keeps_what_was_counted(model, dataset, folder, tmp_path):
    good, dataset.pairs[7] = dataset.pairs[7], ("gone", folder / "gone.png", dataset.pairs[7][2])
    partial = PartialCounts(tmp_path, "val", {})
    with pytest.raises(ValueError, match="gone"):
        run_evaluation(model, dataset, EvalOptions(), partial=partial)
    state = EvalState(ConfusionMatrix(5))
    partial.restore(state)
    assert state.done == set(range(7))
    dataset.pairs[7] = good
    assert run_evaluation(model, dataset, EvalOptions(), partial=partial) == evaluate(model, dataset)


def test_another_evaluation_is_refused_and_the_difference_named(model, dataset, interrupted, tmp_path):
    interrupted(model, dataset, 4, out=tmp_path)
    other = tiny_model(seed=1, template="a {}")
    with pytest.raises(UnfinishedError, match=r"text\.templates was .*a photo of a.*; weights was .*--restart"):
        evaluate_with_provenance(other, dataset, "val", out=tmp_path)
    label = dataset.pairs[0][2]
    before = label.stat()
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        with pytest.raises(UnfinishedError, match="files was"):
            evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    finally:
        os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert evaluate_with_provenance(model, dataset, "val", out=tmp_path) is not None


def test_restarted_and_stopped_it_resumes(model, dataset, interrupted, tmp_path):
    evaluate_with_provenance(tiny_model(seed=1), dataset, "val", out=tmp_path)
    interrupted(model, dataset, 4, out=tmp_path, restart=True)
    assert [file.name for file in tmp_path.iterdir()] == ["val.part0.safetensors"]
    result = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    assert result.scores == evaluate_with_provenance(model, dataset, "val").scores


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]],
                         ids=["cut short", "one bit"])  # fmt: skip
def test_a_damaged_part_is_reported_and_scored_again(model, dataset, interrupted, tmp_path, damage):
    interrupted(model, dataset, 4, out=tmp_path)
    part = tmp_path / "val.part0.safetensors"
    part.write_bytes(damage(part.read_bytes()))
    with pytest.warns(
        UserWarning, match=r"part0\.safetensors: cannot be resumed from \(.*\); its images are scored again"
    ):
        result = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    assert result.scores == evaluate_with_provenance(model, dataset, "val").scores


def test_progress_without_a_terminal_is_lines_in_the_log(model, dataset, interrupted, tmp_path, monkeypatch, caplog):
    interrupted(model, dataset, 4, out=tmp_path)
    monkeypatch.setattr("fgaseg.progress.LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "fgaseg"):
        evaluate_with_provenance(model, dataset, "val", EvalOptions(progress=True), out=tmp_path)
    assert caplog.messages[0] == "resuming: 4 of 12 images were scored before"
    counts = [message.split(",")[0] for message in caplog.messages[1:]]
    assert counts == [f"scoring: {number} of 12" for number in range(5, 13)]


@pytest.mark.parametrize("rank, expected", [(0, [f"scoring, process 0 of 2: {n} of 6" for n in range(1, 7)]), (1, [])])
def test_the_first_of_several_processes_shows_its_share(rank, expected, constant, dataset, monkeypatch, caplog):
    monkeypatch.setattr("fgaseg.progress.LOG_SECONDS", 0.0)
    as_process(monkeypatch, rank, 2)
    with caplog.at_level(logging.INFO, "fgaseg"):
        assert run_evaluation(constant, dataset, EvalOptions(progress=True)).images == 6
    assert [message.rsplit(", ", 2)[0] for message in caplog.messages] == expected


def test_counts_are_saved_every_half_minute_until_all_are_counted(constant, dataset, tmp_path, monkeypatch):
    """Ten seconds an image."""
    now, saved = [1000.0], []
    monkeypatch.setattr("fgaseg.evaluation.partial.time", SimpleNamespace(monotonic=lambda: now[0]))
    save, predict = PartialCounts.save, constant.predict_labels
    monkeypatch.setattr(PartialCounts, "save", lambda self, state: saved.append(len(state.done)) or save(self, state))

    def slow(*arguments):
        now[0] += 10
        return predict(*arguments)

    constant.predict_labels = slow
    run_evaluation(constant, dataset, EvalOptions(count=11), partial=PartialCounts(tmp_path, "val", {}))
    assert saved == [3, 6, 9]


def test_a_stopped_process_saves_before_it_waits_for_the_others(constant, dataset, tmp_path, monkeypatch):
    def lost(*_):
        raise ProcessLostError("gone")

    monkeypatch.setattr(EvalState, "scores", lost)
    asked = iter(range(100))
    options, partial = EvalOptions(stop=lambda: next(asked) >= 4), PartialCounts(tmp_path, "val", {})
    with pytest.raises(ProcessLostError):
        run_evaluation(constant, dataset, options, partial=partial)
    assert read_weights(tmp_path / "val.part0.safetensors")["done"].tolist() == [0, 1, 2, 3]


def test_parts_are_taken_in_the_order_of_their_processes(tmp_path):
    """A damaged one hides no other, and one that is gone meanwhile is no error."""
    for number in (10, 2, 0):
        (tmp_path / f"val.part{number}.safetensors").touch()
    partial, state = PartialCounts(tmp_path, "val", {}), EvalState(ConfusionMatrix(2))
    parts = partial.files()
    assert [file.name.split(".")[1] for file in parts] == ["part0", "part2", "part10"]
    state.add(3, "photo", torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(4, dtype=torch.int64))
    partial.save(state)
    parts[0].rename(parts[2])
    parts[0].touch()
    found = EvalState(ConfusionMatrix(2))
    with pytest.warns(UserWarning, match=r"part[02]\.safetensors: cannot be resumed from"):
        partial.restore(found)
    assert found.done == {3} and partial.files() == parts[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialCounts, "files", lambda _: [tmp_path / "gone", *parts[:1]])
        partial.remove()
    assert partial.files() == []


SLOW = """
import sys, time
import fgaseg.evaluation.partial
from fgaseg import FGASeg
from fgaseg.cli import main
predict = FGASeg.predict_labels
def slow(self, *arguments):
    time.sleep(0.15)
    return predict(self, *arguments)
FGASeg.predict_labels, fgaseg.evaluation.partial.SAVE_SECONDS = slow, 0.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_killed_it_resumes_with_another_number_of_processes(
    kind, saved_model, folder, model, dataset, tmp_path, capsys
):
    flags = [word for key in ("images", "labels") for word in (f"--{key}", str(folder / key))]
    command = ["eval", str(saved_model), *flags, "--names", str(folder / "names.txt"), "--out", str(tmp_path / "out"),
               "--json", "--device", "cpu"]  # fmt: skip
    run = subprocess.Popen([sys.executable, "-c", SLOW, *command], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "val.part0.safetensors").exists() and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(kind)
    error = run.communicate()[1]
    assert run.returncode == (-9 if kind == signal.SIGKILL else 128 + kind), error
    if kind != signal.SIGKILL:
        assert "run the same command again to resume" in error and "Traceback" not in error
    done = read_weights(tmp_path / "out" / "val.part0.safetensors")["done"]
    assert 0 < len(done) < 12
    if kind == signal.SIGKILL:  # two processes finish what one began
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fgaseg"]
        finished = subprocess.run([*torchrun, *command], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        found = json.loads(finished.stdout)
        assert found["records"]["val"]["free"]["processes"] == 2
    else:
        assert main(command) == 0
        found = json.loads(capsys.readouterr().out)
    whole = evaluate_with_provenance(model, dataset, "val")
    assert found["details"]["val"] == whole.scores.details()
    assert found["scores"]["val"] == whole.scores.dump() and found["records"]["val"]["hash"] == whole.hash
