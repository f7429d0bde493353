"""Files are whole or absent, and nothing in a file from a stranger runs."""

import os
import pickle
import shutil
import stat
import subprocess
import warnings
import zipfile

import pytest
import torch
from torch import nn

from fgaseg.errors import CheckpointError
from fgaseg.files import atomic_directory, atomic_write, complete_directory
from fgaseg.weights.model_files import load_weights, read_weights, write_weights
from fgaseg.weights.training_state import load_training, remove_leftovers, save_training, set_damaged_aside, write_sums


def full_disk(*_):
    raise OSError(28, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_replaces_and_is_readable_by_others(tmp_path):
    path = tmp_path / "new" / "file"
    atomic_write(path, lambda file: file.write(b"one"))
    atomic_write(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two" and names(path.parent) == ["file"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half(file):
        file.write(b"ha")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, half)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_atomic_write_flushes_before_it_renames(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    atomic_write(tmp_path / "file", lambda file: file.write(b"x"))
    assert events == ["fsync", "rename", "fsync"]  # the content, the name, the folder that holds the name


def test_atomic_directory_replaces(tmp_path):
    for content in ("one", "two"):
        with atomic_directory(tmp_path / "folder") as folder:
            (folder / content).write_text(content)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["two"]


def test_atomic_directory_that_fails_leaves_the_old_one(tmp_path):
    with atomic_directory(tmp_path / "folder") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "folder") as folder:
        (folder / "new").write_text("new")
        raise ZeroDivisionError
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


class Killed(BaseException):
    """Stands for SIGKILL: no clean-up runs after it."""


def test_a_complete_directory_exists_wherever_the_process_is_killed(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    for stop in range(4):  # before the first rename, between the two, after the second, not at all
        for leftover in tmp_path.iterdir():
            shutil.rmtree(leftover)
        with atomic_directory(path) as folder:
            (folder / "content").write_text("old")
        done = []

        def rename(source, target, replace=os.replace, done=done, stop=stop):
            if len(done) == stop:
                raise Killed
            replace(source, target)
            done.append(target)
            if len(done) == stop == 2:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", rename)
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            try:
                with atomic_directory(path) as folder:
                    (folder / "content").write_text("new")
            except Killed:
                pass
        found = complete_directory(path)
        assert found is not None and (found / "content").read_text() == ("old" if stop < 2 else "new"), stop
        remove_leftovers(tmp_path)
        assert complete_directory(path) == found
        with atomic_directory(path) as folder:  # and the next one lands
            (folder / "content").write_text("newest")
        assert names(tmp_path) == ["checkpoint"] and (path / "content").read_text() == "newest"


def test_weights_round_trip_with_every_container(tmp_path):
    state = {"a": torch.randn(3, 4).t(), "b": torch.arange(3), "c": torch.zeros(0)}
    write_weights(tmp_path / "model.safetensors", state)
    torch.save(state, tmp_path / "flat.pt")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(
        {"model": {f"module.{key}": value for key, value in state.items()}, "iteration": 3}, tmp_path / "trainer.pth"
    )
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    for source in [tmp_path, *tmp_path.iterdir()]:
        read = read_weights(source)
        assert read.keys() == state.keys(), source
        assert all(torch.equal(read[key], state[key]) for key in state), source


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path):
    for length in range(560, 640):  # a header of 640 bytes begins with 80 02, like a pickle
        path = tmp_path / "weights"
        write_weights(path, {"a" * length: torch.ones(1)})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        raise AssertionError("no header of 640 bytes came up")
    assert read_weights(path)["a" * length] == 1


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "protocol 2", "protocol 4", "state_dict", "training"])
def test_malicious_pickle_is_named_and_not_run(tmp_path, kind):
    path, proof = tmp_path / "weights.pt", tmp_path / "proof"
    evil = Evil(proof)
    if kind == "zip":
        torch.save(evil, path)
    elif kind == "legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif kind == "state_dict":
        torch.save({"model": {"a": torch.zeros(1)}, "extra": evil}, path)
    elif kind == "training":
        model = nn.Linear(2, 2)
        save_training(tmp_path / "checkpoint", model.state_dict(), {"step": 1})
        path = tmp_path / "checkpoint" / "state.pt"
        torch.save({"step": evil}, path)
        write_sums(path.parent)  # whoever can write the one can write the other
    else:
        path.write_bytes(pickle.dumps(evil, protocol=int(kind[-1])))
    with pytest.raises(CheckpointError, match=path.name) as caught:
        load_training(tmp_path / "checkpoint", model) if kind == "training" else read_weights(path)
    assert not proof.exists()
    assert len(str(caught.value).splitlines()) == 1
    if kind in ("zip", "legacy", "state_dict"):
        assert "posix.mkdir" in str(caught.value) and "refused" in str(caught.value)
    pickle.loads(path.read_bytes()) if kind.startswith("protocol") else torch.load(path, weights_only=False)
    assert proof.exists()  # the file would have worked: the test can fail


def test_every_truncation_is_an_error(tmp_path):
    state = {"a": torch.randn(50), "b": torch.randn(50)}
    write_weights(tmp_path / "whole.safetensors", state)
    torch.save(state, tmp_path / "whole.pt")
    torch.save(state, tmp_path / "whole-legacy.pt", _use_new_zipfile_serialization=False)
    for whole in sorted(tmp_path.glob("whole*")):
        data = whole.read_bytes()
        path = tmp_path / f"cut-{whole.name}"
        for length in {0, 1, 4, 8, 9, 20, 60, len(data) // 2, len(data) - 50, len(data) - 1}:
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=path.name) as caught:
                read_weights(path)
            assert len(str(caught.value).splitlines()) == 1


def test_foreign_files_are_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    (tmp_path / "page.pt").write_text("<html>404 not found</html>")
    (tmp_path / "empty.pt").touch()
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("a", "b")
    words = {
        "list.pt": "not a state dict",
        "mixed.pt": "'epoch' is of type int",
        "module.pt": "torch.nn.modules.linear.Linear",
        "script.pt": "TorchScript",
        "page.pt": "neither a safetensors nor a torch.save file",
        "empty.pt": "empty",
        "archive.pt": "not a torch.save file",
        "missing.pt": "No such file",
    }
    for name, word in words.items():
        with pytest.raises(CheckpointError, match=word) as caught:
            read_weights(tmp_path / name)
        assert name in str(caught.value)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_copied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = {key: value + 1 for key, value in before.items() if key != "0.bias"} | {"head.weight": torch.zeros(1)}
    other["1.weight"] = torch.zeros(3, 2)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, other, "some/file.pt")
    message = str(caught.value)
    for part in ("some/file.pt", "0.bias", "head.weight", "1.weight [3, 2], not [2, 2]"):
        assert part in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_long_lists_of_keys_are_shortened():
    with pytest.raises(CheckpointError, match="and 12 more"):
        load_weights(nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)]), {}, "file")


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
    with pytest.raises(CheckpointError, match=r"state.pt: damaged.*no checkpoint before it"):
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


def kill(_):
    raise Killed
