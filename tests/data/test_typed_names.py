"""Class names as people type them after --classes."""

import logging

import pytest

from fgaseg.data import read_typed
from fgaseg.data.typed_names import python_literal
from fgaseg.errors import DataError
from fgaseg.vocabulary import LONGEST, ClassPrompts

THREE = ["cat", "sofa", "wooden floor"]
MANY = [f"thing{n}" for n in range(40)]
TYPED = {
    # separators
    "cat, sofa, wooden floor": THREE,
    "cat,sofa,wooden floor,": THREE,
    " cat ,, sofa , wooden floor ": THREE,
    "cat; sofa; wooden floor": THREE,
    "cat;sofa;wooden floor;": THREE,
    "cat. sofa. wooden floor.": THREE,
    "cat . sofa . wooden floor .": THREE,
    "cat. sofa. wooden floor": THREE,
    "cat\nsofa\nwooden floor\n": THREE,
    "cat\r\nsofa\r\nwooden floor": THREE,
    "cat\tsofa\twooden floor": THREE,
    "cat、sofa，wooden floor": THREE,
    "cat, sofa; wooden floor.": THREE,
    "cat, sofa, and wooden floor": THREE,
    "- cat\n- sofa\n- wooden floor": THREE,
    ", ".join(MANY): MANY,
    # numbers
    "1. cat, 2. sofa, 3. wooden floor": THREE,
    "1. cat 2. sofa 3. wooden floor": THREE,
    "0: cat; 1: sofa; 2: wooden floor": THREE,
    "1) cat\n2) sofa\n3) wooden floor": THREE,
    "2 wheeler, 4 wheeler": ["2 wheeler", "4 wheeler"],
    "1,000 dollar bill, cat": ["1,000 dollar bill", "cat"],
    # quotes
    '"cat", "sofa", "wooden floor"': THREE,
    "'cat' 'sofa' 'wooden floor'": THREE,
    "“cat”, “sofa”, “wooden floor”": THREE,
    '"sofa, couch", cat': ["sofa, couch", "cat"],
    "'sofa; couch'; cat": ["sofa; couch", "cat"],
    "cat, ‘a. b.’": ["cat", "a. b."],
    "bird's nest, dog's bone": ["bird's nest", "dog's bone"],
    "'0: lucky', cat": ["0: lucky", "cat"],
    # lists and mappings
    '["cat", "sofa", "wooden floor"]': THREE,
    "['cat', 'sofa', 'wooden floor']": THREE,
    "('cat', 'sofa', 'wooden floor')": THREE,
    "[cat, sofa, wooden floor]": THREE,  # a shell has taken the quotes
    '{"0": "cat", "2": "wooden floor", "1": "sofa"}': THREE,
    "{0: 'cat', 1: 'sofa', 2: 'wooden floor'}": THREE,
    # synonyms
    "car | automobile | van, sky": ["car | automobile | van", "sky"],
    "car|automobile|van; sky": ["car | automobile | van", "sky"],
    "sofa | 'couch, big', sky": ["sofa | couch, big", "sky"],
    '{"car": ["car", "van"], "sky": "sky"}': [ClassPrompts("car", ("car", "van")), "sky"],
    '[["car", "van"], "sky"]': [ClassPrompts("car", ("car", "van")), "sky"],
    # one name
    "St. Bernard dog": ["St. Bernard dog"],
    "cat.": ["cat"],
    "wooden floor": ["wooden floor"],
    "salt and pepper": ["salt and pepper"],
}


@pytest.mark.parametrize("text", TYPED)
def test_what_a_stranger_means(text):
    found = read_typed(text)
    assert found == TYPED[text]


@pytest.mark.parametrize("text", ["a; b; c", "a. b. c.", "1. a 2. b 3. c", "a\nb\nc"])
def test_other_separators_than_commas_are_told(text, caplog):
    with caplog.at_level(logging.INFO, "fgaseg"):
        assert read_typed(text) == ["a", "b", "c"]
    assert "read as 3 classes: 'a', 'b', 'c'" in caplog.text


