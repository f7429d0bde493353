"""What keys and shapes of a checkpoint say of its model: made-up shapes, as the public code registers them."""

import pytest
import torch
from checkpoint_shapes import HEAD, aggregator, clip

from fgaseg.errors import CheckpointError
from fgaseg.weights.key_maps import DECLIP_KEYS
from fgaseg.weights.released_config import infer_config

BASE = (768, 12, 16, 197, 512)  # width, blocks, patch, rows of the positional table, channels
LCS, T2P = f"{HEAD}transformer.Local_align.txt.weight", f"{HEAD}proj.txt.weight"
MASKS = [f"{HEAD}transformer.layers.{n}.swin_block.block_2.attn_mask" for n in (0, 1)]


def config_of(size=BASE, without=(), **more):
    """The configuration of a CAT-Seg checkpoint of a size, less the keys with these words, and with other shapes."""
    width, *_, channels = size
    # tables that are no shift masks come first: CLIP's attention mask, and detectron2's means
    shapes = {f"{HEAD}clip_model.attn_mask": [77, 77], "pixel_mean": [3, 1, 1]}
    shapes |= {key: shape for key, shape in (aggregator(width, channels) | clip(*size)).items()
               if not any(word in key for word in without)} | more  # fmt: skip
    return infer_config({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, "x.pth")


def vision(size, layers, width, patch, head_width=64):
    return {"image_size": size, "layers": layers, "width": width, "patch_size": patch, "head_width": head_width}


def text(width, heads):
    return {"context_length": 77, "vocab_size": 49408, "width": width, "heads": heads, "layers": 12}


@pytest.mark.parametrize(
    "size, name, image, towers",
    [
        (BASE, "ViT-B-16", 384, (512, vision(224, 12, 768, 16), text(512, 8))),
        ((1024, 24, 14, 577, 768), "ViT-L-14", 336, (768, vision(336, 24, 1024, 14), text(768, 12))),
        ((1280, 32, 14, 257, 1024), "ViT-H-14", 336, (1024, vision(224, 32, 1280, 14), text(1024, 16))),
        ((32, 3, 8, 5, 48), "ViT-3x32-8", 192, (48, vision(16, 3, 32, 8, 32), text(48, 1))),
    ],
    ids=["B", "L", "H", "narrow"],
)
def test_encoders(size, name, image, towers):
    config = config_of(size)
    channels, vision_cfg, text_cfg = towers
    assert (config.encoder.name, config.image_size, config.encoder.finetune) == (name, image, "attention")
    found = config.encoder.architecture
    assert found == {"embed_dim": channels, "quick_gelu": True, "vision_cfg": vision_cfg, "text_cfg": text_cfg}


PLAIN = {"p2t_layers": 0, "t2p": False, "lcs": False, "fast": False, "hidden": 128, "aggregation_layers": 2,
         "guidance_channels": (256, 128), "guidance_hidden": (32, 16), "decoder_channels": (64, 32),
         "class_cap": 256, "pad_classes": 256, "window": 12, "image_size": 384}  # fmt: skip
VARIANTS = {
    "as published": ({}, {}),
    "windows of 8": ({key: [9, 64, 64] for key in MASKS}, {"window": 8, "image_size": 384}),
    "windows of 7, two a side": ({key: [4, 49, 49] for key in MASKS}, {"window": 7, "image_size": 224}),
    "no masks": ({"without": ("attn_mask",)}, {}),
    "no padding": ({"without": ("padding",)}, {"pad_classes": 0, "class_cap": None}),
    "LCS, added": ({LCS: [512 * 25 + 1, 512]}, {"lcs": True, "kernel_size": 5, "fusion": "add"}),
    "LCS of one tap": ({LCS: [512 + 1, 512]}, {"lcs": True, "kernel_size": 1}),
    "LCS, concatenated": (
        {LCS: [512 * 9 + 1, 512], f"{HEAD}transformer.conv_cat.weight": [128, 256]},
        {"lcs": True, "kernel_size": 3, "fusion": "cat"},
    ),
    "T2P": ({T2P: [256 * 49 + 1, 512]}, {"t2p": True, "t2p_kernel_size": 7}),
    "P2T": (
        {f"{HEAD}DCDT.cross_atten_text.{n}.multihead_attn.in_proj_weight": [1536, 512] for n in (0, 1, 11)},
        {"p2t_layers": 12},
    ),
    "fast": ({f"{HEAD}transformer.head_auxi_{n}.weight": [1, 128, 3, 3] for n in (0, 1)}, {"fast": True, "top_k": 16}),
}


@pytest.mark.parametrize("shapes, fields", VARIANTS.values(), ids=VARIANTS)
def test_switches_and_widths(shapes, fields):
    config = config_of(**shapes)
    assert config.preset == "released"
    assert {name: getattr(config, name) for name in PLAIN | fields} == PLAIN | fields
    assert config.loss.aux_heads == (2 if config.fast else 3)


def test_a_key_that_was_not_read_is_no_switch_that_was_set():
    assert (
        "window" in config_of().model_fields_set and "window" not in config_of(without=("attn_mask",)).model_fields_set
    )
    prompts = config_of(**{f"{HEAD}clip_model.visual.transformer.prompt_tokens": [12, 5, 768]}).encoder
    assert (prompts.finetune, prompts.prompt_tokens) == ("prompt", 5)


WRONG = {
    "LCS of an even K": ({LCS: [512 * 4 + 1, 512]}, r"transformer.Local_align.txt.weight \[2049, 512\]: its rows, less "
                         "the bias's one, must be 512 channels times an odd number squared"),
    "LCS of no square": ({LCS: [512 * 3 + 1, 512]}, "512 channels times an odd"),
    "LCS of the bias alone": ({LCS: [1, 512]}, "512 channels times an odd"),
    "LCS without rows": ({LCS: [0, 512]}, "512 channels times an odd"),
    "T2P of all channels": ({T2P: [512 * 2 + 1, 512]}, "proj.txt.weight .* 256 channels times an odd"),
    "positions": ({f"{HEAD}clip_model.visual.positional_embedding": [196, 768]},
                  "clip_model.visual.positional_embedding: 195 rows besides the class token's are not a square grid"),
    "dimensions": ({f"{HEAD}clip_model.visual.proj": [768]}, r"visual.proj \[768\]: 2 dimensions are needed"),
    "absence": ({"without": ("transformer.conv1.weight",)},
                r"has no transformer.conv1.weight \(with or without sem_seg_head.predictor.\)"),
}  # fmt: skip


@pytest.mark.parametrize("shapes, words", WRONG.values(), ids=WRONG)
def test_shapes_that_cannot_be(shapes, words):
    with pytest.raises(CheckpointError, match=f"^x.pth: .*{words}"):
        config_of(**shapes)


def eva_config(width, blocks, patch, rows, channels):
    """The configuration of a CAT-Seg on an EVA-02, of the keys that tell it."""
    visual = f"{HEAD}clip_model.visual."
    shapes = {
        f"{visual}patch_embed.proj.weight": [width, 3, patch, patch],
        f"{visual}pos_embed": [1, rows, width],
        f"{visual}head.weight": [channels, width],
        f"{visual}head.bias": [channels],
        **aggregator(width, channels),
    }
    shapes |= {f"{visual}blocks.{n}.norm1.weight": [width] for n in range(blocks)}
    return infer_config({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, "x.pth", DECLIP_KEYS)


@pytest.mark.parametrize(
    "size, name, image",
    [((768, 12, 16, 197, 512), "EVA02-B-16", 384), ((1024, 24, 14, 577, 768), "EVA02-L-14-336", 336)],
    ids=["B", "L"],
)
def test_towers_of_eva(size, name, image):
    config = eva_config(*size)
    encoder = config.encoder
    assert (encoder.name, encoder.pretrained, encoder.dense, encoder.architecture) == (name, None, "csa", None)
    assert (config.image_size, config.window, config.pad_classes) == (image, 12, 256)
    width, blocks, patch, rows, channels = size
    words = f"an EVA-02 of width {width}, {blocks} blocks, patches of {patch} and {rows + 1} positions is none of EVA02"
    with pytest.raises(CheckpointError, match=f"^x.pth: {words}"):
        eva_config(width, blocks, patch, rows + 1, channels)
