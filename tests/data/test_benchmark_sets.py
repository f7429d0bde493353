"""The registry of benchmark sets: names, classes and prompts."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_data import SAMPLES, needs_samples

from fgaseg.data import set_files
from fgaseg.data.benchmark_sets import BENCHMARK_SETS, find_set, find_splits, shorten
from fgaseg.data.set_files import SplitFiles, default_root, require_root
from fgaseg.errors import DataError


def test_names_classes_and_prompts():
    sizes = {name: (len(one.names), len(one.classes)) for name, one in BENCHMARK_SETS.items()}
    assert sizes == {"coco-stuff": (171, 171), "a150": (150, 150), "a847": (847, 847), "pc59": (59, 59),
                     "pc459": (459, 459), "pas20": (20, 20), "pas20b": (59, 21)}  # fmt: skip
    assert sum(", " in name for name in BENCHMARK_SETS["a847"].names) == 217
    assert BENCHMARK_SETS["pas20b"].label_space.class_of == [*range(20), *[20] * 39]
    assert BENCHMARK_SETS["pas20b"].classes[20] == "background"
    assert all(one.label_space.class_of is None for name, one in BENCHMARK_SETS.items() if name != "pas20b")


PUBLISHED = {  # pairs as their publishers count them; sizes of the tables; ignored label; labels of some values
    "coco-stuff train": (118_287, 256, 255, {0: 0, 10: 10, 12: 11, 181: 170, 255: 255}, [11, 182, 254]),
    "coco-stuff val": (5000, 256, 255, {91: 80}, [90]),
    "a150 train": (20_210, 256, 255, {0: 255, 1: 0, 150: 149}, [151, 255]),
    "a150 val": (2000, 256, 255, {}, []),
    "a847 train": (25_574, 26 * 256, 65535, {0: 65535, 26 * 256 - 1: 65535, 3156: 358}, [26 * 256]),
    "a847 val": (2000, 26 * 256, 65535, {}, []),
    "pc59 val": (5104, 460, 255, {0: 255, 2: 0, 9: 1, 458: 58}, [1, 459, 460]),
    "pc459 val": (5104, 460, 459, {0: 459, 1: 0, 459: 458}, [460]),
    "pas20 val": (1449, 256, 255, {0: 255, 1: 0, 20: 19, 255: 255}, [21, 254]),
    "pas20b val": (1449, 256, 255, {0: 20, 1: 0, 20: 19, 255: 255}, [21, 254]),
}


def test_sizes_and_labels_are_those_that_are_published():
    assert PUBLISHED.keys() == {f"{name} {split}" for name, one in BENCHMARK_SETS.items() for split in one.splits}
    for title, (count, size, ignore, labels, undefined) in PUBLISHED.items():
        name, split = title.split()
        one = BENCHMARK_SETS[name]
        assert (one.splits[split].count, len(one.table), one.ignore) == (count, size, ignore)
        assert one.undefined(np.array([*labels, *undefined])) == undefined
        made = one.convert(np.array([list(labels)], np.int64), "a.png")
        assert made.tolist() == [list(labels.values())]
        assert made.dtype == (np.uint16 if name in ("a847", "pc459") else np.uint8)
        if undefined:
            with pytest.raises(DataError, match=f"^a.png: holds the values {undefined[0]}.* {one.title} does not"):
                one.convert(np.array(undefined), "a.png")


LAYOUTS = {  # photos, labels, prepared labels, prepared photos, list of stems; below the folder of each set
    "coco-stuff train": ("coco-stuff", "images/train2017", "annotations/train2017", "annotations_detectron2/train2017",
                         None, None),
    "coco-stuff val": ("coco-stuff", "images/val2017", "annotations/val2017", "annotations_detectron2/val2017", None,
                       None),
    "a150 train": ("ADEChallengeData2016", "images/training", "annotations/training",
                   "annotations_detectron2/training", None, None),
    "a150 val": ("ADEChallengeData2016", "images/validation", "annotations/validation",
                 "annotations_detectron2/validation", None, None),
    "a847 train": ("ADE20K_2021_17_01", "images/ADE/training", "images/ADE/training",
                   "annotations_detectron2/training", "images_detectron2/training", None),
    "a847 val": ("ADE20K_2021_17_01", "images/ADE/validation", "images/ADE/validation",
                 "annotations_detectron2/validation", "images_detectron2/validation", None),
    "pc59 val": ("VOCdevkit/VOC2010", "JPEGImages", "trainval_merged.json", "annotations_detectron2/pc59_val", None,
                 "pascalcontext_val.txt"),
    "pc459 val": ("VOCdevkit/VOC2010", "JPEGImages", "trainval", "annotations_detectron2/pc459_val", None,
                  "pascalcontext_val.txt"),
    "pas20 val": ("VOCdevkit/VOC2012", "JPEGImages", "SegmentationClassAug", "annotations_detectron2/val", None,
                  "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"),
    "pas20b val": ("VOCdevkit/VOC2012", "JPEGImages", "SegmentationClassAug", "annotations_detectron2_bg/val", None,
                   "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"),
}  # fmt: skip


def test_layouts_are_those_of_detectron2():
    for title, (folder, images, labels, prepared, photos, stems) in LAYOUTS.items():
        name, split = title.split()
        one = BENCHMARK_SETS[name].splits[split]
        assert (one.images, one.labels, one.prepared) == (
            f"{folder}/{images}", f"{folder}/{labels}", f"{folder}/{prepared}"
        )  # fmt: skip
        assert (one.prepared_images, one.stems) == (f"{folder}/{photos}" if photos else None, stems)
    suffixes = {name: (one.published_suffix, one.suffix) for name, one in BENCHMARK_SETS.items()}
    assert suffixes.pop("a847") == ("_seg.png", ".tif") and suffixes.pop("pc459") == (".mat", ".tif")
    assert set(suffixes.values()) == {(".png", ".png")}
    assert [name for name, one in BENCHMARK_SETS.items() if one.drop_empty] == ["coco-stuff", "pas20"]
    assert [name for name, one in BENCHMARK_SETS.items() if one.prepares_photos] == ["a847"]


def test_sets_and_splits_are_found_by_name():
    every = [(one.name, split) for one, split in find_splits([])]
    assert every == [("coco-stuff", "train"), *((name, "val") for name in BENCHMARK_SETS)]
    assert [(one.name, split) for one, split in find_splits([], "train")] == [
        ("coco-stuff", "train"), ("a150", "train"), ("a847", "train")
    ]  # fmt: skip
    assert [(one.name, split) for one, split in find_splits(["a150", "coco-stuff", "a150"])] == [
        ("a150", "val"), ("coco-stuff", "train"), ("coco-stuff", "val")
    ]  # fmt: skip
    assert [split for _, split in find_splits(["coco-stuff"], "val")] == ["val"]
    assert find_set("a150") is BENCHMARK_SETS["a150"]
    with pytest.raises(DataError, match="'ade' is not a benchmark set: give one of coco-stuff, a150, a847"):
        find_set("ade")
    with pytest.raises(DataError, match="pas20 has no split 'train': give one of val$"):
        find_splits(["pas20"], "train")


def test_long_lists_are_shortened():
    assert shorten(range(5)) == "0, 1, 2, 3, 4" and shorten([]) == ""
    assert shorten(iter("abcdefg")) == "a, b, c, d, e and 2 more" and shorten("abc", most=1) == "a and 2 more"


def draw(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(file)


def test_files_of_a_split_are_found_by_their_stems(tmp_path):
    files = SplitFiles(BENCHMARK_SETS["a847"], "val", tmp_path)
    folder = tmp_path / files.layout.images
    for name in ("b/b.jpg", "a/A.JPG", "a/A_seg.png", "b/b_seg.png", "b/b_parts_1.png", ".hidden.jpg"):
        draw(folder / name)
    assert list(files.published_photos()) == ["A", "b"] and files.published_photos()["b"] == folder / "b/b.jpg"
    assert files.published_labels() == {"A": folder / "a/A_seg.png", "b": folder / "b/b_seg.png"}
    assert files.scored_photos() == files.prepared_labels() == {} and files.listed() is None
    draw(tmp_path / files.layout.prepared_images / "b.jpg")
    draw(tmp_path / files.layout.prepared / "b.tif")
    assert list(files.scored_photos()) == list(files.prepared_labels()) == ["b"]
    draw(folder / "c/b.jpg")
    with pytest.raises(DataError, match=r"c/b\.jpg and .*b/b\.jpg have the same name: keep one of them"):
        files.published_photos()


def test_listed_stems_are_taken_in_the_order_of_the_list(tmp_path):
    files = SplitFiles(BENCHMARK_SETS["pas20"], "val", tmp_path)
    for stem in ("a", "b", "c"):
        draw(tmp_path / files.layout.images / f"{stem}.jpg")
        draw(tmp_path / files.layout.labels / f"{stem}.png")
    assert files.listed() is None and list(files.published_photos()) == ["a", "b", "c"]
    assert files.missing() == [f"{files.layout.stems}, from {files.layout.images_from}"]
    (tmp_path / files.layout.stems).parent.mkdir(parents=True)
    (tmp_path / files.layout.stems).write_text("c\nz\na\n")
    assert files.listed() == ["c", "z", "a"] and files.missing() == []
    assert list(files.published_photos()) == list(files.published_labels()) == ["c", "a"]
    context = SplitFiles(BENCHMARK_SETS["pc459"], "val", tmp_path).listed()
    assert context is not None and len(context) == len(set(context)) == 5104


def test_what_is_missing_is_named_with_where_it_comes_from(tmp_path):
    def missing(name: str) -> list[str]:
        return [text.partition(", from ")[0] for text in SplitFiles(BENCHMARK_SETS[name], "val", tmp_path).missing()]

    folders = {name: BENCHMARK_SETS[name].splits["val"] for name in ("a150", "a847")}
    assert missing("a150") == [folders["a150"].images, folders["a150"].labels]
    assert missing("a847") == [folders["a847"].images]  # labels are in the same folder
    assert missing("pc59") == ["VOCdevkit/VOC2010/JPEGImages", "VOCdevkit/VOC2010/trainval_merged.json"]
    for text in SplitFiles(BENCHMARK_SETS["coco-stuff"], "val", tmp_path).missing():
        assert text.startswith("coco-stuff/images/val2017, from val2017.zip (download page of COCO), unpacked in") or (
            text.startswith("coco-stuff/annotations/val2017, from stuffthingmaps_trainval2017.zip (page of COCO-Stuff)")
        )
    for name, one in folders.items():  # labels are prepared: only the photos of a150 are still needed
        draw(tmp_path / one.prepared / f"x{BENCHMARK_SETS[name].suffix}")
    assert missing("a150") == [folders["a150"].images] and missing("a847") == [folders["a847"].images]
    draw(tmp_path / folders["a847"].prepared_images / "x.jpg")
    assert missing("a847") == []


def test_commands_that_prepare_and_check_a_split(tmp_path):
    root = tmp_path / "my sets"
    train, val = (SplitFiles(BENCHMARK_SETS["a150"], split, root) for split in ("train", "val"))
    assert train.prepare_command() == f"fgaseg data prepare a150 --split train --root '{root}'"
    assert val.prepare_command() == f"fgaseg data prepare a150 --root '{root}'"
    assert val.check_command() == f"fgaseg data check a150 --root '{root}'" and train.title == "a150 train"
    assert val.empty() == set()
    val.empty_file.parent.mkdir(parents=True)
    val.empty_file.write_text("my photo\né\n", encoding="utf-8")
    assert val.empty() == {"my photo", "é"}
    assert val.empty_file == root / "ADEChallengeData2016/annotations_detectron2/validation_empty.txt"


def test_the_root_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert default_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert default_root() == tmp_path
    require_root(tmp_path)
    (tmp_path / "file").touch()
    for name, what in (("file", "is not a folder"), ("none", "is missing")):
        with pytest.raises(DataError, match=f"{name}: {what}: give the folder that holds coco-stuff"):
            require_root(tmp_path / name)


@needs_samples
def test_names_are_those_of_the_protocol_up_to_spaces_that_the_tokenizer_drops():
    import open_clip

    tokenize = open_clip.get_tokenizer("ViT-B-16")
    for one in BENCHMARK_SETS.values():
        published = json.loads((SAMPLES.parent / "classes" / one.names_file).read_text())
        assert one.names == [name.strip() for name in published]
    assert "bed" in BENCHMARK_SETS["a150"].names
    assert torch.equal(tokenize("A photo of a bed  in the scene"), tokenize("A photo of a bed in the scene"))


def test_sets_can_be_sent_to_another_process():
    for one in BENCHMARK_SETS.values():
        copy = pickle.loads(pickle.dumps(one))
        assert copy.names == one.names and (copy.table == one.table).all()


def test_labels_in_one_file_are_read_where_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(set_files, "read_run_lengths", lambda path: {path.name: "labels"})
    monkeypatch.setattr(SplitFiles, "_listed_ones", lambda self, found: found)
    files = SplitFiles(BENCHMARK_SETS["pc59"], "val", tmp_path)
    assert files.published_labels() == {}
    place = tmp_path / files.layout.labels
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("{}")
    assert files.published_labels() == {"trainval_merged.json": "labels"}
