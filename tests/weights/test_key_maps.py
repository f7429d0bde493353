"""Keys of the released code translate both ways."""

import pytest
import torch
from tiny import tiny_model

from fgaseg.errors import CheckpointError
from fgaseg.weights import PI_SEG_KEYS, RELEASED_KEYS, KeyMap
from fgaseg.weights.key_maps import DECLIP_KEYS


def test_every_key_of_ours_goes_there_and_back():
    for fast in (False, True):
        for key in tiny_model(fast=fast).state_dict():
            theirs = RELEASED_KEYS.to_theirs(key)
            assert theirs is not None and RELEASED_KEYS.to_ours(theirs) == key
            assert RELEASED_KEYS.to_ours(RELEASED_KEYS.bare(theirs)) == key
            assert not RELEASED_KEYS.is_structural(theirs)


def test_prefixes_numbers_structural_keys_and_shapes():
    keys = KeyMap(
        (("block_#.norm#.*", "blocks.#.norm#.*"), ("pad", "pad")),
        prefixes=("head.", "inner."),
        unprefixed=("block_0",),
        structural=("block_#.mask",),
        flattened=("pad",),
    )
    assert keys.to_theirs("blocks.3.norm1.a.weight") == "head.inner.block_3.norm1.a.weight"
    assert keys.to_theirs("blocks.0.norm1.bias") == "block_0.norm1.bias"
    for prefix in ("head.inner.", "head.", "inner.", ""):
        assert keys.to_ours(f"{prefix}block_12.norm2.bias") == "blocks.12.norm2.bias"
    assert keys.to_ours("other") is None and keys.to_theirs("other") is None
    weights = {"head.pad": torch.zeros(1, 1, 3), "inner.block_1.mask": torch.zeros(2), "other": torch.zeros(1)}
    found = keys.translate(weights, "file")
    assert found.tensors["pad"].shape == (3,) and found.origin == {"pad": "head.pad"}
    assert ([*found.structural], found.unknown) == (["inner.block_1.mask"], ["other"])
    assert keys.tensor_to_theirs("pad", found.tensors["pad"]).shape == (1, 1, 3)
    with pytest.raises(CheckpointError, match=r"file: head\.pad and inner\.pad are the same weight"):
        keys.translate(weights | {"inner.pad": torch.zeros(1, 1, 3)}, "file")


def test_a_tensor_that_holds_several_weights_is_parted():
    keys = KeyMap(
        (("tower.*", "clip.*"),),
        fused=[("tower.#.qkv", ("clip.#.q", "clip.#.k", "clip.#.v"))],
        prefixes=("head.",),
    )
    weights = {"head.tower.3.qkv": torch.arange(6.0).reshape(6, 1), "tower.3.bias": torch.zeros(2)}
    found = keys.translate(weights, "file")
    assert [x.tolist() for x in found.tensors.values()] == [[[0], [1]], [[2], [3]], [[4], [5]], [0, 0]]
    assert set(found.origin) == {"clip.3.q", "clip.3.k", "clip.3.v", "clip.3.bias"}
    assert found.origin["clip.3.k"] == "head.tower.3.qkv" and keys.to_theirs("clip.3.k") == "head.tower.3.qkv"
    assert keys.parts("tower.3.qkv") == ["clip.3.q", "clip.3.k", "clip.3.v"] and not keys.parts("tower.3.bias")
    assert keys.is_known("tower.3.qkv") and keys.to_ours("tower.3.qkv") is None
    for broken in (torch.tensor(1.0), torch.zeros(2, 1)):  # no three parts
        assert keys.translate({"tower.3.qkv": broken}, "file").unknown == ["tower.3.qkv"]


HEAD = "sem_seg_head.predictor."
# spatial and class aggregation, by each project's name; and what of its keys holds no weight of ours
PROJECTS = {
    "CAT-Seg": (RELEASED_KEYS, "swin_block", "attention", ["clip_model.attn_mask"], []),
    "Pi-Seg": (
        PI_SEG_KEYS,
        "sptial_agg",
        "class_agg",
        ["clip_model.vocab_size"],
        ["text_vpn.mu", "image_vpn.fc_mean.bias"],
    ),
    "DeCLIP": (DECLIP_KEYS, "swin_block", "attention", ["clip_model.visual.rope.freqs_cos"], []),
}


@pytest.mark.parametrize("keys, spatial, classes, structural, training", PROJECTS.values(), ids=PROJECTS)
def test_keys_of_the_projects_that_are_read(keys, spatial, classes, structural, training):
    layers, structural = "transformer.layers.1", ["pixel_mean", "clip_pixel_std", *structural]
    pairs = {
        "head.early_up.weight": "upsample1.weight",
        "head.late_up.bias": "upsample2.bias",
        "head.embed_global.conv.weight": f"{HEAD}transformer.conv1.weight",
        "head.layers.1.block2.attention.q.linear.bias": f"{HEAD}{layers}.{spatial}.block_2.attn.q.bias",
        "head.layers.1.classes.q.linear.weight": f"{HEAD}{layers}.{classes}.attention.q.weight",
        "head.layers.1.classes.pad_token": f"{HEAD}{layers}.{classes}.padding_tokens",
    }
    for ours, theirs in pairs.items():
        assert keys.to_theirs(ours) == theirs and keys.to_ours(theirs) == ours and keys.is_known(theirs)
        assert not keys.is_structural(theirs) and not keys.is_training_only(theirs)
    for key in [*structural, f"{layers}.{spatial}.block_2.attn_mask"]:
        assert keys.is_structural(key) and keys.is_structural(HEAD + key) and keys.is_known(key)
    for key in training:
        assert keys.is_training_only(HEAD + key) and keys.is_known(key) and not keys.is_structural(key)
    assert not keys.is_known("transformer.extra.weight") and not keys.is_known(f"{layers}.extra")
    for ending in ("pad_token", "pad_guidance"):
        assert keys.tensor_to_theirs(f"head.layers.0.classes.{ending}", torch.zeros(3)).shape == (1, 1, 3)
        assert keys.tensor_to_ours(f"head.layers.0.classes.{ending}", torch.zeros(1, 1, 3)).shape == (3,)
    assert keys.tensor_to_ours("clip.proj", torch.zeros(1, 1, 3)).shape == (1, 1, 3)


def test_of_declip_s_towers_only_the_keys_that_are_there_are_known():
    assert DECLIP_KEYS.to_ours("clip_model.visual.extra.weight") is None
    fused = "clip_model.text.transformer.resblocks.0.attn.in_proj_weight"
    assert len(DECLIP_KEYS.parts(HEAD + fused)) == 3 and DECLIP_KEYS.is_known(fused)
