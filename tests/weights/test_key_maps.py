"""Keys of the released code translate both ways."""

import pytest
import torch
from tiny import tiny_model

from fgaseg.errors import CheckpointError
from fgaseg.weights import RELEASED_KEYS, KeyMap


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
