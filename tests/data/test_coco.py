"""COCO annotations: what is painted, which photo it belongs to, and what is wrong with a file."""

import copy
import json
import os

import numpy as np
import pytest
from PIL import Image

from fgaseg.config import DataConfig
from fgaseg.data import FolderDataset, check_folders, check_labels
from fgaseg.errors import DataError
from fgaseg.evaluation.provenance import files_state

pytest.importorskip("pycocotools")

SQUARE, LOWER = [[0, 0, 2, 0, 2, 2, 0, 2]], [[0, 1, 4, 1, 4, 3, 0, 3]]  # of a photo of 4 x 3 pixels
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]


def annotation(segmentation, category=1, image=7, **more):
    return {"id": 1, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


def write(folder, annotations, categories=CATEGORIES, file_name="a.jpg", **data):
    (folder / "photos").mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (4, 3)).save(folder / "photos/a.jpg")
    images = [{"id": 7, "file_name": file_name, "width": 4, "height": 3}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories} | data)
    (folder / "coco.json").write_text(text)
    return {"images": folder / "photos", "labels": folder / "coco.json"}


def read(keys, **more):
    dataset = FolderDataset(DataConfig(**keys | more), "val")
    return dataset.names, np.where(dataset[0]["labels"] == dataset.ignore, -1, dataset[0]["labels"]).tolist()


SEGMENTATIONS = {  # what covers the upper left 2 x 2 pixels
    "polygon": SQUARE,
    "flat polygon": SQUARE[0],
    "two polygons": [[0, 0, 1, 0, 1, 2, 0, 2], [1, 0, 2, 0, 2, 2, 1, 2]],
    "and a line": [*SQUARE, [3, 0, 3, 2]],
    "after two points": [[0, 0, 4, 3], *SQUARE],  # pycocotools would take all for boxes
    "counts": {"size": [3, 4], "counts": [0, 2, 1, 2, 7]},
    "compressed": {"size": [3, 4], "counts": "02107"},
}


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_kinds_of_segmentation(tmp_path, name):
    segmentation = SEGMENTATIONS[name]
    if name == "compressed":
        mask = pytest.importorskip("pycocotools.mask")
        inside = np.zeros((3, 4), np.uint8, order="F")
        inside[:2, :2] = 1
        segmentation = {"size": [3, 4], "counts": mask.encode(inside)["counts"].decode()}
    names, labels = read(write(tmp_path, [annotation(segmentation, 5)]))
    assert names == ["cat", "dog"] and labels == [[1, 1, -1, -1], [1, 1, -1, -1], [-1, -1, -1, -1]]


