"""The benchmark sets: labels against computations of another kind, damage found, work resumed, originals untouched."""

import hashlib
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import SHARED
from PIL import ExifTags, Image
from rich.console import Console
from tiny import tiny_config, tiny_model

from fgaseg.cli import main
from fgaseg.cli.tables import scores_table
from fgaseg.config import Config, DataConfig, load_config
from fgaseg.data.benchmark_sets import SETS, open_set
from fgaseg.data.label_formats import decode_counts, read_label_map
from fgaseg.data.preparation import check, check_folder, prepare, print_prepared, shrink
from fgaseg.data.selection import training_sets
from fgaseg.errors import ConfigError, DataError, ImageError
from fgaseg.evaluation.scores import ClassScore, Scores
from fgaseg.training import train

SAMPLES = SHARED / "data" / "protocol"
pytestmark = [
    pytest.mark.skipif(not SAMPLES.exists(), reason=f"needs the sample photos in {SAMPLES}"),
    pytest.mark.filterwarnings("ignore:.*numbers will not be those of the set"),
]
FULL = "ADE20K_2021_17_01"
CONTEXT = "VOCdevkit/VOC2010"
STEMS = ["2008_000002", "2008_000003", "2008_000007"]  # of the validation list; the photos are noise


@pytest.fixture
def tree(tmp_path):
    """A writable copy of the samples; A-847's three photos are also its validation split, PASCAL Context is drawn."""
    root = tmp_path / "datasets"
    shutil.copytree(SAMPLES, root)
    shutil.copytree(root / FULL / "images/ADE/training", root / FULL / "images/ADE/validation")
    draw_context(root / CONTEXT)
    return root


def draw_context(folder: Path) -> None:
    """PASCAL Context as documented: LabelMap in .mat files, and COCO's compressed run lengths in one JSON file.

    No file of it was at hand, so these stand in for it: rectangles of every category that the sets know.
    """
    savemat = pytest.importorskip("scipy.io").savemat
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "trainval").mkdir()
    rng = np.random.default_rng(0)
    ids = [value for value in shipped_ids("pc59") if value]
    images, masks = [], []
    for number, stem in enumerate([*STEMS, "2008_999999"]):  # the last is in the training phase
        height, width = 60 + number, 80
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        noise.save(folder / "JPEGImages" / f"{stem}.jpg")
        label_map = np.kron(rng.integers(1, 460, (height, 8)), np.ones((1, 10))).astype(np.uint16)
        savemat(folder / "trainval" / f"{stem}.mat", {"LabelMap": label_map}, do_compression=bool(number % 2))
        images.append({"file_name": f"{stem}.jpg", "phase": "val" if stem in STEMS else "train", "height": height,
                       "width": width, "image_id": 1000 + number})  # fmt: skip
        for category in ids[number::3]:
            (top, left), (high, wide) = rng.integers(0, 40, 2), rng.integers(1, 40, 2)
            mask = np.zeros((height, width), np.uint8)
            mask[top : top + high, left : left + wide] = 1
            masks.append({"image_id": 1000 + number, "category_id": category, "id": len(masks), "iscrowd": 0,
                          "segmentation": {"size": [height, width], "counts": compressed(mask)}})  # fmt: skip
    (folder / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": masks}))
    names = SETS["pc459"].names
    (folder / "labels.txt").write_text("".join(f"{number}: {name}\n" for number, name in enumerate(names, 1)))


def compressed(mask: np.ndarray) -> str:
    """COCO's text of a mask, written from its description: column by column, differences from the fourth count on."""
    runs = [(value, len(list(group))) for value, group in itertools.groupby(mask.ravel(order="F").tolist())]
    counts = [count for _, count in ([(0, 0)] if runs[0][0] else []) + runs]
    text = ""
    for index, count in enumerate(counts):
        left = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group, left = left & 31, left >> 5
            more = left != (-1 if group & 16 else 0)
            text += chr(group + (32 if more else 0) + 48)
    return text


def shipped_ids(name: str) -> dict[int, int]:
    table = json.loads((SAMPLES.parent / "classes" / f"{name}_id_to_train_id.json").read_text())
    return {int(key): value for key, value in table.items()}


def hashes(root: Path) -> dict[str, str]:
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def values(file: Path) -> list[list[int]]:
    """Pixel values by another route than numpy's view of the file."""
    image = Image.open(file)
    flat = list(image.getdata() if not hasattr(image, "get_flattened_data") else image.get_flattened_data())
    return [flat[row * image.width : (row + 1) * image.width] for row in range(image.height)]


COCO_GAPS = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}  # ids that COCO-Stuff never gave
COCO = dict(zip(sorted(set(range(182)) - COCO_GAPS), range(171), strict=True)) | {255: 255}
VOC = {0: 255, 255: 255} | {value: value - 1 for value in range(1, 21)}
TABLES = {
    "coco-stuff": COCO,
    "a150": {0: 255} | {value: value - 1 for value in range(1, 151)},
    "pas20": VOC,
    "pas20b": VOC | {0: 20},
}


