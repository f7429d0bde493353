"""What `fgaseg.load` and its relatives do with each kind of source, with stand-ins for what builds and fetches."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from small_encoders import ENCODERS
from tiny import ARCHITECTURE

from fgaseg.errors import CheckpointError, ConfigError, UsageError
from fgaseg.model import check_source, fetch_named, loading, local_weights, usable_device
from fgaseg.model import fgaseg as model_module
from fgaseg.weights import MODELS

TOKENIZER = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]


def saved(folder, **config):
    """The files of a saved model, without weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "fgaseg", **config}))
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def called(monkeypatch):
    """What was called with what, in place of everything that builds a model or asks the hub."""
    calls = []

    def recording(name):
        def call(*args, **kwargs):
            calls.append((name, *args, kwargs) if kwargs else (name, *args))
            return SimpleNamespace(to=lambda device: calls.append(("to", str(device))) or "model", facts={},
                                   eval=lambda: calls.append(("eval",)) or model)  # fmt: skip

        model = SimpleNamespace(to=lambda device: calls.append(("to", str(device))) or "model", facts={})
        return call

    model_class = recording("FGASeg")
    model_class.from_pretrained, model_class.from_released = recording("pretrained"), recording("released")
    monkeypatch.setattr(loading, "FGASeg", model_class)
    monkeypatch.setattr(loading, "converted_folder", lambda *args: calls.append(("converted", *args)) or "folder")
    monkeypatch.setattr(loading, "fetch_saved", lambda *args: calls.append(("fetched", *args)) or "folder")
    return calls


def test_what_is_on_the_disk_is_read_from_there(here, called):
    saved(here / "mine")
    saved(here / "run" / "model")
    (here / "weights.pth").touch()
    for source, how, path in [
        ("mine", "pretrained", "mine"), ("run", "pretrained", "run/model"), ("run/model", "pretrained", "run/model"),
        ("mine/config.json", "pretrained", "mine"), ("mine/model.safetensors", "pretrained", "mine"),
        ("weights.pth", "released", "weights.pth"),
    ]:  # fmt: skip
        called.clear()
        assert loading.load(source, "window=3", device="cpu", fusion="add") == "model"
        assert [(one[0], str(one[1]), *one[2:]) for one in called] == [
            (how, path, "window=3", {"fusion": "add"}), ("to", "cpu")
        ], source  # fmt: skip
    (here / "alone").mkdir()
    (here / "alone" / "model.safetensors").touch()
    called.clear()
    loading.load("alone/model.safetensors")
    assert called[0][0] == "released"  # there is no configuration beside it


@pytest.mark.parametrize("name", ["x.yaml", "x.yml", "x.json"])
def test_configurations_are_no_models(name, here, called):
    (here / name).touch()
    with pytest.raises(CheckpointError, match=f"{name}: is no model; give the folder of a saved model, or a file"):
        loading.load(name)
    assert not called


