"""COCO annotations, and the round trip: labels that are written are the labels that every reader finds."""

import json
import shutil
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import SHARED
from PIL import Image
from sample_data import compressed
from tiny import tiny_model

from fgaseg.cli import main
from fgaseg.config import DataConfig
from fgaseg.data import FolderDataset
from fgaseg.data.coco import read_coco
from fgaseg.data.label_formats import UNPAINTED
from fgaseg.errors import ResultError
from fgaseg.inference import CocoWriter, Result, coco, palette

PHOTOS = SHARED / "data" / "msrc_v2" / "images"
NAMES = ("cat", 'a "big", black dog', "道路, nass", "nothing")


def drawn(height=23, width=31, classes=NAMES, seed=0, void=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), (height, width))
    if void:
        labels[0, ::2], labels[1, 1] = 255, -1
    photo = Image.new("RGB", (width, height))
    return Result(labels, tuple(classes), rng.random((height, width), dtype=np.float32), photo, len(classes) - 1)


def written(path: Path, results: dict[str, Result]) -> Path:
    with CocoWriter(next(iter(results.values())).classes) as writer:
        for name, result in results.items():
            writer.add(result, name)
        writer.write(path)
    return path


def by_pycocotools(path: Path) -> dict[str, np.ndarray]:
    """Labels [H, W] of each photo as pycocotools decodes them; -1 where nothing is."""
    from pycocotools.coco import COCO

    file = COCO(path)
    found = {}
    for image in file.loadImgs(file.getImgIds()):
        labels = np.full((image["height"], image["width"]), -1)
        for one in file.loadAnns(file.getAnnIds(imgIds=[image["id"]], iscrowd=False)):
            mask = file.annToMask(one).astype(bool)
            assert mask.sum() == one["area"] > 0 and (labels[mask] == -1).all()
            rows, columns = np.nonzero(mask)
            assert one["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            labels[mask] = one["category_id"] - 1
        found[image["file_name"]] = labels
    return found


def by_supervision(path: Path, folder: Path) -> dict[str, np.ndarray]:
    supervision = pytest.importorskip("supervision")
    data = supervision.DetectionDataset.from_coco(str(folder), str(path), force_masks=True)
    found = {}
    for file in data.image_paths:
        _, image, detections = next(one for one in data if one[0] == file)
        labels = np.full(image.shape[:2], -1)
        for mask, index in zip(detections.mask, detections.class_id, strict=True):
            labels[mask] = index
        found[str(Path(file).relative_to(folder.resolve()))] = labels
    return found, data.classes


@pytest.mark.parametrize(
    ("size", "void"), [((1, 1), False), ((1, 30), False), ((30, 1), False), ((23, 31), False), ((23, 31), True)]
)
def test_masks_boxes_and_areas_are_those_of_the_labels(tmp_path, size, void):
    results = {"a.jpg": drawn(*size, void=void), "below/ü b.jpg": drawn(*size[::-1], seed=1)}
    path = written(tmp_path / "coco.json", results)
    found = by_pycocotools(path)
    for name, result in results.items():
        want = np.where((result.labels >= 0) & (result.labels < 4), result.labels, -1)
        assert (found[name] == want).all()
        ours, several = read_coco(path).photos[name.removesuffix(".jpg")].paint()
        assert (np.where(ours == UNPAINTED, -1, ours - 1) == want).all() and several == 0


def test_run_lengths_are_those_of_the_description():
    result = drawn()
    for one in result.to_coco("a.jpg")["annotations"]:
        assert one["segmentation"]["counts"] == compressed((result.labels == one["category_id"] - 1).astype(np.uint8))


def test_categories_images_and_scores():
    result = drawn()
    data = result.to_coco("a.jpg")
    assert [(one["id"], one["name"]) for one in data["categories"]] == list(enumerate(NAMES, 1))
    assert [one["color"] for one in data["categories"]] == palette(4).tolist()
    assert data["images"] == [{"id": 1, "file_name": "a.jpg", "height": 23, "width": 31}]
    assert [one["id"] for one in data["annotations"]] == [1, 2, 3, 4]
    assert {one["iscrowd"] for one in data["annotations"]} == {0}
    for one in data["annotations"]:
        inside = result.labels == one["category_id"] - 1
        assert one["score"] == pytest.approx(result.scores[inside].mean(), abs=1e-5)


def test_scores_that_are_no_numbers_are_left_out():
    result = drawn()
    result.scores[:] = np.nan
    assert not any("score" in one for one in result.to_coco("a.jpg")["annotations"])


def test_many_photos_are_written_as_one_would_be(tmp_path):
    results = {f"{i}.jpg": drawn(seed=i) for i in range(3)}
    path = written(tmp_path / "coco.json", results)
    data = json.loads(path.read_bytes().decode("ascii"))  # whatever encoding a reader assumes
    assert [one["id"] for one in data["annotations"]] == list(range(1, 13))
    assert [one["id"] for one in data["images"]] == [1, 2, 3]
    one = written(tmp_path / "one.json", {"0.jpg": results["0.jpg"]})
    assert json.loads(one.read_text()) == results["0.jpg"].to_coco("0.jpg")


def test_a_class_that_is_named_twice_is_one_category(tmp_path):
    result = drawn(classes=("cat", "dog", "cat", "nothing"))
    path = written(tmp_path / "coco.json", {"a.jpg": result})
    result.image.save(tmp_path / "a.jpg")
    want = np.where(result.labels == 2, 0, result.labels)
    assert read_coco(path).categories == {1: "cat", 2: "dog", 4: "nothing"}
    assert (by_pycocotools(path)["a.jpg"] == want).all()
    found, classes = by_supervision(path, tmp_path)
    assert classes == ["cat", "dog", "nothing"] and (np.array([0, 1, 3])[found["a.jpg"]] == want).all()


def test_void_alone_has_no_annotations(tmp_path):
    result = drawn(1, 1)
    result.labels[:] = 255
    path = written(tmp_path / "coco.json", {"a.jpg": result})
    assert json.loads(path.read_text())["annotations"] == [] and (by_pycocotools(path)["a.jpg"] == -1).all()


def test_the_writer_refuses_what_would_be_wrong(tmp_path):
    with CocoWriter(NAMES) as writer:
        writer.add(drawn(), "a.jpg")
        with pytest.raises(ResultError, match="a.jpg: was added before"):
            writer.add(drawn(), "a.jpg")
        with pytest.raises(ResultError, match=r"b.jpg: its result has other classes \(3\)"):
            writer.add(drawn(classes=NAMES[:3]), "b.jpg")
        writer.write(tmp_path / "coco.json")
    assert list(by_pycocotools(tmp_path / "coco.json")) == ["a.jpg"]


def test_a_file_may_be_written_again_after_more_photos(tmp_path):
    with CocoWriter(NAMES) as writer:
        for name in ("a.jpg", "b.jpg"):
            writer.add(drawn(), name)
            writer.write(tmp_path / "coco.json")
    found = by_pycocotools(tmp_path / "coco.json")
    assert list(found) == ["a.jpg", "b.jpg"] and (found["b.jpg"] == drawn().labels).all()


def test_a_file_that_could_not_be_written_loses_nothing(tmp_path, monkeypatch):
    with CocoWriter(NAMES) as writer:
        writer.add(drawn(), "a.jpg")
        with monkeypatch.context() as patch:
            patch.setattr("fgaseg.inference.coco.atomic_write", lambda _, write: write(FullDisk()))
            with pytest.raises(OSError, match="No space left"):
                writer.write(tmp_path / "coco.json")
        writer.add(drawn(seed=1), "b.jpg")
        writer.write(tmp_path / "coco.json")
    found = by_pycocotools(tmp_path / "coco.json")
    assert (found["a.jpg"] == drawn().labels).all() and (found["b.jpg"] == drawn(seed=1).labels).all()


class FullDisk:
    """Takes the head of a file and one annotation."""

    def __init__(self):
        self.room = 2

    def write(self, _: bytes) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(28, "No space left on device")


def test_memory_does_not_grow_with_the_annotations(monkeypatch, tmp_path):
    monkeypatch.setattr(coco, "_IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = drawn(300, 300)
    with CocoWriter(NAMES) as writer:
        writer.add(result, "warm up")
        tracemalloc.start()
        for i in range(20):
            writer.add(result, str(i))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 100_000  # a photo's annotations are 140 kB
        writer.write(tmp_path / "coco.json")
    assert (tmp_path / "coco.json").stat().st_size > 20 * 130_000
    assert [file.name for file in tmp_path.iterdir()] == ["coco.json"]


# --- the round trip


NAMES_OF_TRIP = ["cat", "dog", "red star", 'a "blue", round ring', "道路"]


def photos_of(folder: Path, kind: str) -> list[Path]:
    """Ten photos: drawn ones, one of them turned by EXIF and one in a folder of its own; or real ones."""
    if kind == "real":
        if not PHOTOS.exists():
            pytest.skip(f"needs the photos in {PHOTOS}")
        files = sorted(PHOTOS.iterdir())[::60][:10]
        for file in files:
            shutil.copy(file, folder)
        return [folder / file.name for file in files]
    rng = np.random.default_rng(0)
    paths = [folder / f"photo {i}.jpg" for i in range(8)] + [
        folder / "below" / "Straße, 道路.png",
        folder / "turned.jpg",
    ]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if path.stem == "turned" else 1
        small.resize((96, 72), Image.Resampling.BICUBIC).save(path, exif=exif)
    return paths


@pytest.fixture(params=["drawn", pytest.param("real", marks=pytest.mark.slow)])
def trip(request, tmp_path):
    """A model, photos, and what it found in them as index PNGs and as COCO annotations."""
    photos = tmp_path / "photos"
    photos.mkdir()
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    names = NAMES_OF_TRIP
    (tmp_path / "names.json").write_text(json.dumps(names))
    results = {}
    with CocoWriter(names) as writer:
        for file in photos_of(photos, request.param):
            below = file.relative_to(photos)
            result = model.segment(file, names)
            result.save(tmp_path / "masks" / below.with_suffix(".png"))
            writer.add(result, below.as_posix())
            results[below.as_posix()] = result
        writer.write(tmp_path / "coco.json")
    assert len(results) == 10 and len({name for one in results.values() for name in one.present}) > 1
    return tmp_path, results


def labelled_by(root: Path, kind: str) -> list[str]:
    if kind == "masks":
        return ["--images", str(root / "photos"), "--labels", str(root / "masks"), "--names", str(root / "names.json")]
    return ["--images", str(root / "photos"), "--labels", str(root / "coco.json")]


def run(capsys, *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_round_trip(trip, capsys):
    """Every reader finds the labels that the model gave, and the model scored against them is always right."""
    root, results = trip
    values = np.concatenate([result.labels.ravel() for result in results.values()])
    for kind in ("masks", "coco"):
        (report,) = run(capsys, "data", "check", *labelled_by(root, kind))
        assert (report["state"], report["pairs"], report["problems"], report["void"]) == ("ready", 10, {}, 0)
        for i, name in enumerate(NAMES_OF_TRIP):
            assert report["shares"][name] == pytest.approx((values == i).mean())
        scores = run(capsys, "eval", str(root / "model"), *labelled_by(root, kind))["scores"]["val"]
        assert (scores["images"], scores["pixels"]) == (10, values.size)
        assert scores["miou_gt"] == scores["miou_union"] == scores["pixel_accuracy"] == 1
    found = by_pycocotools(root / "coco.json")
    others, classes = by_supervision(root / "coco.json", root / "photos")
    assert classes == NAMES_OF_TRIP
    for name, result in results.items():
        assert (found[name] == result.labels).all() and (others[name] == result.labels).all()


# --- index PNGs as labels of this package


def read_as_labels(tmp_path: Path, result: Result, **settings: Any) -> np.ndarray:
    result.image.save(tmp_path / "photos" / "a.jpg")
    result.save(tmp_path / "masks" / "a.png")
    paths = {"images": str(tmp_path / "photos"), "labels": str(tmp_path / "masks")}
    (item,) = FolderDataset(DataConfig(**paths, **settings), "val")
    return np.asarray(item["labels"])


@pytest.fixture
def named(tmp_path) -> dict[str, str]:
    (tmp_path / "photos").mkdir()
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    return {"names": str(tmp_path / "names.json")}


def colours_of(names: tuple[str, ...]) -> dict[str, str]:
    return {",".join(map(str, colour)): name for colour, name in zip(palette(len(names)).tolist(), names, strict=True)}


@pytest.mark.parametrize(
    "settings",
    [{},
     {"label_map": {str(i): name for i, name in enumerate(NAMES)}},
     {"label_map": colours_of(NAMES) | {"128,128,128": None}}],
    ids=["by index", "values that are named", "colours that are named"],
)  # fmt: skip
@pytest.mark.parametrize("void", [False, True])
def test_a_palette_is_read_as_it_was_meant(tmp_path, named, settings, void):
    result = drawn(void=void)
    want = np.where((result.labels >= 0) & (result.labels < 4), result.labels, 255)
    assert (read_as_labels(tmp_path, result, **named, **settings) == want).all()


@pytest.mark.parametrize("count", [1, 255, 256, 300])
def test_many_classes_are_read_back(tmp_path, count):
    (tmp_path / "photos").mkdir()
    names = tuple(f"class {i}" for i in range(count))
    (tmp_path / "names.txt").write_text("\n".join(names))
    result = drawn(40, 50, classes=names)
    result.labels[0, 0] = -1
    void = 255 if count <= 255 else 65535
    found = read_as_labels(tmp_path, result, names=str(tmp_path / "names.txt"), ignore=void)
    assert (found == np.where(result.labels < 0, void, result.labels)).all()
