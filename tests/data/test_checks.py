"""Checks: damage is found and its file named, in benchmark sets and in own folders."""

import json
import logging

import numpy as np
import pytest
import tifffile
from PIL import Image
from sample_data import CONTEXT, FULL, damage, make_folder

from fgaseg.cli import main
from fgaseg.data import FolderDataset, check_labels
from fgaseg.data.checks import check, check_folders
from fgaseg.data.preparation import prepare
from fgaseg.data.prepared_sets import open_set
from fgaseg.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*scores are not comparable")


DAMAGE = {
    "truncated photo": ("images/validation/ADE_val_00000001.jpg", "cut", "unreadable"),
    "truncated label": ("annotations/validation/ADE_val_00000001.png", "cut", "unreadable"),
    "empty label": ("annotations/validation/ADE_val_00000001.png", "empty", "unreadable"),
    "undefined value": ("annotations/validation/ADE_val_00000001.png", 200, "values that the set does not define"),
    "wrong size": ("images/validation/ADE_val_00000001.jpg", "small", "sizes that differ"),
    "no label": ("annotations/validation/ADE_val_00000001.png", "remove", "photos without labels (left out)"),
    "no photo": ("images/validation/ADE_val_00000001.jpg", "remove", "labels without a photo (left out)"),
    "changed": ("annotations_detectron2/validation/ADE_val_00000001.png", 3, "prepared labels that differ"),
    "no class": ("annotations_detectron2/validation/ADE_val_00000001.png", 150, "values that are not a class"),
    "truncated": ("annotations_detectron2/validation/ADE_val_00000001.png", "cut", "unreadable"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_check_finds_damage_and_names_the_file(tree, name, capsys):
    prepare(["a150"], tree)
    [row] = check(["a150"], tree)
    assert row.problems.keys() == {"count"} and row.state == "incomplete" and row.values == [0, 147]
    where, how, kind = DAMAGE[name]
    damage(tree / "ADEChallengeData2016" / where, how)
    assert main(["data", "check", "a150", "--root", str(tree), "--workers", "0", "--json"]) == 1
    [row] = json.loads(capsys.readouterr().out)
    found = next(texts for other, texts in row["problems"].items() if other.startswith(kind))
    assert all("ADE_val_00000001" in text for text in found) and row["state"] == "wrong"
    assert main(["data", "check", "a150", "--root", str(tree), "--workers", "0"]) == 1
    assert kind in (printed := capsys.readouterr().out) and "ADE_val_00000001" in printed


def test_shrunk_photos_and_labels_are_compared_with_their_originals(tree):
    """A-847's: where the original photo is damaged, nothing can be said about what was made of it."""
    prepare(["a847"], tree)
    [row] = check(["a847"], tree)
    assert row.problems.keys() == {"count"} and row.prepared == 3
    photo = sorted((tree / FULL / "images/ADE/validation").rglob("*.jpg"))[0]
    prepared = tree / FULL / "annotations_detectron2/validation" / f"{photo.stem}.tif"
    whole = prepared.read_bytes()
    damage(prepared, 3)
    [row] = check(["a847"], tree)
    [differing] = row.problems.keys() - {"count"}
    assert differing.startswith("prepared labels that differ") and row.problems[differing] == [str(prepared)]
    prepared.write_bytes(whole)
    for how, kind in (("small", "sizes that differ"), ("empty", "unreadable"),
                      ("remove", "labels without a photo (left out)")):  # fmt: skip
        damage(photo, how)
        [row] = check(["a847"], tree)
        assert row.problems.keys() - {"count"} == {kind}
        assert all(photo.stem in text for text in row.problems[kind])


def test_check_reports_other_numberings_of_pascal_context(tree):
    file = tree / CONTEXT / "labels.txt"
    file.write_text(
        file.read_text().replace("3: airconditioner", "3: air conditioner").replace("5: artillery", "5: ash")
    )
    [row] = check(["pc459"], tree)
    assert row.problems["labels.txt numbers the classes differently"] == ["5: 'ash', not 'artillery'"]
    assert len(row.problems["photos of the list that are not in VOCdevkit/VOC2010/JPEGImages"]) == 5101


def test_other_layouts_by_images_and_labels(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    (tmp_path / "elsewhere").mkdir()
    ade = tree / "ADEChallengeData2016"
    given = ["--images", str(ade / "images/training"), "--labels", str(ade / "annotations/training")]
    monkeypatch.chdir(tmp_path / "elsewhere")  # where no ./datasets is
    assert main(["data", "prepare", "a150", *given, "--out", str(tmp_path / "o"), "--workers", "0"]) == 0
    assert len(open_set("a150", tmp_path / "o")) == 6
    prepared = tmp_path / "o/ADEChallengeData2016/annotations_detectron2/validation"
    capsys.readouterr()
    assert main(["data", "check", "a150", *given[:3], str(prepared), "--workers", "0"]) == 1
    assert "6 pairs, and the whole set has 2000" in capsys.readouterr().out
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {number}" for number in range(150)))
    own = ["data", "check", *given[:3], str(prepared), "--names", str(names), "--workers", "0"]
    assert main(own) == 0
    damage(next(iter(prepared.iterdir())), 151)
    assert main(own) == 1 and ": [151]" in capsys.readouterr().out
    assert main(own[:-4]) == 1 and "need --names FILE or --label-map, or the name of the set" in capsys.readouterr().err
    with pytest.raises(DataError, match="give a file of names, a label map, or the name of the set"):
        check_folders(prepared, prepared)


def test_own_folders_are_checked_like_the_benchmark_sets(tmp_path):
    """The same kinds of problems, under the same names."""
    config = make_folder(tmp_path, count=5)
    own = {"images": config.images, "labels": config.labels, "names": config.names}
    report = check_folders(**own)
    assert (report.state, report.pairs, report.values, report.problems) == ("ready", 5, [0, 255], {})
    damage(config.images / "p0.png", "cut")
    damage(config.labels / "p1.png", "empty")
    damage(config.images / "p2.png", "small")
    damage(config.labels / "p3.png", 7)
    (config.images / "p4.png").unlink()
    report = check_folders(**own)
    assert report.state == "wrong" and report.pairs == 4
    stems = {"unreadable": "p0 p1", "sizes that differ": "p2", "values that are not a class": "p3", "left out": "p4"}
    assert report.problems.keys() == stems.keys()
    for kind, words in stems.items():
        texts = report.problems[kind]
        assert len(texts) == len(words.split())
        assert all(stem in text for stem, text in zip(words.split(), texts, strict=True))


def test_photos_are_read_as_the_bands_and_the_range_say(tmp_path):
    config = make_folder(tmp_path, count=1)
    own = {"images": config.images, "labels": config.labels, "names": config.names}
    values = np.random.default_rng(0).integers(0, 900, (40, 56, 5)).astype(np.float32)
    (config.images / "p0.png").unlink()
    tifffile.imwrite(config.images / "p0.tif", values, photometric="minisblack", planarconfig="contig")
    beyond = "floating point images are in 0..1"
    wrong = ({}, beyond), ({"bands": (3,)}, beyond), ({"value_range": (0, 900), "bands": (6,)}, "has 5 bands")
    for view, words in wrong:
        report = check_folders(**own, **view)
        assert report.state == "wrong" and words in report.problems["unreadable"][0]
    assert check_folders(**own, value_range=(0, 900), bands=(5, 3, 1)).state == "ready"


def test_files_are_told_apart_by_suffixes(tmp_path):
    config = make_folder(tmp_path, count=2)
    for file in [*config.images.iterdir(), *config.labels.iterdir()]:
        file.rename(tmp_path / "images" / f"{file.stem}_{file.parent.name}.png")
    suffixes = {"image_suffix": "_images", "label_suffix": "_labels", "names": config.names}
    report = check_folders(config.images, **suffixes)
    assert (report.state, report.pairs, report.set, report.values) == ("ready", 2, str(config.images), [0, 255])


def test_nothing_is_shared_out_where_nothing_is_read(tmp_path):
    config = make_folder(tmp_path, count=1)
    (config.labels / "p0.png").write_bytes(b"")
    report = check_folders(config.images, config.labels, names=config.names)
    assert (report.shares, report.void, report.unnamed, report.values) == ({}, None, {}, None)
    (config.labels / "p0.png").unlink()
    labels = Image.fromarray(np.repeat(np.array([7, 9, 8, 9, 7, 9], np.uint8), 7)[None])
    labels.save(config.labels / "p0.png")
    Image.new("RGB", labels.size).save(config.images / "p0.png")
    report = check_folders(config.images, config.labels, names=config.names)
    assert list(report.unnamed.items()) == [("9", 0.5), ("7", pytest.approx(1 / 3)), ("8", pytest.approx(1 / 6))]
    assert report.problems["values that are not a class"] == [f"{config.labels}/p0.png: [7, 8, 9]"]


def test_a_damaged_mask_is_unreadable(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg")
    mask = {"image_id": 7, "category_id": 1, "segmentation": {"size": [9, 9], "counts": [81]}}
    data = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 4, "height": 3}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [mask],
    }
    (tmp_path / "coco.json").write_text(json.dumps(data))
    report = check_folders(tmp_path, tmp_path / "coco.json")
    assert report.state == "wrong" and "a segmentation of category 1 is damaged" in report.problems["unreadable"][0]


def test_that_more_files_are_read_is_told_once(tmp_path, monkeypatch, caplog):
    config = make_folder(tmp_path, count=5)
    monkeypatch.setattr("os.cpu_count", lambda: None)  # one file at a time
    monkeypatch.setattr("fgaseg.data.checks._SECONDS_MORE", 0.0)
    *first, _ = np.random.default_rng(0).permutation(5)  # the last that is read holds the other classes
    for number in first:
        Image.new("L", (56, 40), 1).save(config.labels / f"p{number}.png")
    with caplog.at_level(logging.INFO, "fgaseg"):
        check_labels(FolderDataset(config, "train"), "train", seconds=0, training=True)
    assert caplog.text.count("Reading the other files to be sure") == 1 and "train: 5 label files: " in caplog.text
