"""Model cards: which facts of others they tell, and how; and the figures that an evaluation left."""

import hashlib
import json
from pathlib import Path

import pytest

from fgaseg import ModelConfig
from fgaseg.errors import CheckpointError
from fgaseg.weights import model_card, read_results
from fgaseg.weights.model_card import known_facts

TRAINING = {"recipe": {"steps": 2, "lr": 0.1}, "data": "photos", "steps": 2, "batch": 4, "processes": 1}


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0].strip()


def told(title: str, **facts) -> str:
    return section(model_card(ModelConfig(), facts), title)


def test_results_are_figures_by_set():
    good = {"results": {"val": {"miou_gt": 0.5}}}
    assert known_facts(good) == good
    for wrong in ("good", {"miou_gt": "0.5"}, {"miou_gt": None}, {"miou_gt": 0.5, "fwiou": "0.5"}):
        assert known_facts({"results": {"val": wrong}, "trained_on": "photos"}) == {"trained_on": "photos"}
    assert known_facts(["results"]) == {}


def test_facts_of_other_kinds_are_left_out():
    good = {"name": "x", "published": {"a150": 31.8}, "encoder": {"name": "B", "pretrained": "openai"},
            "training": TRAINING, "results": {}}  # fmt: skip
    assert known_facts(good) == good
    less = {key: value for key, value in TRAINING.items() if key != "steps"}
    wrong = {"name": 3, "unknown": "text", "published": [], "encoder": {"name": "B"}, "training": less, "results": "x"}
    assert known_facts(wrong) == {}


def test_a_card_of_nothing_known():
    card = model_card(ModelConfig(preset="released"), {})
    assert card.endswith("do not rely on it where errors do harm.\n")
    assert "\n# A segmentation model\n\nOpen-vocabulary semantic segmentation: a label for every pixel" in card
    assert "license" not in card and "Verified" not in card and "base_model" not in card
    assert section(card, "Configuration").endswith("\n\n```yaml\npreset: released\n```")
    assert section(card, "Training") == "Data: unknown. Recipe: unknown to this card."
    assert section(card, "Metrics") == "None recorded."
    assert section(card, "Licences").splitlines() == [
        "- these weights: unknown; whoever publishes them has to say",
        "- the encoder that they started from: unknown",
    ]


def test_the_configuration_is_told_in_its_order():
    encoder = {"name": "mine", "dense": "qq", "pretrained": None}
    card = model_card(ModelConfig(fusion="add", image_size=96, encoder=encoder), {})
    assert section(card, "Configuration").partition("```yaml\n")[2].splitlines() == [
        "preset: paper",
        "encoder:",
        "  name: mine",
        "  quick_gelu: null",
        "  guidance_blocks: null",
        "  finetune: attention",
        "  prompt_tokens: 16",
        "image_size: 96",
        "fusion: add",
        "```",
    ]


def test_the_training():
    done = "Data: photos. 2 steps of 4 images on 1 process(es), with this recipe:\n\n```yaml\nsteps: 2\nlr: 0.1\n```"
    assert told("Training", training=TRAINING, source="elsewhere") == done
    source = "Data: photos. Recipe: unknown to this card.\n\nThe weights are from elsewhere."
    assert told("Training", trained_on="photos", source="elsewhere") == source


def test_the_figures():
    results = {"val": {"images": 3, "miou_gt": 0.5, "pixel_accuracy": 0.912, "record": "abc"}, "b": {"miou_gt": 0.25}}
    published = {"a150": 31.8, "pc59": 57.5}
    table, note, figures = told("Metrics", results=results, published=published, published_in="a paper").split("\n\n")
    assert table.splitlines() == [
        "| set | images | mIoU | pAcc | record |",
        "|---|---|---|---|---|",
        "| val | 3 | 50.0 | 91.2 | abc |",
        "| b | - | 25.0 | - | - |",
    ]
    assert note.startswith("In %. The record is the hash")
    assert figures == "Published mIoU in %: a150 31.8, pc59 57.5 (a paper); not computed with this copy."
    assert "(unknown where)" in told("Metrics", published=published)


@pytest.mark.parametrize(
    "facts, line",
    [
        ({"encoder": {"name": "B", "pretrained": "openai"}, "base_model": "x"}, "from, B (openai): MIT"),
        ({"encoder": {"name": "B", "pretrained": "laion2b_s34b"}}, "from, B (laion2b_s34b): MIT"),
        ({"encoder": {"name": "B", "pretrained": "webli"}}, "from, B (webli): Apache-2.0"),
        ({"encoder": {"name": "B", "pretrained": "metaclip_400m"}}, "from, B (metaclip_400m): CC-BY-NC-4.0"),
        ({"encoder": {"name": "B", "pretrained": "dfn2b"}}, "from, B (dfn2b): unknown"),
        ({"encoder": {"name": "B"}, "base_model": "openai/x"}, "from: openai/x; see there"),
    ],
)
def test_the_licence_of_the_encoder(facts, line):
    assert told("Licences", licence="mine", **facts).splitlines() == [
        "- these weights: mine",
        f"- the encoder that they started {line}",
    ]


def test_what_others_say_stays_text():
    name, recipe = 'The "best" <b>', {"sizes": ["<i>", 3], "lr": 0.1}
    card = model_card(
        ModelConfig(), {"name": name, "verified": "a\nb", "training": {**TRAINING, "recipe": recipe}}, "me/x"
    )
    assert '# The "best" &lt;b&gt;\n' in card and 'fgaseg.load("me/x")' in card and "- Verified: a" in card
    assert "sizes:\n- '&lt;i&gt;'\n- 3\nlr: 0.1\n```" in card


@pytest.fixture
def evaluated(tmp_path) -> tuple[Path, Path]:
    """Weights, and the folder of an evaluation of them, with other files in it."""
    weights, folder = tmp_path / "model.safetensors", tmp_path / "eval"
    weights.write_bytes(b"weights")
    folder.mkdir()
    for name, images in (("b", 5), ("val", 3), ("k", 4)):
        scores = {"images": images, "miou_gt": 0.5, "fwiou": None, "classes": []}
        record = {"weights": hashlib.sha256(b"weights").hexdigest()}
        (folder / f"{name}.json").write_text(json.dumps({"scores": scores, "record": record, "hash": f"h-{name}"}))
    (folder / "a.json").write_text("[1]")
    (folder / "z.json").write_text("{")
    return weights, folder


def test_figures_that_an_evaluation_left(evaluated):
    weights, folder = evaluated
    rows = {
        "b": {"images": 5, "miou_gt": 0.5, "record": "h-b"},
        "k": {"images": 4, "miou_gt": 0.5, "record": "h-k"},
        "val": {"images": 3, "miou_gt": 0.5, "record": "h-val"},
    }
    found = read_results(folder, weights)
    assert found == rows and list(found) == list(rows)
    assert read_results(str(folder / "val.json"), weights) == {"val": rows["val"]}
    weights.write_bytes(b"others")
    with pytest.raises(CheckpointError, match="b.json: was computed with other weights"):
        read_results(folder, weights)
    with pytest.raises(CheckpointError, match="a.json: holds no results of fgaseg eval; give the folder that was its"):
        read_results(folder / "a.json", weights)
