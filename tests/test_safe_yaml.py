"""YAML of others is plain data of a bearable size, or one line says where it is wrong."""

import pytest
import yaml

from fgaseg import safe_yaml
from fgaseg.safe_yaml import load_yaml, yaml_problem


def test_plain_data_is_read():
    assert load_yaml("a: {b: [1, x, null]}\nc: &c [d]\ne: [*c, *c]\n") == {
        "a": {"b": [1, "x", None]}, "c": ["d"], "e": [["d"], ["d"]]
    }  # fmt: skip
    assert load_yaml("") is None and load_yaml("- &a {}\n- *a\n") == [{}, {}]


def aliased(more: int) -> str:
    """Text of a few hundred characters whose values are 9902 and so many more."""
    return f"a: &a [{'x,' * 99}]\nb: [{'*a,' * 98}]\nc: [{'y,' * (more - 1)}]\n"


def test_aliases_may_stand_for_ten_thousand_values(monkeypatch):
    assert len(load_yaml(aliased(98))["b"]) == 98
    with pytest.raises(yaml.YAMLError, match="^its aliases stand for 10,001 values$"):
        load_yaml(aliased(99))
    monkeypatch.setattr(safe_yaml, "LEAST", 3)
    assert load_yaml("[x, x, x, x]") == ["x"] * 4  # a value has a character at least


WRONG = {
    "a: 1\nb:\n  c: 2\n  c: 3\n": "line 4, column 3: key 'c' stands twice",
    "a: 1\n? {b: 1}\n: c\n": "line 2, column 3: a key is a list or a mapping",
    "a: 1\n  b: [": "line 2, column 4: mapping values are not allowed here",
    "a: &a [*a]": "an alias stands for what it is a part of",
    "a: !!int ''": "a value cannot be read (",
    "[" * 1000: "it is nested too deeply",
}


@pytest.mark.parametrize("text", WRONG, ids=list(WRONG.values()))
def test_what_is_wrong_is_one_line(text):
    with pytest.raises(yaml.YAMLError) as caught:
        load_yaml(text)
    assert yaml_problem(caught.value).startswith(WRONG[text]) and "\n" not in yaml_problem(caught.value)
    assert yaml_problem(yaml.YAMLError("two\nlines")) == "two lines"
