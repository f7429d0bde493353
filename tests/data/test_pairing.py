"""Photos and labels find each other under suffixes and prefixes, in one folder and in nested ones; never themselves."""

import shutil

import pytest
from PIL import Image
from sample_data import make_folder

from fgaseg.config import DataConfig
from fgaseg.data import FolderDataset
from fgaseg.data.pairing import NamePattern, PairNames, find_pairs
from fgaseg.errors import DataError


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(folder / name)
    return folder


def pairs(photos, labels, image_suffix=None, label_suffix=None, **lists):
    found, _ = find_pairs(photos, labels, names=PairNames.parse(image_suffix, label_suffix), **lists)
    assert not any(photo.samefile(label) for _, photo, label in found)
    return {stem: (photo.name, label.name) for stem, photo, label in found}


SUFFIXES = {  # photos, labels, image_suffix, label_suffix
    "cityscapes": (["a_leftImg8bit.png"], ["a_gtFine_labelIds.png", "a_gtFine_color.png", "a_gtFine_instanceIds.png"],
                   "_leftImg8bit", "_gtFine_labelIds"),
    "mask": (["a.jpg"], ["a_mask.png"], None, "_mask"),
    "with extension": (["a.jpg"], ["a_mask.png", "a_mask.gif"], None, "_mask.png"),
    "sat": (["a_sat.jpg"], ["a_mask.png"], "_sat", "_mask"),
    "camvid": (["a.png"], ["a_L.png"], None, "_L"),
    "prefixes": (["img_a.jpg"], ["mask_a.png"], "img_*", "mask_*"),
    "both ends": (["rgb_a_0.jpg"], ["seg_a_1.png"], "rgb_*_0", "seg_*_1"),
    "roboflow": (["a_jpg.rf.12ab.jpg"], ["a_jpg.rf.12ab_mask.png"], None, "_mask"),
}  # fmt: skip


@pytest.mark.parametrize("one_folder", [False, True], ids=["two folders", "one folder"])
@pytest.mark.parametrize("name", SUFFIXES)
def test_suffixes(tmp_path, name, one_folder):
    photos, labels, image_suffix, label_suffix = SUFFIXES[name]
    first = touch(tmp_path / "x", *photos)
    second = touch(first if one_folder else tmp_path / "y", *labels)
    if one_folder:
        (first / "names.txt").write_text("sky\n")
    found = pairs(first, second, image_suffix, label_suffix)
    assert list(found.values()) == [(photos[0], labels[0])]
    _, left = find_pairs(first, second, names=PairNames.parse(image_suffix, label_suffix))
    assert not [line for line in left if "has no label image" in line]  # a label is no photo without a label


@pytest.mark.parametrize("name", ["cityscapes", "mask", "sat", "prefixes"])
def test_without_suffixes_the_error_suggests_them(tmp_path, name):
    photos, labels, image_suffix, label_suffix = SUFFIXES[name]
    many = [[file.replace("a", f"{n}th", 1) if name != "prefixes" else file.replace("_a", f"_{n}th") for n in range(9)
             for file in files] for files in (photos, labels)]  # fmt: skip
    first, second = touch(tmp_path / "x", *many[0]), touch(tmp_path / "y", *many[1])
    given = [f"data.image_suffix={image_suffix} " * bool(image_suffix), f"data.label_suffix={label_suffix}"]
    if name == "cityscapes":
        given[1] = "data.label_suffix=_gtFine_labelIds"
    with pytest.raises(DataError) as caught:
        pairs(first, second)
    assert f"have no pair, for example {first}" in str(caught.value)
    assert f"; give {''.join(given)} (9 pairs)" in str(caught.value)
    both = touch(tmp_path / "z", *many[0], *many[1])
    with pytest.raises(DataError, match="photos and labels are in one folder and nothing says which are the labels"):
        pairs(both, both)


def test_one_folder_of_photos_alone_pairs_nothing(tmp_path):
    for number, files in enumerate((["a.png", "b.png"], ["a.jpg", "b.jpg"], ["a.png", "b.tif", "c.bmp"])):
        folder = touch(tmp_path / str(number), *files)
        with pytest.raises(DataError, match=r"in one folder and nothing says .* data\.label_suffix, such as _mask"):
            pairs(folder, folder)


def test_one_folder_with_jpegs_and_pngs_of_one_name(tmp_path):
    folder = touch(tmp_path, "a.jpg", "a.png", "b/c.jpeg", "b/c.tif", "alone.jpg", "single.png")
    assert pairs(folder, folder) == {"a": ("a.jpg", "a.png"), "b/c": ("c.jpeg", "c.tif")}
    assert pairs(folder, folder / "b" / "..") == pairs(folder, folder)