@pytest.mark.parametrize("split, name", [("train", "coco-stuff"), ("train", "a150"), *(("val", s) for s in TABLES)])
def test_labels_of_real_files_equal_a_lookup_pixel_by_pixel(tree, name, split):
    prepare([name], tree, split=split)
    one, table = SETS[name], TABLES[name]
    data = open_set(name, tree, split)
    published = one.published_labels(split, tree)
    assert len(data) == len(published) == {"coco-stuff train": 13, "coco-stuff val": 8, "a150 train": 6,
                                           "a150 val": 9}.get(f"{name} {split}", 4)  # fmt: skip
    for item in data:
        expected = [[table[value] for value in row] for row in values(published[item["stem"]])]
        assert item["labels"].tolist() == expected
        photo = Image.open(one.published_photos(split, tree)[item["stem"]]).convert("RGB")
        assert np.array_equal(item["image"], np.asarray(photo))


def test_a847_equals_a_lookup_pixel_by_pixel(tree):
    ids = shipped_ids("ade847")
    prepare(["a847"], tree)
    data = open_set("a847", tree)
    assert len(data) == 3 and data.ignore == 65535
    for item in data:
        [file] = (tree / FULL / "images/ADE/validation").rglob(f"{item['stem']}_seg.png")
        pixels = values(file)
        height, width = len(pixels), len(pixels[0])
        high, wide = item["labels"].shape
        assert (high, wide) == (512, round(width / height * 512))
        expected = []
        for row in range(high):
            source = pixels[int(row * (1 / (high / height)))]  # OpenCV's rounding: not always row * height // high
            coded = [source[int(column * (1 / (wide / width)))] for column in range(wide)]
            expected.append([ids.get(red // 10 * 256 + green, 65535) for red, green, _ in coded])
        assert item["labels"].tolist() == expected
        assert item["image"].shape == (high, wide, 3)
        assert (item["labels"] != 65535).float().mean() > 0.5


def test_a847_ids_are_those_of_the_json_beside_the_labels(tree):
    for file in (tree / FULL).rglob("*_seg.png"):
        objects = json.loads(file.with_name(file.name.replace("_seg.png", ".json")).read_text("latin-1"))
        known = {one["name_ndx"] for one in objects["annotation"]["object"]}
        assert set(np.unique(SETS["a847"].read(file)).tolist()) <= known | {0}


def test_shrunk_photos_are_bilinear_without_antialias():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (700, 1100, 3), dtype=np.uint8)
    small, labels = shrink(Image.fromarray(pixels), np.zeros((700, 1100), np.uint16))
    assert small.size == (805, 512) and labels.shape == (512, 805)
    for row, column in rng.integers(0, 512, (300, 2)):
        y, x = (row + 0.5) * 700 / 512 - 0.5, (column + 0.5) * 1100 / 805 - 0.5
        top, left = int(y), int(x)
        corners = pixels[top : top + 2, left : left + 2].astype(float)
        upper, lower = corners[:, 0] * (left + 1 - x) + corners[:, 1] * (x - left)
        expected = upper * (top + 1 - y) + lower * (y - top)
        assert np.abs(np.asarray(small)[row, column] - expected).max() <= 0.51
    untouched, same = shrink(Image.fromarray(pixels[:512]), np.zeros((512, 1100), np.uint16))
    assert untouched.size == (1100, 512) and same.shape == (512, 1100)
    upright, _ = shrink(Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90), np.zeros((1100, 700)))
    assert upright.size == (512, 805)


def test_pascal_context_fixtures_equal_what_was_drawn(tree):
    prepare(["pc59", "pc459"], tree)
    ids = shipped_ids("pc59")
    drawn = json.loads((tree / CONTEXT / "trainval_merged.json").read_text())
    few, many = open_set("pc59", tree), open_set("pc459", tree)
    assert [item["stem"] for item in few] == [item["stem"] for item in many] == STEMS
    from scipy.io import loadmat

    for number, (item, other) in enumerate(zip(few, many, strict=True)):
        height, width = item["labels"].shape
        flat = [255] * (height * width)  # column by column
        for mask in drawn["annos_segmentation"]:
            if mask["image_id"] == 1000 + number:
                position, value = 0, 0
                for count in decode_counts(mask["segmentation"]["counts"]).tolist():
                    if value:
                        flat[position : position + count] = [ids[mask["category_id"]]] * count
                    position, value = position + count, 1 - value
        assert item["labels"].T.flatten().tolist() == flat
        label_map = loadmat(tree / CONTEXT / "trainval" / f"{STEMS[number]}.mat")["LabelMap"]
        assert other["labels"].tolist() == (label_map.astype(int) - 1).tolist()
    assert many.ignore == 459 and many.classes[430] == "unknown"


def test_run_lengths_as_pycocotools_writes_them():
    for text, counts in VECTORS.items():
        assert decode_counts(text).tolist() == counts


VECTORS = {
    "01": [0, 1],
    "031O000O0": [0, 3, 1, 2, 1, 2, 1, 1, 1],
    "WRW1o;a000000iej4": [40007, 383, 17, 383, 17, 383, 17, 383, 158410],
}


def test_names_classes_and_prompts():
    sizes = {name: (len(one.names), len(one.classes)) for name, one in SETS.items()}
    assert sizes == {"coco-stuff": (171, 171), "a150": (150, 150), "a847": (847, 847), "pc59": (59, 59),
                     "pc459": (459, 459), "pas20": (20, 20), "pas20b": (59, 21)}  # fmt: skip
    assert sum(", " in name for name in SETS["a847"].names) == 217
    assert SETS["pas20b"].class_of == [*range(20), *[20] * 39] and SETS["pas20b"].classes[20] == "background"
    assert all(one.class_of is None for name, one in SETS.items() if name != "pas20b")


def test_names_are_those_of_the_protocol_up_to_spaces_that_the_tokenizer_drops():
    import open_clip

    tokenize = open_clip.get_tokenizer("ViT-B-16")
    for one in SETS.values():
        published = json.loads((SAMPLES.parent / "classes" / one.names_file).read_text())
        assert one.names == [name.strip() for name in published]
    assert "bed" in SETS["a150"].names
    assert torch.equal(tokenize("A photo of a bed  in the scene"), tokenize("A photo of a bed in the scene"))


def test_all_ignored_images_are_left_out_and_stay_out(tree):
    label = tree / "VOCdevkit/VOC2012/SegmentationClassAug/2011_000025.png"
    Image.fromarray(np.asarray(Image.open(label)) * 0).save(label)
    [row] = prepare(["pas20"], tree)
    assert (row.converted, row.empty) == (3, 1)
    assert len(open_set("pas20", tree)) == 3
    [again] = prepare(["pas20"], tree)
    assert (again.converted, again.already, again.empty) == (0, 3, 1)
    [row] = check(["pas20"], tree)
    assert row.state == "incomplete" and (row.prepared, row.empty) == (3, 1)
    prepare(["pas20b"], tree)
    assert len(open_set("pas20b", tree)) == 4


def test_an_all_ignored_image_with_spaces_in_its_name_stays_out(tree):
    voc = tree / "VOCdevkit/VOC2012"
    shutil.rmtree(tree / "coco-stuff/images/val2017")
    shutil.rmtree(tree / "coco-stuff/annotations/val2017")
    for source, to, suffix in (("JPEGImages", "images", "jpg"), ("SegmentationClassAug", "annotations", "png")):
        folder = tree / "coco-stuff" / to / "val2017"
        folder.mkdir()
        for stem in ("my photo", "other"):
            shutil.copy(voc / source / f"fcn_demo.{suffix}", folder / f"{stem}.{suffix}")
    label = tree / "coco-stuff/annotations/val2017/my photo.png"
    Image.fromarray(np.full_like(np.asarray(Image.open(label)), 255)).save(label)
    assert [prepare(["coco-stuff"], tree, split="val")[0].empty for _ in "12"] == [1, 1]
    assert [item["stem"] for item in open_set("coco-stuff", tree)] == ["other"]


def test_photos_turned_by_exif_are_paired_with_upright_labels(tree):
    photo = tree / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright = Image.open(photo).convert("RGB")
    upright.transpose(Image.Transpose.ROTATE_90).save(photo, exif=exif)
    [row] = prepare(["a150"], tree)
    assert not row.failed
    assert open_set("a150", tree)[0]["image"].shape[:2] == upright.size[::-1]


def test_originals_stay_as_they_are_and_nothing_else_is_left(tree):
    (tree / "ADEChallengeData2016/annotations_detectron2/validation").mkdir(parents=True)
    before = hashes(tree)
    (tree / "ADEChallengeData2016/annotations_detectron2/validation/.ADE_val_00000001.png.x1.tmp").write_bytes(b"half")
    prepare([], tree, workers=1)
    after = hashes(tree)
    assert {name: after[name] for name in before} == before
    assert all("_detectron2" in name and not name.endswith(".tmp") for name in after.keys() - before.keys())
    assert len(after) > len(before) + 40


def test_killed_and_started_again_the_files_are_the_same(tmp_path, tree):
    label = tree / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
    photo = tree / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"
    for number in range(120):
        os.link(label, label.with_name(f"copy_{number:03}.png"))
        os.link(photo, photo.with_name(f"copy_{number:03}.jpg"))
    shutil.copytree(tree, whole := tmp_path / "whole")
    prepare(["a150"], whole)
    target = tree / "ADEChallengeData2016/annotations_detectron2/validation"
    command = [sys.executable, "-m", "fgaseg", "data", "prepare", "a150", "--root", str(tree), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(target.glob("*.png"))) < 12 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = sorted(target.glob("*.png"))
    assert 12 <= len(there) < 129, "not killed in the middle"
    for file in there:
        Image.open(file).load()
    with pytest.raises(DataError, match=r"a150: \d+ of 129 labels are not prepared: run fgaseg data prepare a150"):
        open_set("a150", tree)
    [row] = prepare(["a150"], tree)
    assert row.already + row.converted == 129 and row.already >= 12
    assert hashes(target) == hashes(whole / "ADEChallengeData2016/annotations_detectron2/validation")


DAMAGE = {
    "truncated photo": ("images/validation/ADE_val_00000001.jpg", "cut", "unreadable"),
    "truncated label": ("annotations/validation/ADE_val_00000001.png", "cut", "unreadable"),
    "empty label": ("annotations/validation/ADE_val_00000001.png", "empty", "unreadable"),
    "undefined value": ("annotations/validation/ADE_val_00000001.png", 200, "values that the set does not define"),
    "wrong size": ("images/validation/ADE_val_00000001.jpg", "small", "sizes that differ"),
    "no label": ("annotations/validation/ADE_val_00000001.png", "remove", "photos without labels (left out)"),
    "no photo": ("images/validation/ADE_val_00000001.jpg", "remove", "labels without a photo (left out)"),
    "changed": ("annotations_detectron2/validation/ADE_val_00000001.png", 3, "prepared labels that differ"),
    "no class": ("annotations_detectron2/validation/ADE_val_00000001.png", 150, "prepared values that are no class"),
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


def damage(file: Path, how: str | int) -> None:
    if how == "remove":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "small":
        Image.new("RGB", (20, 10)).save(file)
    else:
        labels = np.array(Image.open(file))
        labels[5, 7] = how
        Image.fromarray(labels).save(file)


def test_unreadable_files_are_named_and_the_others_go_on(tree, capsys):
    damage(tree / DAMAGE["truncated label"][0].join(["ADEChallengeData2016/", ""]), "cut")
    damage(tree / "ADEChallengeData2016/annotations/validation/ADE_val_00000002.png", 200)
    damage(tree / "ADEChallengeData2016/images/validation/ADE_val_00000003.jpg", "small")
    assert main(["data", "prepare", "a150", "--root", str(tree), "--workers", "0"]) == 1
    printed = capsys.readouterr().out
    for number, words in ((1, "truncated or corrupt"), (2, "holds the values 200, which"), (3, "is 20x10, its labels")):
        assert any(f"0000000{number}" in line and words in line for line in printed.splitlines())
    assert len(list((tree / "ADEChallengeData2016/annotations_detectron2/validation").iterdir())) == 6


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file", b"x" * 500])
def test_broken_mat_and_json_files_are_named(tree, content):
    (tree / CONTEXT / "trainval/2008_000003.mat").write_bytes(content)
    [row] = prepare(["pc459"], tree)
    assert row.converted == 2 and "2008_000003.mat: is truncated or no .mat file" in row.failed["2008_000003"]
    (tree / CONTEXT / "trainval_merged.json").write_bytes(content)
    with pytest.raises(DataError, match=r"trainval_merged\.json: is not PASCAL in Detail's"):
        prepare(["pc59"], tree)
    [row] = check(["pc59"], tree)
    assert row.state == "wrong" and "trainval_merged.json" in row.problems["damaged"][0]


def test_label_map_of_other_kinds(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(tmp_path / "a.mat", {"Other": np.ones((2, 2))})
    with pytest.raises(DataError, match=r"a\.mat: holds no LabelMap"):
        read_label_map(tmp_path / "a.mat")
    savemat(tmp_path / "b.mat", {"LabelMap": np.array([["x"]], object)})
    with pytest.raises(DataError, match=r"b\.mat: LabelMap is object"):
        read_label_map(tmp_path / "b.mat")


@pytest.mark.parametrize("segmentation", [
    {"counts": "0204"}, {"counts": "o" * 30 + "0"}, {"counts": [2**62] * 4 + [60 * 80]}, {"size": [1, 1]},
    {"size": None}, [[1, 2, 3, 4]],
])  # fmt: skip
def test_damaged_run_lengths_name_the_photo(tree, segmentation):
    file = tree / CONTEXT / "trainval_merged.json"
    data = json.loads(file.read_text())
    first = data["annos_segmentation"][0]
    first["segmentation"] = first["segmentation"] | segmentation if isinstance(segmentation, dict) else segmentation
    file.write_text(json.dumps(data))
    [row] = prepare(["pc59"], tree)
    assert "trainval_merged.json: a mask of category" in row.failed["2008_000002"] and row.converted == 2


def test_a_photo_of_impossible_size_is_not_painted(tree):
    file = tree / CONTEXT / "trainval_merged.json"
    data = json.loads(file.read_text())
    data["images"][0] |= {"height": 10**6, "width": 10**6}
    file.write_text(json.dumps(data))
    [row] = prepare(["pc59"], tree)
    assert "1000000 high" in row.failed["2008_000002"] and row.converted == 2


def test_check_knows_other_numberings_of_pascal_context(tree):
    file = tree / CONTEXT / "labels.txt"
    file.write_text(
        file.read_text().replace("3: airconditioner", "3: air conditioner").replace("5: artillery", "5: ash")
    )
    [row] = check(["pc459"], tree)
    assert row.problems["labels.txt numbers the classes differently"] == ["5: 'ash', not 'artillery'"]
    assert len(row.problems["photos of the list that are not in VOCdevkit/VOC2010/JPEGImages"]) == 5101


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['HOSTILE_MARK']}",)


def test_the_pickled_index_of_a847_is_never_run(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE_MARK", str(mark := tmp_path / "executed"))
    (tree / FULL / "index_ade20k.pkl").write_bytes(hostile := pickle.dumps(Hostile()))
    prepare(["a847"], tree)
    check(["a847"], tree)
    assert len(open_set("a847", tree)) == 3 and not mark.exists()
    pickle.loads(hostile)
    assert mark.exists()  # it would have


def test_labels_that_other_scripts_prepared_are_accepted(tree, tmp_path):
    prepare(["a150", "pas20", "a847"], tree)
    expected = {name: [item["labels"] for item in open_set(name, tree)] for name in ("a150", "pas20", "a847")}
    for folder in ("ADEChallengeData2016/annotations", "VOCdevkit/VOC2012/SegmentationClassAug", f"{FULL}/images",
                   "VOCdevkit/VOC2012/ImageSets"):  # fmt: skip
        shutil.rmtree(tree / folder)
    for file in (tree / FULL / "annotations_detectron2/validation").iterdir():
        Image.open(file).save(file, compression=None)
    for name, labels in expected.items():
        with pytest.warns(UserWarning, match="numbers will not be those of the set"):
            data = open_set(name, tree)
        assert all(torch.equal(item["labels"], one) for item, one in zip(data, labels, strict=True))
        [row] = prepare([name], tree)
        assert row.converted == 0 and row.already == len(labels)
        [row] = check([name], tree)
        assert row.state == "incomplete" and row.problems.keys() == {"count"}


def test_out_is_a_root_of_its_own_beside_originals_that_are_read_only(tree, tmp_path, capsys):
    before = hashes(tree)
    out = tmp_path / "mine"
    command = ["data", "prepare", "a150", "pas20", "--root", str(tree), "--out", str(out), "--workers", "0"]
    assert main(command) == 0 and main(command) == 0
    assert hashes(tree) == before
    assert "already" in capsys.readouterr().out
    assert len(open_set("a150", out)) == 9 and len(open_set("pas20", out)) == 4
    [row] = check(["a150"], out)
    assert row.problems.keys() == {"count"} and row.labels == row.prepared == 9
    with pytest.raises(DataError, match="a150 is not prepared|a150: is not prepared"):
        open_set("a150", tree)


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
    assert main(own) == 1 and "holds label 151" in capsys.readouterr().out
    with pytest.raises(DataError, match="need --names FILE, or the name of a set"):
        check_folder(prepared, prepared, None, None, None)


def test_a847_elsewhere_is_one_folder(tree, tmp_path):
    prepare(["a847"], tree)
    here = tree / FULL
    folder, out = here / "images/ADE/validation", tmp_path / "out"
    given = ["--images", str(folder), "--labels", str(folder)]
    assert main(["data", "prepare", "a847", *given, "--out", str(out), "--workers", "0"]) == 0
    for kind in ("images_detectron2", "annotations_detectron2"):
        assert hashes(out / FULL / kind) == hashes(here / kind)
    with pytest.raises(DataError, match="photos and labels lie in one folder"):
        prepare(["a847"], tmp_path, out=tmp_path / "two", images=here, labels=tmp_path)


def test_prepared_labels_are_not_prepared_again(tree, tmp_path):
    """VOC's values, prepared, are values that VOC publishes too."""
    prepare(["pas20"], tree)
    voc = tree / "VOCdevkit/VOC2012"
    with pytest.raises(DataError, match="would be converted twice: .* fgaseg eval --data pas20 --images"):
        prepare(["pas20"], tree, out=tmp_path, images=voc / "JPEGImages", labels=voc / "annotations_detectron2/val")


def test_of_many_failures_the_first_are_shown(tree, capsys):
    for file in (tree / "ADEChallengeData2016/annotations").rglob("*.png"):
        file.write_bytes(b"")
    rows = prepare(["a150"], tree) + prepare(["a150"], tree, split="train")
    failed = sum(len(row.failed) for row in rows)
    merged = replace(rows[0], failed=rows[0].failed | rows[1].failed)
    print_prepared([merged], tree)
    said = capsys.readouterr().out
    assert failed > 10 and said.count(" failed: ") == 10 and f"and {failed - 10} more" in said


def test_brackets_in_names_and_paths_are_no_markup(tree, tmp_path, capsys):
    root = tmp_path / "set [a" / "bold]"
    shutil.copytree(tree, root)
    prepare(["a150"], root)
    assert main(["data", "check", "a150", "--root", str(root), "--workers", "0", "--quick"]) == 1
    assert "[a/bold]" in "".join(capsys.readouterr().out.split())
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {number}" for number in range(150)))
    odd = tmp_path / "x[" / "images]"
    shutil.copytree(root / "ADEChallengeData2016/images/validation", odd)
    labels = root / "ADEChallengeData2016/annotations_detectron2/validation"
    own = ["--images", str(odd), "--labels", str(labels), "--names", str(names), "--workers", "0"]
    assert main(["data", "check", *own]) == 0
    table = ClassScore("car [/parked]", 1, 1, 1), ClassScore("[bold]", 1, 1, 1)
    Console().print(scores_table(Scores(1, list(table)), "of [/x]"))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("car [/parked]", "[bold]", "of [/x]"))


MISTAKES = {
    "no root": (["check", "--root", "nowhere"], "--root nowhere: is missing: give the folder that holds"),
    "wrong root": (["check", "--root", "EMPTY"], "holds none of coco-stuff, a150"),
    "nothing to prepare": (["prepare", "--root", "EMPTY"], "holds the labels of no set"),
    "set not there": (["prepare", "pc59", "--root", "EMPTY"], "trainval_merged.json, from trainval_merged.json (page"),
    "no such set": (["check", "ade", "--root", "EMPTY"], "'ade' is none of the sets: give one of coco-stuff, a150"),
    "no such split": (["prepare", "pc59", "--split", "train", "--root", "EMPTY"], "pc59 has no split 'train'"),
    "labels alone": (["check", "--labels", "EMPTY"], "--images and --labels go together"),
    "workers": (["check", "--workers", "-1"], "--workers -1: give 0"),
    "two splits": (
        ["prepare", "coco-stuff", "--images", "EMPTY", "--labels", "EMPTY"],
        "with --split where it has two",
    ),
}


@pytest.mark.parametrize("command, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(command, words, tmp_path, capsys):
    assert main(["data", *(str(tmp_path) if word == "EMPTY" else word for word in command)]) == 1
    said = capsys.readouterr().err.strip()
    assert words in said and len(said.splitlines()) == 1


def test_empty_folders_are_an_error(tmp_path):
    for folder in ("images", "annotations"):
        (tmp_path / "ADEChallengeData2016" / folder / "validation").mkdir(parents=True)
    with pytest.raises(DataError, match="have no pair of the same name"):
        prepare(["a150"], tmp_path)
    with pytest.raises(DataError, match=r"a150: is not prepared: run fgaseg data prepare a150 --root "):
        open_set("a150", tmp_path)
    shutil.rmtree(tmp_path / "ADEChallengeData2016")
    with pytest.raises(DataError, match=r"images/validation is missing; it comes from ADEChallengeData2016\.zip"):
        open_set("a150", tmp_path)


def test_list_names_every_set_and_archive(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["data", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["set"] for row in rows if row["split"] == "val"] == list(SETS)
    assert {row["set"]: row["images"] for row in rows if row["split"] == "val"}["pc459"] == 5104
    assert main(["data", "list"]) == 0 and "ADEChallengeData2016.zip" in capsys.readouterr().out


def test_benchmark_sets_as_training_data(tree, monkeypatch):
    prepare(["coco-stuff", "a150"], tree)
    data = DataConfig(set="coco-stuff", val_set="a150", root=tree, crop=64)
    train_set, scored = training_sets(data, seed=3)
    assert len(train_set) == 13 and list(scored) == ["a150"] and len(scored["a150"]) == 9
    item = train_set[4]
    assert item["pixels"].shape == (3, 64, 64) and item["labels"].shape == (64, 64)
    assert set(item["labels"].unique().tolist()) <= {*range(171), 255}
    again, _ = training_sets(data, seed=3)
    assert torch.equal(again[4]["pixels"], item["pixels"])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tree))
    assert len(training_sets(DataConfig(set="coco-stuff"))[0]) == 13
    with pytest.raises(ConfigError, match="two training sets: give one"):
        load_config(None, "data.set=coco-stuff", "data.images=photos")
    with pytest.raises(ConfigError, match="coco-stuff ignores label 255"):
        Config().override("data.set=coco-stuff", "data.ignore=254")


def test_a_damaged_prepared_label_names_itself(tree):
    prepare(["pas20"], tree)
    damage(tree / "VOCdevkit/VOC2012/annotations_detectron2/val/fcn_demo.png", 20)
    with pytest.raises(
        DataError, match=r"fcn_demo\.png: holds label 20, but labels are 0 to 19 \(the classes of pas20\)"
    ):
        list(open_set("pas20", tree))
    damage(tree / "VOCdevkit/VOC2012/annotations_detectron2/val/fcn_demo.png", "cut")
    with pytest.raises(ImageError, match=r"fcn_demo\.png: is truncated"):
        list(open_set("pas20", tree))


def test_a_model_trains_on_one_set_and_is_scored_on_another(tree, tmp_path):
    prepare(["coco-stuff"], tree, split="train")
    prepare(["pas20b"], tree)
    config = Config(
        model=tiny_config(), data={"set": "coco-stuff", "val_set": "pas20b", "root": tree, "crop": 32, "val_count": 1},
        train={"out": tmp_path / "run", "steps": 2, "batch": 2, "classes_per_step": 8, "tensorboard": False},
    )  # fmt: skip
    scores = train(config, progress=False).scores["pas20b"]
    assert scores.images == 1 and len(scores.rows) == 21 and scores.pixels > 0


def test_a_set_in_another_layout_is_scored_like_the_prepared_one(tree, tmp_path, capsys):
    prepare(["pas20b"], tree)
    tiny_model().save_pretrained(tmp_path / "model")
    place, command = SETS["pas20b"].splits["val"], ["eval", "--data", "pas20b", "--model", str(tmp_path / "model")]
    flags = [["--root", str(tree)], ["--images", str(tree / place.images), "--labels", str(tree / place.prepared)]]
    results = []
    for number, given in enumerate(flags):
        assert main([*command, *given, "--json", "--out", str(tmp_path / str(number))]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert len({one["records"]["pas20b"]["hash"] for one in results}) == 1
    assert results[0]["scores"] == results[1]["scores"]
    assert main([*command, *flags[1][:2]]) == 1 and "give both" in capsys.readouterr().err
    assert main([*command, *flags[1], "--root", str(tree)]) == 1 and "one set" in capsys.readouterr().err