def test_later_annotations_cover_earlier_ones_and_that_is_told(tmp_path):
    keys = write(tmp_path, [annotation(SQUARE), annotation(LOWER, 5)])
    assert read(keys)[1] == [[0, 0, -1, -1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert any("17 % of the pixels belong to annotations of several" in text for text in check_folders(**keys).warnings)
    keys = write(tmp_path, [annotation(LOWER, 5), annotation(SQUARE)])
    assert read(keys)[1] == [[0, 0, -1, -1], [0, 0, 1, 1], [1, 1, 1, 1]]
    keys = write(tmp_path, [annotation(LOWER), annotation(SQUARE)])  # of one category
    assert not any("several" in text for text in check_folders(**keys).warnings)


def test_what_is_outside_all_annotations(tmp_path):
    keys = write(tmp_path, [annotation(SQUARE)])
    (tmp_path / "names.txt").write_text("dog\nbackground\ncat\n")
    outside = [[2, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1]]
    assert read(keys, names=tmp_path / "names.txt")[1] == outside
    assert read(keys, label_map={"unpainted": "wall"}) == (
        ["cat", "dog", "wall"],
        [[0, 0, 2, 2], [0, 0, 2, 2], [2] * 4],
    )
    taken = write(tmp_path, [annotation(SQUARE)], [{"id": 1, "name": "background"}, {"id": 2, "name": "dog"}])
    assert read(taken)[1][2] == [-1] * 4


def test_names_choose_order_and_classes(tmp_path):
    keys = write(tmp_path, [annotation(SQUARE), annotation(LOWER, 5)])
    (tmp_path / "names.txt").write_text("dog\n")
    with pytest.raises(DataError, match=r"coco\.json: 1 is 'cat', which .*names\.txt does not list.*others: null"):
        read(keys, names=tmp_path / "names.txt")
    expected = [[-1] * 4, [0] * 4, [0] * 4]
    assert read(keys, names=tmp_path / "names.txt", label_map={"others": None})[1] == expected
    assert read(keys, names=tmp_path / "names.txt", label_map={1: None})[1] == expected
    assert read(keys, label_map={1: "animal", 5: "animal"}) == (["animal"], [[0, 0, -1, -1], [0] * 4, [0] * 4])
    few = [{"id": 0, "name": "cat"}, {"id": 255, "name": "dog"}]
    zero = write(tmp_path, [annotation(SQUARE, 0), annotation(LOWER, 255)], few)
    assert read(zero)[1] == [[0, 0, -1, -1], [1] * 4, [1] * 4]  # ids are no values: 255 is not void


@pytest.mark.parametrize("file_name", ["a.jpg", "train/a.jpg", "C:\\data\\a.jpg", "/abs/where/a.png"])
def test_photos_are_found_by_path_or_name(tmp_path, file_name):
    assert read(write(tmp_path, [annotation(SQUARE)], file_name=file_name))[1][0] == [0, 0, -1, -1]


def test_panoptic_segments(tmp_path):
    ids = np.array([[9, 9, 300, 0], [9, 9, 300, 0], [70000] * 4])
    parts = {"file_name": "a.png", "image_id": 7, "segments_info": [
        {"id": 9, "category_id": 5}, {"id": 300, "category_id": 1}, {"id": 70000, "category_id": 1}]}  # fmt: skip
    keys = write(tmp_path, [parts])
    with pytest.raises(DataError, match=r"coco\.json: a\.png is neither in .*coco nor in .*: unpack the panoptic PNGs"):
        read(keys)
    picture = Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))
    (tmp_path / "coco").mkdir()
    picture.save(tmp_path / "coco/a.png")
    expected = [[1, 1, 0, -1], [1, 1, 0, -1], [0] * 4]
    assert read(keys) == (["cat", "dog"], expected)
    (tmp_path / "coco/a.png").rename(tmp_path / "a.png")
    assert read(write(tmp_path, [parts], info={}))[1] == expected
    parts["segments_info"].pop()
    with pytest.raises(DataError, match=r"a\.png: has the segment id 70000, which .*coco\.json does not list"):
        read(write(tmp_path, [parts]))
    picture.convert("L").save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is a L image: panoptic PNGs are RGB"):
        read(write(tmp_path, [parts]))


