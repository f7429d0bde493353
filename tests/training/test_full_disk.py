"""A full disk costs no training."""

import json
import os
import resource

import pytest
from runs import assert_same_run, configure, fail_at, start

from fgaseg import FGASeg
from fgaseg.errors import CheckpointError
from fgaseg.training import train
from fgaseg.training.reporting import JsonLines


@pytest.mark.slow
def test_full_disk_in_a_real_process(uninterrupted, data, tmp_path):
    """The kernel refuses to let any file grow: what a full disk looks like from inside."""
    out = tmp_path / "out"
    config = configure(data, out)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callbacks=[fail_at(3)])
    kept = {path.name: path.read_bytes() for path in (out / "checkpoint").iterdir()}
    limit = (1 << 20, resource.RLIM_INFINITY)
    process = start(config, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert (
        last.startswith("fgaseg train: ") and str(out / "checkpoint") in last and "intact" in last and "resume" in last
    ), errors
    assert {path.name: path.read_bytes() for path in (out / "checkpoint").iterdir()} == kept
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint",
        "config.yaml",
        "log.jsonl",
    ]  # nothing half-written
    train(config, progress=False)
    assert_same_run(out, uninterrupted[0])


def test_full_disk_at_the_very_end_loses_no_training(uninterrupted, data, tmp_path, monkeypatch):
    config = configure(data, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FGASeg, "save_pretrained", full)
        with pytest.raises(CheckpointError, match=r"No space left.*holds the finished training"):
            train(config, progress=False)
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_under_tensorboard_stops_tensorboard_only(uninterrupted, data, tmp_path, monkeypatch, caplog):
    from tensorboard.summary.writer.record_writer import RecordWriter

    written, write = [], RecordWriter.write

    def filling(self, record):
        written.append(record)
        if len(written) > 5:
            raise OSError(28, "No space left on device")
        write(self, record)

    monkeypatch.setattr(RecordWriter, "write", filling)
    train(configure(data, tmp_path, ["train.tensorboard=true"]), progress=False)
    assert caplog.text.count("TensorBoard stops at step") == 1
    assert_same_run(tmp_path, uninterrupted[0])


def test_a_full_disk_under_the_log_leaves_whole_lines(tmp_path, monkeypatch):
    log = JsonLines(tmp_path / "log.jsonl", 0, ())
    log.add({"step": 1, "set": "train", "loss": float("nan")})
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, line: write(fd, line[:5]))
    with pytest.raises(OSError, match="No space"):
        log.add({"step": 2, "set": "train"})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "set": "train", "loss": None}
