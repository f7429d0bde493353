"""What the values in a user's labels become: void values, maps, numbers of classes, names files beside maps."""

import numpy as np
import pytest
from layouts import LAYOUTS, needs_photos
from PIL import Image
from sample_data import make_folder

from fgaseg.config import DataConfig
from fgaseg.data import FolderDataset
from fgaseg.data.label_formats import UNPAINTED, colour, read_stored
from fgaseg.data.label_spaces import is_coco, open_label_space
from fgaseg.errors import DataError
from fgaseg.vocabulary import ClassPrompts

VALUES = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)


def save(folder, values, names="sky\ngrass\ncat\n"):
    """One photo and one label image."""
    for place in ("images", "labels"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    Image.new("RGB", image.size).save(folder / "images/a.png")
    image.save(folder / "labels/a.png")
    (folder / "names.txt").write_text(names)
    return {"images": folder / "images", "labels": folder / "labels", "names": folder / "names.txt"}


def labels(keys, **more):
    """Names, and labels as lists with None for void."""
    dataset = FolderDataset(DataConfig(**keys | more), "val")
    found = dataset[0]["labels"].tolist()
    return dataset.names, [[None if one == dataset.ignore else one for one in row] for row in found]


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        ([0, 255], [[None, 0, 1], [2, 3, None]]),  # the first name is that of value 1
        ([0, 1, 255], [[None, None, 0], [1, 2, None]]),
        ([255, 0], [[None, 0, 1], [2, 3, None]]),
        ([255], [[0, 1, 2], [3, 4, None]]),
        ([255, 254], [[0, 1, 2], [3, 4, None]]),
        (255, [[0, 1, 2], [3, 4, None]]),
    ],
    ids=str,
)
def test_several_void_values(tmp_path, ignore, expected):
    count = 5 - sum(one < 5 for one in (ignore if isinstance(ignore, list) else [ignore]))
    keys = save(tmp_path, VALUES, "".join(f"c{index}\n" for index in range(count)))
    assert labels(keys, ignore=ignore)[1] == expected


def test_one_void_value_that_is_zero(tmp_path):
    keys = save(tmp_path, np.array([[0, 1, 3]], np.uint8))
    assert labels(keys, ignore=0) == (["sky", "grass", "cat"], [[None, 0, 2]])
    item = FolderDataset(DataConfig(**keys, ignore=0, crop=8, flip=False), "train")[0]
    assert set(item["labels"].unique().tolist()) <= {0, 1, 2, 65535}