WRONG = {
    "boxes only": ({"annotations": [annotation([], bbox=[0, 0, 2, 2])]}, "1 of 1 annotations have no segmentation"),
    "some boxes": ({"annotations": [annotation(SQUARE), annotation(None)]}, "1 of 2 annotations have no segmentation"),
    "no images": ({"images": [{"id": 7}]}, "is not a file of COCO annotations .KeyError: 'file_name'"),
    "labelme": ({"categories": 3}, "is not a file of COCO annotations"),
    "category": ({"annotations": [annotation(SQUARE, 9)]}, "have the category 9, which its categories do not list"),
    "photo": ({"annotations": [annotation(SQUARE, image=8)]}, "annotation 1 is of photo 8, which it does not list"),
    "twice": (
        {"images": [{"id": n, "file_name": f, "width": 4, "height": 3} for n, f in ((7, "a.jpg"), (8, "a.png"))]},
        "lists a.jpg and a.png, which have the same name",
    ),
    "text": ("nothing", "is not a file of COCO annotations .JSONDecodeError"),
    "list": ("[]", "has no images, annotations and categories"),
    "size": ({"annotations": [annotation({"size": [3, 3], "counts": [0, 9]})]}, "its size is"),
    "odd": ({"annotations": [annotation([[0, 0, 1, 1, 2, 2, 3]])]}, "has an odd number of coordinates"),
    "counts": ({"annotations": [annotation({"size": [3, 4], "counts": ["x"]})]}, "category 1 is damaged"),
    "far away": ({"annotations": [annotation([[0, 0, 1e9, 0, 1e9, 2]])]}, "outline of a polygon is 2e.09 pixels long"),
    "NaN": ({"annotations": [annotation([[0, 0, float("nan"), 0, 2, 2]])]}, "a coordinate that is not finite"),
    "infinite": ({"annotations": [annotation([[0, 0, float("inf"), 0, 2, 2]])]}, "a coordinate that is not finite"),
    "floating counts": ({"annotations": [annotation({"size": [3, 4], "counts": [0.5, 11.5]})]}, "no whole numbers"),
    "counts beyond": ({"annotations": [annotation({"size": [3, 4], "counts": [6, 2**32]})]}, "category 1 is damaged"),
    "endless counts": ({"annotations": [annotation({"size": [3, 4], "counts": "o" * 99})]}, "more than 60 bits"),
    "infinite id": (
        {"categories": [{"id": float("inf"), "name": "cat"}]},
        "is not a file of COCO annotations .Overflow",
    ),
    "words": ({"annotations": ["segmentation"]}, "is not a file of COCO annotations .AttributeError"),
    "deep": ("[" * 100_000, "is not a file of COCO annotations .RecursionError"),
    "photo's name": ({"images": [{"id": 7, "file_name": [], "width": 4, "height": 3}]}, "file_name of a photo is"),
    "no photo's name": (
        {"images": [{"id": 7, "file_name": "", "width": 4, "height": 3}]},
        "file_name of a photo is ''",
    ),
    "photo size": ({"images": [{"id": 7, "file_name": "a.jpg", "width": 0, "height": 3}]}, "3 high and 0 wide"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_that_names_the_file(tmp_path, name):
    change, words = WRONG[name]
    keys = write(tmp_path, **({"annotations": [annotation(SQUARE)]} | (change if isinstance(change, dict) else {})))
    if isinstance(change, str):
        keys["labels"].write_text(change)
    with pytest.raises(DataError, match=words) as caught:
        read(keys)
    assert str(keys["labels"]) in str(caught.value) and "\n" not in str(caught.value)


def test_validation_has_a_file_of_its_own_with_the_classes_of_training(tmp_path):
    keys = write(tmp_path / "t", [annotation(SQUARE)])
    other = write(tmp_path / "v", [annotation(SQUARE, 2)], [{"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}])
    dataset = FolderDataset(DataConfig(**keys, val_images=other["images"], val_labels=other["labels"]), "val")
    assert dataset.names == ["cat", "dog"] and dataset[0]["labels"][0, 0] == 1


def test_a_photo_of_another_size_is_named(tmp_path):
    keys = write(tmp_path, [annotation(SQUARE)])
    Image.new("RGB", (5, 3)).save(tmp_path / "photos/a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg and .*coco\.json, a\.jpg differ in size, 5x3 \(upright\) and 4x3"):
        read(keys)


def test_missing_files(tmp_path):
    keys = write(tmp_path, [annotation(SQUARE)])
    with pytest.raises(DataError, match=r"no\.json: cannot be read .* give a JSON file of COCO annotations"):
        read(keys | {"labels": tmp_path / "no.json"})


def test_an_evaluation_notices_that_annotations_have_changed(tmp_path):
    keys = write(tmp_path, [annotation(SQUARE)])
    dataset = FolderDataset(DataConfig(**keys), "val")
    before = files_state(dataset)
    assert before == files_state(FolderDataset(DataConfig(**keys), "val"))
    os.utime(tmp_path / "coco.json", ns=(1, 1))
    assert files_state(dataset) != before
    labels = dataset.pairs[0][2]
    assert copy.deepcopy(dataset).pairs[0][2] is labels
    mapped = FolderDataset(DataConfig(**keys, label_map={"1": "dog", "5": "dog"}), "val")
    assert files_state(mapped) != files_state(dataset)


def test_things_alone_teach_nothing_about_the_rest(tmp_path):
    one = write(tmp_path, [annotation(SQUARE)], CATEGORIES[:1])
    [text] = check_folders(**one).warnings
    assert "'cat' is the only class" in text and "'{unpainted: background}'" in text
    with pytest.raises(DataError, match=r"'cat' is the only class that occurs, .*outside the annotations"):
        check_labels(FolderDataset(DataConfig(**one), "train"), "train", training=True)
    assert check_folders(**one, label_map={"unpainted": "background"}).warnings == []
    two = write(tmp_path, [annotation(SQUARE), annotation([[3, 0, 4, 0, 4, 1, 3, 1]], 5)])
    assert any("58 % of the pixels are void: pixels outside" in text for text in check_folders(**two).warnings)
    none = write(tmp_path, [])
    assert "all are void (values unpainted)" in check_folders(**none).problems["labels that cannot be right"][0]
