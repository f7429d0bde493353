"""Whole models on every family: saving, streams, windows, photos, training and resuming, and what is refused."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from small_encoders import ENCODERS, SIZES, encoder_section, small_model
from tiny import NAMES, pixels

from fgaseg import Config, FGASeg
from fgaseg.data import CLIP_MEAN, CLIP_STD, SceneDataset, data_sets, to_pixels
from fgaseg.errors import CheckpointError, Interrupted
from fgaseg.evaluation.provenance import provenance
from fgaseg.model import reference
from fgaseg.training import Trainer, train

MAIN = ("plain CLIP", "worldwide", "MobileCLIP2-L", "MobileCLIP2-B", "SigLIP", "EVA-02", "PE-Core")
FAMILIES = pytest.mark.parametrize("family", MAIN)
PHOTO = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
HALF = (0.5, 0.5, 0.5)


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_a_saved_model_is_the_same_again(family, tokenizer, tmp_path):
    model = small_model(family, tokenizer, {"finetune": "prompt", "prompt_tokens": 2, "guidance_blocks": (0, 1)})
    model.save_pretrained(tmp_path)
    again = FGASeg.from_pretrained(tmp_path)
    assert torch.equal(again(pixels(), again.encode(NAMES)).logits, model(pixels(), model.encode(NAMES)).logits)
    saved = json.loads((tmp_path / "config.json").read_text())["encoder"]
    assert saved["architecture"]["embed_dim"] == model.architecture["embed_dim"] and saved["pretrained"] is None
    for key in ("mean", "std", "dense"):
        assert saved[key] == (list(getattr(model.encoder, key)) if key != "dense" else model.encoder.dense)
    assert again.normalization == model.normalization and again.encoder.dense == model.encoder.dense


@torch.no_grad()
@FAMILIES
def test_stream_windows_and_photos(family, tokenizer):
    model = small_model(family, tokenizer)
    names = [f"thing {i}" for i in range(90)] + NAMES
    parts = list(model.stream(pixels(2), model.encode(names)))
    expected = model(pixels(2), model.encode(names)).logits
    torch.testing.assert_close(torch.cat([logits for _, logits in parts], dim=1), expected, rtol=1e-4, atol=1e-4)
    for inference in ("whole", "windows"):
        result = small_model(family, tokenizer, inference=inference, class_maps_budget=0).segment(PHOTO, names)
        assert result.labels.shape == (50, 70) and np.isfinite(result.scores).all()


@FAMILIES
def test_bfloat16_weights_segment(family, tokenizer):
    result = small_model(family, tokenizer).to(torch.bfloat16).segment(PHOTO, NAMES)
    assert result.labels.shape == (50, 70) and np.isfinite(result.scores).all()


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_text_equals_the_reference(family, tokenizer):
    model = small_model(family, tokenizer).double()
    prompts = [f"a photo of a {name}" for name in NAMES]
    torch.testing.assert_close(model.encode(NAMES).embeddings, reference.text_tower(model.text_encoder, prompts))


@torch.no_grad()
def test_photos_are_normalised_as_the_encoder_needs(tokenizer):
    """Everywhere a photo becomes pixels: whole, in windows, in training items."""
    seen = []
    for family, mean, std in (("SigLIP", HALF, HALF), ("plain CLIP", CLIP_MEAN, CLIP_STD), ("PE-Core", HALF, HALF),
                              ("MobileCLIP2-B", (0.0,) * 3, (1.0,) * 3)):  # fmt: skip
        grey = np.full((64, 64, 3), 100, np.uint8)
        colour = (100 / 255 - torch.tensor(mean)) / torch.tensor(std)
        for inference in ("whole", "windows"):
            model = small_model(family, tokenizer, inference=inference)
            assert model.normalization == (mean, std)
            encode = model.encoder.image
            model.image_encoder._encode = lambda x, encode=encode: seen.append(x) or encode(x)
            model.segment(grey, NAMES)
            batch = seen.pop()
            torch.testing.assert_close(batch, colour[:, None, None].expand_as(batch))
    given = small_model("SigLIP", tokenizer, {"mean": (0.1, 0.2, 0.3)})
    assert given.normalization == ((0.1, 0.2, 0.3), HALF) and given.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_models_of_earlier_versions_have_clips_pixels(tokenizer, tmp_path):
    small_model("plain CLIP", tokenizer).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for key in ("mean", "std", "dense"):
        del saved["encoder"][key]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    again = FGASeg.from_pretrained(tmp_path)
    assert again.normalization == (CLIP_MEAN, CLIP_STD) and again.encoder.dense == "value"


def test_the_record_of_an_evaluation_says_what_is_not_clips(tokenizer):
    scenes = SceneDataset("seen", 1)
    models = {family: small_model(family, tokenizer) for family in MAIN}
    records = {f: provenance(model, scenes, "scenes", weights="w")["model"]["encoder"] for f, model in models.items()}
    assert not {"mean", "std", "dense"} & records["plain CLIP"].keys()  # hashes of earlier versions stay
    assert records["SigLIP"]["mean"] == records["SigLIP"]["std"] == [0.5] * 3
    assert records["EVA-02"]["dense"] == "csa" and "mean" not in records["EVA-02"]


@pytest.mark.parametrize("family", [f for f in ENCODERS if not f.startswith("plain")])
def test_there_is_no_released_counterpart(family, tokenizer, tmp_path):
    why = "has another text tower" if family == "worldwide" else f"{family} is a model of the family"
    with pytest.raises(
        CheckpointError, match=f"the released code has no counterpart of its encoder: .*{why}"
    ) as caught:
        small_model(family, tokenizer).save_released(tmp_path / "model.pth")
    assert len(str(caught.value).splitlines()) == 1


def test_plain_clip_with_another_dense_rule_or_pixels_has_none_either(tokenizer, tmp_path):
    for other, message in (({"dense": "qq"}, "by the rule 'qq'"), ({"mean": HALF}, "not normalised as CLIP's")):
        with pytest.raises(CheckpointError, match=message):
            small_model("plain CLIP", tokenizer, other).save_released(tmp_path / "model.pth")


# ---- training


def run_config(family, tokenizer, out, folder, **train_keys):
    encoder = encoder_section(family, tokenizer, finetune="attention")
    return Config(
        model={"encoder": encoder, **SIZES, "image_size": 32},
        data={"images": folder / "images", "labels": folder / "labels", "names": folder / "names.txt", "crop": 32,
              "val_count": 1, "workers": 0},
        train={"out": out, "steps": 4, "batch": 2, "warmup": 0, "tensorboard": False, "save_every": 2, "eval_every": 0,
               "log_every": 1, "lr": 1e-3, **train_keys},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (place / kind).mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(place / "images" / f"{i}.png")
        Image.fromarray(rng.integers(0, 5, (40, 44), dtype=np.uint8)).save(place / "labels" / f"{i}.png")
    (place / "names.txt").write_text("\n".join(NAMES))
    return place


@pytest.mark.filterwarnings("ignore:.*validation photos are the training photos")
@FAMILIES
def test_an_interrupted_training_ends_in_the_same_weights(family, tokenizer, folder, tmp_path):
    def stop(metrics):
        if metrics["step"] == 2:
            trainer.signals.number = 15

    train(run_config(family, tokenizer, tmp_path / "whole", folder), progress=False)
    trainer = Trainer(run_config(family, tokenizer, tmp_path / "parts", folder), progress=False, callbacks=[stop])
    with pytest.raises(Interrupted):
        trainer.train()
    train(run_config(family, tokenizer, tmp_path / "parts", folder), progress=False)
    whole, parts = (FGASeg.from_pretrained(tmp_path / name / "model") for name in ("whole", "parts"))
    torch.manual_seed(trainer.config.train.seed)
    before, after = FGASeg(trainer.config.model).state_dict(), whole.state_dict()
    for key, value in parts.state_dict().items():
        assert torch.equal(value, after[key]), key
    moved = {key for key, value in after.items() if key.startswith("clip.") and not torch.equal(value, before[key])}
    assert moved and all(re.search(r"\.[qv]_proj[._]weight$", key) for key in moved)
    assert len(moved) >= 2 * (4 + 2) - 2  # the last attention may not be read by q


@pytest.mark.filterwarnings("ignore:.*validation photos are the training photos")
def test_training_items_are_normalised_as_the_encoder_needs(tokenizer, folder, tmp_path):
    config = run_config("SigLIP", tokenizer, tmp_path, folder)
    trainer = Trainer(config, progress=False)
    item, clips = trainer.train_set[0]["pixels"], data_sets(config)[0][0]["pixels"]
    as_photo = clips * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    torch.testing.assert_close(item, (as_photo - 0.5) / 0.5, rtol=1e-5, atol=1e-5)
    photo = np.zeros((2, 2, 3), np.uint8)
    assert torch.equal(to_pixels(photo, normalization=(HALF, HALF)), torch.full((3, 2, 2), -1.0))
