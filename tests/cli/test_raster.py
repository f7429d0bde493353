"""`fgaseg raster`: what it writes, prints and refuses."""

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pyogrio.raw
import pytest
import rasterio
from rasterio.transform import from_origin
from tiny import tiny_model

from fgaseg.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
CLASSES = "red star, cat | dog, wooden floor"


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """An image of 150x110 pixels of 2 m, of which a corner holds no value; the folder is the working directory."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(1, 256, (4, 110, 150), dtype=np.uint8)
    values[:, :20, :50] = 0
    with rasterio.open("scene.tif", "w", driver="GTiff", count=4, height=110, width=150, dtype="uint8", nodata=0,
                       crs="EPSG:32632", transform=from_origin(500_000, 5_000_000, 2, 2)) as file:  # fmt: skip
        file.write(values)
    return "scene.tif"


def run(model, *words):
    return main(["raster", *words, "--model", model, "--classes", CLASSES])


def test_labels_and_what_is_printed(model, scene, capsys):
    assert run(model, scene, "--bands", "4,3,2") == 0
    said = capsys.readouterr()
    with rasterio.open("scene_labels.tif") as file:
        labels, names = file.read(1), json.loads(file.tags()["CLASS_NAMES"])
    assert names == ["red star", "cat", "wooden floor"] and labels.shape == (110, 150)
    assert (labels[:20, :50] == 255).all() and (labels[20:] < 3).all()
    line = said.out.strip()
    assert line.startswith("scene.tif: ") and line.endswith("no value 6.1% of it -> scene_labels.tif") and "m²)" in line
    assert "6.1% of its pixels hold no value" in said.err and "--bands" not in said.err


def test_json_has_shares_areas_and_files(model, scene, capsys):
    assert run(model, scene, "--json", "--out", "out/a.tif", "--polygons", "out/a.gpkg", "--range", "2%,98%") == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert {key: row[key] for key in ("raster", "labels", "polygons", "size", "void")} == {
        "raster": "scene.tif", "labels": "out/a.tif", "polygons": "out/a.gpkg", "size": [110, 150], "void": 1000,
    }  # fmt: skip
    with rasterio.open("out/a.tif") as file:
        counts = np.bincount(file.read(1).ravel(), minlength=3)
    for number, name in enumerate(["red star", "cat", "wooden floor"]):
        if counts[number]:
            assert row["classes"][name]["pixels"] == counts[number]
            assert row["classes"][name]["square_metres"] == 4 * counts[number]
            assert row["classes"][name]["share"] == pytest.approx(counts[number] / (110 * 150 - 1000))
    assert sum(one["pixels"] for one in row["classes"].values()) == 110 * 150 - 1000
    assert len(pyogrio.raw.read("out/a.gpkg")[2]) > 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.gpkg", "a.tif", "a.tif.aux.xml"]


def test_without_coordinates_there_are_no_areas(model, scene, capsys):
    with rasterio.open("plain.png", "w", driver="PNG", count=3, height=30, width=40, dtype="uint8") as file:
        file.write(np.random.default_rng(0).integers(0, 256, (3, 30, 40), dtype=np.uint8))
    assert run(model, "plain.png", "--json") == 0
    said = capsys.readouterr()
    assert all(set(one) == {"share", "pixels"} for one in json.loads(said.out)["classes"].values())
    assert "plain.png: does not say where on Earth it is" in said.err and "NotGeoreferenced" not in said.err


def test_options_reach_the_model(scene, capsys, tmp_path):
    tiny_model(loss={"seg": "ce"}).save_pretrained(tmp_path / "softmax")
    words = ("--background", "sea, sky", "--threshold", "0.99", "--tile", "128", "--overlap", "64", "image_size=32")
    assert run(str(tmp_path / "softmax"), scene, "--json", *words) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["classes"]["background"]["share"] > 0.9
    with rasterio.open("scene_labels.tif") as file:
        assert json.loads(file.tags()["CLASS_NAMES"])[3] == "background"


@pytest.mark.parametrize("words, tiles", [((), 6), (("--overlap", "56"), 84), (("--tile", "32"), 30)])
def test_how_far_it_is_is_logged(model, scene, monkeypatch, caplog, words, tiles):
    monkeypatch.setattr("fgaseg.progress.LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        assert run(model, scene, *words) == 0
    assert f"labelling: 1 of {tiles}" in caplog.text and "tiles" in caplog.text


@pytest.mark.parametrize(
    "words, message",
    [([], "give one raster, not none"), (["a.tif", "b.tif"], "give one raster, not a.tif, b.tif; .*gdalbuildvrt"),
     (["none.tif"], "none.tif: no such file"), (["scene.tif", "--out", "scene.tif"], "is the raster itself"),
     (["scene.tif", "--out", "a.png"], "labels are written as .tif or .tiff"),
     (["scene.tif", "--out", "scene.tif/a.tif"], "scene.tif is a file; give another folder"),
     (["scene.tif", "--polygons", "a.shp"], "polygons are written as"),
     (["scene.tif", "--bands", "1,2,7"], "has 4 bands"),
     (["scene.tif", "--tile", "100000"], "tile: 100000 pixels, seen at 64: give 1 to 2048")],
)  # fmt: skip
def test_what_cannot_be_is_one_line(model, scene, capsys, words, message):
    assert run(model, *words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("fgaseg raster: ") and re.search(message, said), said
    assert [path.name for path in Path(".").iterdir()] == ["scene.tif"]


def test_a_missing_package_is_told_before_a_model_is_fetched(scene, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert run("no/such/model", scene) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fgaseg[geo]'" in line
