"""Model cards: what they say, and what they do not invent."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from runs import configure
from tiny import tiny_config, tiny_model

import fgaseg
from fgaseg.cli import main
from fgaseg.errors import CheckpointError
from fgaseg.training import train
from fgaseg.weights import MODELS, facts_of, model_card
from fgaseg.weights.model_card import plain_tag


def header(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_what_is_not_known_is_said_to_be_unknown():
    card = model_card(tiny_config(fusion="add"), {})
    assert header(card) == {"library_name": "fgaseg", "pipeline_tag": "image-segmentation",
                            "tags": ["open-vocabulary", "semantic-segmentation", "clip", "fgaseg"]}  # fmt: skip
    for text in ("Data: unknown", "None recorded", "these weights: unknown", "started from: unknown", "fusion: add"):
        assert text in card
    assert "architecture" not in card and "%" not in card.split("## Metrics")[1].split("## Licences")[0]


def test_a_published_model_s_card():
    card = model_card(tiny_config(), facts_of(MODELS["cat-seg-b16"], "c" * 40, "a201a50f"), "cat-seg-b16")
    assert header(card)["base_model"] == "openai/clip-vit-base-patch16" and "license" not in header(card)
    for text in ('fgaseg.load("cat-seg-b16")', "a150 31.8", "README of github.com/cvlab-kaist/CAT-Seg", "c" * 40,
                 "none stated for the weights", "never run here", "not computed with this copy"):  # fmt: skip
        assert text in card
    assert header(model_card(tiny_config(), facts_of(MODELS["pi-seg-v2"], "c", "a")))["license"] == "apache-2.0"


def test_the_hub_reads_the_header(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "fgaseg" and card.data.pipeline_tag == "image-segmentation"


def test_a_card_that_was_edited_is_left_alone(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(text + "more")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    mine = re.sub("<!-- written by fgaseg.*-->", "", text)
    (tmp_path / "README.md").write_text(mine)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == mine


def test_a_training_tells_its_data_recipe_and_scores(data, tmp_path, capsys):
    """And the hash of the record is the one that `fgaseg eval` prints for the same evaluation."""
    out = tmp_path / "out"
    train(configure(data, out, ["train.steps=2"]), progress=False)
    card = (out / "model" / "README.md").read_text()
    assert "own photos, 10 images, 6 classes" in card and "lr: 0.0001" in card and "2 steps of 4 images" in card
    assert str(tmp_path) not in card and str(data) not in card
    facts = fgaseg.load(out / "model").facts
    assert main(["eval", str(out / "model"), "--config", str(out / "config.yaml"), "--json", "--count", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert facts["results"]["val"]["record"] == result["records"]["val"]["hash"]
    assert facts["results"]["val"]["miou_gt"] == result["scores"]["val"]["miou_gt"]
    assert result["records"]["val"]["hash"] in card
    # knowledge survives loading and saving
    fgaseg.load(out / "model").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card


def test_results_of_an_evaluation_go_on_the_card(data, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    folders = ["--images", str(data / "images"), "--labels", str(data / "labels"), "--names", str(data / "names.txt")]
    assert main(["eval", str(tmp_path / "model"), *folders, "--out", str(tmp_path / "eval")]) == 0
    record = json.loads((tmp_path / "eval" / "val.json").read_text())["hash"]
    model.save_pretrained(tmp_path / "model", results=tmp_path / "eval")
    assert f"| {record} |" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(CheckpointError, match="val.json: was computed with other weights than this model's"):
        tiny_model(seed=1).save_pretrained(tmp_path / "other", results=tmp_path / "eval")
    with pytest.raises(CheckpointError, match="holds no results of fgaseg eval; give the folder that was its --out"):
        model.save_pretrained(tmp_path / "model", results=tmp_path)


def test_paths_are_nobody_else_s_business():
    assert plain_tag("laion2b_s34b_b88k") == "laion2b_s34b_b88k"
    assert plain_tag("/home/me/clip.pt") == plain_tag("clip.pt") == plain_tag(None) == ""
