"""Every name of open_clip is supported or refused with its reason, and what a name alone decides."""

import warnings

import open_clip
import pytest
import torch
from small_encoders import fill

from fgaseg import EncoderConfig, FGASeg, ModelConfig, load_config
from fgaseg.config.model import OPENAI_NAMES
from fgaseg.data import CLIP_MEAN, CLIP_STD
from fgaseg.errors import ConfigError, EncoderError
from fgaseg.model.encoders import open_clip_encoder
from fgaseg.model.encoders.architecture import resolve
from fgaseg.model.encoders.loading import split_projections
from fgaseg.model.encoders.open_clip_encoder import OpenClipEncoder, family_of, instantiate

HALF = (0.5, 0.5, 0.5)
SUPPORTED = {
    "CLIP ViT": """
        ViT-B-16 ViT-B-16-plus ViT-B-16-plus-240 ViT-B-16-quickgelu ViT-B-32 ViT-B-32-256 ViT-B-32-plus-256
        ViT-B-32-quickgelu ViT-bigG-14 ViT-bigG-14-quickgelu ViT-bigG-14-worldwide ViT-bigG-14-worldwide-378 ViT-e-14
        ViT-g-14 ViT-H-14 ViT-H-14-378 ViT-H-14-378-quickgelu ViT-H-14-quickgelu ViT-H-14-worldwide
        ViT-H-14-worldwide-378 ViT-H-14-worldwide-quickgelu ViT-H-16 ViT-L-14 ViT-L-14-280 ViT-L-14-336
        ViT-L-14-336-quickgelu ViT-L-14-quickgelu ViT-L-14-worldwide ViT-L-14-worldwide-quickgelu ViT-L-16 ViT-L-16-320
        ViT-M-16 ViT-M-16-alt ViT-M-32 ViT-M-32-alt ViT-S-16 ViT-S-16-alt ViT-S-32 ViT-S-32-alt""",
    "timm ViT with class token": "MobileCLIP-B MobileCLIP2-B MobileCLIP2-L-14",
    "SigLIP": """
        ViT-B-16-SigLIP ViT-B-16-SigLIP-256 ViT-B-16-SigLIP-384 ViT-B-16-SigLIP-512 ViT-B-16-SigLIP-i18n-256
        ViT-L-16-SigLIP-256 ViT-L-16-SigLIP-384 ViT-SO400M-14-SigLIP ViT-SO400M-14-SigLIP-378 ViT-SO400M-14-SigLIP-384
        ViT-SO400M-16-SigLIP-i18n-256 ViT-B-16-SigLIP2 ViT-B-16-SigLIP2-256 ViT-B-16-SigLIP2-384 ViT-B-16-SigLIP2-512
        ViT-B-32-SigLIP2-256 ViT-L-16-SigLIP2-256 ViT-L-16-SigLIP2-384 ViT-L-16-SigLIP2-512 ViT-SO400M-14-SigLIP2
        ViT-SO400M-14-SigLIP2-378 ViT-SO400M-16-SigLIP2-256 ViT-SO400M-16-SigLIP2-384 ViT-SO400M-16-SigLIP2-512
        ViT-gopt-16-SigLIP2-256 ViT-gopt-16-SigLIP2-384""",
    "EVA": "EVA01-g-14 EVA01-g-14-plus EVA02-B-16 EVA02-L-14 EVA02-L-14-336 EVA02-E-14 EVA02-E-14-plus",
    "PE-Core": "PE-Core-T-16-384 PE-Core-S-16-384 PE-Core-B-16 PE-Core-L-14-336 PE-Core-bigG-14-448",
}
REFUSED = {  # the beginning of a name, and a part of the reason
    "coca_": "it is a CoCa",
    "convnext_": "its image tower is a ConvNeXt",
    "mt5-": "its text tower is a model of transformers",
    "nllb-": "its text tower is a model of transformers",
    "roberta-": "its text tower is a model of transformers",
    "xlm-": "its text tower is a model of transformers",
    "RN": "its image tower is a ModifiedResNet",
    "swin_": "its image tower is a SwinTransformer",
    "MobileCLIP": "its image tower is a FastVit",
    "ViTamin": "its image tower pools patches (avg)",
    "vit_medium_patch16_gap": "its image tower pools patches (avg)",
    "vit_relpos": "its image tower is a VisionTransformerRelPos",
    "ViT-bigG-14-CLIPA": "its image tower pools patches (pool_type 'avg')",
    "ViT-H-14-CLIPA": "its image tower pools patches (pool_type 'avg')",
    "ViT-L-14-CLIPA": "its image tower pools patches (pool_type 'avg')",
}
FAMILY = {name: family for family, names in SUPPORTED.items() for name in names.split()}