@pytest.mark.parametrize("text", ["a, b, c", "wooden floor, cat", "car | van, sky", "a, b;", "cat;"])
def test_nothing_is_told_of_commas(text, caplog):
    with caplog.at_level(logging.INFO, "fgaseg"):
        read_typed(text)
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "words"),
    [("car | cat | dog", r"one class with 3 synonyms, which gets all pixels"),
     ("car|cat", r"one class with 2 synonyms"),
     ("cat. dog, sofa", r"'cat. dog' is read as one name")],
)  # fmt: skip
def test_what_is_doubtful_is_warned_of(text, words, caplog):
    with caplog.at_level(logging.WARNING, "fgaseg"):
        read_typed(text)
    assert words in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no name"),
        (" , ;", "holds no name"),
        ("cat: dog", "'cat: dog' looks like more than a name"),
        ("names=[a, b]", "looks like more than a name"),
        ('cat, "dog', "'\"dog' looks like more"),
        ("[1, 2]", "1 is no name"),
        ("cat, {dog}", "looks like more"),
    ],
)
def test_what_is_no_name_is_quoted(text, words):
    with pytest.raises(DataError, match="^class names: ") as caught:
        read_typed(text)
    assert words in str(caught.value)


MORE = {  # further texts
    "cat, ., dog, ..": ["cat", "dog"],
    "cat;; dog\n\n\tcow": ["cat", "dog", "cow"],
    "cat, dog, or cow": ["cat", "dog", "cow"],
    "cat; dog; und cow": ["cat", "dog", "cow"],
    "cat, and dog": ["cat", "and dog"],  # of two
    "cat, dog, andiron": ["cat", "dog", "andiron"],
    "1,000 cats, 2,000,000 dogs": ["1,000 cats", "2", "000,000 dogs"],
    "10,20": ["10", "20"],
    "a,000 b": ["a", "000 b"],
    "7,0000 b": ["7", "0000 b"],
    "Mr. Bean. St. Bernard. J. Cash.": ["Mr. Bean", "St. Bernard", "J. Cash"],
    "no. cat. dog": ["no", "cat", "dog"],
    "1. cat": ["1. cat"],
    "3. cat 4. dog": ["cat", "dog"],
    "2 cats 3 dogs": ["2 cats 3 dogs"],
    "* cat; • dog; – cow": ["cat", "dog", "cow"],
    "'cat', dog's": ["cat", "dog's"],
    "'a, b' | \"c; d\", e": ["a, b | c; d", "e"],
    "'a' | b": ["a | b"],
    "a | | b,": ["a | b"],
    "(cat, dog)": ["cat", "dog"],
    "{cat; dog}": ["cat", "dog"],
    "('cat',)": ["cat"],
    "{'dog', 'cat'}": ["cat", "dog"],
    '{"names": ["cat", "dog"]}': ["cat", "dog"],
    "«cat, dog» ; cow": ["cat, dog", "cow"],
    "cat，dog；cow、owl": ["cat", "dog", "cow", "owl"],
}


@pytest.mark.parametrize("text", MORE)
def test_what_a_stranger_may_mean_too(text):
    assert read_typed(text) == MORE[text]


def test_long_texts_and_long_names():
    assert read_typed("x, " * 33_333 + "y") == [*["x"] * 33_333, "y"]
    with pytest.raises(
        DataError, match="class names: have 100,001 characters, more than 100,000: give a file of names"
    ):
        read_typed("x" * 100_001)
    assert read_typed("x" * LONGEST) == ["x" * LONGEST]
    with pytest.raises(DataError, match=rf"'{'x' * 40}' and so on has {LONGEST + 1:,} characters; a class name has at"):
        read_typed("cat, " + "x" * (LONGEST + 1))


def test_many_names_are_told_in_part(caplog):
    for count, more in ((8, ""), (9, " and 1 more")):
        caplog.clear()
        with caplog.at_level(logging.INFO, "fgaseg"):
            read_typed("; ".join(f"c{n}" for n in range(count)))
        [message] = caplog.messages
        first = ", ".join(f"'c{n}'" for n in range(8))
        assert message == f"class names: read as {count} classes: {first}{more}"
    caplog.clear()
    with caplog.at_level(logging.INFO, "fgaseg"):
        read_typed("1. cat, 2. dog")
        read_typed("1. cat\n2. dog")
    assert caplog.messages == [
        "class names: numbers are not a part of the names: 'cat', 'dog'",
        "class names: numbers are not a part of the names: 'cat', 'dog'",
        "class names: read as 2 classes: 'cat', 'dog'",
    ]


LITERALS = {
    '["a", 1]': ["a", 1], "('a', 1)": ("a", 1), "{'a': 1}": {"a": 1}, '{"a": null}': {"a": None}, "{3, 1}": [1, 3],
    "('a')": None, "(7)": None, "[a]": None, "{[1]: 2}": None, "[1": None, '"a"': None, "7": None, "": None,
    "(" * 300 + ")" * 300: None,
}  # fmt: skip


@pytest.mark.parametrize("text", LITERALS, ids=lambda text: text[:20])
def test_lists_and_mappings_of_json_and_python(text):
    assert python_literal(text) == LITERALS[text]
