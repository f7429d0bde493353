"""The models without training: OpenAI's weights by open_clip's tag, through the hub."""

import json

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from paths import SHARED
from tiny import ARCHITECTURE, NAMES

import fgaseg
from fgaseg import ModelConfig
from fgaseg.cli import main
from fgaseg.errors import CheckpointError, EncoderError
from fgaseg.weights import MODELS

PHOTO = SHARED / "data" / "msrc_v2" / "images" / "10_10_s.jpg"
NAMED = {name: model for name, model in MODELS.items() if model.config}


@pytest.mark.parametrize("name", NAMED)
def test_the_list_says_what_open_clip_fetches(name):
    encoder = ModelConfig(**NAMED[name].config).encoder
    tag = open_clip.pretrained.get_pretrained_cfg(encoder.name, encoder.pretrained)
    assert tag["hf_hub"] == f"{NAMED[name].repo}/" and NAMED[name].files == (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    sizes = open_clip.get_model_config(encoder.name)["vision_cfg"]
    assert sizes["image_size"] == {"clip-b16": 224, "clip-l14": 336}[name]


@pytest.fixture
def small_clip(hub, monkeypatch):
    """The hub with OpenAI's repositories, the models in them made small."""
    for name, model in NAMED.items():
        encoder = ModelConfig(**model.config).encoder
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, encoder.name, ARCHITECTURE)
        torch.manual_seed(len(name))
        weights = open_clip.model.CLIP(**ARCHITECTURE, quick_gelu=True).state_dict()
        weights = {key: value.contiguous() for key, value in weights.items()}
        hub.add(model.repo, {HF_SAFE_WEIGHTS_NAME: safetensors.torch.save(weights)})
    return hub


@pytest.mark.parametrize("name", NAMED)
def test_a_photo_is_labelled_without_any_training(small_clip, name, tmp_path, capsys, monkeypatch):
    model = fgaseg.load(name)
    assert not model.config.propagation and not model.training and model.quick_gelu
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    result = model.segment(photo, NAMES)
    assert result.labels.shape == (40, 60)
    # it is a cosine baseline: the map of a class alone does not depend on the others
    few = model(torch.zeros(1, 3, 64, 64), model.encode(NAMES[:2])).logits
    many = model(torch.zeros(1, 3, 64, 64), model.encode(NAMES)).logits
    assert torch.allclose(few, many[:, :2], atol=1e-5)
    assert main(["models", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["here"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fgaseg.load(name).encode(NAMES).embeddings.equal(model.encode(NAMES).embeddings)
    assert main(["models", name, "--fetch"]) == 0
    card = model.save_pretrained(tmp_path) or (tmp_path / "README.md").read_text()
    assert "license: mit" in card and "nothing else" in card and "(openai): MIT" in card


@pytest.mark.skipif(not PHOTO.exists(), reason=f"no photo at {PHOTO}")
def test_by_the_command(small_clip, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out.png"), "--json"]
    assert main(["segment", str(PHOTO), "--model", "clip-b16", "--classes", "cow, grass, sky", *out]) == 0
    assert sum(json.loads(capsys.readouterr().out)["classes"].values()) == pytest.approx(1)


def test_failures_are_one_line(small_clip):
    small_clip.repos.clear()
    with pytest.raises((CheckpointError, EncoderError), match="there is no model of this name") as caught:
        fgaseg.load("clip-b16")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTO.exists(), reason=f"no photo at {PHOTO}")
def test_in_full_size(hub, tmp_path, capsys):
    """OpenAI's ViT-B/16 as it is, with random weights: 600 MB through the hub, and a real photo labelled."""
    torch.manual_seed(0)
    weights = open_clip.create_model("ViT-B-16-quickgelu").state_dict()
    file = tmp_path / "weights"
    safetensors.torch.save_file({key: value.contiguous() for key, value in weights.items()}, file)
    hub.add(MODELS["clip-b16"].repo, {HF_SAFE_WEIGHTS_NAME: file})
    out = ["--out", str(tmp_path / "out.png"), "--json"]
    assert main(["segment", str(PHOTO), "--model", "clip-b16", "--classes", "cow, grass, sky", *out]) == 0
    out, err = capsys.readouterr()
    assert sum(json.loads(out)["classes"].values()) == pytest.approx(1)
    assert "fetching timm/vit_base_patch16_clip_224.openai/open_clip_model.safetensors (599 MB)" in err