def test_a_folder_inside_the_other_is_not_searched_twice(tmp_path):
    photos = touch(tmp_path / "data", "a.png", "masks/a.png")
    assert pairs(photos, photos / "masks") == {"a": ("a.png", "a.png")}
    assert find_pairs(photos, photos / "masks")[1] == []
    labels = touch(tmp_path / "other", "a.png", "photos/a.png")
    assert pairs(labels / "photos", labels) == {"a": ("a.png", "a.png")}
    assert find_pairs(labels / "photos", labels)[1] == []


def test_lists_may_have_the_suffix_of_photos(tmp_path):
    photos = touch(tmp_path / "x", "t/a_rgb.png", "t/b_rgb.png", "t/c_rgb.png")
    labels = touch(tmp_path / "y", "t/a_id.png", "t/b_id.png", "t/c_id.png")
    (tmp_path / "list.txt").write_text("t/c_rgb.png\nt/a\nt/b_rgb\n")
    assert list(pairs(photos, labels, "_rgb", "_id", listed=tmp_path / "list.txt")) == ["t/c", "t/a", "t/b"]


def test_a_train_list_of_every_pair_leaves_nothing_to_validate(tmp_path):
    config = make_folder(tmp_path)
    for text in ("p0\np1\np2\np3\n", "p3.png\np2.png\np1.png\np0.png\n", "p0\np0\np1\np2\np3"):
        (tmp_path / "train.txt").write_text(text)
        config = config.model_copy(update={"train_list": tmp_path / "train.txt"})
        assert len(FolderDataset(config, "train")) == 4
        with pytest.raises(DataError, match=r"train\.txt: lists all 4 photos .* none is left to validate on"):
            FolderDataset(config, "val")


def test_labels_may_be_left_out_where_they_have_a_suffix(tmp_path):
    photos = touch(tmp_path / "x", "a.jpg", "a_mask.png")
    other = touch(tmp_path / "v", "b.jpg", "b_mask.png")
    (tmp_path / "names.txt").write_text("sky\nsea\n")
    config = DataConfig(images=photos, names=tmp_path / "names.txt", label_suffix="_mask", val_images=other)
    assert [pair[2].name for split in ("train", "val") for pair in FolderDataset(config, split).pairs] == [
        "a_mask.png", "b_mask.png",
    ]  # fmt: skip


def test_lossy_labels_are_not_read(tmp_path):
    photos = touch(tmp_path / "x", "a.jpg", "b.jpg", "c.jpg")
    labels = touch(tmp_path / "y", "a.png", "b.jpg", "c.webp")
    found, skipped = find_pairs(photos, labels)
    assert len(found) == 1 and sum("compression has changed label values" in line for line in skipped) == 2
    shutil.rmtree(labels)
    with pytest.raises(DataError, match=r"0 label images\) have no pair \(.*b\.jpg: compression has changed label val"):
        find_pairs(photos, touch(tmp_path / "y", "b.jpg"))


def test_patterns():
    from pathlib import PurePosixPath as Path

    assert NamePattern.parse("_mask").stem(Path("d/x_mask.png")) == "d/x"
    assert NamePattern.parse("mask_*").stem(Path("mask_x.png")) == "x"
    assert NamePattern.parse("_mask").stem(Path("_mask.png")) is None
    assert NamePattern.parse("_mask.tif").stem(Path("x_mask.png")) is None
    assert [str(NamePattern.parse(text)) for text in ("_mask", "mask_*", "a_*_b.png")] == [
        "_mask",
        "mask_*",
        "a_*_b.png",
    ]


def test_labels_may_be_named_after_the_whole_photo(tmp_path):
    photos = touch(tmp_path / "x", "a.jpg", "t/b.png", "c.tif", "d.jpg", "d.jpg.png")
    labels = touch(tmp_path / "y", "a.jpg.png", "t/b.png.png", "c.tif.bmp", "d.png", "d.jpg.tif")
    found = pairs(photos, labels)
    assert found == {"a": ("a.jpg", "a.jpg.png"), "t/b": ("b.png", "b.png.png"), "c": ("c.tif", "c.tif.bmp"),
                     "d": ("d.jpg", "d.png"), "d.jpg": ("d.jpg.png", "d.jpg.tif")}  # fmt: skip
    touch(labels, "a.png")
    with pytest.raises(DataError, match=r"a\.png and .*a\.(jpg\.)?png have the same photo: keep one"):
        pairs(photos, labels)
