"""`fgaseg models`, and the commands that take a model by name, as typed."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from catseg import catseg_file, catseg_model
from huggingface_hub import constants
from paths import SHARED
from PIL import Image

import fgaseg
from fgaseg.cli import main
from fgaseg.cli.options import DEFAULT_MODEL
from fgaseg.weights import MODELS

DATA = SHARED / "data"


@pytest.fixture
def published(hub, monkeypatch):
    monkeypatch.setitem(MODELS, "cat-seg-b16", replace(MODELS["cat-seg-b16"], sha256=""))
    return hub.add("spaces/hamacojr/CAT-Seg-weights", {"model_base.pth": catseg_file(catseg_model())})


def test_the_table_and_one_model_in_full(hub, capsys):
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in MODELS) and "A-847" in table and "819 MB" in table and "2.3 GB" in table
    assert main(["models", "cat_seg_b16", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["published"]["a150"] == 31.8 and "README" in row["published_in"] and row["here"] is None
    assert main(["models", "cat-seg-l14"]) == 0
    text = capsys.readouterr().out
    assert "licence: none stated" in text and "never run here" in text and "A-150 37.9" in text and "here: no" in text
    assert hub.seen.total() == 0 and not hub.home.exists()


def test_fetched_once_by_the_command_and_then_here(hub, published, capsys, monkeypatch):
    assert main(["models", "cat-seg-b16", "--fetch", "--json"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert row["here"] and hub.assets in Path(row["here"]).parents
    assert err.count("licence: none stated") == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["models", "cat-seg-b16", "--fetch"]) == 0
    out, err = capsys.readouterr()
    assert "licence: none" in out and err == ""


def test_the_default_model_labels_a_photo(hub, published, photo, tmp_path, capsys):
    assert DEFAULT_MODEL in MODELS
    out = str(tmp_path / "out.png")
    for _ in range(2):
        assert main(["segment", photo, "--classes", "road, car, person riding a bicycle, sky", "--out", out]) == 0
    text = capsys.readouterr()
    assert Image.open(out).width >= 40 and text.err.count("fetching") == 1
    assert "15 MB" in text.err and "spaces/hamacojr/CAT-Seg-weights/model_base.pth" in text.err


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no photos at {DATA}")
def test_a_real_photo_by_name(published, tmp_path, capsys):
    photo, names = str(DATA / "msrc_v2/images/10_10_s.jpg"), str(DATA / "msrc_v2/names.txt")
    command = [
        "segment",
        photo,
        "--names",
        names,
        "--out",
        str(tmp_path / "out.png"),
        "--json",
        "--model",
        "cat-seg-b16",
    ]
    assert main(command) == 0
    shares = json.loads(capsys.readouterr().out)["classes"]
    result = fgaseg.load("cat-seg-b16").segment(photo, (DATA / "msrc_v2/names.txt").read_text().splitlines())
    assert result.present == pytest.approx(shares)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no photos at {DATA}")
def test_evaluation_by_name_follows_the_protocol(published, tmp_path, capsys):
    folder = DATA / "msrc_v2"
    data = [
        "--images",
        str(folder / "images"),
        "--labels",
        str(folder / "labels"),
        "--names",
        str(folder / "names.txt"),
    ]
    assert main(["eval", "--model", "cat-seg-b16", *data, "--count", "1", "--json"]) == 0
    (record,) = (one["record"] for one in json.loads(capsys.readouterr().out)["records"].values())
    assert record["text"] == {"templates": ["A photo of a {} in the scene"], "first_synonym": True}
    assert record["input"]["inference"] == "windows" and record["input"]["side"] == 640
    assert record["model"]["class_pooling_eval"] == 1 and record["model"]["class_cap"] == 256


def test_converting_a_name_writes_a_folder(published, tmp_path, capsys):
    folder = tmp_path / "catseg"
    for _ in range(2):  # a model may be replaced
        assert main(["convert", "cat-seg-b16", "--out", str(folder), "inference=whole"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = fgaseg.load(folder)
    assert model.config.inference == "whole" and model.facts["name"] == "cat-seg-b16"
    assert main(["convert", "cat-seg-b16", "--to-released", "--out", str(tmp_path / "back.pth")]) == 0
    back = fgaseg.load(tmp_path / "back.pth")
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in model.state_dict().items())
    assert main(["convert", "cat-seg-b16", "--out", str(folder), "--allow-foreign"]) == 1
    assert "--allow-foreign is for a checkpoint's file" in capsys.readouterr().err


def test_a_failure_is_one_line(hub, photo, capsys):
    hub.close()
    began = time.monotonic()
    assert main(["segment", photo, "--classes", "cat, dog"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fgaseg segment: hamacojr/CAT-Seg-weights/model_base.pth: the connection to http")
    assert error.count("\n") == 1 and time.monotonic() - began < 30
