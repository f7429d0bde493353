"""What is wrong or suspicious about labels is said with its cause and its cure, and nothing is said of good labels."""

import logging
import os
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from layouts import COLOURS
from layouts import needs_photos as needs_msrc
from layouts import plain as msrc
from PIL import Image
from sample_data import SAMPLES, make_folder, needs_samples

from fgaseg.config import DataConfig
from fgaseg.data import FolderDataset, check_folders, check_labels, read_names
from fgaseg.data.benchmark_sets import CLASS_LISTS
from fgaseg.data.class_names import LabelSpace
from fgaseg.data.label_maps import LabelMap
from fgaseg.data.label_survey import LabelSurvey, count_values, survey
from fgaseg.errors import DataError, ImageError

SIZE = (12, 16)  # of a label image
SKY = ["sky", "grass", "cat"]


def make(folder, files, names=SKY, save=Image.Image.save):
    """Photos, and label images that show equal numbers of pixels of the values of each file."""
    for place in ("images", "labels"):
        (folder / place).mkdir(parents=True)
    for number, values in enumerate(files):
        if isinstance(values, list):
            values = np.resize(np.array(values), SIZE).astype(np.uint8 if max(values) < 256 else np.uint16)
        image = values if isinstance(values, Image.Image) else Image.fromarray(values)
        noise = np.random.default_rng(number).integers(0, 256, (*image.size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"images/{number}.png")
        image.save(folder / f"labels/{number}.png")
    keys = {"images": folder / "images", "labels": folder / "labels"}
    if names:
        (folder / "names.txt").write_text("\n".join(names) + "\n")
        keys["names"] = folder / "names.txt"
    return keys


def said(keys, **more):
    """State, what cannot be right, and the warnings."""
    report = check_folders(**keys | more)
    wrong = report.problems.get("labels that cannot be right", [])
    return report.state, wrong, report.warnings


GOOD = {
    "small": ([[0, 1, 2], [0, 1, 2, 255]], SKY),
    "two classes": ([[0, 1]] * 3, ["background", "crack"]),
    "background dominates": ([[0] * 9 + [1]] * 5, ["background", "crack"]),
    "one file": ([[0, 0, 0, 1]], ["sky", "sea"]),
    "few of many names": ([[0, 1], [1, 2], [2, 3]], [f"c{n}" for n in range(150)]),
    "sixteen bits": ([[0, 299, 300], [5, 298, 255]], [f"c{n}" for n in range(301)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_said_of_good_labels(tmp_path, name):
    files, names = GOOD[name]
    ignore = 65535 if len(names) > 255 else 255
    assert said(make(tmp_path, files, names), ignore=ignore) == ("ready", [], [])


@pytest.mark.parametrize("lines", ["0: road\n1: car\n", "0 road\n1 car", '{"0": "road", "1": "car"}'])
def test_numbers_in_the_names_file_leave_no_doubt(tmp_path, lines):
    """Without them, that the first class is nearly everywhere is suspicious."""
    keys = make(tmp_path, [[0] * 9 + [1]] * 5)
    keys["names"].write_text(lines)
    assert said(keys) == ("ready", [], [])


BLACK_AND_WHITE = {
    "half": ([[0, 255]] * 3, ["background", "crack"], "{0: background, 255: crack}"),
    "a little white": ([[0] * 20 + [255], [0]], ["road", "pothole"], "{0: road, 255: pothole}"),
    "more names": ([[0, 255]], SKY, "{0: sky, 255: grass}"),
    "one name": ([[0, 255], [255]], ["crack"], "{0: background, 255: crack}"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BLACK_AND_WHITE)
def test_black_and_white_masks_are_refused_with_the_map_that_cures_them(tmp_path, name, training):
    files, names, cure = BLACK_AND_WHITE[name]
    keys = make(tmp_path, files, names)
    state, wrong, _ = said(keys)
    assert state == "wrong" and f"data.label_map='{cure}'" in wrong[0] and "only 0 and 255" in wrong[0]
    with pytest.raises(DataError, match=r"x: labels hold only 0 and 255, and 255 \(\d.* is void"):
        check_labels(FolderDataset(DataConfig(**keys), "val"), "x", seconds=0, training=training)
    pairs = dict(pair.split(": ") for pair in cure.strip("{}").split(", "))
    cured = keys | {"label_map": pairs}
    if name == "one name":
        cured["names"] = None
    if len(names) < 3:
        assert said(cured) == ("ready", [], [])
        assert FolderDataset(DataConfig(**cured), "val").names == list(pairs.values())


UNNAMED = {  # files, names, what is said
    "0, 128, 255": ([[0, 128, 255]], ["background", "crack"], "label_map='{0: background, 128: crack}'"),
    "with white": ([[0, 128, 255]], SKY, "label_map='{0: sky, 128: grass, 255: cat}'"),
    "0, 85, 170, 255": ([[0, 85, 170, 255]], ["a", "b", "c", "d"], "label_map='{0: a, 85: b, 170: c, 255: d}'"),
    "void and levels": ([[0, 100, 200]], ["a", "b"], "label_map='{0: null, 100: a, 200: b}'"),
    "counts from 1": ([[1, 2, 3]], SKY, "labels count from 1: give data.ignore=[0,255]"),
    "zero and more": ([[0, 1, 2, 3]], SKY, "if it is void, give data.ignore=[0,255]; if it is background, add a first"),
    "label ids": ([[7, 8, 11, 23, 26, 0]], [f"c{n}" for n in range(19)], "label_map='cityscapes'"),
    "instances": ([[26001, 7, 24003]], SKY, "ids of instances"),
    "the first instance": ([[1000, 7]], SKY, "ids of instances"),
    "no instances": ([[999, 7]], SKY, "values with gaps: say which"),
    "photo": ([list(range(256))], SKY, "the files are photos, or labels that were resized"),
    "gaps": ([[0, 4, 9]], ["a", "b"], "label_map='{0: null, 4: a, 9: b}'"),
    "more gaps": ([[1, 4, 9]], ["a", "b"], "say which value has which name with data.label_map"),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_values_without_a_name_are_listed_with_their_share_and_the_likely_cause(tmp_path, name):
    files, names, cause = UNNAMED[name]
    keys = make(tmp_path, files, names)
    report = check_folders(**keys)
    assert report.state == "wrong" and "values that are not a class" in report.problems
    assert any(
        f"Likely cause: {cause}" in text or cause in text.partition("Likely cause")[2] for text in report.warnings
    )
    assert sum(report.unnamed.values()) + sum(report.shares.values()) + report.void == pytest.approx(1)
    with pytest.raises(DataError, match=r"val: .*0\.png: holds label \d+ \(\d.* of the pixels\)"):
        check_labels(FolderDataset(DataConfig(**keys), "val"), "val")


@pytest.mark.parametrize("number", [5, 6, 7])
def test_five_values_without_a_name_are_listed_and_the_others_counted(tmp_path, number):
    report = check_folders(**make(tmp_path, [[0, 1, 2, *range(100, 100 + number)]]))
    (text,) = [one for one in report.warnings if "also without a name" in one]
    found = re.search(r"and (\d+) more values", text)
    assert (found and int(found[1])) == (number - 5 or None)


def test_a_colour_without_a_name_is_named_with_its_share(tmp_path):
    colours = np.array([[1, 2, 3], [200, 0, 0], [200, 0, 4], [9, 9, 9]], np.uint8)
    keys = make(tmp_path, [colours[np.resize([0, 0, 1, 2], SIZE)], colours[np.resize([0, 3], SIZE)]], None)
    report = check_folders(**keys, label_map={"1,2,3": "sky", "200,0,0": "car"})
    assert report.unnamed == {"9,9,9": 0.25, "200,0,4": 0.125} and report.shares == {"sky": 0.5, "car": 0.125}
    assert len(report.problems["values that are not a class"]) == 2
    [text] = report.warnings
    assert "the colour 9,9,9 (25 % of the pixels) has no name" in text and "also without a name: 200,0,4 (12 %)" in text
    assert check_folders(**keys, label_map={"1,2,3": "sky", "200,0,0": "car", "others": None}).state == "ready"


SUSPICIOUS = {  # files, names, ignore, words
    "one class": ([[2], [2, 255]], SKY, 255, r"'cat' is the only class that occurs"),
    "one name": ([[0], [0, 0]], ["roof"], 255, r"'roof' is the only class that occurs"),
    "one name and void": ([[1, 255]], ["a", "roof"], 255, r"label_map='\{1: roof, 255: a\}'"),
    "one class of two": ([[1]] * 3, ["background", "crack"], 255, r"'crack' is the only class"),
    "never zero": (
        [[1, 2], [2, 1]],
        SKY,
        255,
        r"label 0, 'sky', never occurs, and labels are 1 to 2: .*ignore=\[0,255\]",
    ),
    "void line": (
        [[0, 1, 2]],
        ["void", "sky", "cat"],
        255,
        r"label 0 is called 'void' and is a class like any other \(33",
    ),
    "unlabeled": ([[0, 1, 255]], ["Unlabeled", "sky"], 255, r"label 0 is called 'Unlabeled' .* remove the line"),
    "zero dominates": (
        [[0] * 9 + [1, 2]] * 3,
        SKY,
        255,
        r"label 0, 'sky', is in 100 % of the files and on 8\d % .*backgr",
    ),
    "zero everywhere": ([[0, 1], [0, 2], [0, 1, 2, 1, 2, 1]], SKY, 255, r"label 0, 'sky', is in 100 % of the files"),
    "grey levels": (
        [[0, 128, 255]],
        [f"c{n}" for n in range(200)],
        255,
        r"only the values 0, 128, 255 of 0 to 199: .*grey",
    ),
    "steps": (
        [[0, 50, 100, 150]],
        [f"c{n}" for n in range(151)],
        255,
        r"look like grey levels, .*\{0: \.\.\., 50: \.\.\.",
    ),
    "white": ([[0, 255]], [f"c{n}" for n in range(300)], 65535, r"only the values 0, 255 of 0 to 299"),
    "unused": ([[0, 1]] * 6, [f"c{n}" for n in range(10)], 255, r"only 2 of 10 names occur"),
    "background ignored": (
        [[0, 1], [2, 1]],
        ["background", *SKY],
        [0, 255],
        r"no pixel is 'cat', the last: .* remove it",
    ),
    "mostly void": ([[255] * 30 + [0, 1]], SKY, 255, r"94 % of the pixels are void"),
}


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_what_is_suspicious_is_a_warning_with_its_cure(tmp_path, name):
    files, names, ignore, words = SUSPICIOUS[name]
    keys = make(tmp_path, files, names)
    report = check_folders(**keys, ignore=ignore)
    assert report.state == "ready" and not report.problems
    with pytest.warns(UserWarning, match=f"val: .*{words}"):
        check_labels(FolderDataset(DataConfig(**keys, ignore=ignore), "val"), "val")
    assert any(re.search(words, text) for text in report.warnings), report.warnings


@pytest.mark.parametrize("values", [[0], [2], [1, 255]])
def test_training_on_one_class_is_refused(tmp_path, values):
    dataset = FolderDataset(DataConfig(**make(tmp_path, [values] * 3)), "train")
    with pytest.raises(DataError, match=r"train: '\w+' is the only class that occurs, and everything would be"):
        check_labels(dataset, "train", seconds=0, training=True)


@pytest.mark.parametrize(("values", "ignore"), [([255], 255), ([0], [0, 255]), ([0, 255], [0, 255])])
def test_labels_without_a_labelled_pixel_are_refused(tmp_path, values, ignore):
    keys = make(tmp_path, [values] * 2)
    assert "no pixel has a label: all are void" in said(keys, ignore=ignore)[1][0]


# ---- published sets under the wrong names


@needs_samples
def test_coco_stuffs_own_list_of_names_on_its_labels(tmp_path):
    """labels.txt numbers the classes one higher than the PNGs do."""
    folder = SAMPLES / "coco-stuff"
    keys = {"images": folder / "images/val2017", "labels": folder / "annotations/val2017"}
    numbers = {v + 1: name for v, name in published_coco_stuff().items()}
    lines = [f"{number}: {numbers.get(number, f'unused {number}')}" for number in range(1, 183)]
    (tmp_path / "labels.txt").write_text("\n".join(["0: unlabeled", *lines]) + "\n")
    state, wrong, _ = said(keys, label_map=str(tmp_path / "labels.txt"))
    assert state == "wrong" and "COCO-Stuff's labels.txt" in wrong[0] and "data.label_map='coco-stuff'" in wrong[0]
    assert "COCO-Stuff's labels.txt" in said(keys, names=tmp_path / "labels.txt")[1][0]
    names = ["unlabeled", *(line.partition(": ")[2] for line in lines)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    assert "COCO-Stuff's labels.txt" in said(keys, names=tmp_path / "names.txt")[1][0]
    assert said(keys, label_map="coco-stuff")[:2] == ("ready", [])


def published_coco_stuff():
    """Names by the values of its PNGs."""
    return {value: name for value, name in LabelMap.read("coco-stuff").names.items() if name}


@needs_samples
def test_ade20k_counts_from_one(tmp_path):
    folder = SAMPLES / "ADEChallengeData2016"
    keys = {"images": folder / "images/validation", "labels": folder / "annotations/validation"}
    (tmp_path / "names.txt").write_text("\n".join(read_names(CLASS_LISTS / "ade150.json")))
    shifted, right = (FolderDataset(DataConfig(**keys, **more), "val") for more in (
        {"names": tmp_path / "names.txt", "ignore": [0, 255]}, {"label_map": "a150"}))  # fmt: skip
    assert shifted.names == right.names
    for item, other in zip(shifted, right, strict=True):
        np.testing.assert_array_equal(item["labels"], other["labels"])


@needs_samples
def test_voc_by_index_and_by_colour(tmp_path):
    folder = SAMPLES / "VOCdevkit/VOC2012"
    keys = {"images": folder / "JPEGImages", "labels": folder / "SegmentationClassAug"}
    first = FolderDataset(DataConfig(**keys, label_map="pascal-voc"), "val")
    (tmp_path / "rgb").mkdir()
    for file in (folder / "SegmentationClassAug").glob("*.png"):
        Image.open(file).convert("RGB").save(tmp_path / "rgb" / file.name)
    coloured = Image.open(next((folder / "SegmentationClassAug").glob("*.png"))).mode == "P"
    assert said(keys, label_map="pascal-voc")[:2] == ("ready", [])
    if coloured:
        second = FolderDataset(DataConfig(**keys | {"labels": tmp_path / "rgb"}, label_map="pascal-voc"), "val")
        for item, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(item["labels"], other["labels"])


@pytest.mark.parametrize("values", [[0, 10, 255], [18, 255], [0, 1, 2, 255, 13]])
def test_train_ids_under_the_label_ids_of_cityscapes(tmp_path, values):
    keys = make(tmp_path, [values], None)
    _, wrong, _ = said(keys, label_map="cityscapes")
    assert "labelTrainIds: give data.label_map='cityscapes-train-ids'" in wrong[0]
    assert said(keys, label_map="cityscapes-train-ids")[0] == "ready"


# ---- files


def palette_image(values, order):
    image = Image.fromarray(order[np.resize(np.array(values), SIZE)].astype(np.uint8)).convert("L")
    image.putpalette(COLOURS[np.argsort(order)].ravel().tolist())
    return image


def test_a_reordered_palette_is_refused_and_read_by_colour(tmp_path):
    same, swapped = np.arange(256), np.arange(256)
    swapped[[0, 2]] = 2, 0
    for number, orders in enumerate(([same, swapped], [swapped, same, same], [same, same, same[::-1]])):
        files = [palette_image([0, 1, 2], order) for order in orders]
        keys = make(tmp_path / str(number), files, SKY if number < 2 else [f"c{n}" for n in range(255)])
        _, wrong, _ = said(keys)
        assert f"the colour {','.join(map(str, COLOURS[0]))} is index" in wrong[0] or "is index" in wrong[0]
        assert "a drawing program has reordered the palette" in wrong[0] and "data.label_map" in wrong[0]
        named = {",".join(map(str, COLOURS[index])): name for index, name in enumerate(SKY)}
        dataset = FolderDataset(DataConfig(**keys | {"names": None}, label_map=named), "val")
        for item in dataset:
            assert item["labels"].flatten()[:3].tolist() == [0, 1, 2]


def test_palettes_that_agree_are_not_suspected(tmp_path):
    other = palette_image([0, 1], np.arange(256))
    black = Image.fromarray(np.resize(np.array([0, 1, 255], np.uint8), SIZE)).convert("L")
    black.putpalette([0, 0, 0, 9, 9, 9])  # 255 is black too, as 0
    only = Image.fromarray(np.resize(np.array([255, 1], np.uint8), SIZE)).convert("L")
    only.putpalette([0, 0, 0, 9, 9, 9] + [0, 0, 0] * 254)
    assert said(make(tmp_path / "a", [other, palette_image([2, 1], np.arange(256))]))[1] == []
    assert said(make(tmp_path / "b", [black, only]))[1] == []


def test_a_label_file_that_is_its_photo(tmp_path):
    keys = make(tmp_path, [[0, 1, 2]] * 3)
    for how in ("copy", "link", "symlink"):
        label = tmp_path / "labels/1.png"
        label.unlink()
        grey = Image.fromarray(np.resize(np.array([0, 1, 2], np.uint8), SIZE))
        grey.save(tmp_path / "images/1.png")
        if how == "copy":
            shutil.copy(tmp_path / "images/1.png", label)
        elif how == "link":
            label.hardlink_to(tmp_path / "images/1.png")
        else:
            label.symlink_to(tmp_path / "images/1.png")
        _, wrong, _ = said(keys)
        assert "1 label files are the photos themselves, such as" in wrong[0] and "label_suffix" in wrong[0]


def rotated_photo(file, orientation, size=(16, 12)):
    """A photo that is stored so; upright, it is what EXIF makes of it."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8))
    exif = image.getexif()
    exif[0x112] = orientation
    image.save(file, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_on_the_photo_as_stored_are_turned_with_it(tmp_path, orientation):
    keys = make(tmp_path, [np.arange(192).reshape(12, 16).astype(np.uint8) % 3] * 2)
    (tmp_path / "images/0.png").unlink()
    rotated_photo(tmp_path / "images/0.jpg", orientation)
    dataset = FolderDataset(DataConfig(**keys), "val")
    with Image.open(tmp_path / "labels/0.png") as image:
        turns = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
                 8: Image.Transpose.ROTATE_90}  # fmt: skip
        turned = image.transpose(turns[orientation])
    np.testing.assert_array_equal(dataset[0]["labels"], np.asarray(turned))
    assert dataset[0]["image"].shape == (16, 12, 3)
    assert any("the labels of 1 photos were drawn on the photo before its EXIF" in text for text in said(keys)[2])
    turned.save(tmp_path / "labels/0.png")  # now drawn upright
    np.testing.assert_array_equal(FolderDataset(DataConfig(**keys), "val")[0]["labels"], np.asarray(turned))
    assert said(keys) == ("ready", [], [])
    again = FolderDataset(DataConfig(**keys, rotate_labels=True), "val")[0]["labels"]  # sizes contradict it
    np.testing.assert_array_equal(again, np.asarray(turned))


@pytest.mark.parametrize(("orientation", "size"), [(3, (16, 12)), (2, (16, 12)), (4, (16, 12)), (6, (12, 12))])
def test_where_sizes_do_not_tell_the_option_does(tmp_path, orientation, size):
    labels = np.arange(size[0] * size[1]).reshape(size[::-1]).astype(np.uint8) % 3
    labels[0] = 0
    keys = make(tmp_path, [labels] * 2)
    (tmp_path / "images/0.png").unlink()
    rotated_photo(tmp_path / "images/0.jpg", orientation, size)
    state, _, found = said(keys)
    assert state == "ready" and any("1 photos, such as" in text and "data.rotate_labels=true" in text for text in found)
    for rotate, expected in ((False, labels), (None, labels), (True, upright(labels, orientation))):
        item = FolderDataset(DataConfig(**keys, rotate_labels=rotate), "val")[0]
        np.testing.assert_array_equal(item["labels"], expected)
        if rotate is not None:
            assert said(keys, rotate_labels=rotate) == ("ready", [], [])


def upright(labels, orientation):
    """By another route: PIL's own turning."""
    image = Image.fromarray(labels)
    turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
             6: Image.Transpose.ROTATE_270}  # fmt: skip
    return np.asarray(image.transpose(turns[orientation]))


def test_turned_labels_make_doubtful_ones_an_error(tmp_path):
    labels = np.arange(192).reshape(12, 16).astype(np.uint8) % 3
    keys = make(tmp_path, [labels] * 3)
    for number, orientation in ((0, 6), (1, 3)):
        (tmp_path / f"images/{number}.png").unlink()
        rotated_photo(tmp_path / f"images/{number}.jpg", orientation)
    state, wrong, _ = said(keys)
    assert state == "wrong" and "and the labels of other photos were drawn on the photo before its EXIF" in wrong[0]
    assert said(keys, rotate_labels=True)[0] == "ready"


# ---- before training and evaluation


def test_a_second_of_reading_is_spread_and_completed_where_something_is_wrong(tmp_path, monkeypatch, caplog):
    files = [[0, 255]] * 30 + [[0, 1]]
    dataset = FolderDataset(DataConfig(**make(tmp_path, files, ["background", "crack"])), "train")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    some = survey(dataset, seconds=0)
    assert 0 < some.files < len(files)
    with caplog.at_level(logging.INFO, "fgaseg"):
        check_labels(
            dataset, "train", seconds=0, training=True
        )  # the last file holds a 1: the masks are not black/white
    assert "train: labels hold only 0 and 255" in caplog.text and "Reading the other files to be sure" in caplog.text
    assert "label files: background 5" in caplog.text and ", crack " in caplog.text
    good = FolderDataset(DataConfig(**make(tmp_path / "good", [[0, 1, 2, 255]] * 31)), "train")
    caplog.clear()
    with caplog.at_level(logging.INFO, "fgaseg"):
        check_labels(good, "good", seconds=0)
    assert "of 31 label files: sky 25 %, grass 25 %, cat 25 %, void 25 %" in caplog.text


def test_names_that_never_occur_are_listed(tmp_path, caplog):
    dataset = FolderDataset(DataConfig(**make(tmp_path, [[0, 1, 255]], [*SKY, "dog"])), "val")
    with caplog.at_level(logging.INFO, "fgaseg"):
        check_labels(dataset, "val")
    assert "val: 1 label files: sky 33 %, grass 33 %, void 33 %; never: cat, dog" in caplog.text


@pytest.mark.parametrize("number, more", [(12, ""), (13, " and 1 more")])
def test_twelve_names_that_never_occur_are_listed_and_the_others_counted(number, more):
    names = [f"c{n}" for n in range(number + 1)]
    read = LabelSurvey(1, files=1, counts=Counter({0: 30, 255: 10}))
    space = LabelSpace(names, names, 255, None, "the names")
    assert read.summary(space) == f"1 label files: c0 75 %, void 25 %; never: {', '.join(names[1:13])}{more}"


@pytest.mark.parametrize("number", [12, 13])
def test_the_twelve_most_frequent_classes_are_listed_and_the_others_counted(number):
    names = [f"c{n}" for n in range(number)]
    read = LabelSurvey(3, files=2, counts=Counter({n: 100 + n for n in range(number)} | {900: 5}))
    text = read.summary(LabelSpace(names, names, 255, None, "the names"))
    assert re.findall(r"c\d+", text) == names[::-1][:12] and text.startswith("2 of 3 label files: ")
    assert (", 1 more classes, void 0 %, without a name " in text) == (number == 13)


def test_validation_files_that_cannot_be_used_are_named(tmp_path):
    keys = make(tmp_path, [[0, 1, 2]] * 4)
    dataset = FolderDataset(DataConfig(**keys), "val")
    check_labels(dataset, "val", count=2)
    file = tmp_path / "labels/3.png"
    content = file.read_bytes()
    for damaged, error, words in ((content[:40], ImageError, r"3\.png: is "), (b"", ImageError, r"3\.png: is empty")):
        file.write_bytes(damaged)
        with pytest.raises(error, match=words):
            check_labels(dataset, "val")
        check_labels(dataset, "train", training=True)  # the trainer may skip it
        check_labels(dataset, "val", count=3)
    Image.new("L", (5, 5)).save(file)
    with pytest.raises(DataError, match=r"val: .*images/3\.png is 16x12 \(upright\), .*labels/3\.png is 5x5"):
        check_labels(dataset, "val")


@pytest.mark.parametrize("values", [np.array([[0, 5, 5]]), np.array([[70000, -1]]), np.array([[2**33, 2**33]])])
def test_values_are_counted(values):
    found, counts = np.unique(values, return_counts=True)
    assert count_values(values) == dict(zip(found.tolist(), counts.tolist(), strict=True))


@needs_msrc
def test_real_photos_are_ready(tmp_path):
    state, wrong, _ = said(msrc(tmp_path))
    assert (state, wrong) == ("ready", [])
    assert (
        check_folders(**DataConfig(**msrc(tmp_path / "again")).model_dump(include={"images", "labels", "names"})).void
        > 0
    )


def test_findings_of_the_shared_drawings(tmp_path):
    config = make_folder(tmp_path)
    assert said({"images": config.images, "labels": config.labels, "names": config.names})[:2] == ("ready", [])


def test_a_palette_of_greys_is_asked_about(tmp_path):
    for number, greys in enumerate(([0, 255], [0, 128, 255], [255, 0])):
        image = Image.fromarray(np.resize(np.arange(len(greys), dtype=np.uint8), SIZE)).convert("L")
        image.putpalette([part for grey in greys for part in (grey, grey, grey)])
        keys = make(tmp_path / str(number), [image] * 3)
        state, _, found = said(keys)
        shown = ", ".join(map(str, greys))
        assert state == "ready" and any(f"count, not its greys ({shown})" in text for text in found), found
        named = {f"{grey},{grey},{grey}": name for grey, name in zip(greys, SKY, strict=False)}
        assert said(keys | {"names": None}, label_map=named)[2] == []
    straight = Image.fromarray(np.resize(np.array([0, 1, 2], np.uint8), SIZE)).convert("P")
    assert not any("greys" in text for text in said(make(tmp_path / "good", [straight, straight]))[2])


def test_gifs_are_read_by_their_greys(tmp_path):
    """Saving a GIF renumbers its palette."""
    keys = make(tmp_path, [[0, 1, 255]] * 2)
    for number in range(2):
        (tmp_path / f"labels/{number}.png").unlink()
    for number, values in enumerate(([0, 2, 255], [2, 1])):
        image = Image.fromarray(np.resize(np.array(values, np.uint8), SIZE))
        image.save(tmp_path / f"labels/{number}.gif")
        labels = FolderDataset(DataConfig(**keys), "val")
        np.testing.assert_array_equal(
            labels.read_pair(0)[1] if number == 0 else labels.read_pair(1)[1], np.asarray(image)
        )
    coloured = palette_image([0, 1], np.arange(256))
    coloured.save(tmp_path / "labels/1.gif")
    with pytest.raises(DataError, match=r"1\.gif: is a GIF in colours, whose indices mean nothing: .*data\.label_map"):
        _ = FolderDataset(DataConfig(**keys), "val")[1]
    named = {",".join(map(str, COLOURS[index])): name for index, name in enumerate(SKY)} | {"others": None}
    assert FolderDataset(DataConfig(**keys | {"names": None}, label_map=named), "val")[1][
        "labels"
    ].unique().tolist() == [0, 1]


def test_swapped_channels_and_transparent_pixels(tmp_path):
    red = np.resize(np.array([[[255, 0, 0]], [[0, 0, 9]]], np.uint8), (*SIZE, 3))
    keys = make(tmp_path / "a", [red[..., ::-1]], None)
    [text] = check_folders(**keys, label_map={"255,0,0": "crack", "0,0,9": "wall"}).warnings
    assert "red and blue may be swapped: " in text
    values = np.resize(np.array([0, 1, 2, 1], np.uint8), SIZE)
    alpha = np.where(np.arange(values.size).reshape(SIZE) % 4 == 3, 0, 255).astype(np.uint8)
    keys = make(tmp_path / "b", [Image.merge("LA", (Image.fromarray(values), Image.fromarray(alpha)))])
    report = check_folders(**keys)
    assert (report.state, report.void) == ("ready", 0.25)


# ---- what a survey finds


def test_a_label_as_large_and_as_old_as_its_photo_is_not_the_photo(tmp_path):
    keys = make(tmp_path, [[0, 1, 2]])
    for place, value in (("images", 0), ("labels", 1)):
        (tmp_path / place / "0.png").unlink()
        Image.new("L", SIZE[::-1], value).save(tmp_path / place / "0.bmp")
        os.utime(tmp_path / place / "0.bmp", (1, 1))
    assert survey(FolderDataset(DataConfig(**keys), "val")).photos == []


def test_an_index_beyond_the_palette_has_no_colour(tmp_path):
    image = Image.fromarray(np.resize(np.array([0, 1, 3], np.uint8), SIZE)).convert("L")
    image.putpalette([9, 9, 9, 200, 0, 0, 1, 1, 1])
    read = survey(FolderDataset(DataConfig(**make(tmp_path, [image], [*SKY, "dog"])), "val"))
    assert read.counts == {0: 64, 1: 64, 3: 64} and [index for index, _ in read.colour_at.values()] == [0, 1]
    assert read.pixels == 192 and read.complete and read.in_files == {0: 1, 1: 1, 3: 1}
    assert read.first == {value: str(tmp_path / "labels/0.png") for value in (0, 1, 3)}


def test_a_survey_reads_the_first_so_many_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    dataset = FolderDataset(DataConfig(**make(tmp_path, [[0, 1]] * 3 + [[2]])), "val")
    first = survey(dataset, count=3)
    assert (first.files, first.total, sorted(first.counts)) == (3, 3, [0, 1])
    assert (survey(dataset, count=9).files, survey(dataset, count=9).total) == (4, 4)
    monkeypatch.setattr("os.cpu_count", lambda: None)  # one file at a time
    some = survey(dataset, seconds=0)
    assert (some.files, some.total, some.complete) == (1, 4, False)
    assert survey(dataset, known=some) is some
    assert some.complete and some.counts == survey(dataset).counts


def test_only_a_survey_with_a_title_shows_how_far_it_is(tmp_path, monkeypatch):
    bars = []

    def track(items, title, total, *, shown=True):
        bars.append((title, total, shown))
        yield from items

    monkeypatch.setattr("fgaseg.data.label_survey.track", track)
    dataset = FolderDataset(DataConfig(**make(tmp_path, [[0, 1, 2]] * 3)), "val")
    survey(dataset, progress="the labels")
    for options in ({}, {"progress": True}, {"progress": True, "seconds": 9.0}):
        check_labels(dataset, "val", **options)
    assert bars[0] == ("reading the labels", 3, True) and bars[2] == ("reading val", 3, True)
    assert [shown for *_, shown in bars] == [True, False, True, False]


def test_pixels_of_several_values_are_those_of_one_class(tmp_path):
    keys = make(tmp_path, [[1, 2, 3, 9], [1, 3, 3, 3]], None)
    report = check_folders(**keys, label_map={1: "car", 2: "car", 3: "sky", 5: None})
    assert report.shares == {"car": 0.375, "sky": 0.5} and report.unnamed == {"9": 0.125} and report.void == 0
    assert report.values == [0, 255] and report.problems.keys() == {"values that are not a class"}


@pytest.mark.parametrize("orientation, doubtful", [(1, False), (2, True), (4, True), (5, False), (8, False)])
def test_of_photos_that_are_not_square_only_half_turns_are_doubtful(tmp_path, orientation, doubtful):
    keys = make(tmp_path, [[0, 1, 2]])
    (tmp_path / "images/0.png").unlink()
    rotated_photo(tmp_path / "images/0.jpg", orientation)
    read = survey(FolderDataset(DataConfig(**keys), "val"))
    assert bool(read.doubtful) == doubtful and bool(read.turned) == (orientation > 4)
    assert not read.problems and not read.unreadable
    Image.new("L", (16, 13)).save(tmp_path / "labels/0.png")
    read = survey(FolderDataset(DataConfig(**keys), "val"))
    size = "12x16" if orientation > 4 else "16x12"
    assert read.problems == [f"{tmp_path}/images/0.jpg is {size} (upright), {tmp_path}/labels/0.png is 16x13"]
    assert not read.doubtful and not read.turned


def test_negative_values_are_listed_like_others(tmp_path):
    keys = make(tmp_path, [[0, 1, 2]])
    (tmp_path / "labels/0.png").unlink()
    Image.fromarray(np.resize(np.array([-1, 0, 1, 2], np.int32), SIZE)).save(tmp_path / "labels/0.tif")
    report = check_folders(**keys)
    assert report.unnamed == {"-1": 0.25} and report.state == "wrong"
    assert any("0.tif: holds label -1 (25 % of the pixels)" in text for text in report.warnings)
