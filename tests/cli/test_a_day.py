"""A person's day with the tool, in its own commands: look at the data, train, label, take the results away, show them.

Every command is a process of its own, as it is typed. The parts have their own, closer tests.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import launch, serving, visit
from PIL import Image
from runs import TINY_MODEL

from fgaseg.data import SceneDataset

pytestmark = pytest.mark.slow

SIDE = 64
CLASSES = "red star, blue ring, green heart"


def run(*words: str, folder: Path) -> str:
    """Run a command in a folder and return what it printed; it has to succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # all add up in the same order
    command = [sys.executable, "-m", "fgaseg", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"fgaseg {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ten photos, their labels and names, a configuration, and the model that is trained first."""
    folder = tmp_path_factory.mktemp("day")
    scenes = SceneDataset("seen", 10, SIDE)
    (folder / "photos").mkdir()
    (folder / "labels").mkdir()
    (folder / "names.txt").write_text("\n".join(scenes.names))
    for number in range(len(scenes)):
        item = scenes[number]
        Image.fromarray(item["image"].numpy()).save(folder / "photos" / f"{number}.png")
        Image.fromarray(item["labels"].numpy().astype(np.uint8)).save(folder / "labels" / f"{number}.png")
    settings = {
        "model": TINY_MODEL,
        "data": {"images": "photos", "labels": "labels", "names": "names.txt", "crop": 32, "val_count": 2},
        "train": {"steps": 4, "batch": 2, "warmup": 0, "eval_every": 0, "tensorboard": False},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    run("data", "check", "--images", "photos", "--labels", "labels", "--names", "names.txt", folder=folder)
    run("train", "mine.yaml", "--out", "runs/mine", folder=folder)
    yield folder


def test_a_folder_is_labelled_and_read_back_by_everything(day):
    from pycocotools.coco import COCO

    out = run("segment", "photos", "--model", "runs/mine/model", "--names", "names.txt", "--save",
              "mask,overlay,coco", "--out", "labelled", "--json", folder=day)  # fmt: skip
    *rows, end = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == end["labelled"] == 10 and not end["failed"]
    labels = ["--labels", "labelled/masks", "--names", "labelled/names.txt"]
    run("data", "check", "--images", "photos", *labels, folder=day)
    scored = run("eval", "--model", "runs/mine/model", "--images", "photos", *labels, "--json", folder=day)
    (scores,) = json.loads(scored)["scores"].values()
    assert scores["miou_gt"] == scores["pixel_accuracy"] == 1

    coco = COCO(str(day / "labelled" / "coco.json"))
    assert len(coco.imgs) == 10
    for photo in coco.imgs.values():
        values = np.asarray(Image.open(day / "labelled" / "masks" / Path(photo["file_name"]).with_suffix(".png").name))
        seen = np.full(values.shape, 255, np.uint8)
        for annotation in coco.imgToAnns[photo["id"]]:
            seen[coco.annToMask(annotation) == 1] = annotation["category_id"] - 1
        assert np.array_equal(seen, values)


def test_the_labelled_folder_is_a_data_set_to_train_on(day):
    run("segment", "photos", "--model", "runs/mine/model", "--classes", CLASSES, "--background", "stuff", "--save",
        "dataset", "--out", "set", folder=day)  # fmt: skip
    run("data", "check", "set/data.yaml", folder=day)
    run("train", "set/data.yaml", "model.encoder.pretrained=null", f"train.init={day / 'runs/mine/model'}",
        *inline(TINY_MODEL), "data.crop=32", "data.val_count=2", "train.steps=1", "train.batch=2", "train.warmup=0",
        "--out", "runs/again", folder=day)  # fmt: skip
    assert (day / "runs/again/model/model.safetensors").exists()


def inline(section: dict) -> list[str]:
    return [f"model.{key}={json.dumps(value)}" for key, value in section.items() if key != "encoder"] + [
        f"model.encoder.{key}={json.dumps(value)}" for key, value in section["encoder"].items()
    ]


def test_a_raster_and_its_polygons(day):
    import rasterio
    from rasterio.transform import from_origin

    pixels = np.concatenate([np.asarray(Image.open(day / "photos" / f"{n}.png")) for n in range(3)], axis=1)
    with rasterio.open(day / "scene.tif", "w", driver="GTiff", width=3 * SIDE, height=SIDE, count=3, dtype="uint8",
                       crs="EPSG:32633", transform=from_origin(500000, 5000000, 0.5, 0.5)) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))
    run("raster", "scene.tif", "--model", "runs/mine/model", "--classes", CLASSES, "--out", "land.tif", "--polygons",
        "land.geojson", "--json", folder=day)  # fmt: skip
    with rasterio.open(day / "land.tif") as file:
        assert file.crs.to_epsg() == 32633 and file.read(1).max() <= 2 and file.shape == (SIDE, 3 * SIDE)
    features = json.loads((day / "land.geojson").read_text())["features"]
    assert features


def test_a_video_of_ten_seconds(day):
    import av

    with av.open(str(day / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 5)
        photo = np.asarray(Image.open(day / "photos" / "0.png").convert("RGB"))
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.roll(photo, number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    out = run("video", "clip.mp4", "--model", "runs/mine/model", "--classes", CLASSES, "--out", "labelled.mp4",
              "--masks", "frames", "--json", folder=day)  # fmt: skip
    assert json.loads(out)["frames"] == 50
    assert len(list((day / "frames").rglob("*.png"))) == 50
    with av.open(str(day / "labelled.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 50


def test_the_page_gives_what_the_command_gives(day):
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    model = day / "runs/mine/model"
    with playwright.sync_playwright() as driver:
        browser = launch(driver)
        with serving("--model", model) as address, visit(browser, address) as page:
            page.give((day / "photos" / "0.png").read_bytes(), "0.png")
            page.type(CLASSES)
            page.label()
            shown = json.loads(Path(page.save("COCO JSON").path()).read_text())
        browser.close()
    run("segment", "photos/0.png", "--model", str(model), "--classes", CLASSES, "--save", "coco", "--out", "0.json",
        "--device", "cpu", folder=day)  # fmt: skip
    saved = json.loads((day / "0.json").read_text())
    assert shown["annotations"] and [one["name"] for one in saved["categories"]] == CLASSES.split(", ")
    for one, other in zip(shown["annotations"], saved["annotations"], strict=True):
        assert one["segmentation"] == other["segmentation"] and one["category_id"] == other["category_id"]
