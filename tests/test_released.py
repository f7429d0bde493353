"""The released preset against recordings of the released code (ViT-B/16, deterministic weights, float32)."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fgaseg.segment
from fgaseg import FGASeg, ModelConfig

PARITY = Path(__file__).parents[2] / "shared" / "parity"
CLASSES = Path(__file__).parents[2] / "shared" / "data" / "classes"
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recordings of the released code at {PARITY}")

# where the released module tree has each part of ours
SWIN, CLASS = r"transformer\.layers\.(\d+)\.swin_block\.", r"transformer\.layers\.(\d+)\.attention\."
KEYS = [
    (r"sem_seg_head\.(predictor\.)?", ""),
    (r"clip_model\.", "clip."),
    (r"DCDT\.gamma_text", "head.p2t.gamma"),
    (r"DCDT\.cross_atten_text\.(\d+)\.multihead_attn", r"head.p2t.layers.\1.attention"),
    (r"DCDT\.cross_atten_text\.(\d+)\.MLP", r"head.p2t.layers.\1.linear"),
    (r"DCDT\.cross_atten_text\.", "head.p2t.layers."),
    (r"proj\.vis\.1", "head.t2p.first"),
    (r"proj\.vis\.3", "head.t2p.second"),
    (r"proj\.vis\.4", "head.t2p.last"),
    (r"proj\.txt", "head.t2p.text"),
    (r"transformer\.Local_align\.txt", "head.lcs.text"),
    (r"transformer\.conv1", "head.embed_global.conv"),
    (r"transformer\.conv2", "head.embed_local.conv"),
    (r"transformer\.conv_cat_decoder_([12])", r"head.decoder.fuse\1.linear"),
    (r"transformer\.conv_cat", "head.fuse.linear"),
    (r"transformer\.corr_local_decoder_projection\.0", "head.decoder.local_up.up"),
    (r"transformer\.corr_local_decoder_projection\.1\.double_conv\.0", "head.decoder.local_up.conv1"),
    (r"transformer\.corr_local_decoder_projection\.1", "head.decoder.local_up"),
    (r"transformer\.decoder([12])\.up", r"head.decoder.stage\1.up"),
    (r"transformer\.decoder([12])\.conv\.double_conv\.0", r"head.decoder.stage\1.conv1.conv"),
    (r"transformer\.decoder([12])\.conv", r"head.decoder.stage\1"),
    (r"(head\.decoder\.\w+)\.double_conv\.1", r"\1.norm1"),
    (r"(head\.decoder\.\w+)\.double_conv\.3", r"\1.conv2"),
    (r"(head\.decoder\.\w+)\.double_conv\.4", r"\1.norm2"),
    (r"transformer\.head_auxi_(\d)", r"head.aux_heads.\1.conv"),
    (r"transformer\.head", "head.decoder.head.conv"),
    (r"transformer\.guidance_projection\.0", "head.image_guidance"),
    (r"transformer\.text_guidance_projection\.0", "head.text_guidance"),
    (r"transformer\.decoder_guidance_projection\.0\.0", "head.early_guidance"),
    (r"transformer\.decoder_guidance_projection\.1\.0", "head.late_guidance"),
    (r"upsample1", "head.early_up"),
    (r"upsample2", "head.late_up"),
    (SWIN + r"block_([12])\.attn\.([qk])\.", r"head.layers.\1.block\2.attention.\3.linear."),
    (SWIN + r"block_([12])\.attn", r"head.layers.\1.block\2.attention"),
    (SWIN + r"block_([12])\.mlp\.fc1", r"head.layers.\1.block\2.mlp.0"),
    (SWIN + r"block_([12])\.mlp\.fc2", r"head.layers.\1.block\2.mlp.2"),
    (SWIN + r"block_([12])", r"head.layers.\1.block\2"),
    (SWIN + r"guidance_norm", r"head.layers.\1.guidance_norm"),
    (CLASS + r"padding_tokens", r"head.layers.\1.classes.pad_token"),
    (CLASS + r"padding_guidance", r"head.layers.\1.classes.pad_guidance"),
    (CLASS + r"attention\.([qk])\.", r"head.layers.\1.classes.\2.linear."),
    (CLASS + r"attention\.v", r"head.layers.\1.classes.v"),
    (CLASS + r"MLP", r"head.layers.\1.classes.mlp"),
    (CLASS, r"head.layers.\1.classes."),
]


def our_key(key: str) -> str:
    for theirs, ours in KEYS:
        key = re.sub("^" + theirs, ours, key)
    return key


@pytest.fixture(scope="module")
def fill():
    sys.path.insert(0, str(PARITY))
    try:
        import fill
    finally:
        sys.path.remove(str(PARITY))
    return fill


def released_model(fill, mode: str, **switches) -> FGASeg:
    """The released model in one decoder mode, with the weights of the recordings."""
    encoder = {"name": "ViT-B-16-quickgelu", "pretrained": None}
    model = FGASeg(ModelConfig(preset="released", encoder=encoder, **switches)).eval()
    own = model.state_dict()
    theirs = {
        our_key(k): torch.from_numpy(v) for k, v in fill.state_dict(PARITY / f"state_dict_keys_{mode}.txt").items()
    }
    assert set(own) - set(theirs) == {f"head.t2p.{n}.1.num_batches_tracked" for n in ("first", "second")}
    assert set(theirs) <= set(own)
    model.load_state_dict({k: theirs[k].reshape(v.shape) if k in theirs else v for k, v in own.items()})
    return model


def error(got: torch.Tensor, recorded, name: str) -> float:
    """Largest difference to the recording, as a share of the stage's largest value."""
    assert got.numel() == np.prod(recorded[f"{name}__shape"])
    sampled = got.contiguous().flatten()[:: int(recorded[f"{name}__stride"])]
    _, _, low, high, _ = recorded[f"{name}__stats"]
    return float((sampled - torch.from_numpy(recorded[name])).abs().max() / max(abs(low), abs(high)))


