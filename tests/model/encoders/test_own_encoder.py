"""Encoders of one's own: by object and by name, saved, loaded, trained; what they lack, and what is never run."""

import importlib.metadata
import json
import sys

import numpy as np
import pytest
import torch
from own_encoder import Words
from small_encoders import SIZES
from tiny import NAMES, pixels
from torch import nn

import fgaseg
from fgaseg import Config, FGASeg, ModelConfig
from fgaseg.errors import CheckpointError, EncoderError
from fgaseg.model.encoders import registry
from fgaseg.training import train
from fgaseg.training.losses import segmentation_losses

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def named(monkeypatch):
    """The name `words` for as long as the test lasts."""
    monkeypatch.setattr(registry, "_factories", {})
    fgaseg.register_encoder("words", Words)


@pytest.fixture
def unnamed(monkeypatch):
    monkeypatch.setattr(registry, "_factories", {})


def config(**encoder):
    return ModelConfig(encoder=encoder, **SIZES)


@torch.no_grad()
def test_by_object_and_by_name_it_carries_the_whole_head(named):
    torch.manual_seed(0)
    by_name = FGASeg(config(name="words")).eval()
    torch.manual_seed(0)
    by_object = FGASeg(config(), encoder=Words()).eval()
    for model in (by_name, by_object):
        out = model(pixels(2, 61, 30), model.encode(NAMES))
        assert out.logits.shape == (2, 5, 32, 16) and out.logits.isfinite().all()
        assert model.patch == 8 and model.encoder.channels == 32 and model.architecture is None
        assert model.segment(np.zeros((50, 70, 3), np.uint8), NAMES).labels.shape == (50, 70)
        many = [f"thing {i}" for i in range(600)]
        assert torch.equal(model.encode(many).embeddings[590:], model.encode(many[590:]).embeddings)
    assert torch.equal(
        by_name(pixels(), by_name.encode(NAMES)).logits, by_object(pixels(), by_object.encode(NAMES)).logits
    )
    assert by_name.config.encoder.name == "words" and by_object.config.encoder.name == "Words"


@torch.no_grad()
def test_texts_are_cached_until_a_weight_changes(named):
    model = FGASeg(config(name="words")).eval()
    first = model.encode(NAMES)
    assert model.encode(NAMES) is first
    model.clip.words.weight.mul_(-1)
    torch.testing.assert_close(model.encode(NAMES).embeddings, -first.embeddings)


@torch.no_grad()
@pytest.mark.parametrize("name", ["words", "Words"])
def test_a_saved_model_is_the_same_again(name, unnamed, tmp_path):
    model = FGASeg(config(name="words"), encoder=Words()) if name == "words" else FGASeg(config(), Words())
    model.eval().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["encoder"]["name"] == name
    with pytest.raises(EncoderError, match=rf"no model '{name}'.*has to be registered before it is named"):
        FGASeg.from_pretrained(tmp_path)
    fgaseg.register_encoder(name, Words)
    again = FGASeg.from_pretrained(tmp_path)
    assert torch.equal(again(pixels(), again.encode(NAMES)).logits, model(pixels(), model.encode(NAMES)).logits)
    with pytest.raises(CheckpointError, match="no counterpart of its encoder"):
        again.save_released(tmp_path / "released.pth")


def test_gradients_reach_what_has_requires_grad(named):
    frozen = {"late.weight", "late.bias"}
    every = {name for name, _ in Words().named_parameters()}
    for finetune, expected in (("attention", every - frozen), ("none", set()), ("scratch", every)):
        model = FGASeg(config(name="words", finetune=finetune)).train()
        out = model(pixels(2), model.encode(NAMES))
        labels = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(0))
        segmentation_losses(out, labels, model.config.loss)["loss"].backward()
        assert {name for name, p in model.clip.named_parameters() if p.grad is not None} == expected
        rates = {group["lr"] for group in model.parameter_groups(1.0, 0.5, 0.1)}
        assert rates == ({1.0, 0.5} if expected else {1.0})


@pytest.mark.filterwarnings("ignore:.*validation photos are the training photos")
def test_training_saves_resumes_and_loads(named, tmp_path):
    def run(out, steps):
        return Config(
            model={"encoder": "words", **SIZES},
            data={"scenes": True, "crop": 48, "val_count": 2, "workers": 0},
            train={"out": out, "steps": steps, "batch": 2, "warmup": 0, "tensorboard": False, "save_every": 1,
                   "eval_every": 0, "schedule": "constant"},
        )  # fmt: skip

    train(run(tmp_path / "a", 2), progress=False)
    summary = train(run(tmp_path / "a", 2), progress=False)
    model = FGASeg.from_pretrained(summary.model)
    torch.manual_seed(run(tmp_path, 2).train.seed)
    before = FGASeg(run(tmp_path, 2).model).state_dict()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert "clip.early.weight" in moved and "clip.words.weight" in moved and "clip.late.weight" not in moved


