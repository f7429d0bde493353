"""The small JSON files of a saved model are objects of plain JSON, or refused in one line."""

import pytest

from fgaseg.errors import CheckpointError
from fgaseg.weights.saved_config import LARGEST, read_object

WRONG = {
    '{"a": NaN}': "NaN is no number of JSON's",
    '{"a": -Infinity}': "-Infinity is no number of JSON's",
    "[1]": "an object is expected; got list",
    "{": "Expecting property name",
    "[" * 100_000: "nested too deeply",
    " " * (LARGEST + 1): "it has more than",
}


@pytest.mark.parametrize("text", WRONG, ids=[why.replace(" ", "-") for why in WRONG.values()])
def test_what_is_no_object_of_plain_json_is_refused(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=f"config.json: .*{WRONG[text]}"):
        read_object(path)


def test_an_object_as_long_as_it_may_be_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}".ljust(LARGEST))
    assert read_object(path) == {}
    with pytest.raises(CheckpointError, match="is no file"):
        read_object(tmp_path)
