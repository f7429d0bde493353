"""Class names as they are given, and as a model takes them."""

import pytest
import torch

from fgaseg.errors import VocabularyError
from fgaseg.notes import told_anew
from fgaseg.vocabulary import ClassPrompts, Vocabulary, as_text, check_names, one_line, why_no_name


@pytest.mark.parametrize(
    "names, expected",
    [
        (["cat", "red  star "], [("cat", ["cat"]), ("red  star ", ["red  star "])]),  # without synonyms as written
        (["car |automobile | | van"], [("car", ["car", "automobile", "van"])]),
        ([["car", "van | truck"], ("sky",)], [("car", ["car", "van", "truck"]), ("sky", ["sky"])]),
        ({"car": "van | truck", "sky": ["a", "b"]}, [("car", ["van", "truck"]), ("sky", ["a", "b"])]),
        ([ClassPrompts("thing", ("a | b", "c"))], [("thing", ["a", "b", "c"])]),
        (["cat", "dog", "cat"], [("cat", ["cat"]), ("dog", ["dog"]), ("cat", ["cat"])]),
        (["Red_star | red star | RED  STAR | star"], [("Red_star", ["Red_star", "star"])]),
        (["\ta\nb\r\n", "c"], [("a b", ["a b"]), ("c", ["c"])]),
        ({" \tx\ny\n": ["\nz\t"]}, [("  x y", ["z"])]),
        (["x" * 4000], [("x" * 4000, ["x" * 4000])]),
        (iter(["cat"]), [("cat", ["cat"])]),
    ],
)  # fmt: skip
def test_each_form_of_names(names, expected):
    assert [(name, list(prompts)) for name, prompts in check_names(names)] == expected


@pytest.mark.parametrize(
    "names, message",
    [
        ("cat", "got the string 'cat'; give a list of names, such as ['cat']"),
        ([], "the list is empty; give at least one name"),
        ({}, "the list is empty; give at least one name"),
        (["cat", 3], "entry 1 is 3 of type int, not a string"),
        ([["cat", 3]], "entry 0 is 3 of type int, not a string"),
        ([ClassPrompts(3, ("cat",))], "entry 0 is 3 of type int, not a string"),
        ([{"cat"}], "entry 0 is {'cat'} of type set, not a string"),
        (["cat", " "], "entry 1 is empty; every class needs a name"),
        (["cat", "|"], "entry 1 is empty; every class needs a name"),
        (["cat", []], "entry 1 is empty; every class needs a name"),
        ({"cat": "cat", " ": "dog"}, "entry 1 is empty; every class needs a name"),
        ({"cat": ""}, "entry 0 is empty; every class needs a name"),
        (["a\x1bb"], "entry 0, 'a\\x1bb', holds the control character '\\x1b': write the name as plain text"),
        ({"a\x1bb": "c"}, "entry 0, 'a\\x1bb', holds the control character '\\x1b': write the name as plain text"),
        (["\u200b\u3164"], "holds nothing that can be seen: write the name as plain text"),
        (["x" * 4001], f"entry 0, '{'x' * 80}', has 4,001 characters: give a name of at most 4,000"),
        ([["cat", "kitten"], "dog", "cat"], "two classes are called 'cat' and have different prompts; write them as"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_names_is_said(names, message):
    with pytest.raises(VocabularyError) as caught:
        check_names(names)
    assert str(caught.value).startswith("class names: ") and message in str(caught.value)


def test_a_name_of_several_lines_is_told_once():
    with told_anew() as notes:
        check_names(["cat\ndog\nbird", "\nfish\n"])
        check_names(["cat\ndog\nbird"])
    assert [note.split(";")[0] for note in notes] == [
        "class names: read as one name, though it looks like several: 'cat\\ndog\\nbird'"
    ]


def test_one_line_and_one_text():
    assert one_line("\n a\t\nb \v") == " a b "
    assert as_text("cat | kitten") == "cat | kitten" and as_text(ClassPrompts("cat", ("a", "b"))) == "cat: a | b"
    assert why_no_name("cat") is None and why_no_name("") is None and why_no_name(" ") is None


def test_shown_a_vocabulary_is_its_names():
    vocabulary = Vocabulary(("cat", "dog"), torch.zeros(2, 4), first=(0, 1))
    assert len(vocabulary) == 2 and vocabulary != Vocabulary(("cat", "dog"), vocabulary.embeddings)
    assert repr(vocabulary) == "Vocabulary(names=('cat', 'dog'), counts=None, background=None)"
    assert Vocabulary(("cat",), torch.zeros(1, 4)).first is None
