"""Preparation: labels against computations of another kind, work resumed, failures named, originals untouched."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import ExifTags, Image
from sample_data import CONTEXT, FULL, STEMS, damage, hashes, shipped_ids, values

from fgaseg.cli import main
from fgaseg.config import DataConfig
from fgaseg.data.benchmark_sets import BENCHMARK_SETS
from fgaseg.data.checks import check
from fgaseg.data.label_formats import decode_counts
from fgaseg.data.preparation import decode_unrotated, prepare, prepare_folders, shrink
from fgaseg.data.prepared_sets import open_set
from fgaseg.data.set_files import SplitFiles
from fgaseg.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*scores are not comparable")


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
    table = TABLES[name]
    data = open_set(name, tree, split)
    files = SplitFiles(BENCHMARK_SETS[name], split, tree)
    published, photos = files.published_labels(), files.published_photos()
    assert len(data) == len(published) == {"coco-stuff train": 13, "coco-stuff val": 8, "a150 train": 6,
                                           "a150 val": 9}.get(f"{name} {split}", 4)  # fmt: skip
    for item in data:
        expected = [[table[value] for value in row] for row in values(published[item["stem"]])]
        assert item["labels"].tolist() == expected
        photo = Image.open(photos[item["stem"]]).convert("RGB")
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


def test_grey_photos_are_shrunk_like_coloured_ones():
    grey = Image.fromarray(np.random.default_rng(2).integers(0, 256, (600, 700), dtype=np.uint8))
    labels = np.arange(600 * 700).reshape(600, 700)
    (small, kept), (coloured, same) = shrink(grey, labels), shrink(grey.convert("RGB"), labels)
    assert small.mode == "L" and small.size == (597, 512) and kept.shape == (512, 597)
    np.testing.assert_array_equal(np.asarray(small), np.asarray(coloured)[..., 1])
    np.testing.assert_array_equal(kept, same)
    assert [decode_unrotated(grey.convert(mode), "a.jpg").mode for mode in ("L", "P", "RGB")] == ["L", "RGB", "RGB"]


@pytest.mark.parametrize("count, void", [(255, 255), (256, 65535)])
def test_own_labels_are_written_as_lines_of_the_names_with_a_void_that_is_no_class(tmp_path, count, void):
    names = [f"class{n}" for n in range(count)]
    for folder, image in (("photos", Image.new("RGB", (3, 1))),
                          ("values", Image.fromarray(np.array([[0, count - 1, 60000]], np.uint16)))):  # fmt: skip
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "a.png")
    (tmp_path / "names.txt").write_text("\n".join(names))
    config = DataConfig(
        images=tmp_path / "photos", labels=tmp_path / "values", names=tmp_path / "names.txt", ignore=60000
    )
    report = prepare_folders(config, tmp_path / "out")
    assert (report.converted, report.failed) == (1, {})
    assert np.asarray(Image.open(tmp_path / "out/labels/a.png")).tolist() == [[0, count - 1, void]]
    assert (tmp_path / "out/names.txt").read_text().split() == names
    (tmp_path / "values/a.png").write_bytes(b"")
    assert "a.png" in prepare_folders(config, tmp_path / "out").failed["a"]


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


def test_unreadable_files_are_named_and_the_others_go_on(tree, capsys):
    damage(tree / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", "cut")
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
    assert row.converted == 2 and "2008_000003.mat: is truncated or not a .mat file" in row.failed["2008_000003"]
    (tree / CONTEXT / "trainval_merged.json").write_bytes(content)
    with pytest.raises(DataError, match=r"trainval_merged\.json: is not PASCAL in Detail's"):
        prepare(["pc59"], tree)
    [row] = check(["pc59"], tree)
    assert row.state == "wrong" and "trainval_merged.json" in row.problems["damaged"][0]


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
    with pytest.raises(DataError, match="a150: the set is not prepared"):
        open_set("a150", tree)


def test_a847_elsewhere_is_one_folder(tree, tmp_path):
    prepare(["a847"], tree)
    here = tree / FULL
    folder, out = here / "images/ADE/validation", tmp_path / "out"
    given = ["--images", str(folder), "--labels", str(folder)]
    assert main(["data", "prepare", "a847", *given, "--out", str(out), "--workers", "0"]) == 0
    for kind in ("images_detectron2", "annotations_detectron2"):
        assert hashes(out / FULL / kind) == hashes(here / kind)
    with pytest.raises(DataError, match="photos and labels are in one folder"):
        prepare(["a847"], tmp_path, out=tmp_path / "two", images=here, labels=tmp_path)


def test_prepared_labels_are_not_prepared_again(tree, tmp_path):
    """VOC's values, prepared, are values that VOC publishes too."""
    prepare(["pas20"], tree)
    voc = tree / "VOCdevkit/VOC2012"
    with pytest.raises(DataError, match="would be converted twice: .* fgaseg eval --data pas20 --images"):
        prepare(["pas20"], tree, out=tmp_path, images=voc / "JPEGImages", labels=voc / "annotations_detectron2/val")


def test_empty_folders_are_an_error(tmp_path):
    for folder in ("images", "annotations"):
        (tmp_path / "ADEChallengeData2016" / folder / "validation").mkdir(parents=True)
    with pytest.raises(DataError, match="have no pair of the same name"):
        prepare(["a150"], tmp_path)
    with pytest.raises(DataError, match=r"a150: the set is not prepared: run fgaseg data prepare a150 --root "):
        open_set("a150", tmp_path)
    shutil.rmtree(tmp_path / "ADEChallengeData2016")
    with pytest.raises(DataError, match=r"images/validation is missing; it comes from ADEChallengeData2016\.zip"):
        open_set("a150", tmp_path)
