"""Weights of an encoder: open_clip's files of every family, a tag's from the hub, and what is refused by its reason."""

import pytest
import safetensors.torch
import torch
from small_encoders import ENCODERS, SIZES, encoder_section, open_clip_model, small_encoder

from fgaseg import EncoderConfig, FGASeg, ModelConfig
from fgaseg.data import CLIP_MEAN, CLIP_STD
from fgaseg.errors import CheckpointError, EncoderError
from fgaseg.model.encoders import OpenClipEncoder, loading
from fgaseg.model.encoders.loading import split_projections
from fgaseg.model.encoders.open_clip_encoder import instantiate

PHOTO = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a red star", "dog"]


def encoder(family, tokenizer, path):
    section = encoder_section(family, tokenizer, pretrained=str(path))
    made = OpenClipEncoder(EncoderConfig(**section))
    made.module.eval()
    return made


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_files_of_open_clip_fill_every_weight(family, tokenizer, tmp_path):
    theirs = open_clip_model(family)
    weights = theirs.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "trained.pt")
    safetensors.torch.save_file(
        {k: v.half() if v.ndim > 1 else v for k, v in weights.items()}, tmp_path / "half.safetensors"
    )
    ours = encoder(family, tokenizer, tmp_path / "trained.pt")
    assert split_projections(weights).keys() == ours.module.state_dict().keys()
    torch.testing.assert_close(ours.image_tower.pooled(PHOTO), theirs.encode_image(PHOTO), rtol=1e-3, atol=1e-4)
    tokens = ours.text_tower.tokenizer(PROMPTS)
    torch.testing.assert_close(ours.text(PROMPTS), theirs.encode_text(tokens), rtol=1e-3, atol=1e-4)
    half = encoder(family, tokenizer, tmp_path / "half.safetensors")
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}
    torch.testing.assert_close(half.image_tower.pooled(PHOTO), theirs.encode_image(PHOTO), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", ENCODERS)
def test_random_weights_are_open_clips(family, tokenizer):
    torch.manual_seed(3)
    ours = OpenClipEncoder(EncoderConfig(**encoder_section(family, tokenizer))).module.state_dict()
    torch.manual_seed(3)
    theirs = split_projections(instantiate(ENCODERS[family], family).state_dict())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_open_clips_older_form_without_a_text_module(tokenizer, tmp_path):
    theirs = open_clip_model("EVA-02").state_dict()
    torch.save({key.removeprefix("text."): value for key, value in theirs.items()}, tmp_path / "old.pt")
    ours = encoder("EVA-02", tokenizer, tmp_path / "old.pt")
    assert torch.equal(ours.module.text.token_embedding.weight, theirs["text.token_embedding.weight"])


def test_scale_and_bias_of_pretraining_may_have_another_shape_or_be_absent(tokenizer, tmp_path):
    theirs = dict(open_clip_model("SigLIP").state_dict())
    theirs["logit_scale"] = theirs["logit_scale"].reshape(1)
    del theirs["logit_bias"]
    torch.save(theirs, tmp_path / "weights.pt")
    assert encoder("SigLIP", tokenizer, tmp_path / "weights.pt").module.logit_scale == theirs["logit_scale"]


OTHER = {
    "transformers": ("vision_model.encoder.layers.0.mlp.fc1.weight", "has the keys of transformers"),
    "EVA-CLIP": ("visual.blocks.0.attn.q_proj.weight", "has the keys of the original EVA-CLIP code"),
    "Apple": ("image_encoder.model.patch_emb.0.block.conv.weight", "has the keys of Apple's MobileCLIP code"),
    "timm": ("blocks.0.attn.qkv.weight", "has the keys of an image tower alone"),
}


@pytest.mark.parametrize("key, message", OTHER.values(), ids=OTHER)
def test_other_formats_are_refused_by_name(key, message, tokenizer, tmp_path):
    torch.save({key: torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=f"other.pt: {message}.*open_clip's keys"):
        encoder("EVA-02", tokenizer, tmp_path / "other.pt")


def test_weights_of_another_family_do_not_fit(tokenizer, tmp_path):
    torch.save(open_clip_model("SigLIP").state_dict(), tmp_path / "siglip.pt")
    with pytest.raises(CheckpointError, match="do not fit"):
        encoder("EVA-02", tokenizer, tmp_path / "siglip.pt")
    visual = {k: v for k, v in open_clip_model("EVA-02").state_dict().items() if k.startswith("visual.")}
    torch.save(visual, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match="has no text tower"):
        encoder("EVA-02", tokenizer, tmp_path / "half.pt")


def test_an_encoder_saved_alone_or_in_a_model_is_read_again(tokenizer, tmp_path):
    section = encoder_section("PE-Core", tokenizer)
    model = FGASeg(ModelConfig(encoder=section, **SIZES))
    model.save_pretrained(tmp_path / "model")
    model.save_encoder(tmp_path / "encoder.safetensors")
    for source in (tmp_path / "model", tmp_path / "encoder.safetensors"):
        ours = encoder("PE-Core", tokenizer, source)
        for key, value in model.clip.state_dict().items():
            assert torch.equal(ours.module.state_dict()[key], value), key


def test_an_encoder_taken_from_a_saved_model_keeps_its_pixels(tokenizer, tmp_path):
    section = encoder_section("plain CLIP", tokenizer, mean=(0.1, 0.2, 0.3))
    FGASeg(ModelConfig(encoder=section, **SIZES)).save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert encoder("plain CLIP", tokenizer, source).mean == (0.1, 0.2, 0.3)
        assert encoder("plain CLIP", tokenizer, source).std == CLIP_STD
    given = encoder_section("plain CLIP", tokenizer, pretrained=str(tmp_path), mean=(0.5, 0.5, 0.5))
    assert OpenClipEncoder(EncoderConfig(**given)).mean == (0.5, 0.5, 0.5)
    (tmp_path / "config.json").write_text("{")
    assert encoder("plain CLIP", tokenizer, tmp_path).mean == CLIP_MEAN


@pytest.mark.parametrize(
    "hub, wanted",
    [("timm/one/", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]),
     ("timm/one/weights.bin", ["weights.safetensors", "weights.bin"])],
)  # fmt: skip
def test_a_tags_file_is_fetched_from_the_hub_safetensors_first(hub, wanted, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(loading, "fetch_first", lambda repo, names: asked.append((repo, list(names))) or tmp_path)
    assert loading.weights_path("one", "tag", {"hf_hub": hub}) == tmp_path
    assert asked == [("timm/one", wanted)]


def test_a_tag_that_cannot_be_fetched_is_one_line(monkeypatch):
    def fails(*_):
        raise CheckpointError("timm/one: no connection to the hub; set HF_HUB_OFFLINE")

    monkeypatch.setattr(loading, "fetch_first", fails)
    with pytest.raises(
        EncoderError, match="weights 'tag' of one could not be downloaded .timm/one: no connection"
    ) as caught:
        loading.weights_path("one", "tag", {"hf_hub": "timm/one/"})
    assert len(str(caught.value).splitlines()) == 1


def test_the_weights_that_were_read_are_known(tokenizer):
    assert small_encoder("plain CLIP", tokenizer).weights is None