def test_names_and_ids_of_the_hub(here, called, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loading.load("me/mine@v1", "window=3", fusion="add")
    assert called == [("pretrained", "me/mine", "window=3", {"revision": "v1", "fusion": "add"}), ("to", "cpu")]
    called.clear()
    loading.load("pi-seg-v2", "window=3", revision="v1")
    assert called == [("converted", MODELS["pi-seg-v2"], "v1"), ("pretrained", "folder", "window=3"), ("to", "cpu")]
    called.clear()
    loading.load("clip-b16", "window=3", device="cpu")
    assert [one[0] for one in called] == ["FGASeg", "eval", "to"]
    assert called[0][1].window == 3 and called[0][1].propagation is False


def test_a_source_is_checked_without_fetching(here, called):
    saved(here / "run" / "model", encoder={"name": "tiny", "architecture": ARCHITECTURE})
    for source in ("run", "run/model", "cat-seg-b16", "me/mine", "clip-b16"):
        check_source(source)
    check_source("run", "window=3")
    (here / "x.pth").touch()
    check_source("x.pth", "nothing=3")  # it is known when it is read
    with pytest.raises(ConfigError, match="nothing"):
        check_source("run", "nothing=3")
    for wrong in ("cat-seg-b6", "", " ", "./nowhere"):
        with pytest.raises(CheckpointError):
            check_source(wrong)
    (here / "photos").mkdir()
    with pytest.raises(CheckpointError, match=r"photos/config\.json: is missing"):
        check_source("photos")
    assert not called


def test_the_weights_of_anything_are_a_file_or_a_folder(here, called, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    saved(here / "run" / "model")
    (here / "x.pth").touch()
    assert [os.path.relpath(local_weights(source), here) for source in ("run", "run/model", "~/run", "x.pth")] == [
        "run/model", "run/model", "run/model", "x.pth"
    ]  # fmt: skip
    assert not called
    assert local_weights("me/mine@v1") == local_weights("pi-seg-v2@v1") == "folder"
    assert called == [("fetched", "me/mine", "v1"), ("converted", MODELS["pi-seg-v2"], "v1")]
    with pytest.raises(CheckpointError, match="clip-b16: is an encoder alone, without a head to start from"):
        local_weights("clip-b16")


def test_a_named_model_is_fetched_by_what_reads_it(called):
    fetch_named(MODELS["pi-seg-v2"])
    assert called == [("converted", MODELS["pi-seg-v2"])]
    called.clear()
    fetch_named(MODELS["clip-b16"])
    assert [one[0] for one in called] == ["FGASeg"] and called[0][1].encoder.pretrained == "openai"


def test_the_device_is_a_gpu_where_there_is_one(monkeypatch):
    assert usable_device("cpu") == "cpu" and usable_device(torch.device("cpu")) == torch.device("cpu")
    for device in ("meta", "gpu", "cpu:3x"):
        with pytest.raises(UsageError, match=f"device {device}: cannot be used here: "):
            usable_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device(None) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: SimpleNamespace(item=lambda: 0))
    assert usable_device(None) == "cuda"


# ---- a saved model on the hub


def fetched(hub, repo, revision=None):
    """The folder, and the names of the files in it."""
    folder = model_module.fetch_saved(repo, revision)
    return folder, sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def files_of(family):
    config = {"model_type": "fgaseg", "encoder": {"name": "small", "architecture": ENCODERS[family]}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"weights", "other.bin": b"not ours"}
    return files | {name: b"{}" for name in TOKENIZER}


def test_configuration_and_weights_of_one_commit_are_fetched(hub):
    hub.add("me/mine", files_of("plain CLIP"))
    folder, names = fetched(hub, "me/mine", "v1")
    assert names == ["config.json", "model.safetensors"] and folder.name == hub.repos["me/mine"].commit
    hub.close()
    assert fetched(hub, "me/mine", "v1")[0] == folder


def test_a_tokenizer_of_hugging_face_comes_with_the_weights(hub, monkeypatch):
    hub.add("me/mine", files_of("SigLIP"))
    folder, names = fetched(hub, "me/mine")
    assert names == ["config.json", "model.safetensors", *TOKENIZER]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # now everything is here
    assert fetched(hub, "me/mine") == (folder, names)
    for name in TOKENIZER:
        (folder / name).unlink()
    (folder / "tokenizer").rmdir()
    with pytest.raises(CheckpointError, match="me/mine"):
        fetched(hub, "me/mine")


def test_weights_of_another_project_are_not_fetched(hub):
    hub.add("me/mine", {"config.json": b'{"model_type": "clip"}', "model.safetensors": b"weights"})
    with pytest.raises(CheckpointError, match="not an fgaseg model .its model_type is 'clip'"):
        fetched(hub, "me/mine")
    assert not list(hub.cache.rglob("model.safetensors"))
    with pytest.raises(CheckpointError, match="'cat-seg-b16' is a name for fgaseg.load"):
        fetched(hub, "cat-seg-b16")