def test_every_name_of_open_clip_is_supported_or_refused_with_its_reason():
    listed = open_clip.list_models()
    assert set(FAMILY) <= set(listed)
    for name in listed:
        request = resolve(EncoderConfig(name=name, pretrained=None))
        if name in FAMILY:
            assert family_of(request.architecture, name).family == FAMILY[name], name
        else:
            reason = next((why for start, why in REFUSED.items() if name.startswith(start)), None)
            assert reason, f"{name}: neither supported nor refused"
            with pytest.raises(EncoderError) as caught:
                family_of(request.architecture, name)
            assert f"encoder: {name} is not supported: {reason}" in str(caught.value)


def marks(number: int) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if number % 8 == 0 else [pytest.mark.slow, pytest.mark.exhaustive]


QUICK = ("ViT-B-16", "ViT-H-14-worldwide", "MobileCLIP2-B", "ViT-B-16-SigLIP2-384", "EVA02-B-16", "PE-Core-B-16")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=marks(i)) for i, n in enumerate(FAMILY)])
def test_full_size(name, monkeypatch):
    """On the meta device: the sizes that open_clip gives, from the same weights and no others."""
    monkeypatch.setattr(open_clip_encoder, "Tokenizer", lambda *_: None)  # those of Hugging Face are not at hand
    with torch.device("meta"):
        ours = OpenClipEncoder(EncoderConfig(name=name, pretrained=None, finetune="scratch"))
        theirs = instantiate(ours.architecture, name).train()
        side = theirs.visual.image_size
        side = side if isinstance(side, int) else side[0]
        whole = side // ours.patch * ours.patch  # open_clip leaves the rest out
        expected, got = theirs.encode_image(torch.empty(1, 3, side, side)), torch.empty(1, 3, whole, whole)
        expected_text = theirs.encode_text(torch.zeros(2, theirs.context_length, dtype=torch.int64))
    got, text = ours.image_tower.pooled(got), ours.text_tower.run(torch.ones(2, theirs.context_length).long())
    assert got.shape == expected.shape == (1, ours.channels)
    assert text.shape == expected_text.shape == (2, ours.channels)
    (got.sum() + text.sum()).backward()
    (expected.sum() + expected_text.sum()).backward()
    read = [sum(p.numel() for p in m.parameters() if p.grad is not None) for m in (ours.module, theirs)]
    assert read[0] == read[1] > 1e6
    features = ours.image(torch.empty(2, 3, 3 * ours.patch, 5 * ours.patch, device="meta"))
    assert [tuple(x.shape) for x in features] == [(2, n, 3, 5) for n in (ours.channels, ours.width, ours.width)]


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-M-16-alt", "ViT-B-16-SigLIP", "MobileCLIP2-B", "EVA02-B-16", "PE-Core-S-16-384"])
def test_full_size_embeddings_equal_those_of_open_clip(name, monkeypatch):
    """One of every family at its own size, with random weights, in float32."""
    monkeypatch.setattr(open_clip_encoder, "Tokenizer", lambda *_: None)
    ours = OpenClipEncoder(EncoderConfig(name=name, pretrained=None))
    theirs = instantiate(ours.architecture, name).eval()
    fill(theirs)
    ours.module.eval().load_state_dict(split_projections(theirs.state_dict()))
    generator = torch.Generator().manual_seed(0)
    side = theirs.visual.image_size
    side = side if isinstance(side, int) else side[0]
    pixels = torch.randn(2, 3, side, side, generator=generator)
    tokens = torch.randint(3, theirs.vocab_size, (3, theirs.context_length), generator=generator)
    for got, expected in ((ours.image_tower.pooled(pixels), theirs.encode_image(pixels)),
                          (ours.text_tower.run(tokens), theirs.encode_text(tokens))):  # fmt: skip
        assert expected.std(0).min() > 0  # images and texts differ
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


# ---- what a name decides


def test_default_weights_are_openais_else_the_only_ones():
    assert set(OPENAI_NAMES) == {name for name in FAMILY if "openai" in open_clip.list_pretrained_tags_by_model(name)}
    assert EncoderConfig().pretrained == EncoderConfig(name="ViT-L-14-quickgelu").pretrained == "openai"
    assert EncoderConfig(name="EVA02-B-16").pretrained == "auto"
    assert EncoderConfig(architecture={"embed_dim": 1, "vision_cfg": {}, "text_cfg": {}}).pretrained is None
    for name, tag in {"EVA02-B-16": "merged2b_s8b_b131k", "ViT-B-16-SigLIP2-384": "webli", "ViT-B-16": "openai",
                      "ViT-H-14-worldwide": "metaclip2_worldwide"}.items():  # fmt: skip
        assert resolve(EncoderConfig(name=name)).weights == tag
    with pytest.raises(EncoderError, match=r"give one of .*dfn5b.* for ViT-H-14-quickgelu, a local file, or null"):
        resolve(EncoderConfig(name="ViT-H-14-quickgelu"))
    with pytest.raises(EncoderError, match="open_clip has no weights for it for ViT-S-16"):
        resolve(EncoderConfig(name="ViT-S-16"))


