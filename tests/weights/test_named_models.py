"""What is said of the models that have a name: by the command, by the guide, and by the model itself."""

import json
import re

import pytest
import torch
import yaml
from paths import ROOT
from tiny import tiny_config

import fgaseg
from fgaseg import FGASeg, ModelConfig
from fgaseg.cli import main
from fgaseg.errors import CheckpointError
from fgaseg.evaluation import COLUMNS
from fgaseg.weights import MODELS, facts_of, find_named, model_card, name_hint
from fgaseg.weights.sources import parse_source

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}
BASES = {"ViT-B/16": "openai/clip-vit-base-patch16", "ViT-L/14": "openai/clip-vit-large-patch14-336"}


def rows(after: str) -> list[list[str]]:
    """The cells of the guide's first table below a line that begins so."""
    page = (ROOT / "docs/guides/models.md").read_text().partition(f"\n{after}")[2]
    table = re.search(r"(?:^\|.*\n)+", page, re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


@pytest.fixture
def listed(hub, capsys) -> dict[str, dict]:
    """What `fgaseg models --json` prints, by name."""
    assert main(["models", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_the_guide_lists_the_same_weights_and_licences(listed):
    seen, space = [], ""
    for names, _, weights, licence in rows("## Models by name")[2:]:
        names, sources = re.findall("`(.*?)`", names), re.findall("`(.*?)`", weights)
        space = sources[0] if "Space" in weights and sources else space
        for name, source in zip(names, sources if "Space" not in weights else [space], strict=True):
            row = listed[name]
            start = "spaces/" if "Space" in weights else ""
            assert row["source"].startswith(start) and source.removeprefix("...") in row["source"]
            size = re.match(r"([\d.]+) (\wB)", weights)
            assert row["size"] == (round(float(size[1]) * UNITS[size[2]]) if size else None)
            licence = licence.partition(" (")[0]
            assert re.match(rf"{licence}\b", row["licence"])
            assert row["licence_id"] == ("" if licence.startswith("none") else licence.lower())
        seen += names
    assert sorted(seen) == sorted(listed)


def test_the_guide_has_the_same_published_figures(listed):
    head, _, *figures = rows("### The published figures")
    assert head[1:-1] == list(COLUMNS.values())
    published = {name: row["published"] for name, row in listed.items() if row["published"]}
    told = {line[0].strip("`"): dict(zip(COLUMNS, line[1:-1], strict=True)) for line in figures}
    assert published == {
        name: {key: float(cell) for key, cell in cells.items() if cell} for name, cells in told.items()
    }
    for name, *_, source in figures:
        author = re.search("CAT-Seg|DeCLIP", source)[0]
        place = listed[name.strip("`")]["published_in"]
        assert "README" in place and f"/{author}" in place


def test_of_every_model_it_is_said_what_it_is_from_and_what_was_not_tried(listed):
    assert len(listed) > 5
    for name, row in listed.items():
        assert row["trained_on"] not in ("", "unknown") and "never run here" in row["verified"]
        files_known = bool(row["file"] or row["config"])
        assert ("not known here: the repository's list of files is asked" in row["verified"]) == (not files_known)
        tower = re.search(r"ViT-\w/\d+", row["description"])
        header = yaml.safe_load(model_card(tiny_config(), facts_of(MODELS[name], "c", "a")).split("---")[1])
        assert header.get("base_model") == (BASES[tower[0]] if tower else None)
    assert "of two public versions of its dense features" in listed["declip-eva-b16"]["verified"]


@pytest.mark.parametrize(
    "name, file", [("cat-seg-b16", "model_base.pth"), ("cat-seg-l14", "model_large.pth")], ids=["B", "L"]
)
def test_a_file_of_a_known_name_and_another_sum_is_refused(hub, name, file):
    assert parse_source(f"hamacojr/CAT-Seg-weights/{file}").named is MODELS[name]
    hub.add("spaces/hamacojr/CAT-Seg-weights", {file: bytes(2000)})
    with pytest.raises(CheckpointError, match=f"{file}: its SHA-256 begins with .* that of the file known here"):
        fgaseg.load(name)
    assert hub.sent == 0


@pytest.mark.parametrize("name, size", [("clip-b16", 384), ("clip-l14", 336)])
def test_models_without_training_have_no_weights_but_the_encoders(name, size):
    with torch.device("meta"):
        model = FGASeg(ModelConfig(**MODELS[name].config).override("encoder.pretrained=null"))
    assert {key.partition(".")[0] for key in model.state_dict()} == {"clip"}
    assert model.config.image_size == size


def test_names_are_found_however_they_are_written_and_the_nearest_are_suggested():
    assert find_named(" Clip_B16 ") is find_named("CLIP b16") is MODELS["clip-b16"] and find_named("clip") is None
    assert name_hint("cat_seg") == "did you mean cat-seg-l14 or cat-seg-b16?"
    assert name_hint("EVA clip") == "did you mean clip-l14 or clip-b16?"
    assert name_hint("eva") == f"known names are {', '.join(MODELS)}"
