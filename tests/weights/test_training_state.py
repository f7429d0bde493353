"""A whole training checkpoint is found whatever happens to a disk, a file or the process."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from fgaseg.errors import CheckpointError
from fgaseg.files import atomic_write
from fgaseg.weights import load_training, remove_leftovers, save_training, set_damaged_aside


def full_disk(*_):
    raise OSError(28, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """Stands for SIGKILL: no clean-up runs after it."""


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_full_disk_keeps_the_previous_training_checkpoint(tmp_path, monkeypatch, call):
    model, folder = nn.Linear(2, 2), tmp_path / "checkpoint"
    save_training(folder, model.state_dict(), {"step": 1})
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(os, "fdopen", lambda fd, mode: (os.close(fd), full_disk()))
        else:
            patch.setattr(os, call, full_disk)
        with pytest.raises(CheckpointError, match="No space left") as caught:
            save_training(folder, nn.Linear(2, 2).state_dict(), {"step": 2})
    assert str(folder) in str(caught.value) and "intact" in str(caught.value)
    assert names(tmp_path) == ["checkpoint"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_training_state_round_trip_and_absence(tmp_path):
    model = nn.Linear(2, 2)
    assert load_training(tmp_path / "checkpoint", model) is None
    save_training(
        tmp_path / "checkpoint", model.state_dict(), {"step": 7, "history": [{"step": 5, "val": {"miou_gt": 0.5}}]}
    )
    other = nn.Linear(2, 2)
    assert load_training(tmp_path / "checkpoint", other)["history"][0]["val"]["miou_gt"] == 0.5
    assert torch.equal(other.weight, model.weight)


def three_saves(folder):
    model = nn.Linear(2, 2)
    for step in (1, 2, 3):
        save_training(folder, model.state_dict(), {"step": step})
    return model


def flip(path, bit=0):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    path.write_bytes(data)


def truncate(path):  # by two: a last line without its end is whole
    path.write_bytes(path.read_bytes()[:-2])


def test_the_last_two_training_checkpoints_are_kept(tmp_path):
    model = three_saves(tmp_path / "checkpoint")
    assert names(tmp_path) == ["checkpoint", "checkpoint.old"]
    assert [load_training(tmp_path / name, model)["step"] for name in names(tmp_path)] == [3, 2]
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "checkpoint", check=False)
    assert done.returncode == 0
    assert set_damaged_aside(tmp_path / "checkpoint") == ""
    save_training(tmp_path / "checkpoint", model.state_dict(), {"step": 4}, keep_previous=False)
    assert names(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("harm", [flip, truncate, os.unlink], ids=["flip", "truncate", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "SHA256SUMS"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, name, harm):
    folder = tmp_path / "checkpoint"
    model = three_saves(folder)
    harm(folder / name)
    said = set_damaged_aside(folder)
    assert "damaged" in said and str(folder) in said and f"{folder}.damaged" in said
    assert load_training(folder, model)["step"] == 2
    assert names(tmp_path) == ["checkpoint", "checkpoint.damaged"]
    save_training(folder, model.state_dict(), {"step": 3})
    assert set_damaged_aside(folder) == "" and load_training(folder, model)["step"] == 3


def test_two_damaged_checkpoints_are_an_error_and_stay(tmp_path):
    folder = tmp_path / "checkpoint"
    three_saves(folder)
    flip(folder / "state.pt")
    flip(tmp_path / "checkpoint.old" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint/state.pt: damaged.*checkpoint.old/model.safetensors: dama"):
        set_damaged_aside(folder)
    shutil.rmtree(tmp_path / "checkpoint.old")
    with pytest.raises(CheckpointError, match=r"state.pt: damaged.*no previous checkpoint"):
        set_damaged_aside(folder)
    assert names(tmp_path) == ["checkpoint"]


def test_wherever_a_save_or_a_fall_back_is_killed_a_whole_checkpoint_is_found(tmp_path, monkeypatch):
    """Stopped at each rename and removal in turn; what is found then is whole, and no older than it must be."""
    folder = tmp_path / "checkpoint"
    for damaged in (False, True):
        for stop in range(20):
            for leftover in tmp_path.iterdir():
                shutil.rmtree(leftover)
            model, calls = three_saves(folder), []
            if damaged:
                flip(folder / "state.pt")

            def counted(original, calls=calls, stop=stop):
                def call(*arguments, **options):
                    if len(calls) == stop:
                        raise Killed
                    calls.append(arguments)
                    return original(*arguments, **options)

                return call

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", counted(os.replace))
                patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
                try:
                    set_damaged_aside(folder)
                    save_training(folder, model.state_dict(), {"step": 4})
                except Killed:
                    pass
                finished = len(calls) < stop
            remove_leftovers(tmp_path)
            set_damaged_aside(folder)
            step = load_training(folder, model)["step"]
            assert step == 4 if finished else step in ((2, 4) if damaged else (3, 4)), (damaged, stop, calls)
            if finished:
                break
        assert finished


@pytest.mark.parametrize("name", ["config.yaml", "log.jsonl", "nan_batch.safetensors", "summary.json"])
def test_what_a_kill_leaves_of_any_file_of_a_training_is_removed(tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        atomic_write(tmp_path / name, kill)
    assert len(names(tmp_path)) == 1
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_of_leftovers_only_our_own_are_removed(tmp_path, monkeypatch):
    own = (".checkpoint.x1.tmp", ".best.x2.tmp", "model/.tokenizer.x3.tmp")
    for name in (*own, "mine", "model/.mine.x.tmp"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    for name in ("model/.README.md.x.tmp", ".notes.txt.x.tmp"):
        (tmp_path / name).touch()
    with monkeypatch.context() as patch:  # what cannot be removed stays, and is no reason to stop
        patch.setattr(os, "rmdir", lambda *_, **__: full_disk())
        remove_leftovers(tmp_path)
    assert names(tmp_path / "model") == [".mine.x.tmp", ".tokenizer.x3.tmp"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".notes.txt.x.tmp", "mine", "model"] and names(tmp_path / "model") == [".mine.x.tmp"]
    (tmp_path / ".log.jsonl.x.tmp").touch()
    is_dir = Path.is_dir

    def removed_by_another_process(path):
        return path.unlink() if path.suffix == ".tmp" else is_dir(path)

    monkeypatch.setattr(Path, "is_dir", removed_by_another_process)
    remove_leftovers(tmp_path)
    assert not (tmp_path / ".log.jsonl.x.tmp").exists()


def test_a_checkpoint_that_was_set_aside_before_gives_way(tmp_path):
    folder = tmp_path / "checkpoint"
    for _ in range(2):
        model = three_saves(folder)
        flip(folder / "state.pt")
        assert f"the damaged one is kept in {folder}.damaged" in set_damaged_aside(folder)
        assert load_training(folder, model)["step"] == 2 and names(tmp_path) == ["checkpoint", "checkpoint.damaged"]


@pytest.mark.parametrize("state", [["step"], {"epoch": 3}], ids=["a list", "no step"])
def test_what_is_no_state_of_a_training_is_refused(tmp_path, state):
    model, folder = nn.Linear(2, 2), tmp_path / "checkpoint"
    save_training(folder, model.state_dict(), {"step": 1})
    torch.save(state, folder / "state.pt")
    with pytest.raises(CheckpointError, match="checkpoint/state.pt: not a training state written by fgaseg train"):
        load_training(folder, model)


def kill(_):
    raise Killed
