"""Photos and labels find each other under suffixes and prefixes, in one folder and in nested ones; never themselves."""

import json
import shutil
from pathlib import PurePosixPath

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


PATTERNS = {  # written, file, the shared part
    "_mask": {"d/x_mask.png": "d/x", "x_mask.PNG": "x", "_mask.png": None, "x.png": None, "x_mask_.png": None},
    "_mask.PNG": {"x_mask.png": "x", "x_mask.tif": None, "x_mask.PNG": "x"},
    "mask_*": {"mask_x.png": "x", "mask_.png": None, "x.png": None, "d/mask_x.tif": "d/x"},
    "a*b": {"axb.png": "x", "ab.png": None, "ax.png": None, "xb.png": None},
    "a_*_*_b.tiff": {"a_x_*_b.tiff": None, "a_*_x_b.tiff": "x"},
    ".png": {"x.png": "x", "x.tif": None},
    "": {"x.png": "x", "d/e/x.jpg": "d/e/x"},
}


@pytest.mark.parametrize("text", PATTERNS)
def test_patterns_of_names(text):
    pattern = NamePattern.parse(text)
    assert {file: pattern.stem(PurePosixPath(file)) for file in PATTERNS[text]} == PATTERNS[text]
    assert bool(pattern) == bool(text) and str(pattern) == text.replace(".PNG", ".png")
    assert NamePattern.parse(None) == NamePattern.parse("") == NamePattern()


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp", ".Tif", ".tiff", ".ppm"])
def test_photos_and_labels_of_every_suffix(tmp_path, suffix):
    photos = touch(tmp_path / "x", "a.png")
    (photos / "a.png").rename(photos / f"a{suffix}")
    for label in (".png", ".tif", ".TIFF", ".bmp", ".gif"):
        labels = tmp_path / label / "y"
        labels.mkdir(parents=True)
        (labels / f"a{label}").touch()
        assert pairs(photos, labels) == {"a": (f"a{suffix}", f"a{label}")}


def test_what_belongs_to_no_pair_is_told_with_the_reason(tmp_path):
    photos, labels = touch(tmp_path / "x", "a.jpg", "b.jpg", "d/c.png"), touch(tmp_path / "y", "a.png", "z.png")
    for file in ("x/.hidden.jpg", "x/notes.txt", "y/b.jpg", "y/c.JSON", "y/e.xml"):
        (tmp_path / file).touch()
    (photos / "folder.jpg").mkdir()
    found, skipped = find_pairs(str(photos), str(labels))
    assert found == [("a", photos / "a.jpg", labels / "a.png")]
    expected = [
        f"{photos}/b.jpg: has no label image in {labels}",
        f"{photos}/d/c.png: has no label image in {labels}",
        f"{photos}/notes.txt: has none of the suffixes .jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff, .ppm",
        f"{labels}/b.jpg: compression has changed label values: export labels as PNG",
        f"{labels}/c.JSON: COCO annotations are given as the file itself, not as its folder (export LabelMe's to COCO)",
        f"{labels}/e.xml: has none of the suffixes .png, .tif, .tiff, .bmp, .gif",
        f"{labels}/z.png: has no photo in {photos}",
    ]
    assert skipped == sorted(expected)


def test_folders_that_cannot_be_paired(tmp_path):
    photos, labels = touch(tmp_path / "x", "a.jpg", "a.png"), touch(tmp_path / "y", "a.png")
    with pytest.raises(DataError, match=r"x/a\.png and .*x/a\.jpg have the same name: keep one of them"):
        find_pairs(photos, labels)
    with pytest.raises(DataError, match=r"nowhere: is missing: name a folder of photos"):
        find_pairs(tmp_path / "nowhere", labels)
    with pytest.raises(DataError, match=r"a\.png: is not a folder: name a folder of label images"):
        find_pairs(touch(tmp_path / "v", "b.jpg"), labels / "a.png")
    with pytest.raises(
        DataError,
        match=r"\(1 photos\) and .*w \(0 label images\) have no pair \(.*\), for example .*b\.jpg and no file: a",
    ):
        find_pairs(tmp_path / "v", touch(tmp_path / "w"))
    with pytest.raises(
        DataError, match=r"\(0 photos\).*same name up to the suffix and, as given, data.image_suffix=b\*$"
    ):
        find_pairs(tmp_path / "v", labels, names=PairNames.parse("b*", None))
    names = PairNames.parse("_x", "_y")
    with pytest.raises(DataError, match=r"\(0 photos\) .* as given, data.image_suffix=_x and data.label_suffix=_y$"):
        find_pairs(tmp_path / "v", labels, names=names)
    (tmp_path / "u").mkdir()
    (tmp_path / "u/b.txt").touch()
    with pytest.raises(DataError, match=r"\(0 photos\) .*no pair \(.*b\.txt: has none of the suffixes \.jpg"):
        find_pairs(tmp_path / "u", labels)