MAPS = {  # label map, names file or None, stored values, labels
    "values": ({0: "background", 255: "crack"}, None, [[0, 255]], [[0, 1]]),
    "values in the order of the file": ({0: "background", 255: "crack"}, "crack\nbackground", [[0, 255]], [[1, 0]]),
    "void by null": ({0: None, 7: "road"}, "road", [[0, 7, 255]], [[None, 0, None]]),
    "void by name": ({0: "void", 7: "road", 9: "Unlabeled"}, "road", [[0, 7, 9]], [[None, 0, None]]),
    "a class called void": ({0: "void", 7: "road"}, "road\nvoid", [[0, 7]], [[1, 0]]),
    "two values of one class": ({1: "car", 2: "car", 3: "sky"}, None, [[1, 2, 3]], [[0, 0, 1]]),
    "others are void": ({7: "road", "others": None}, None, [[0, 7, 99]], [[None, 0, None]]),
    "others are a class": ({7: "road", "others": "rest"}, None, [[0, 7, 99]], [[1, 0, 1]]),
    "numbers of names": ({7: 0, 11: 1, 0: 255, 3: -1}, "road\ncar", [[7, 11, 0, 3]], [[0, 1, None, None]]),
    "others without a map": ({"others": None}, "sky\ngrass", [[0, 1, 2, 77]], [[0, 1, None, None]]),
    "negative": ({-1: None, 5: "sky"}, None, np.array([[-1, 5]], np.int32), [[None, 0]]),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(tmp_path, name):
    label_map, names, stored, expected = MAPS[name]
    stored = np.array(stored)
    if stored.min() < 0:
        keys = save(tmp_path, Image.fromarray(np.zeros((1, 2), np.uint8)))
        (tmp_path / "labels/a.png").unlink()
        Image.fromarray(stored).save(tmp_path / "labels/a.tif")
    else:
        keys = save(tmp_path, stored.astype(np.uint8))
    keys["names"] = None if names is None else keys["names"]
    if names is not None:
        keys["names"].write_text(names)
    assert labels(keys, label_map=label_map)[1] == expected


def rgb(*colours):
    return np.array([colours], np.uint8)


PICTURES = {  # image, label map, labels
    "rgb": (rgb((1, 2, 3), (9, 9, 9)), {"1,2,3": "sky", "9,9,9": "cat"}, [[0, 1]]),
    "rgba": (rgb((1, 2, 3, 255), (1, 2, 3, 0)), {"1,2,3": "sky"}, [[0, None]]),
    "half transparent": (rgb((1, 2, 3, 128), (4, 4, 4, 9)), {"1,2,3": "sky", "4,4,4": "cat"}, [[0, 1]]),
    "unpainted is a class": (rgb((1, 2, 3, 255), (0, 0, 0, 0)), {"1,2,3": "sky", "unpainted": "wall"}, [[0, 1]]),
    "grey as colours": (np.array([[0, 255]], np.uint8), {"0,0,0": "sky", "255,255,255": "cat"}, [[0, 1]]),
    "grey in rgb": (rgb((0, 0, 0), (7, 7, 7)), {0: "sky", 7: "cat"}, [[0, 1]]),
    "grey in rgba": (rgb((3, 3, 3, 255), (7, 7, 7, 255)), {3: "sky", 7: "cat"}, [[0, 1]]),
    "one bit": (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), {0: "sky", 1: "cat"}, [[0, 1]]),
    "sixteen bits": (np.array([[300, 40000]], np.uint16), {300: "sky", 40000: "cat"}, [[0, 1]]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_kinds_of_images(tmp_path, name):
    image, label_map, expected = PICTURES[name]
    keys = save(tmp_path, image) | {"names": None}
    assert labels(keys, label_map=label_map)[1] == expected


def palette_image(indices, colours):
    image = Image.fromarray(np.array([indices], np.uint8)).convert("L")
    image.putpalette([part for one in colours for part in one])
    return image


def test_palette_images_by_colour_where_they_have_names_else_by_index(tmp_path):
    image = palette_image([0, 1, 2], [(5, 5, 5), (1, 2, 3), (8, 8, 8)])
    by_colour = {"1,2,3": "sky", "5,5,5": "cat", "8,8,8": "dog"}
    keys = save(tmp_path, image) | {"names": None}
    assert labels(keys, label_map=by_colour)[1] == [[1, 0, 2]]
    assert labels(keys, label_map={0: "sky", 1: "cat", 2: "dog"})[1] == [[0, 1, 2]]
    both = {
        "sky": {"id": 0, "color": [1, 2, 3]},
        "cat": {"id": 1, "color": [5, 5, 5]},
        "dog": {"id": 2, "color": [8, 8, 8]},
    }
    assert labels(keys, label_map=both)[1] == [[1, 0, 2]]  # reordered: colours are what was drawn
    other = palette_image([0, 1, 2], [(50, 5, 5), (1, 20, 3), (8, 80, 8)])  # colours of another tool
    assert labels(save(tmp_path, other) | {"names": None}, label_map=both)[1] == [[0, 1, 2]]
    np.testing.assert_array_equal(read_stored(tmp_path / "labels/a.png"), [[0, 1, 2]])


def test_transparent_indices_of_palettes(tmp_path):
    for number, transparency in enumerate((1, b"\xff\x00", b"\xff\x00\xff\x80")):
        image = palette_image([0, 1, 2, 3], [(5, 5, 5), (1, 2, 3), (8, 8, 8), (1, 2, 3)])
        keys = save(tmp_path / str(number), image) | {"names": None}
        image.save(tmp_path / str(number) / "labels/a.png", transparency=transparency)
        assert labels(keys, label_map={"1,2,3": "sky", "5,5,5": "cat", "8,8,8": "dog"})[1] == [[1, None, 2, 0]]
        assert labels(keys, label_map={0: "sky", 1: "cat", 2: "dog", 3: "dog"})[1] == [[0, 1, 2, 2]]


def test_grey_rgb_under_a_map_of_values_and_colours(tmp_path):
    for values, expected in (([7, 11, 26], [0, 2, 13]), ([0, 7], [None, 0]), ([70, 0], [2, None])):
        keys = save(tmp_path / str(values), np.stack([np.array([values], np.uint8)] * 3, -1)) | {"names": None}
        assert labels(keys, label_map="cityscapes")[1] == [expected]  # 70,70,70 is a building, 7,7,7 no colour


def test_stored_values():
    assert UNPAINTED > colour(255, 255, 255) > colour(0, 0, 0) > 2**31


WRONG = {  # stored values, label map, names, what is said
    "value": ([[7, 9]], {7: "road"}, None, r"a\.png: the value 9 \(50 % .*\) has no name in data\.label_map: add"),
    "colour": (rgb((1, 2, 3), (1, 2, 9)), {"1,2,3": "sky"}, None,
               r"the colour 1,2,9 \(50 % .*nearest is 1,2,3, sky; resized or JPEG"),
    "far colour": (rgb((1, 2, 3), (200, 2, 9)), {"1,2,3": "sky"}, None, r"200,2,9 .*nearest is 1,2,3, sky\): add"),
    "colours without map": (rgb((1, 2, 3)), None, "sky", r"a\.png: is a RGB image: .*data\.label_map"),
    "fractions": (np.array([[0.5]], np.float32), None, "sky", r"a\.tif: holds fractions"),
    "misspelt": ([[7]], {7: "raod"}, "road\nsky", r"7 is 'raod', which .* does not list \(did you mean 'road'"),
    "not listed": ([[7]], {7: "road", 8: "car"}, "road", r"8 is 'car', which .* data\.label_map='\{others: null\}'"),
    "number out of range": ([[7]], {7: 3}, "road\nsky", r"7 is class 3, but .*names\.txt has 2 names"),
    "numbers without names": ([[7]], {7: 0}, None, r"data\.names is not set, and data\.label_map names no class"),
    "no names": ([[7]], None, None, r"data\.names is not set"),
    "ignored and named": ([[7]], {7: "road"}, None, r"label 7 is 'road' and cannot be ignored too"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_clear_line(tmp_path, name):
    stored, label_map, names, words = WRONG[name]
    stored = np.array(stored)
    if stored.dtype.kind == "f":
        keys = save(tmp_path, np.zeros((1, 1), np.uint8))
        (tmp_path / "labels/a.png").unlink()
        Image.fromarray(stored).save(tmp_path / "labels/a.tif")
    else:
        keys = save(tmp_path, stored.astype(np.uint8))
    keys["names"].write_text(names or "x")
    keys["names"] = keys["names"] if names else None
    ignore = [7, 255] if name == "ignored and named" else 255
    with pytest.raises(DataError, match=words) as caught:
        labels(keys, label_map=label_map, ignore=ignore)
    assert "\n" not in str(caught.value)


def test_a_names_file_with_a_line_for_the_void_value_is_refused(tmp_path):
    for first in ("void", "unlabeled", "Ignore"):
        keys = save(tmp_path, np.array([[0, 1]], np.uint8), f"{first}\nsky\ngrass\n")
        with pytest.raises(DataError, match=rf"the first name is '{first}', but with data\.ignore=\[0, 255\] .*remove"):
            labels(keys, ignore=[0, 255])


NUMBERED = {  # names file, stored values, names, labels
    "gaps": ("7: road\n11: sky\n26: car\n", [[7, 11, 26, 255]], ["road", "sky", "car"], [[0, 1, 2, None]]),
    "from one on": ("1 road\n2 sky\n", [[1, 2, 255]], ["road", "sky"], [[0, 1, None]]),
    "any order": ('{"26": "car", "7": "road"}', [[7, 26]], ["road", "car"], [[0, 1]]),
    "void by name": ("0: unlabeled\n1: road\n2: sky\n", [[0, 1, 2, 255]], ["road", "sky"], [[None, 0, 1, None]]),
    "255 is a class": ('{"0": "wall", "255": "crack"}', [[0, 255]], ["wall", "crack"], [[0, 1]]),
    "values are labels": ("0: road\n1: sky\n", [[0, 1, 255]], ["road", "sky"], [[0, 1, None]]),
    "two values of a class": ('{"0": "road", "3": "road", "1": "sky"}', [[0, 1, 3]], ["road", "sky"], [[0, 1, 0]]),
    "yolo": ("names:\n  0: road\n  2: sky\n", [[0, 2]], ["road", "sky"], [[0, 1]]),
    "csv": ("id,name\n5,sky\n3,road\n", [[3, 5]], ["road", "sky"], [[0, 1]]),
    "a plain list": ('["road", "sky"]', [[0, 1]], ["road", "sky"], [[0, 1]]),
    "colours": ("road:1,2,3::\nsky:4,5,6::\n", rgb((1, 2, 3), (4, 5, 6)), ["road", "sky"], [[0, 1]]),
    "void colour": ("void:0,0,0::\nroad:1,2,3::\n", rgb((1, 2, 3), (0, 0, 0)), ["road"], [[0, None]]),
    "values and colours": ("7 road 1 2 3\n9 sky 4 5 6\n", rgb((1, 2, 3), (4, 5, 6)), ["road", "sky"], [[0, 1]]),
    "values of both": ("7 road 1 2 3\n9 sky 4 5 6\n", [[7, 9]], ["road", "sky"], [[0, 1]]),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_numbers_and_colours_in_a_names_file_are_those_of_the_labels(tmp_path, name):
    text, stored, names, expected = NUMBERED[name]
    assert labels(save(tmp_path, np.array(stored, np.uint8), text)) == (names, expected)


def test_a_label_map_decides_where_the_names_file_has_values_too(tmp_path):
    keys = save(tmp_path, np.array([[7, 9]], np.uint8), "0: sky\n1: road\n")
    assert labels(keys, label_map={7: "road", 9: "sky"}) == (["sky", "road"], [[1, 0]])


@pytest.mark.parametrize(
    ("text", "ignore", "words"),
    [
        ("1: road\n2: sky\n", 255, r"value 0 \(33 % .*\) has no name in the names of .*names\.txt: add it there"),
        ("0: road\n2: sky\n", 255, r"value 1 \(33 %"),
        ("0: wall\n1: road\n2: sky\n", [0, 255], r"label 0 is 'wall' and cannot be ignored too"),
        ("road:1,2,3::\nsky:4,5,6::\n", 255, r"the colour 0,0,0 .* has no name"),
    ],
)
def test_values_that_a_numbered_names_file_lacks_are_named(tmp_path, text, ignore, words):
    keys = save(tmp_path, np.array([[0, 1, 2]], np.uint8), text)
    with pytest.raises(DataError, match=words):
        labels(keys, ignore=ignore)


def test_prompts_of_a_names_file_and_of_a_label_map(tmp_path):
    prompts = [ClassPrompts("car", ("car", "van")), "sky"]
    keys = save(tmp_path, np.array([[7, 9]], np.uint8), "car | van\nsky\n")
    label_map = {7: "car", 9: "sky"}
    assert labels(keys, label_map=label_map) == (prompts, [[0, 1]])
    keys["names"].write_text("7: car | van\n9: sky\n")
    assert labels(keys) == (prompts, [[0, 1]])
    assert labels(keys | {"names": None}, label_map={7: "car | van", 9: "sky"}) == (prompts, [[0, 1]])
    both = {"car": {"id": 7, "prompts": ["car", "van"]}, "sky": {"id": 9}}
    assert labels(keys | {"names": None}, label_map=both) == (prompts, [[0, 1]])
    dataset = FolderDataset(DataConfig(**keys), "val")
    assert dataset.classes == ["car", "sky"] and dataset.class_of is None


def test_a_plain_names_file_is_read_as_before(tmp_path):
    dataset = FolderDataset(make_folder(tmp_path), "val")
    assert dataset.label_space.label_of is None and dataset.ignore == 255


@needs_photos
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_ready(name, tmp_path):
    from fgaseg.data import check_folders

    report = check_folders(**LAYOUTS[name](tmp_path))
    assert (report.state, report.pairs, report.problems, report.unnamed) == ("ready", 6, {}, {})
    assert 0.1 < report.void < 0.4 and sum(report.shares.values()) + report.void == pytest.approx(1)


@pytest.fixture
def opened(tmp_path):
    """The label space of names, one a line, and of a label map."""

    def make(names=None, label_map=None, labels=None, **more):
        if names is not None:
            (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
        file = None if names is None else tmp_path / "names.txt"
        config = DataConfig(images=tmp_path, labels=tmp_path, names=file, label_map=label_map, **more)
        return open_label_space(config, labels)

    return make


def test_where_the_labels_of_values_come_from(opened, tmp_path):
    names = f"the names of {tmp_path}/names.txt"
    plain = opened(["sky", "sea"])
    assert (plain.label_of, plain.others, plain.numbered, plain.origin) == (None, None, False, names)
    counted = opened(["0: sky", "1: sea"])
    assert (counted.label_of, counted.numbered) == (None, True)
    later = opened(["sky", "sea"], ignore=[0, 1, 255])
    assert (later.label_of, later.numbered) == ({2: 0, 3: 1, UNPAINTED: 255, 0: 255, 1: 255, 255: 255}, False)
    mapped = opened(["sky", "sea"], {7: "sea", 9: 0, 8: -1, 6: 300, 5: None, "others": "sky"}, ignore=[300])
    assert mapped.origin == "data.label_map" and mapped.others == 0
    assert mapped.label_of == {7: 1, 9: 0, 8: 300, 6: 300, 5: 300, UNPAINTED: 300, 300: 300}
    both = opened(["3: sky", "4: sea"], {7: "sea"})
    assert (both.label_of, both.numbered) == ({7: 1, UNPAINTED: 255, 255: 255}, True)
    assert opened(None, {7: "b", 8: "a", 9: "b"}).classes == ["b", "a"]
    colours = opened(None, {"1,2,3": "sky"})
    assert colours.label_of == {colour(1, 2, 3): 0, UNPAINTED: 255}  # 255 is no colour


def test_what_is_outside_is_background_where_nothing_else_is(opened):
    names = ["sky", "Background", "sea"]
    assert opened(names, {7: "sky", 8: "sea"}).label_of[UNPAINTED] == 1
    assert opened(names, {7: "sky", 8: "Background"}).label_of[UNPAINTED] == 255
    assert opened(names, {7: "sky", "unpainted": "sea"}).label_of[UNPAINTED] == 2
    assert opened(["sky", "sea"], {7: "sky"}).label_of[UNPAINTED] == 255


def test_classes_that_are_ignored_too(opened, tmp_path):
    with pytest.raises(DataError, match=rf"^the names of {tmp_path}/names.txt: label 1 is 'sea' and cannot be ig"):
        opened(["sky", "sea"], ignore=1)
    many = [f"c{number}" for number in range(256)]
    assert opened(many[:255]).ignore == 255 and opened(many, ignore=256).ignore == 256
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/names.txt: label 255 is 'c255' and cannot be ignored too: set data"
    ):
        opened(many)
    with pytest.raises(DataError, match="^data.label_map: label 255 is 'c255' and cannot be ignored too"):
        opened(None, dict(enumerate(many, 1000)))
    with pytest.raises(DataError, match="label 7 is 'sky' and cannot be ignored too: set data.ignore to a value"):
        opened(["sky"], {7: "sky", 8: None}, ignore=[255, 7])
    assert opened(["sky"], {7: "sky", 8: None}, ignore=[255, 8]).label_of[8] == 255


UNKNOWN = {  # names, label map, what is said
    "a name": (
        ["sky"],
        {7: "see"},
        "data.label_map: 7 is 'see', which NAMES does not list: add it there, or give it the",
    ),
    "near names": (["sea", "seas"], {7: "seat"}, r"7 is 'seat', which .* does not list \(did you mean 'sea'\?\): add"),
    "two names": (["sky"], {7: "a", 8: "sky", 9: "b"}, "7 is 'a', and 1 more names, which NAMES does not list: add it"),
    "a number": (
        ["sky"],
        {7: 1},
        "7 is class 1, but NAMES has 1 names: numbers of classes index the names file, from 0",
    ),
    "two numbers": (["sky"], {7: 1, 8: 2}, "7 is class 1, but NAMES has 1 names, and 1 more names: numbers"),
    "a number beside names": (None, {7: "sky", 8: 0}, "8 is class 0, but data.names is not set: numbers of classes"),
    "all others": (["sky"], {7: "sky", "others": "sea"}, "data.label_map: others is 'sea', which NAMES does not list"),
    "colours": (["sky"], {"1,2,3": "sea"}, "1,2,3 is 'sea', which NAMES does not list"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_names_of_a_map_that_are_not_in_the_list(opened, tmp_path, name):
    names, label_map, words = UNKNOWN[name]
    with pytest.raises(DataError, match=words.replace("NAMES", f"{tmp_path}/names.txt")):
        opened(names, label_map)


def test_coco_files_are_told_by_their_suffix(tmp_path):
    for name in ("a.json", "b.JSON"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder.json").mkdir()
    assert [is_coco(tmp_path / name) for name in ("a.json", "b.JSON", "folder.json", "none", "c.json")] == [
        True, True, False, False, True
    ]  # fmt: skip
