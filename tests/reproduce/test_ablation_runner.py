"""Running the rows: trained once, resumed after a kill, shared among processes, failures recorded."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from fgaseg.cli import main
from fgaseg.errors import NotFiniteError, TrainingError
from fgaseg.reproduce.ablations import jobs, markdown, run_ablations, runner
from fgaseg.reproduce.ablations.jobs import Job
from fgaseg.reproduce.ablations.tables import DEFAULT, TABLES, Table
from fgaseg.reproduce.demo import demo_config

BASE = demo_config(DEFAULT)


def written(folder, name):
    """When each file of that name below the folder was last written."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob(name)}


def test_rows_of_a_tiny_model_from_encoders_trained_first(tiny_yaml, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["ablate", "v", "VI", "--on", tiny_yaml, "--out", str(out), "--steps", "2", "--json"]
    assert main(command) == 0
    results = json.loads(capsys.readouterr().out)
    assert json.loads((out / "results.json").read_text()) == results
    rows = {row["labels"][0]: row for part in results["tables"]["V"] for row in part}
    assert set(rows) == {"Fast+Cat", "Fast+Add", "NoFast+Cat", "NoFast+Add"}
    assert all(set(row["miou"]) == {"seen", "unseen"} for row in rows.values())
    pruned = results["tables"]["VI"][0]
    assert [row["folder"] for row in pruned] == [rows["Fast+Cat"]["folder"]] * 5
    assert all(row["milliseconds"]["seen"] > 0 for row in pruned)
    assert pruned[2]["miou"] == rows["Fast+Cat"]["miou"]  # that row was scored with k = 8
    assert len(results["default_row"]) == 5 and results["noise"]["seen"]["degrees_of_freedom"] == 4
    encoders = out / results["encoders"]["folder"]
    assert json.loads((encoders / "summary.json").read_text())["steps"] == results["encoders"]["steps"] == 3
    start = yaml.safe_load((out / rows["NoFast+Add"]["folder"] / "config.yaml").read_text())
    assert start["model"]["encoder"]["pretrained"] == str(encoders / "model") and start["train"]["steps"] == 2
    assert not list(out.rglob("checkpoint"))
    text = (out / "tables.md").read_text()
    assert text == markdown(results) and "trained alone for 3 steps" in text and "## Table VI" in text
    before = written(out, "summary.json")
    assert main(command) == 0  # nothing is trained again
    assert json.loads(capsys.readouterr().out) == results
    assert before == written(out, "summary.json")


@pytest.mark.slow
def test_a_killed_run_resumes_in_its_row_and_ends_in_the_same_scores(tiny_yaml, tmp_path, capsys):
    arguments = ["ablate", "VII", "--on", tiny_yaml, "--steps", "8", "train.save_every=2", "data.val_count=1"]
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "fgaseg", *arguments, "--out", str(out)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip

    def in_the_middle_of_a_later_row():
        done = {file.parent for file in out.glob("*/result.json")}
        return len(done) >= 2 and any(folder.parent not in done for folder in out.glob("*/checkpoint"))

    while not in_the_middle_of_a_later_row():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {file: file.stat().st_mtime_ns for file in out.glob("*/result.json")}
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert "resuming" in printed.err
    assert all(file.stat().st_mtime_ns == when for file, when in finished.items())
    assert main([*arguments, "--out", str(tmp_path / "whole"), "--json"]) == 0
    assert not list(tmp_path.glob("*/*/checkpoint*"))  # nor the one before the last
    whole, killed = json.loads(capsys.readouterr().out), json.loads(printed.out)
    assert [row["miou"] for row in killed["tables"]["VII"][0]] == [row["miou"] for row in whole["tables"]["VII"][0]]


def test_a_row_that_another_process_trains_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "train", None)  # training here would fail
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.05)
    job = Job(tmp_path / "row", BASE)

    def other():
        with runner.lock(job.folder) as acquired:
            assert acquired
            held.set()
            time.sleep(0.3)
            job.file.write_text('{"scores": {}}')

    held = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    assert [one.result for one in runner.finish([job])] == [{"scores": {}}]
    thread.join()


def test_a_row_that_diverges_is_recorded_as_failed_and_the_others_continue(tiny_yaml, tmp_path, monkeypatch):
    train = runner.train

    def diverging(config):
        if config.model.kernel_norm == "none":
            raise NotFiniteError("step 3: loss or gradient is not finite")
        return train(config)

    monkeypatch.setattr(runner, "train", diverging)
    # one seed, one small table
    monkeypatch.setattr(jobs, "NOISE_SEEDS", ())
    monkeypatch.setitem(TABLES, "IV", Table("Table IV", TABLES["IV"].parts[1:]))
    results = run_ablations(["IV"], tiny_yaml, 1, out=tmp_path / "out")
    none, taps, channels = results["tables"]["IV"][0]
    assert "not finite" in none["failed"] and taps["miou"] and channels["miou"]
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| none | failed | failed | 29.4 |" in text and "not both rows have a figure" in text
    assert "Noise of seen: unknown, one seed only" in text


def test_an_interrupted_row_has_not_failed(tmp_path, monkeypatch):
    def dying(config):
        raise TrainingError("a loader worker died before step 3")

    monkeypatch.setattr(runner, "train", dying)
    job = Job(tmp_path / "row", BASE)
    with pytest.raises(TrainingError, match="worker died"):
        list(runner.finish([job]))
    assert job.result is None


@pytest.mark.parametrize(
    "arguments, message",
    {
        "unknown table": (["VIII"], "table 'VIII': unknown; give any of II, III, IV, V, VI, VII"),
        "no steps": (["II", "--steps", "0"], "--steps 0"),
        "its own key": (["II", "train.seed=3"], "use --out, --seed and --steps"),
        "misspelt key": (["II", "train.btach=3"], "train.batch"),
        "no file": (["II", "--on", "nowhere.yaml"], "nowhere.yaml"),
    }.values(),
)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["ablate", *arguments, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("fgaseg ablate: ") and "Traceback" not in error
    assert not out.exists()


def test_torchrun_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ablate", "II", "--out", str(tmp_path)]) == 1
    assert "several processes with one --out" in capsys.readouterr().err
