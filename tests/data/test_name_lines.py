"""Lines of class names: which marks, numbers and comments are a part of a name, and which lines are none."""

import logging

import pytest

from fgaseg.data.label_formats import colour
from fgaseg.data.name_lines import is_numbered, looks_like_syntax, numbered, read_lines, strip_quotes
from fgaseg.errors import DataError
from fgaseg.vocabulary import LONGEST

RED, BLUE = colour(255, 0, 1), colour(0, 0, 142)
PLAIN = {  # text, names
    "a heading": ("Labels\ncat\ndog", ["cat", "dog"]),
    "a heading in quotes": ("'class name'\ncat", ["cat"]),
    "a class called so": ("name", ["name"]),
    "no heading further down": ("cat\nname", ["cat", "name"]),
    "blank lines below": ("cat\ndog\n\n \n", ["cat", "dog"]),
    "comments around": ("# a\ncat\ndog\n// b\n", ["cat", "dog"]),
    "comments behind": ("cat  # a\ndog // b c\n# c", ["cat", "dog"]),
    "no comment behind": ("C#\nF #1\ncat#dog", ["C#", "F #1", "cat#dog"]),
    "commas at the end": ("cat,\ndog,\ncow", ["cat", "dog", "cow"]),
    "semicolons at the end": ("cat ;\ndog;", ["cat", "dog"]),
    "a full stop at one end": ("St. Bernard.\ncat", ["St. Bernard", "cat"]),
    "a full stop in one line alone": ("cat\nSt.", ["cat", "St."]),
    "one line with a full stop": ("cat.", ["cat."]),
    "bullets": ("* cat\n•  big - dog", ["cat", "big - dog"]),
    "spaces": ("  traffic   light \n a  b  c", ["traffic light", "a b c"]),
    "labelme's first line": ("__ignore__\n_background_\n__cat__\n_dog", ["background", "cat", "_dog"]),
    "labelme's first line alone": ("__ignore__", ["ignore"]),
    "WordNet": ("n01440764 tench\nn01443537 fish, n01443539 b", ["tench", "fish, n01443539 b"]),
    "WordNet in one line": ("n01440764 tench\ncat", ["n01440764 tench", "cat"]),
    "quotes": ("'cat'\n\"big dog\"\n`cow`\n‘a’\n«b»", ["cat", "big dog", "cow", "a", "b"]),
    "quotes inside": ("the 'big' cat\ndog's", ["the 'big' cat", "dog's"]),
    "numbers in quotes": ("'7'\n\"8: a\"", ["7", "8: a"]),
    "numbers in one line": ("cat\n2 wheeler\ncow\ndog 7", ["cat", "2 wheeler", "cow", "dog 7"]),
    "numbers behind that do not count": ("boeing 737\nairbus 320", ["boeing 737", "airbus 320"]),
    "numbers behind from two on": ("car 2\nvan 3", ["car 2", "van 3"]),
    "one name with each number": ("car 0\ncar 1", ["car 0", "car 1"]),
    "hyphens": ("t-shirt\nx-ray - film", ["t-shirt", "x-ray - film"]),
    "numbers within": ("f 16 jet\na4 b", ["f 16 jet", "a4 b"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_names_alone(name):
    text, names = PLAIN[name]
    table = read_lines(text, "a.txt", label_map=False)
    assert (list(table.unstored), table.names) == (names, {})


STORED = {  # text, what it names
    "colons": ("7: cat\n-1: dog", {7: "cat", -1: "dog"}),
    "values behind, from zero on": ("cat 1\ndog 0", {1: "cat", 0: "dog"}),
    "values behind, from one on": ("cat 1\ndog 2", {1: "cat", 2: "dog"}),
    "values behind a mark": ("cat: 7\ndog = 9", {7: "cat", 9: "dog"}),
    "values behind and below zero": ("cat: -7\ndog: 9", {-7: "cat", 9: "dog"}),
    "a number before a name with one": ("7: 2 wheeler\n8: 4x4", {7: "2 wheeler", 8: "4x4"}),
    "a number behind a name with a value": ("7: class 12\n8: class 13", {7: "class 12", 8: "class 13"}),
    "spaces": ("7 cat\n9 dog", {7: "cat", 9: "dog"}),
    "numbers before a name with one": ("7 8 cat\n9 10 dog", {7: "8 cat", 9: "10 dog"}),
    "a line twice": ("7: cat\n9: dog\n9: dog", {7: "cat", 9: "dog"}),
    "one value of two classes' names": ("7: 'cat'\n9: \"big dog\"", {7: "cat", 9: "big dog"}),
    "colours": ("255 0 1 cat\n0 0 142 dog", {RED: "cat", BLUE: "dog"}),
    "colours behind": ("cat 255 0 1\ndog 0,0,142", {RED: "cat", BLUE: "dog"}),
    "hexadecimal": ("#ff0001 cat\n#00008E dog", {RED: "cat", BLUE: "dog"}),
    "hexadecimal behind": ("cat: #ff0001\ndog: #00008e", {RED: "cat", BLUE: "dog"}),
    "brackets": ("(255, 0, 1) cat\n[0 0 142]: dog", {RED: "cat", BLUE: "dog"}),
    "brackets behind": ("cat (255;0;1)\ndog [0, 0, 142]", {RED: "cat", BLUE: "dog"}),
    "CVAT": ("cat:255,0,1::\ndog:0,0,142:tail,ear:run", {RED: "cat", BLUE: "dog"}),
    "colours behind with opacity": ("cat 255 0 1 9\ndog 0 0 142 9", {RED: "cat", BLUE: "dog"}),
    "opacity before": ("255 0 1 255 cat\n0 0 142 255 dog", {RED: "cat", BLUE: "dog"}),
    "opacity and one red twice": ("255 0 1 9 cat\n255 0 2 9 dog", {RED: "cat", colour(255, 0, 2): "dog"}),
    "value and colour": ("5 255 0 1 cat\n9 0 0 142 dog", {5: "cat", RED: "cat", 9: "dog", BLUE: "dog"}),
    "value, colour with 255": ("0 255 0 255 cat\n1 0 0 255 dog", {
        0: "cat", colour(255, 0, 255): "cat", 1: "dog", colour(0, 0, 255): "dog"}),
    "counted from one": ("1 255 0 255 cat\n2 0 0 255 dog", {
        1: "cat", colour(255, 0, 255): "cat", 2: "dog", colour(0, 0, 255): "dog"}),
    "value, name, colour": ("5 cat 255 0 1\n9 dog 0 0 142", {5: "cat", RED: "cat", 9: "dog", BLUE: "dog"}),
    "value, name, colour, opacity": ("5 cat 255 0 1 9\n9 dog 0 0 142 9", {5: "cat", RED: "cat", 9: "dog", BLUE: "dog"}),
    "colour, name, value": ("255 0 1 cat: 5\n0 0 142 dog: 9", {5: "cat", RED: "cat", 9: "dog", BLUE: "dog"}),
    "value, colour, opacity": ("5 255 0 1 7 cat\n9 0 0 142 7 dog", {5: "cat", RED: "cat", 9: "dog", BLUE: "dog"}),
    "ITK-SNAP": ("5 255 0 1 1 1 1 cat\n9 0 0 142 0 1 0 dog", {5: "cat", RED: "cat", 9: "dog", BLUE: "dog"}),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_names_with_their_values_or_colours(name):
    text, names = STORED[name]
    table = read_lines(text, "a.txt", label_map=False)
    assert (table.names, table.unstored) == (names, ())


def test_lines_of_a_label_map_may_be_of_different_forms():
    table = read_lines("7: cat\ndog 0 0 142\nsky = 9\n5 sea 255 0 1\nname: 3", "a.txt", label_map=True)
    assert table.names == {7: "cat", BLUE: "dog", 9: "sky", 5: "sea", RED: "sea", 3: "name"}


REFUSED = {  # text, whether a label map, what is said
    "two forms": ("7: cat\n8: dog\ncow", False, "line 3 is 'cow', but others are like '7: cat': write all lines"),
    "two forms, the other": ("cow\n7: cat\n8: dog", False, "line 1 is 'cow', but others are like '7: cat'"),
    "a mark in one line": ("cat\ndog\n7: cow", False, "line 3 is '7: cow', but others are like 'cat'"),
    "a value twice": ("2 wheeler\n3 wheeler", False, "lines 1 and 2, '2 wheeler' and '3 wheeler', read as two values "
                      "of 'wheeler': write '2 wheeler' in quotes if the number is a part of the name, and 3: wheel"),
    "numbers alone": ("7\n8", False, "line 1 is '7': it holds no name; write lines such as 7: car or car:0,0,142::"),
    "two numbers": ("cat 7 8\ndog 9 10", False, "line 1 is 'cat 7 8': its numbers are neither a value nor a col"),
    "an empty line above": ("\ncat\ndog", False, "name 1 is empty"),
    "an empty line": ("cat\n\ndog\n\ncow", False, "name 2 is empty: the n-th line names the class of label n - 1"),
    "a name in a label map": ("7: cat\ndog", True, "line 2 is 'dog': a label map has a value or a colour and a"),
    "fractions": ("8.5\n9.5", False, "line 1 is '8.5', numbers and no name: write lines like 7: car"),
    "syntax": ("cat\n<dog>", False, "line 2 is '<dog>', which looks like more than a name: give a name per line"),
    "a bracket": ("cat\n(dog)", False, r"line 2 is '\(dog\)', which looks like more than a name"),
    "nothing": ("# nothing", False, "holds no names: give one class name per line"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_lines_that_are_none(name):
    text, label_map, words = REFUSED[name]
    with pytest.raises(DataError, match=f"^a.txt: {words}"):
        read_lines(text, "a.txt", label_map)


def test_long_lines():
    assert read_lines("cat\n" + "x" * LONGEST, "a.txt", False).unstored == ("cat", "x" * LONGEST)
    with pytest.raises(
        DataError, match=f"a.txt: line 2 has {LONGEST + 1:,} characters; a class name has at most {LONGEST:,}"
    ):
        read_lines("cat\n" + "x" * (LONGEST + 1), "a.txt", False)


def test_what_is_read_otherwise_than_it_stands_is_told(caplog):
    with caplog.at_level(logging.INFO, "fgaseg"):
        read_lines("# first\ncat\ndog\n# last", "a.txt", False)
        assert not caplog.messages
        read_lines("# a\nName\ncat", "a.txt", False)
        read_lines("cat\n# b\ndog\n// c\ncow", "b.txt", False)
    assert caplog.messages == [
        "a.txt: line 2 is 'Name', read as a heading",
        "b.txt: comment lines between names are not counted: 3 lines name labels 0 to 2",
    ]


def test_quotes_around_all_of_a_text():
    for text, stripped in {'"a b"': "a b", "' a '": "a", "“a”": "a", "`a`": "a"}.items():
        assert strip_quotes(text) == (stripped, True)
    for text in ('"a', "a", '"', '"a" "b"', "'a\"", "”a“", ""):
        assert strip_quotes(text) == (text, False)


NUMBERED = {
    ("1. cat", "2. dog"): ["cat", "dog"], ("7: cat", "3: dog"): ["cat", "dog"], ("0 cat", "1 dog"): ["cat", "dog"],
    ("1 cat", "2 dog"): ["cat", "dog"], ("2 cat", "3 dog"): None, ("1. cat",): None, ("1. cat", "dog"): None,
    ("1.", "2. dog"): None, ("cat 1", "dog 2"): None, ("1 cat", "2. dog"): ["cat", "dog"], ("7 cat", "8. dog"): None,
}  # fmt: skip


@pytest.mark.parametrize("items", NUMBERED, ids=str)
def test_names_that_are_written_with_their_numbers(items):
    assert numbered(items) == NUMBERED[items]


def test_signs_of_other_formats():
    assert all(
        map(looks_like_syntax, ("a{", "a: b", "- a", "*a", "/a", "|a", "%a", "(a", 'say "a"', "'a", "a=b", "a\t"))
    )
    assert not any(map(looks_like_syntax, ("a-b", "a*b", "a/b", "a (b)", "dog's", "50 %", "a, b", "C#", "!?", "")))
    assert is_numbered("7: cat") and is_numbered("cat 255 0 1") and not is_numbered("7") and not is_numbered("1 a; b")