def test_pixels_are_normalised_as_the_tag_says():
    def colours(**given):
        request = resolve(EncoderConfig(**given))
        return request.mean, request.std

    clip = (CLIP_MEAN, CLIP_STD)
    assert colours(name="ViT-B-16") == clip and colours(name="EVA02-B-16") == clip
    assert colours(name="ViT-B-16-SigLIP") == colours(name="PE-Core-B-16") == (HALF, HALF)
    assert colours(name="MobileCLIP2-B") == ((0.0,) * 3, (1.0,) * 3)
    assert colours(name="MobileCLIP2-L-14") == clip
    assert colours(name="ViT-L-14", pretrained="laion2b_s32b_b82k") == (HALF, HALF)  # one of a name's tags differs
    assert colours(name="ViT-L-14", pretrained=None) == (None, None)  # then they do not agree
    assert colours(name="ViT-B-16-SigLIP", mean=(0.1, 0.2, 0.3)) == ((0.1, 0.2, 0.3), HALF)


@pytest.mark.parametrize("given", [{}, {"mean": HALF}, {"std": HALF}], ids=str)
def test_a_file_for_a_name_whose_tags_differ_is_warned_about(tmp_path, given):
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.warns(UserWarning, match="differ in the mean and standard deviation"):
        resolve(EncoderConfig(name="ViT-L-14", pretrained=str(tmp_path / "weights.pt"), quick_gelu=True, **given))


@pytest.mark.parametrize("name, given", [("ViT-L-14", {"mean": HALF, "std": HALF}), ("ViT-B-16-SigLIP", {})], ids=str)
def test_a_file_whose_pixels_are_known_is_not(tmp_path, name, given):
    (tmp_path / "weights.pt").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request = resolve(EncoderConfig(name=name, pretrained=str(tmp_path / "weights.pt"), quick_gelu=True, **given))
    assert (request.mean, request.std) == (HALF, HALF) and request.tag is None


@pytest.mark.parametrize(
    "name, warned", [("ViT-B-16", True), ("ViT-B-16-quickgelu", False), ("ViT-B-16-SigLIP", False)]
)
def test_a_file_for_a_name_that_openais_weights_have_too_may_need_the_other_activation(tmp_path, name, warned):
    """Not where the name says which it is, or where there are no weights of OpenAI's of that name."""
    (tmp_path / "weights.pt").write_bytes(b"x")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        resolve(EncoderConfig(name=name, pretrained=str(tmp_path / "weights.pt")))
    assert any("plain GELU" in str(one.message) for one in said) == warned


def test_the_activation_is_the_weights():
    assert resolve(EncoderConfig(name="ViT-B-16")).architecture["quick_gelu"] is True
    assert resolve(EncoderConfig(name="ViT-B-16", pretrained="dfn2b")).architecture.get("quick_gelu", False) is True
    assert not resolve(EncoderConfig(name="ViT-B-16", pretrained="laion2b_s34b_b88k")).architecture.get("quick_gelu")


def test_regularisers_of_pretraining_are_off_and_refused_where_they_are_written_down():
    named = resolve(EncoderConfig(name="MobileCLIP2-L-14", pretrained=None)).architecture
    assert named["vision_cfg"]["timm_drop_path"] is None
    given = {**named, "vision_cfg": {**named["vision_cfg"], "timm_drop_path": 0.1}}
    with pytest.raises(EncoderError, match="mine is not supported: its image tower leaves out blocks in training"):
        family_of(given, "mine")


# ---- switches of open_clip's that would be computed otherwise

VISION = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SWITCHES = {
    "patch dropout": ({"patch_dropout": 0.5}, {}, "patch_dropout leaves out patches"),
    "average pooling": ({"pool_type": "avg"}, {}, "pools patches"),
    "attention pooling": ({"attentional_pool": True}, {}, "pools patches .attention"),
    "norm of q and k": (
        {"qk_norm": True},
        {},
        "blocks of its image tower are open_clip's CustomResidualAttentionBlock",
    ),
    "scaled attention": ({"scale_attn": True}, {}, "blocks of its image tower are open_clip's Custom"),
    "norm of q and k in text": ({}, {"qk_norm": True}, "blocks of its text tower are open_clip's Custom"),
    "class token in text": ({}, {"embed_cls": True}, "its text tower has a class token"),
    "text without pooling": ({}, {"pool_type": "none"}, "its text tower pools by 'none'"),
    "tokens besides": ({"output_tokens": True}, {}, "output_tokens"),
    "oblong patches": ({"patch_size": [8, 16]}, {}, "they must be square"),
}