def normalised(model: FGASeg, photo: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(photo) / 255 - model.mean[:, None, None]) / model.std[:, None, None])[None]


@torch.no_grad()
def test_stages_and_sliding_windows(fill):
    names = json.loads((CLASSES / "voc20.json").read_text())
    model = released_model(fill, "no_fast_cat")
    recorded = np.load(PARITY / "infer_no_fast-cat-voc20-ruleB.npz")
    vocabulary = model.encode(names)
    pixels = normalised(model, fill.image())
    out = model(pixels, vocabulary)
    aligned = model.head.p2t(model.image_encoder(pixels).embedding, vocabulary.embeddings)
    stages = {"text_emb": vocabulary.embeddings, "p2t_out": aligned, "corr_global": out.gcs, "corr_local": out.lcs,
              "logits": out.logits}  # fmt: skip
    errors = {name: error(got, recorded, name) for name, got in stages.items()}
    # the README of the recordings: the released code differs from itself in float64 by up to 1e-5
    assert max(errors.values()) < 1e-5, errors

    recorded = np.load(PARITY / "sliding_no_fast-cat-voc20-ruleB.npz")
    scores = fgaseg.segment.sliding_scores(model, torch.from_numpy(fill.image(480, 640, 3)), vocabulary)
    assert error(fgaseg.segment._resize(scores(slice(0, 20)), (480, 640)), recorded, "sem_seg") < 1e-5


@torch.no_grad()
def test_fast_decoder_that_prunes(fill):
    model = released_model(fill, "fast_cat", fast=True, top_k=1)
    recorded = np.load(PARITY / "infer_fast-cat-voc20-ruleB-top1.npz")
    out = model(normalised(model, fill.image()), model.encode(json.loads((CLASSES / "voc20.json").read_text())))
    assert out.kept.sum() == recorded["valid_idx#3_bool"].sum() == 14
    assert error(out.logits, recorded, "logits") < 1e-5
