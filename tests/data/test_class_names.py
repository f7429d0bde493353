"""Names files, as text and as JSON, and what a bad one says."""

import json

import numpy as np
import pytest
from paths import SHARED

from fgaseg.data.class_names import LabelSpace, read_names
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
