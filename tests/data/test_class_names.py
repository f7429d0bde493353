"""Names files, as text and as JSON, and what a bad one says."""

import json
import re

import numpy as np
import pytest
from paths import SHARED

from fgaseg.data.class_names import LabelSpace, percent, read_names
from fgaseg.data.label_formats import UNPAINTED, colour
from fgaseg.errors import DataError

CLASSES = SHARED / "data" / "classes"


def test_names_as_text_and_json(tmp_path):
    names = ["sky", "dark green tree", "猫", "!?", "bed"]
    (tmp_path / "a.txt").write_bytes("\ufeffsky\r\ndark green tree\r\n猫\r\n!?\r\nbed \r\n\r\n".encode())
    (tmp_path / "a.json").write_text(json.dumps([*names[:-1], "bed "]))
    assert read_names(tmp_path / "a.txt") == read_names(tmp_path / "a.json") == names


def test_values_that_are_neither_a_class_nor_void_are_listed():
    space = LabelSpace(["sky", "sea"], ["sky", "sea"], 255, None, "two names")
    assert space.undefined(np.array([[0, 1], [255, 1]])) == []
    assert space.undefined(np.array([[2, -1, 300], [2, 0, 255]])) == [-1, 2, 300]


def test_ten_thousand_names(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"class {n}" for n in range(10_000)))
    assert len(read_names(tmp_path / "a.txt")) == 10_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"names\.txt: holds no names: give one class name per line"),
        (b"  \n\n", r"holds no names"),
        (b"[]", r"holds no names"),
        (b"cat\ndog\ncat\n", r"name 1 and name 3 are both 'cat'"),
        (b"cat\n\ndog\n", r"name 2 is empty"),
        (b"caf\xe9\n", r"not UTF-8"),
        (b'["cat", 3]', r"name 2: 3 is no name: give text"),
        (b'["cat", ', r"not valid JSON \(line 1"),
    ],
    ids=str,
)
def test_bad_names_file_says_why(tmp_path, content, words):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_names(tmp_path / "names.txt")


@pytest.mark.skipif(not CLASSES.exists(), reason=f"name lists are not at {CLASSES}")
@pytest.mark.parametrize(("file", "count"), [("ade150", 150), ("ade847", 847), ("pc459", 459), ("coco", 171)])
def test_real_name_lists_load(file, count):
    assert len(read_names(CLASSES / f"{file}.json")) == count


def space(classes, label_of=None, others=None, ignore=255):
    return LabelSpace(classes, classes, ignore, None, "the names", label_of, others)


def test_values_as_labels():
    names = ["sky", "sea", "cat"]
    labels, missing = space(names).labels(np.array([[0, 2, 3, 255, -1, UNPAINTED]]))
    assert labels.tolist() == [[0, 2, 3, 255, -1, 255]] and missing.tolist() == [[0, 0, 1, 0, 1, 0]]
    assert space(names).named == [] and space(names).fingerprint() is None
    stored = np.array([[0, 3], [3, 7]])
    with pytest.raises(DataError) as caught:
        space(names).decode(stored, "a.png")
    assert str(caught.value) == (
        "a.png: holds label 3 (50 % of the pixels), but labels are 0 to 2 (the names) or 255 (ignored): correct the "
        "file, the names or data.ignore, or give data.label_map"
    )
    assert space(names).decode(np.array([2, 255]), "a.png").tolist() == [2, 255]


def test_stored_values_with_labels_of_their_own():
    named = space(["sky", "sea"], {9: 0, 3: 1, UNPAINTED: 255})
    stored = np.array([[3, 9, UNPAINTED, 0, 5, 10, UNPAINTED + 1]])
    labels, missing = named.labels(stored)
    assert labels.tolist() == [[1, 0, 255, 255, 255, 255, 255]] and missing.tolist() == [[0, 0, 0, 1, 1, 1, 1]]
    assert named.named == [3, 9, UNPAINTED]
    for others in (0, 255):
        labels, missing = space(["sky", "sea"], {9: 0, 3: 1}, others).labels(stored)
        assert labels.tolist() == [[1, 0, others, others, others, others, others]] and not missing.any()
    same = space(["a", "b"], {3: 1, 9: 0, UNPAINTED: 255})
    assert named.fingerprint() == same.fingerprint()
    changed = (space(["a"], {9: 0, 3: 0, UNPAINTED: 255}), space(["a"], {9: 0, 3: 1, UNPAINTED: 255}, 0))
    assert len({one.fingerprint() for one in (named, *changed)}) == 3
    with pytest.raises(
        DataError, match=r"^a.png: the value 0 \(14 % of the pixels\) has no name in the names: add it th"
    ):
        named.decode(stored, "a.png")


NEAREST = {  # a colour without a name, what is said of it
    (0, 0, 200): r" \(red and blue may be swapped: 200,0,0 has one\)",
    (184, 0, 16): r" \(the nearest is 200,0,0, car; resized or JPEG-compressed labels have such colours\)",
    (183, 0, 0): r" \(the nearest is 200,0,0, car\)",
    (90, 100, 95): r" \(the nearest is 100,100,100, void; resized or JPEG-compressed labels have such colours\)",
    (5, 0, 5): r" \(the nearest is 0,0,0, sky; resized",
}


@pytest.mark.parametrize("rgb", NEAREST, ids=str)
def test_a_colour_without_a_name_may_be_meant_as_another(rgb):
    named = space(["sky", "car"], {colour(0, 0, 0): 0, colour(200, 0, 0): 1, colour(100, 100, 100): 255, 7: 0})
    said = named.explain_missing(colour(*rgb), 0.5)
    shown = ",".join(map(str, rgb))
    assert re.search(rf"^the colour {shown} \(50 % of the pixels\) has no name in the names{NEAREST[rgb]}", said), said
    assert " (the nearest" not in named.explain_missing(9, 0.5) and " (the" not in named.explain_missing(UNPAINTED, 0.5)
    assert " (the nearest" not in space(["sky"], {7: 0}).explain_missing(colour(*rgb), 0.5)


@pytest.mark.parametrize("share, text", [(0.1, "10 %"), (0.996, "100 %"), (0.0999, "10 %"), (0.0123, "1.2 %"),
                                         (0.00004, "0.004 %"), (0, "0 %"), (1, "100 %"), (0.125, "12 %")])  # fmt: skip
def test_shares_have_two_digits(share, text):
    assert percent(share) == text
