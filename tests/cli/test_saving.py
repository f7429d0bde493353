"""`fgaseg segment --save`: what it writes, what reads it back, and what is refused."""

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from paths import SHARED
from PIL import ExifTags, Image
from pycocotools.coco import COCO

import fgaseg
from fgaseg.cli import main
from fgaseg.data import read_image, read_names
from fgaseg.files import atomic_write

NAMES = "cat, dog, red star"
ALL = "mask,overlay,coco,probabilities,dataset"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def draw(*names: str, size: tuple[int, int] = (20, 14)) -> None:
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number, size[1], size[0], 3)).save(name)


def save(model: str, *words: str, kinds: str = "mask,coco", names: str = NAMES) -> int:
    return main(["segment", *words, "--model", model, "--classes", names, "--save", kinds])


def rows(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def written(folder: str) -> dict[str, bytes]:
    """All files of a folder but the bookkeeping."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and ".fgaseg" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def labelled(monkeypatch):
    """The photos that a model has labelled, by their sizes (height, width)."""
    seen, segment = [], fgaseg.FGASeg.segment

    def spy(self, image, *args, **kwargs):
        seen.append((image.height, image.width))
        return segment(self, image, *args, **kwargs)

    monkeypatch.setattr(fgaseg.FGASeg, "segment", spy)
    return seen


# ---- what is written


def test_every_kind_is_written_and_named(model, capsys):
    draw("in/a.jpg", "in/deep/b.png")
    assert save(model, "in", "--out", "out", "--json", kinds=ALL) == 0
    first, second, end = rows(capsys)
    assert first["image"] == "in/a.jpg" and second["size"] == [14, 20] and sum(first["classes"].values()) > 0.99
    assert second["files"] == {
        "mask": "out/masks/deep/b.png",
        "overlay": "out/overlays/deep/b.png",
        "probabilities": "out/probabilities/deep/b.npz",
        "image": "out/images/deep/b.png",
        "label": "out/labels/deep/b.png",
    }
    files = {"names": "out/names.txt", "coco": "out/coco.json", "dataset": "out/data.yaml"}
    assert end == {"folder": "out", "labelled": 2, "failed": 0, "files": files}
    named = {path for row in (first, second, end) for path in row["files"].values()}
    assert named <= {f"out/{path}" for path in written("out")}

    network = fgaseg.load(model)
    result = network.segment("in/deep/b.png", NAMES.split(", "), probabilities=True)
    np.testing.assert_array_equal(np.asarray(Image.open("out/masks/deep/b.png")), result.labels)
    assert Image.open("out/overlays/deep/b.png").size == (20, 14)
    with np.load("out/probabilities/deep/b.npz") as arrays:
        np.testing.assert_allclose(arrays["probabilities"][1], result.probabilities["dog"], atol=1e-6)
    assert read_names("out/names.txt") == NAMES.split(", ")


def test_coco_decodes_to_the_masks(model):
    draw("in/a.jpg", "in/deep/b.png")
    assert save(model, "in", "--out", "out") == 0
    coco = COCO("out/coco.json")
    assert [coco.imgs[key]["file_name"] for key in sorted(coco.imgs)] == ["a.jpg", "deep/b.png"]
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    assert {key: one["name"] for key, one in coco.cats.items()} == dict(enumerate(NAMES.split(", "), 1))
    for key, file in ((1, "out/masks/a.png"), (2, "out/masks/deep/b.png")):
        labels = np.asarray(Image.open(file))
        found = np.zeros(labels.shape, int)
        for one in coco.loadAnns(coco.getAnnIds(key)):
            found += coco.annToMask(one) * one["category_id"]
            assert one["area"] == (labels == one["category_id"] - 1).sum()
        np.testing.assert_array_equal(found, labels.astype(int) + 1)


@pytest.mark.parametrize(
    "labels", [["out/masks", "--names", "out/names.txt"], ["out/coco.json"]], ids=["masks", "coco"]
)
def test_what_is_written_is_read_back(model, capsys, labels):
    draw("in/a.jpg", "in/deep/b.png")
    assert save(model, "in", "--out", "out") == 0
    capsys.readouterr()
    given = ["--images", "in", "--labels", *labels, "--json"]
    assert main(["data", "check", *given, "--workers", "0"]) == 0
    [[report]] = rows(capsys)
    assert report["pairs"] == 2 and report["state"] == "ready" and not report["problems"]
    assert main(["eval", model, *given]) == 0
    scores = rows(capsys)[-1]["scores"]["val"]
    assert scores["miou_union"] == scores["pixel_accuracy"] == 1


def test_nothing_and_background_are_labels_of_every_kind(model, capsys):
    draw("a.png")
    assert save(model, "a.png", "--out", "out", "--threshold", "0.999", kinds=ALL) == 0
    assert read_names("out/names.txt") == [*NAMES.split(", "), "nothing"]
    assert (np.asarray(Image.open("out/masks/a.png")) == 3).all()
    assert [one["category_id"] for one in json.loads(Path("out/coco.json").read_text())["annotations"]] == [4]
    assert save(model, "a.png", "--out", "other", "--background", "wall, sky", kinds=ALL) == 0
    assert read_names("other/names.txt") == [*NAMES.split(", "), "background"]
    assert json.loads(Path("other/prompts.json").read_text())["background"] == ["wall", "sky"]


@pytest.mark.parametrize(
    "kind, out",
    [("mask", "o.png"), ("mask", "o.tif"), ("mask", "o.npz"), ("coco", "sub/o.json"), ("probabilities", "o.npz"),
     ("overlay", "o.jpg"), ("overlay", "o.png")],
)  # fmt: skip
def test_one_kind_of_one_photo_is_that_very_file(model, capsys, kind, out):
    draw("a.png")
    assert save(model, "a.png", "--out", out, "--json", kinds=kind) == 0
    [row] = rows(capsys)
    assert row["files"] == {kind: out} and row["size"] == [14, 20]
    labels = fgaseg.load(model).segment("a.png", NAMES.split(", ")).labels
    if out.endswith(".npz"):
        with np.load(out) as arrays:
            np.testing.assert_array_equal(arrays["labels"], labels)
            assert ("probabilities" in arrays) == (kind == "probabilities")
    elif kind == "mask":
        np.testing.assert_array_equal(np.asarray(Image.open(out)), labels)
    elif kind == "coco":
        assert json.loads(Path(out).read_text())["images"][0]["file_name"] == "a.png"
    else:
        assert Image.open(out).size == (20, 14) and Image.open(out).mode == "RGB"
    names = {path.name for path in Path().iterdir()}
    assert names - {"o.tif.aux.xml"} == {"a.png", out.split("/")[0]}  # the names of a GeoTIFF's values


REFUSED = {
    "mask,foo": ([], "--save mask,foo: 'foo' is none of mask, overlay, coco, probabilities, dataset: give some"),
    "": ([], "'' is none of mask, overlay"),
    "mask": (["--out", "o.jpg"], r"mask is written as \.png, \.tif, .*: choose one of these, or o.jpg/ for a folder"),
    "coco": (["--out", "o.png"], r"coco is written as \.json"),
    "mask, coco": (["--out", "o.png"], "--out o.png: is one file, and there are mask, coco to be saved: name a folder"),
    "dataset": (["--out", "o.png"], "is one file, and there are dataset to be saved"),
    "overlay": (["--pseudo-masks"], "--pseudo-masks draw pictures of their own"),
    "overlay ": (["--compare", "x"], "--compare and"),
    "probabilities": (["b.png", "--out", "o.npz"], "is one file, and there are 2 photos"),
    "mask ": (["--out", "a.png"], "a.png is the photo a.png, which would be lost"),
    "MASK": (["--out", "."], "--out .: holds a photo, a.png: give a folder for results alone"),
    "coco ": (["--out", "a.png/below"], "--out a.png/below: .*a.png is a file"),
}


@pytest.mark.parametrize("kinds", REFUSED)
def test_mistakes_are_one_line_before_anything_is_loaded(capsys, kinds):
    draw("a.png", "b.png")
    words, reason = REFUSED[kinds]
    assert save("no/model", "a.png", *words, kinds=kinds) == 1
    err = capsys.readouterr().err
    assert re.search(reason, err) and err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "b.png"]


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_loaded(capsys, monkeypatch):
    draw("a.png")

    def refused(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fgaseg.cli.options.tempfile.TemporaryFile", refused)
    assert save("no/model", "a.png", "--out", "sealed/out") == 1
    assert "--out sealed/out: cannot be written to (Permission denied)" in capsys.readouterr().err


GEOTIFF = [(33550, "d", 3, (1.0, 1.0, 0.0), True), (33922, "d", 6, (0.0,) * 6, True),
           (34735, "H", 8, (1, 1, 0, 1, 1024, 0, 1, 1), True)]  # fmt: skip


@pytest.mark.parametrize("side, tags, told", [(257, GEOTIFF, True), (256, GEOTIFF, False), (300, [], False)])
def test_a_large_raster_is_led_to_its_command(model, caplog, side, tags, told):
    tifffile.imwrite("map.tif", noise(0, side, side, 3), photometric="rgb", extratags=tags)
    assert save(model, "map.tif", kinds="mask") == 0
    words = (
        f"map.tif: is a georeferenced raster of {side}x{side} pixels, and is seen whole, its short side at 64 pixels"
    )
    assert (f"{words}: `fgaseg raster`" in caplog.text) == told


DATA = SHARED / "data" / "msrc_v2"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no photos at {DATA}")
def test_ten_real_photos_come_back_whole(model, capsys):
    photos = sorted((DATA / "images").glob("*.jpg"))[::50][:10]
    Path("in").mkdir()
    for photo in photos:
        (Path("in") / photo.name).symlink_to(photo)
    names = ["--names", str(DATA / "names.txt")]
    assert main(["segment", "in", "--model", model, *names, "--save", "mask,coco,dataset", "--out", "out"]) == 0
    for labels in (["out/masks", "--names", "out/names.txt"], ["out/coco.json"]):
        capsys.readouterr()
        assert main(["data", "check", "--images", "in", "--labels", *labels, "--workers", "0", "--json"]) == 0
        [[report]] = rows(capsys)
        assert report["pairs"] == 10 and report["state"] == "ready" and not report["problems"]
        assert main(["eval", model, "--images", "in", "--labels", *labels, "--json"]) == 0
        assert rows(capsys)[-1]["scores"]["val"]["miou_union"] == 1
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    found = supervision.DetectionDataset.from_coco("out/images", "out/annotations.json", force_masks=True)
    assert len(found) == 10
    for path, _, detections in found:
        labels = np.asarray(Image.open(f"out/labels/{Path(path).stem}.png"))
        for mask, index in zip(detections.mask, detections.class_id, strict=True):
            name = found.classes[index]
            np.testing.assert_array_equal(mask, labels == read_names("out/names.txt").index(name))


def test_photos_of_the_same_name_have_results_of_their_own(model):
    draw("in/x/a.png", "in/y/a.png", "in/z/a.jpg", "in/z/a.png")
    assert save(model, "in/x/a.png", "in/y/a.png", "in/z", "--out", "out", kinds=ALL) == 0
    masks = sorted(path.relative_to("out/masks").as_posix() for path in Path("out/masks").rglob("*.png"))
    assert masks == ["x/a.png", "y/a.png", "z/a_jpg.png", "z/a_png.png"]
    names = [one["file_name"] for one in json.loads(Path("out/coco.json").read_text())["images"]]
    assert sorted(names) == ["x/a.png", "y/a.png", "z/a.jpg", "z/a.png"]
    assert sorted(one["file_name"] for one in json.loads(Path("out/annotations.json").read_text())["images"]) == [
        "x/a.png", "y/a.png", "z/a_jpg.jpg", "z/a_png.png"
    ]  # fmt: skip


def test_names_are_encoded_once(model, monkeypatch):
    draw("a.png", "b.png", "c.png")
    calls, encode = [], fgaseg.FGASeg.encode
    monkeypatch.setattr(fgaseg.FGASeg, "encode", lambda self, *args: calls.append(args) or encode(self, *args))
    assert save(model, "a.png", "b.png", "c.png", "--out", "out") == 0
    assert main(["segment", "a.png", "b.png", "--model", model, "--classes", NAMES, "--out", "other"]) == 0
    assert len(calls) == 2


def test_without_out_the_folder_has_a_name(model):
    draw("a.png")
    assert save(model, "a.png", kinds="mask") == 0 and Path("labelled/masks/a.png").exists()


# ---- a data set


def photos_of_every_kind() -> list[str]:
    Path("in/deep").mkdir(parents=True)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    plain = Image.fromarray(noise(0, 14, 20, 3))
    plain.save("in/plain.jpg")
    plain.convert("L").save("in/deep/grey.png")
    Image.fromarray(noise(1, 14, 20, 3)).save("in/turned.jpg", exif=turned)
    Image.fromarray(noise(2, 14, 20, 4)).save("in/half.png")
    Image.fromarray(np.arange(280, dtype=np.uint16).reshape(14, 20) * 200).save("in/deep16.png")
    Image.fromarray(noise(3, 14, 20, 3)).save("in/a.webp", lossless=True)
    Image.fromarray(noise(4, 14, 20, 3)).save("in/b.tif")
    return ["a.webp", "b.tif", "deep/grey.png", "deep16.png", "half.png", "plain.jpg", "turned.jpg"]


def test_a_data_set_holds_the_photos_that_were_labelled(model, monkeypatch):
    photos = photos_of_every_kind()
    assert save(model, "in", "--out", "set", kinds="dataset") == 0
    images = sorted(path.relative_to("set/images").as_posix() for path in Path("set/images").rglob("*.*"))
    assert [Path(one).with_suffix("") for one in images] == [Path(one).with_suffix("") for one in photos]
    assert [one for one in images if one in photos] == ["deep/grey.png", "deep16.png", "half.png", "plain.jpg"]
    same = []
    for photo, image in zip(photos, images, strict=True):
        with Image.open(f"set/images/{image}") as stored:
            assert stored.getexif().get(ExifTags.Base.Orientation, 1) == 1 and stored.mode in ("RGB", "L")
            np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), np.asarray(read_image(f"in/{photo}")))
        if Path(f"set/images/{image}").read_bytes() == Path(f"in/{photo}").read_bytes():
            same.append(photo)
    assert same == ["deep/grey.png", "plain.jpg"]
    text = Path("set/README.md").read_text()
    assert "| 2 | red star |" in text and model in text and "0.1.0" in text


def test_a_data_set_of_other_bands_shows_these(model):
    draw("a.png")
    assert save(model, "a.png", "--bands", "3,2,1", "--out", "set", kinds="dataset") == 0
    np.testing.assert_array_equal(
        np.asarray(Image.open("set/images/a.png")), np.asarray(Image.open("a.png"))[..., ::-1]
    )


TRAINING = {
    "model.image_size": 32, "model.hidden": 32, "model.guidance_channels": [16, 16], "model.guidance_hidden": [16, 8],
    "model.decoder_channels": [32, 16], "model.window": 4, "data.crop": 32, "train.steps": 2, "train.batch": 2,
    "train.tensorboard": False, "train.eval_every": 0, "train.out": "run",
}  # fmt: skip


@pytest.mark.parametrize("names", [NAMES, "cat | kitten, dog, red star | sun"], ids=["names", "synonyms"])
def test_a_data_set_is_checked_trained_on_and_scored_from_anywhere(model, capsys, monkeypatch, here, names):
    photos_of_every_kind()
    assert save(model, "in", "--out", "set", kinds="dataset", names=names) == 0
    Path("elsewhere/images").mkdir(parents=True)
    monkeypatch.chdir("elsewhere")
    data = str(here / "set/data.yaml")
    capsys.readouterr()
    assert main(["data", "check", data, "--workers", "0", "--json"]) == 0
    [[report]] = rows(capsys)
    assert report["state"] == "ready" and report["pairs"] == 7 and not report["problems"]
    assert main(["eval", model, "--config", data, "--json"]) == 0
    scores = rows(capsys)[-1]["scores"]["val"]
    assert scores["miou_union"] == scores["pixel_accuracy"] == 1 and scores["images"] == 7
    encoder = fgaseg.load(model).config.encoder.model_dump(mode="json")
    config = fgaseg.load_config(data, **{f"model.encoder.{key}": value for key, value in encoder.items()}, **TRAINING)
    fgaseg.train(config)
    assert fgaseg.load("run/model").segment(here / "in/plain.jpg", ["cat", "dog"]).labels.shape == (14, 20)


def test_a_data_set_may_move(model, capsys):
    draw("in/a.png", "in/b.png")
    assert save(model, "in", "--out", "set", kinds="dataset") == 0
    os.rename("set", "moved")
    assert main(["data", "check", "moved/data.yaml", "--workers", "0", "--json"]) == 0


# ---- going on


def test_only_what_is_not_done_is_labelled(model, capsys, labelled):
    for number in range(4):
        draw(f"in/{number}.png", size=(20 + number, 14))
    assert save(model, "in", "--out", "out", kinds=ALL) == 0
    before = written("out")
    labelled.clear(), capsys.readouterr()
    assert save(model, "in", "--out", "out", kinds=ALL) == 0
    assert labelled == [] and "out: 4 of 4 photos were labelled by an earlier run" in capsys.readouterr().out
    assert save(model, "in", "--out", "out", "--json", kinds=ALL) == 0
    assert [row.get("image") for row in rows(capsys)] == [*(f"in/{number}.png" for number in range(4)), None]
    Path("out/masks/1.png").unlink()
    Path("out/.fgaseg/photos/2.json").write_text("{")  # damaged
    assert save(model, "in", "--out", "out", kinds=ALL) == 0
    assert labelled == [(14, 21), (14, 22)] and written("out") == before


def test_a_photo_that_has_changed_or_is_new_is_labelled(model, labelled):
    draw("in/a.png", "in/b.png")
    assert save(model, "in", "--out", "out", kinds=ALL) == 0
    labelled.clear()
    Image.fromarray(noise(9, 14, 25, 4)).save("in/b.png")
    draw("in/c.jpg", size=(30, 14))
    assert save(model, "in", "--out", "out", kinds=ALL) == 0
    assert labelled == [(14, 25), (14, 30)]
    sizes = [one["width"] for one in json.loads(Path("out/coco.json").read_text())["images"]]
    assert sizes == [20, 25, 30] and Image.open("out/masks/b.png").width == 25


def test_results_among_the_photos_are_no_photos(model, caplog):
    draw("a.png", "deep/b.png")
    for _ in range(2):
        assert save(model, ".", kinds=ALL) == 0  # into ./labelled
    assert save(model, ".", "--out", "deep/more", kinds="mask") == 0
    assert "left out, since --save has written them: " in caplog.text
    masks = sorted(path.relative_to("labelled").as_posix() for path in Path("labelled/masks").rglob("*.png"))
    assert masks == ["masks/a.png", "masks/deep/b.png"]
    assert len(list(Path("deep/more/masks").rglob("*.png"))) == 2
    assert save(model, "labelled/images", "--out", "again", kinds="mask") == 0  # unless they are asked for
    assert Path("again/masks/deep/b.png").exists()


def test_names_that_are_no_text_are_kept(model, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    draw("a.png")
    os.rename("a.png", name)
    assert save(model, ".", "--json", kinds=ALL) == 0
    assert rows(capsys)[0]["image"] == name and Path("labelled/masks", name).exists()
    assert json.loads(Path("labelled/coco.json").read_text())["images"][0]["file_name"] == name


def test_a_photo_that_gets_another_name_is_there_once(model):
    draw("in/a.png")
    assert save(model, "in", "--out", "out", kinds=ALL) == 0
    draw("in/a.jpg")
    assert save(model, "in", "--out", "out", kinds=ALL) == 0
    assert sorted(path.name for path in Path("out/images").iterdir()) == ["a_jpg.jpg", "a_png.png"]
    assert sorted(path.name for path in Path("out/masks").iterdir()) == ["a_jpg.png", "a_png.png"]
    assert len(json.loads(Path("out/annotations.json").read_text())["images"]) == 2


OTHERS = {
    "names": (["--classes", "cat, dog, blue ring"], 'classes.2 was "red star", now "blue ring"'),
    "order": (["--classes", "dog, cat, red star"], 'classes.0 was "cat", now "dog"'),
    "background": (["--background", "other"], 'background was null, now "other"'),
    "threshold": (["--threshold", "0.5"], "threshold was null, now 0.5"),
    "bands": (["--bands", "3,2,1"], "view.bands was null, now [3, 2, 1]"),
    "views": (["inference=windows"], 'config.inference was "whole", now "windows"'),
    "kinds": (["--save", "mask"], 'kinds was "coco,mask", now "mask"'),
    "precision": (["--precision", "bfloat16"], 'precision was "float32", now "bfloat16"'),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_settings_are_never_mixed(model, capsys, labelled, what):
    draw("in/a.png")
    assert save(model, "in", "--out", "out") == 0
    before = written("out")
    labelled.clear(), capsys.readouterr()
    words, reason = OTHERS[what]
    assert (
        main(["segment", "in", "--model", model, "--classes", NAMES, "--save", "mask,coco", "--out", "out", *words])
        == 1
    )
    err = capsys.readouterr().err.splitlines()
    assert "out: holds results of other settings" in err[-1] and reason in err[-1] and "give another --out" in err[-1]
    assert not labelled and written("out") == before


def during(monkeypatch, act):
    """Something that happens while a photo is labelled."""
    segment = fgaseg.FGASeg.segment

    def spy(self, *args, **kwargs):
        act()
        return segment(self, *args, **kwargs)

    monkeypatch.setattr(fgaseg.FGASeg, "segment", spy)


def test_a_run_with_other_settings_at_the_same_time_ends_this_one(model, capsys, monkeypatch):
    draw("in/a.png")
    file = Path("out/.fgaseg/settings.json")
    during(monkeypatch, lambda: file.write_text(file.read_text().replace('"threshold": null', '"threshold": 0.5')))
    assert save(model, "in", "--out", "out", kinds="mask") == 1
    err = capsys.readouterr().err
    assert "out: holds results of other settings (threshold was 0.5, now null)" in err and not written("out")


def test_a_photo_that_is_replaced_while_it_is_labelled_is_not_in_the_data_set(model, labelled, monkeypatch):
    draw("in/a.png")
    before = read_image("in/a.png")
    with monkeypatch.context() as patch:
        during(patch, lambda: Image.fromarray(noise(7, 14, 20, 3)).save("in/a.png"))
        assert save(model, "in", "--out", "out", kinds="dataset") == 0
    np.testing.assert_array_equal(np.asarray(Image.open("out/images/a.png")), np.asarray(before))
    assert save(model, "in", "--out", "out", kinds="dataset") == 0 and len(labelled) == 2
    np.testing.assert_array_equal(np.asarray(Image.open("out/images/a.png")), noise(7, 14, 20, 3))


def test_a_photo_of_no_file_has_a_name_in_its_coco_file(model, monkeypatch):
    draw("a.png")
    with open("a.png", "rb") as file:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file, isatty=lambda: False))
        assert save(model, "-", "--out", "one.json", kinds="coco") == 0
    assert json.loads(Path("one.json").read_text())["images"][0]["file_name"] == "stdin"


def test_other_weights_are_other_settings(model, capsys, tmp_path):
    draw("in/a.png")
    assert save(model, "in", "--out", "out") == 0
    network = fgaseg.load(model)
    next(network.head.parameters()).data.mul_(1.001)
    network.save_pretrained(tmp_path / "other")
    assert save(str(tmp_path / "other"), "in", "--out", "out") == 1 and "weights was" in capsys.readouterr().err
    fgaseg.load(model).save_pretrained(tmp_path / "same")  # the same weights, elsewhere
    assert save(str(tmp_path / "same"), "in", "--out", "out") == 0


def test_results_of_another_photo_are_not_replaced(model, capsys):
    draw("in/a.png", "other/a.png")
    assert save(model, "in", "--out", "out") == 0
    before = written("out")
    assert save(model, "other", "--out", "out") == 1
    assert "out: has results a of another photo, ../in/a.png, and not of other/a.png" in capsys.readouterr().err
    assert written("out") == before


def test_photos_of_two_runs_are_not_listed_by_one_name(model, capsys):
    draw("in/a.png", "in/a.jpg", "other/a.png")
    assert save(model, "in", "--out", "out") == 0
    before = written("out")
    assert save(model, "other", "--out", "out") == 1
    assert "out: has results a_png of another photo, ../in/a.png, and not of other/a.png" in capsys.readouterr().err
    assert written("out") == before and save(model, "in", "--out", "out") == 0


def test_a_bad_photo_among_good_ones_costs_only_itself(model, capsys, labelled):
    draw("in/a.png", "in/c.png", size=(20, 14))
    Path("in/b.png").write_bytes(b"none")
    assert save(model, "in", "no.png", "--out", "out", "--json") == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [row.get("image") for row in found] == ["in/a.png", "in/b.png", "in/c.png", None]
    assert "in/b.png: is not an image" in found[1]["error"] and found[-1]["labelled"] == 2 and found[-1]["failed"] == 2
    assert "fgaseg segment: 2 of 4 photos were not labelled: no.png, in/b.png" in err
    assert len(json.loads(Path("out/coco.json").read_text())["images"]) == 2
    labelled.clear()
    draw("in/b.png", size=(33, 14))
    assert save(model, "in", "--out", "out") == 0 and labelled == [(14, 33)]
    assert len(json.loads(Path("out/coco.json").read_text())["images"]) == 3
    Path("in/b.png").write_bytes(b"none")  # its results are those of a photo that is no more
    assert save(model, "in", "--out", "out") == 1 and not Path("out/masks/b.png").exists()
    assert len(json.loads(Path("out/coco.json").read_text())["images"]) == 2


def test_a_full_disk_ends_the_run_in_one_line_and_the_next_goes_on(model, capsys, monkeypatch):
    draw(*(f"in/{number}.png" for number in range(6)))
    assert save(model, "in", "--out", "whole", kinds=ALL) == 0
    count = 0

    def full(path, write):
        nonlocal count
        count += "masks" in Path(path).parts
        if count > 3:
            raise OSError(28, "No space left on device")
        atomic_write(path, write)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        for module in ("cli.labelled_folder", "cli.result_files", "inference.label_images"):
            patch.setattr(f"fgaseg.{module}.atomic_write", full)
        assert save(model, "in", "--out", "out", kinds=ALL) == 1
    err = capsys.readouterr().err.strip()
    assert err.startswith("fgaseg segment: out: cannot be written to (No space left on device): make room")
    assert "\n" not in err and not list(Path("out").rglob("*.tmp")) and not Path("out/coco.json").exists()
    assert save(model, "in", "--out", "out", kinds=ALL) == 0
    assert written("out") == written("whole")


@pytest.mark.parametrize("name", ["l.tif", "l.geojson"])
def test_a_missing_package_is_told_before_a_model_is_fetched(monkeypatch, capsys, name):
    draw("a.png")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert save("no/such/model", "a.png", "--out", name, kinds="mask") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fgaseg[geo]'" in line
