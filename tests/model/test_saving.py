"""What a saved model's folder holds, when its card is written again, and what an upload is told."""

import json
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from own_encoder import Words
from small_encoders import SIZES

from fgaseg import FGASeg, ModelConfig
from fgaseg.errors import CheckpointError
from fgaseg.model import saving
from fgaseg.model.saving import encoder_facts


@pytest.fixture(scope="module")
def saved_model():
    return FGASeg(ModelConfig(encoder={}, **SIZES), Words()).eval()


@pytest.fixture
def model(saved_model):
    saved_model.facts = {}
    return saved_model


def test_the_configuration_says_all_that_the_weights_do_not(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    text = (tmp_path / "config.json").read_text()
    config = json.loads(text)
    assert text.startswith('{\n  "model_type": "fgaseg",\n') and text.endswith("}\n")
    assert "facts" not in config and config["hidden"] == SIZES["hidden"]
    encoder = config["encoder"]
    assert (encoder["name"], encoder["architecture"], encoder["pretrained"], encoder["dense"]) == (
        "Words", None, None, None
    )  # fmt: skip
    assert encoder["mean"] == list(model.encoder.mean) and encoder["std"] == list(model.encoder.std)
    model.facts = {"name": "mine"}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["facts"] == {"name": "mine"}


def test_other_weights_may_be_given(model, tmp_path):
    model.save_pretrained(tmp_path, {"only": torch.ones(2)})
    assert list(safetensors.torch.load_file(tmp_path / "model.safetensors")) == ["only"]
    model.save_pretrained(tmp_path)
    assert safetensors.torch.load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def test_a_card_that_was_edited_stays_and_ours_is_written_again(model, tmp_path):
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    before = card.read_text()
    assert 'fgaseg.load("path/to/this/folder")' in before
    model.facts = {"name": "mine", "licence": "mine alone"}
    model.save_pretrained(tmp_path)
    assert "mine alone" in card.read_text() and "mine alone" not in before
    for own in (b"# My own words", b"\xff\xfe no UTF-8"):
        card.write_bytes(own)
        model.save_pretrained(tmp_path)
        assert card.read_bytes() == own


def test_an_upload_is_told_what_to_say_and_what_to_leave(model, monkeypatch, tmp_path):
    calls = []

    def upload(folder, repo, **options):
        keeps = options.pop("keeps")
        card = (folder / "README.md").read_text()
        calls.append((repo, options, card.count('fgaseg.load("me/mine')))
        assert keeps("# My own words") == "README.md" and keeps(card) is None and keeps("") is None
        return "address"

    monkeypatch.setattr(saving, "upload_folder", upload)
    given = {"private": None, "token": None, "revision": None, "create_pr": False}
    assert model.push_to_hub("me/mine") == "address"
    assert calls[0][:2] == ("me/mine", {**given, "message": "Upload of a model with fgaseg"}) and calls[0][2] > 0
    given = {"private": True, "token": "secret", "revision": "v2", "create_pr": True}
    model.push_to_hub("me/mine", commit_message="first", **given)
    assert calls[1][:2] == ("me/mine", {**given, "message": "first"}) and calls[1][2] > 0


@pytest.mark.parametrize("error, words", [(OSError(28, "No space left"), "No space left"), (OSError("odd"), "odd")])
def test_a_disk_without_room_is_one_line(error, words, model, monkeypatch):
    def full(*_):
        raise error

    monkeypatch.setattr(saving, "write_weights", full)
    with pytest.raises(CheckpointError, match=f"{words}; set TMPDIR to a folder with room"):
        model.push_to_hub("me/mine")


def test_the_weights_that_an_encoder_starts_from_are_a_fact_if_they_are_published():
    def facts(weights):
        return encoder_facts(SimpleNamespace(name="ViT-B-16", weights=weights))

    assert facts("openai") == {"encoder": {"name": "ViT-B-16", "pretrained": "openai"}}
    assert facts(None) == {} and facts("/some/where/weights.pt") == {}
