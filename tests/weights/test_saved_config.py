"""The small JSON files of a saved model are objects of plain JSON, or refused in one line."""

import json

import pytest

from fgaseg.errors import CheckpointError
from fgaseg.weights.saved_config import is_saved_model, read_config, read_object

LARGEST = 4_194_304

WRONG = {
    '{"a": NaN}': "NaN is no number of JSON's",
    '{"a": -Infinity}': "-Infinity is no number of JSON's",
    "[1]": "an object is expected; got list",
    "{": "Expecting property name",
    "[" * 100_000: "nested too deeply",
    " " * (LARGEST + 1): "it has more than 4,194,304 bytes",
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


def test_the_configuration_and_the_facts_are_told_apart(tmp_path):
    data = {"model_type": "fgaseg", "image_size": 96, "encoder": {"pretrained": None}, "facts": {"name": "x", "odd": 3}}
    (tmp_path / "config.json").write_text(json.dumps(data))
    config, facts = read_config(tmp_path / "config.json", "mine")
    assert config.image_size == 96 and facts == {"name": "x"} and is_saved_model(tmp_path)
    assert not is_saved_model(tmp_path / "nowhere")


OTHERS = {
    "{}": "^mine: not an fgaseg model .it says no model_type.; a model that save_pretrained wrote is needed",
    '{"model_type": "clip"}': "^mine: not an fgaseg model .its model_type is 'clip'.",
    '{"model_type": "fgaseg", "encoder": {"pretrained": "openai"}}': "config.json: encoder.pretrained: .*'openai'",
}


@pytest.mark.parametrize("text", OTHERS, ids=["no type", "another", "a tag"])
def test_what_is_no_saved_model_is_refused(text, tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="config.json: is missing: give the folder of a saved model"):
        read_config(path, "mine")
    path.write_text(text)
    with pytest.raises(CheckpointError, match=OTHERS[text]):
        read_config(path, "mine")
    assert is_saved_model(tmp_path) == ("fgaseg" in text)