@pytest.mark.parametrize("vision, text, message", SWITCHES.values(), ids=SWITCHES)
def test_what_would_be_computed_otherwise_is_refused(vision, text, message):
    given = {"embed_dim": 24, "vision_cfg": {**VISION, **vision}, "text_cfg": {**TEXT, **text}}
    for custom in (False, True):
        if "embed_cls" in text and not custom:
            continue  # open_clip's own CLIP cannot run that
        with pytest.raises(EncoderError, match=f"mine is not supported: .*{message}"):
            family_of({**given, "custom_text": custom}, "mine")


def test_towers_of_two_spaces_are_refused(monkeypatch):
    text = {**TEXT, "proj_type": "none", "width": 16, "heads": 2}
    given = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}
    with pytest.raises(EncoderError, match="the text tower gives 16 channels and the image tower 24"):
        OpenClipEncoder(EncoderConfig(name="mine", architecture=given))


def test_an_architecture_that_open_clip_does_not_know():
    given = {"embed_dim": 24, "vision_cfg": {**VISION, "depth": 3}, "text_cfg": TEXT}
    with pytest.raises(ConfigError, match=r"encoder\.architecture: unknown key 'vision_cfg\.depth'; did you mean"):
        ModelConfig().override(**{"encoder.architecture": given})
    with pytest.raises(EncoderError, match=r"encoder\.architecture: open_clip refuses it: .*depth"):
        instantiate(given, "mine")


def test_published_architectures_are_within_the_bounds():
    """What is described by name may be described inline, as a saved model does."""
    for name in FAMILY:
        described = resolve(EncoderConfig(name=name, pretrained=None)).architecture
        assert EncoderConfig(architecture=described).architecture == described, name


@pytest.mark.parametrize("name, nearest", [("ViT-B-16-SigLIP2-85", "ViT-B-16-SigLIP2"), ("EVA02-B16", "EVA02-B-16")])
def test_an_unknown_name_is_told_the_nearest(name, nearest):
    with pytest.raises(EncoderError, match=f"knows no model '{name}'.*did you mean '{nearest}"):
        resolve(EncoderConfig(name=name))


def test_names_that_open_clip_would_fetch_or_read_are_not_looked_up(monkeypatch):
    for name in ("hf-hub:someone/model", "local-dir:/tmp"):
        with pytest.raises(EncoderError, match="knows no model"):
            resolve(EncoderConfig(name=name, pretrained=None))


# ---- short forms


def test_a_name_alone_is_an_encoder():
    expected = EncoderConfig(name="ViT-B-16-SigLIP2-384")
    assert ModelConfig(encoder="ViT-B-16-SigLIP2-384").encoder == expected
    assert ModelConfig().override("encoder=ViT-B-16-SigLIP2-384").encoder == expected
    for word in ("encoder=ViT-B-16-SigLIP2-384", "model.encoder=ViT-B-16-SigLIP2-384"):
        assert load_config("configs/vitb16.yaml", word).model.encoder == expected
    assert load_config(None).override("encoder=ViT-B-16-SigLIP2-384").model.encoder == expected
    assert load_config(None, encoder="ViT-B-16-SigLIP2-384").model.encoder == expected


def test_keys_beside_the_short_form_keep_it(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {encoder: EVA02-B-16}\n")
    for words in (["encoder.dense=qq"], ["encoder=EVA02-B-16", "model.encoder.dense=qq"]):
        assert load_config(tmp_path / "run.yaml", *words).model.encoder == EncoderConfig(name="EVA02-B-16", dense="qq")
    with pytest.raises(ConfigError, match=r"unknown key 'model.encoder.dens'; did you mean 'model.encoder.dense'"):
        load_config(None, "encoder.dens=qq")
    with pytest.raises(ConfigError, match=r"std.*must be positive"):
        load_config(None, "encoder.std=[1, 0, 1]")


def test_short_forms_survive_saving(tmp_path):
    config = load_config(None, "encoder=EVA02-B-16")
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_weights_that_are_neither_a_file_nor_a_tag_name_the_tags():
    with pytest.raises(EncoderError, match=r"'nothing' is neither a file or folder here nor a tag of EVA02-B-16 "):
        FGASeg(ModelConfig(encoder={"name": "EVA02-B-16", "pretrained": "nothing"}))