def test_pixels_are_normalised_as_it_says(named):
    assert FGASeg(config(name="words")).normalization == fgaseg.data.images.CLIP_NORMALIZATION
    mine = Words()
    mine.mean, mine.std = list(HALF), HALF
    assert FGASeg(config(), mine).normalization == (HALF, HALF)
    assert FGASeg(config(mean=(0.1, 0.2, 0.3)), mine).normalization == ((0.1, 0.2, 0.3), HALF)


def without(attribute):
    module = Words()
    setattr(module, attribute, None)
    return module


@pytest.mark.parametrize("attribute", ["patch", "channels", "width", "image", "text"])
def test_every_one_of_the_five_attributes_is_needed(attribute):
    with pytest.raises(EncoderError, match=f"encoder: Words lacks {attribute}; an encoder has patch, channels"):
        FGASeg(config(), encoder=without(attribute))


def test_objects_that_are_no_modules_are_refused():
    class Plain:
        patch, channels, width = 8, 32, 24

        def image(self, pixels): ...

        def text(self, prompts): ...

    with pytest.raises(EncoderError, match=r"Plain is not an nn\.Module"):
        FGASeg(config(), encoder=Plain())
    with pytest.raises(EncoderError, match="lacks patch, channels, width, image, text"):
        FGASeg(config(), encoder=nn.Linear(1, 1))


WRONG = {
    "grid": (
        "image",
        lambda x: (x.new_zeros(1, 32, 4, 4),) * 3,
        r"Words\.image gives embedding \[1, 32, 4, 4\]; expected \[1, 32, 8, 8\]",
    ),
    "guidance": (
        "image",
        lambda x: (x.new_zeros(1, 32, 8, 8),) * 3,
        r"gives early \[1, 32, 8, 8\]; expected \[1, 24, 8, 8\]",
    ),
    "texts": (
        "text",
        lambda prompts: torch.zeros(len(prompts), 7),
        r"Words\.text gives \[5, 7\]; expected \[5, 32\]",
    ),
}


@pytest.mark.parametrize("method, wrong, message", WRONG.values(), ids=WRONG)
def test_tensors_of_another_shape_are_named(method, wrong, message):
    module = Words()
    setattr(module, method, wrong)
    with pytest.raises(EncoderError, match=message):
        model = FGASeg(config(), encoder=module).eval()
        model(pixels(), model.encode(NAMES))


SETTINGS = {
    "pretrained": "openai",
    "guidance_blocks": (0, 1),
    "dense": "qq",
    "quick_gelu": True,
    "finetune": "prompt",
}


def test_prompts_come_a_few_hundred_at_a_time():
    module, asked = Words(), []
    text = module.text
    module.text = lambda prompts: asked.append(len(prompts)) or text(prompts)
    prompts = [f"thing {i}" for i in range(600)]
    got = FGASeg(config(), module).encoder.text(prompts)
    assert asked == [256, 256, 88] and torch.equal(got, text(prompts))


@pytest.mark.parametrize("key", SETTINGS)
def test_settings_without_a_meaning_are_refused(key, named):
    with pytest.raises(EncoderError, match=rf"encoder\.{key}.*: words is an encoder of your own"):
        FGASeg(config(name="words", **{key: SETTINGS[key]}))
    with pytest.raises(EncoderError, match=r"encoder\.finetune=full: words is an encoder of your own"):
        FGASeg(config(name="words", finetune="full"))
    assert FGASeg(config(name="words", pretrained="auto")).encoder.weights is None


def test_names_of_open_clip_cannot_be_taken():
    with pytest.raises(EncoderError, match="'ViT-B-16' is a model of open_clip"):
        fgaseg.register_encoder("ViT-B-16", Words)


# ---- names that installed packages register


def entry_points(monkeypatch, value):
    point = importlib.metadata.EntryPoint("packaged", value, registry.GROUP)

    def found(group, name=None):
        return [point] if group == registry.GROUP and name in (None, "packaged") else []

    monkeypatch.setattr(importlib.metadata, "entry_points", found)


def test_an_installed_package_can_register(monkeypatch):
    entry_points(monkeypatch, "own_encoder:Words")
    assert isinstance(FGASeg(config(name="packaged")).clip, Words)
    with pytest.raises(EncoderError, match="did you mean 'packaged'"):
        FGASeg(config(name="packagedd"))


def test_a_package_that_cannot_be_imported_is_one_line(monkeypatch):
    entry_points(monkeypatch, "nowhere_at_all:Words")
    with pytest.raises(EncoderError, match="packaged, of nowhere_at_all:Words, cannot be imported: No module named"):
        FGASeg(config(name="packaged"))


def test_a_saved_model_cannot_bring_code_along(unnamed, tmp_path, monkeypatch):
    """Its name is looked up, never imported."""
    FGASeg(config(), Words()).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    evil = tmp_path / "evil_module.py"
    evil.write_text("raise SystemExit('was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil_module:Words", "evil_module.Words", "evil_module"):
        saved["encoder"]["name"] = name
        (tmp_path / "config.json").write_text(json.dumps(saved))
        with pytest.raises(EncoderError, match="no model 'evil"):
            FGASeg.from_pretrained(tmp_path)
    assert "evil_module" not in sys.modules
