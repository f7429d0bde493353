"""When a published checkpoint is fetched and converted, and when what is on this disk will do; nothing is fetched."""

import json
import logging
from dataclasses import replace
from hashlib import sha256

import pytest

from fgaseg.errors import CheckpointError
from fgaseg.model import published
from fgaseg.model.published import cache_place, converted_folder, here, read_record
from fgaseg.weights import MODELS
from fgaseg.weights.hub import Fetched

MODEL, COMMIT = replace(MODELS["cat-seg-b16"], sha256="abc"), "a" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What was fetched, in place of the hub, whose branches are at `commit`."""

    class Hub:
        calls, commit, size, names = [], COMMIT, 3_000_000, ["README.md", "x.pth"]

        def fetch(self, folder, *args, announce, **options):
            announce(self.size)
            folder.mkdir(parents=True)
            (folder / "fetched").write_bytes(b"checkpoint")
            self.calls.append((*args, options))
            return Fetched(folder / "fetched", self.commit, "abcdef")

    found = Hub()
    found.calls = []
    monkeypatch.setattr(published.constants, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(published, "fetch_to", found.fetch)
    monkeypatch.setattr(published, "current_commit", lambda *args, **options: found.commit)
    monkeypatch.setattr(published, "list_files", lambda *args, **options: found.names)

    def convert(model, fetched, folder):
        (folder / "weights").write_bytes(fetched.path.read_bytes())
        record = {"file": model.file, "commit": fetched.commit}
        record["converted"] = {"weights": sha256(b"checkpoint").hexdigest()}
        (folder / "source.json").write_text(json.dumps(record))

    monkeypatch.setattr(published, "_convert", convert)
    return found


def test_a_checkpoint_is_fetched_once_and_nothing_else_is_left(hub, tmp_path, caplog):
    leftover = cache_place(MODEL).with_name(".main.xyz.tmp")
    leftover.mkdir(parents=True)
    folder = converted_folder(MODEL)
    assert folder == cache_place(MODEL) == converted_folder(MODEL) == here(MODEL)
    options = {"repo_type": "space", "revision": None, "sha256": "abc"}
    assert hub.calls == [("hamacojr/CAT-Seg-weights", "model_base.pth", options)]
    assert sorted(path.name for path in folder.parent.iterdir()) == [".main.lock", "main"]
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert said.getMessage().startswith(
        "cat-seg-b16: fetching spaces/hamacojr/CAT-Seg-weights/model_base.pth, 3 MB, from http"
    )
    assert said.getMessage().endswith(f", once; licence: {MODEL.licence}")


@pytest.mark.parametrize(
    "size, known, said", [(None, None, ""), (None, 2_000_000, ", 2 MB"), (5_000, 2_000_000, ", 5 kB")]
)
def test_the_size_is_what_the_hub_says_else_what_is_known(size, known, said, hub, caplog):
    hub.size = size
    converted_folder(replace(MODEL, size=known))
    assert f"model_base.pth{said}, from http" in caplog.text


def test_files_that_changed_are_made_again(hub, caplog):
    folder = converted_folder(MODEL)
    for damage in (
        lambda: (folder / "weights").write_bytes(b"other"),
        lambda: (folder / "weights").unlink(),
        lambda: (folder / "source.json").unlink(),
        lambda: (folder / "source.json").write_text("[]"),
        lambda: (folder / "source.json").write_text('{"converted": {}}'),
    ):
        damage()
        caplog.clear()
        hub.calls.clear()
        assert converted_folder(MODEL) == folder and len(hub.calls) == 1
        assert "main: the files are not as they were written; cat-seg-b16 is fetched again" in caplog.text
        assert (folder / "weights").read_bytes() == b"checkpoint"


def test_a_branch_is_asked_for_and_a_commit_is_not(hub, monkeypatch):
    folder = converted_folder(MODEL, "v1")
    assert folder.name == "v1" and hub.calls[0][2] == {"repo_type": "space", "revision": "v1", "sha256": ""}
    assert converted_folder(MODEL, "v1") == folder and len(hub.calls) == 1
    hub.commit = None  # no answer: what is here will do
    assert converted_folder(MODEL, "v1") == folder and len(hub.calls) == 1
    hub.commit = "b" * 40
    converted_folder(MODEL, "v1")
    assert len(hub.calls) == 2 and read_record(folder)["commit"] == "b" * 40
    converted_folder(MODEL, COMMIT)
    converted_folder(MODEL)
    hub.commit = "c" * 40
    monkeypatch.setattr(published, "current_commit", lambda *args, **options: pytest.fail("the hub was asked"))
    converted_folder(MODEL, COMMIT)
    converted_folder(MODEL)
    assert len(hub.calls) == 4


def test_the_only_checkpoint_of_a_repository(hub):
    any_file = replace(MODEL, file="", sha256="")
    converted_folder(any_file)
    assert hub.calls[0][:2] == ("hamacojr/CAT-Seg-weights", "x.pth")
    for names, message in {
        ("README.md",): r"has no checkpoint \(.*\.pth",
        ("a.pth", "b.safetensors", "c.pth"): r"give one, such as .*/a\.pth \(also b\.safetensors, c\.pth\)",
    }.items():
        hub.names = names
        with pytest.raises(CheckpointError, match=message):
            converted_folder(any_file, "v2")
    assert not cache_place(any_file, "v2").exists()


def test_a_disk_without_room_is_one_line(hub, monkeypatch):
    for error, words in ((OSError(28, "No space left"), "No space left"), (OSError("odd"), "odd")):

        def full(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(published, "_convert", full)
            with pytest.raises(CheckpointError, match=f"main: the converted model could not be written: {words}; make"):
                converted_folder(MODEL)
        assert (cache_place(MODEL).parent / ".main.fetched" / "fetched").exists()  # it need not be fetched again
        (cache_place(MODEL).parent / ".main.fetched" / "fetched").unlink()
        (cache_place(MODEL).parent / ".main.fetched").rmdir()


def test_where_converted_models_are(hub, tmp_path):
    place = cache_place(MODEL, "refs/pr/1")
    assert place == tmp_path / "fgaseg" / "spaces--hamacojr--CAT-Seg-weights" / "model_base.pth" / "refs-pr-1"
    assert cache_place(replace(MODEL, file="")).parts[-2:] == ("checkpoint", "main")
    assert cache_place(replace(MODEL, file="a/b.pth")).parts[-2:] == ("a--b.pth", "main")
    assert here(MODEL) is None


def test_records_that_cannot_be_read_are_none(tmp_path):
    assert read_record(tmp_path) is None
    for text, record in (("{", None), ("[1]", None), ('{"a": 1}', {"a": 1})):
        (tmp_path / "source.json").write_text(text)
        assert read_record(tmp_path) == record


def test_where_the_weights_of_an_encoder_are(tmp_path, monkeypatch):
    model, asked = MODELS["clip-b16"], []
    answers = {model.files[0]: object(), model.files[1]: str(tmp_path / "weights")}  # an object: known to be missing

    def cached(repo, file, repo_type):
        asked.append((repo, file, repo_type))
        return answers[file]

    monkeypatch.setattr(published, "try_to_load_from_cache", cached)
    assert here(model) == tmp_path / "weights" and asked == [(model.repo, file, "model") for file in model.files[:2]]
    answers[model.files[1]] = None
    assert here(model) is None