def test_one_folder_by_names_and_by_suffixes(tmp_path):
    folder = touch(tmp_path / "x", "a.jpg", "a.png", "b.jpg", "b.bmp", "b.png", "c.png", "c.tif", "d.webp", "d.tiff")
    found, skipped = find_pairs(folder, folder)
    assert {stem: (photo.name, label.name) for stem, photo, label in found} == {
        "a": ("a.jpg", "a.png"), "d": ("d.webp", "d.tiff")
    }  # fmt: skip
    assert skipped == [f"{folder}/{name}: has no label image in {folder}" for name in ("b.bmp", "c.png")]
    both = touch(tmp_path / "z", "img_a.png", "a_mask.png", "img_b.png")
    found, skipped = find_pairs(both, both, names=PairNames.parse("img_*", "_mask"))
    assert [stem for stem, *_ in found] == ["a"] and skipped == [f"{both}/img_b.png: has no label image in {both}"]


def test_lists_of_pairs(tmp_path):
    photos = touch(tmp_path / "x", "a.jpg", "b.v2.jpg", "d/c.jpg", "e.jpg")
    labels = touch(tmp_path / "y", "a.png", "b.v2.png", "d/c.png")
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffd/c.JPG\r\n\r\n b.v2 \r\na.jpg\nd/c\n".encode())
    assert list(pairs(photos, labels, listed=file)) == ["d/c", "b.v2", "a"]
    assert find_pairs(photos, labels, listed=file)[1] == []
    assert list(pairs(photos, labels, excluded=_written(file, "a.jpg\n"))) == ["b.v2", "d/c"]
    for text, words in (("", "list.txt: is empty: list the files of this split, one per line"),
                        ("a\ne\n", r"lists 'e', which has no label image in .*y: add the file or remove the line"),
                        ("a\nq.jpg\n", r"lists 'q', which has no photo in .*x: add the file")):  # fmt: skip
        for option in ("listed", "excluded"):
            with pytest.raises(DataError, match=words):
                find_pairs(photos, labels, **{option: _written(file, text)})
    file.write_bytes(b"\xff\xfe\xff")
    for broken in (file, tmp_path / "nowhere.txt"):
        with pytest.raises(
            DataError, match=f"{broken}: cannot be read .*: give a text file with one file name per line"
        ):
            find_pairs(photos, labels, listed=broken)


def _written(file, text):
    file.write_text(text)
    return file


GUESSED = {  # photos, labels, what is proposed
    "two of five": (["p1", "p2", *"abc"], ["p1_m", "p2_m", *"xyz"], "data.label_suffix=_m (2 pairs)"),
    "two of six": (["p1", "p2", *"abcd"], ["p1_m", "p2_m", *"uxyz"], ""),
    "longer marks": (["p1.rgb", "p2.rgb"], ["p1.lab-ids", "p2.lab-ids"],
                     "data.image_suffix=.rgb data.label_suffix=.lab-ids (2 pairs)"),
    "beginnings": (["im 1", "im 2"], ["gt 1", "gt 2"], "data.image_suffix=im * data.label_suffix=gt * (2 pairs)"),
    "no pictures of labels": (["p1", "p2"], ["p1_color", "p2_COLOR", "p1_vis", "p2_vis", "p1_ids"],
                              "data.label_suffix=_ids (1 pairs)"),
    "other folders": (["d/p1", "d/p2"], ["e/p1_m", "e/p2_m"], ""),
    "nothing alike": (["a", "b"], ["x", "y"], ""),
}  # fmt: skip


@pytest.mark.parametrize("name", GUESSED)
def test_suffixes_are_proposed_where_they_pair_enough(tmp_path, name):
    photos, labels, proposed = GUESSED[name]
    with pytest.raises(DataError) as caught:
        find_pairs(touch(tmp_path / "x", *(f"{one}.png" for one in photos)),
                   touch(tmp_path / "y", *(f"{one}.png" for one in labels)))  # fmt: skip
    assert str(caught.value).partition("; give ")[2] == proposed


def test_photos_of_a_coco_file_are_found_by_path_or_by_name(tmp_path):
    photos = touch(tmp_path / "x", "a.jpg", "d/b.jpg", "d/c.jpg", "e/c.jpg")

    def write(*names):
        images = [{"id": number, "file_name": name, "height": 2, "width": 2} for number, name in enumerate(names)]
        data = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / "a.json").write_text(json.dumps(data))
        return find_pairs(photos, tmp_path / "a.json")

    found, skipped = write("train/a.jpg", "b.jpg", "e/c.jpg")
    assert [stem for stem, *_ in found] == ["a", "d/b", "e/c"]
    assert skipped == [f"{photos}/d/c.jpg: has no label image in {tmp_path}/a.json"]
    found, skipped = write("a.jpg", "c.jpg")  # which of the two?
    assert [stem for stem, *_ in found] == ["a"] and len(skipped) == 4
    with pytest.raises(DataError, match="have the same photo: rename one of the two"):
        write("a.jpg", "train/a.jpg")
