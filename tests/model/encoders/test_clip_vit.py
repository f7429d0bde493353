"""Plain CLIP: loading, what is refused, and which weights train."""

import pytest
import torch
from tiny import ARCHITECTURE, NAMES, tiny_config, tiny_model

from fgaseg import EncoderConfig, FGASeg
from fgaseg.errors import CheckpointError, EncoderError
from fgaseg.model.encoders import OpenClipEncoder


def test_finetuning_strategies_train_what_table_seven_says():
    trained = {}
    for strategy in ("attention", "prompt", "full", "none", "scratch"):
        model = FGASeg(tiny_config(encoder={"finetune": strategy}))
        trained[strategy] = {n for n, p in model.clip.named_parameters() if p.requires_grad}
        assert all(p.requires_grad for p in model.head.parameters())
    assert trained["none"] == set() and trained["prompt"] == {"visual.transformer.prompt_tokens"}
    assert all(n.endswith(("q_proj_weight", "v_proj_weight")) for n in trained["attention"])
    assert len(trained["attention"]) == 2 * (3 + 2)
    assert all("resblocks" in n for n in trained["full"]) and "token_embedding.weight" in trained["scratch"]


def test_prompt_tokens_begin_small_and_differ():
    model = FGASeg(tiny_config(encoder={"finetune": "prompt", "prompt_tokens": 30}))
    tokens = model.clip.visual.transformer.prompt_tokens
    assert float(tokens.std()) == pytest.approx(0.02, rel=0.1) and tokens.flatten(0, 1).unique(dim=0).shape[0] == 3 * 30


def test_parameter_groups_cover_every_trained_weight_once():
    model = FGASeg(tiny_config(encoder={"finetune": "attention"}))
    groups = model.parameter_groups(2e-4, 0.01, 1e-4)
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(2e-4, 1e-4), (2e-4, 0.0), (2e-4 * 0.01, 1e-4)}
    norms = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert id(model.head.layers[0].guidance_norm.weight) in norms and id(model.head.fuse.linear.bias) not in norms


def test_parameter_counts_of_the_paper():
    """Table VII, B/16: 20.4 M with attention tuning, 122.9 M with full tuning (meta device: no memory)."""
    counts = {}
    for strategy in ("attention", "full"):
        with torch.device("meta"):
            encoder = OpenClipEncoder(EncoderConfig(pretrained=None, finetune=strategy))
        counts[strategy] = sum(p.numel() for p in encoder.module.parameters() if p.requires_grad) / 1e6
    assert counts["attention"] == pytest.approx(20.4, abs=0.06) and counts["full"] == pytest.approx(122.9, abs=0.06)


def _archive(model, path, **changes):
    """A checkpoint as open_clip writes it: q, k and v fused."""
    weights = dict(model.clip.state_dict())
    for key in [k for k in weights if k.endswith("q_proj_weight")]:
        stem = key.removesuffix("q_proj_weight")
        weights[stem + "in_proj_weight"] = torch.cat([weights.pop(f"{stem}{p}_proj_weight") for p in "qkv"])
    torch.save({"state_dict": {**{f"module.{k}": v for k, v in weights.items()}, **changes}}, path)


def test_encoder_from_a_local_open_clip_checkpoint(tmp_path):
    source = tiny_model(seed=3)
    _archive(source, tmp_path / "clip.pt")
    loaded = tiny_model(seed=4, encoder={"pretrained": str(tmp_path / "clip.pt"), "finetune": "none"})
    fresh = FGASeg(tiny_config(encoder={"pretrained": str(tmp_path / "clip.pt")}))
    for key, value in source.clip.state_dict().items():
        assert torch.equal(fresh.clip.state_dict()[key], value), key
    assert loaded.encode(NAMES).embeddings.shape == (5, 32)


ENCODERS = {
    "unknown name": ({"name": "ViT-Q-99", "architecture": None, "pretrained": None}, "knows no model"),
    "neither file nor tag": ({"pretrained": "nowhere.pt"}, "neither a file or folder here nor a tag"),
    "resnet": (
        {"name": "RN50", "architecture": None, "pretrained": None},
        "RN50 is not supported: its image tower is a ModifiedResNet",
    ),
    "guidance": ({"guidance_blocks": (0, 2)}, "must name two of the first 2 blocks"),
}


@pytest.mark.parametrize("encoder, message", ENCODERS.values(), ids=ENCODERS)
def test_encoders_that_cannot_be(encoder, message):
    with pytest.raises(EncoderError, match=message):
        FGASeg(tiny_config(encoder=encoder))


def test_text_tower_must_match_the_image_tower(tmp_path):
    source = tiny_model()
    visual = {k: v for k, v in source.clip.state_dict().items() if k.startswith("visual.")}
    torch.save(visual, tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match="has no text tower"):
        FGASeg(tiny_config(encoder={"pretrained": str(tmp_path / "half.pt")}))
    other = {**ARCHITECTURE, "text_cfg": {**ARCHITECTURE["text_cfg"], "layers": 1}}
    _archive(FGASeg(tiny_config(encoder={"architecture": other})), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="do not fit"):
        FGASeg(tiny_config(encoder={"pretrained": str(tmp_path / "other.pt")}))
