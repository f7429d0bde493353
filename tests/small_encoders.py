"""Small models of every family of encoders, built through open_clip's own classes, and a tokenizer made on the fly."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from timm.layers import LayerNorm
from timm.models import eva, is_model, register_model, vision_transformer, vision_transformer_hybrid
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

from fgaseg import EncoderConfig, FGASeg, ModelConfig
from fgaseg.model.encoders import OpenClipEncoder
from fgaseg.model.encoders.loading import split_projections
from fgaseg.model.encoders.open_clip_encoder import instantiate

CHANNELS, WIDTH, SIDE, PATCH = 24, 32, 32, 8
SIZES = {"image_size": 64, "hidden": 32, "guidance_channels": (16, 16), "guidance_hidden": (16, 8),
         "decoder_channels": (32, 16), "window": 4}  # fmt: skip
WORDS = ["a", "photo", "of", "cat", "dog", "red", "blue", "star", "ring", "wooden", "floor", "thing", "name", "much",
         "longer", "the", "others", "have", "class", "than"]  # fmt: skip
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]


def _vit(variant: str, **own: Any):
    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 4, "num_heads": 2}
        return vision_transformer._create_vision_transformer(variant, pretrained, **{**sizes, **own, **kwargs})

    return make


def _mci(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    stem = ConvStem(channels=(8, 8, WIDTH), stride=(2, 2, 2), kernel_size=(2, 2, 2), padding=0, act_layer=nn.GELU)
    own = {"embed_dim": WIDTH, "depth": 4, "num_heads": 2, "no_embed_class": True, "img_size": SIDE}
    return vision_transformer_hybrid._create_vision_transformer_hybrid(
        "vit_base_mci_224", backbone=stem, embed_args={"proj": False}, pretrained=pretrained, **{**own, **kwargs}
    )


def _eva(variant: str, **own: Any):
    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 4, "num_heads": 2}
        return eva._create_eva(variant, pretrained=pretrained, **{**sizes, **own, **kwargs})

    return make


PE = {"global_pool": "map", "attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True,
      "ref_feat_shape": (4, 4), "rope_grid_offset": 1.0, "rope_grid_indexing": "xy", "attn_pool_num_heads": 4,
      "attn_pool_mlp_ratio": 4.0, "norm_layer": lambda dim, **kw: LayerNorm(dim, eps=1e-5, **kw)}  # fmt: skip
TRUNKS = {
    "small_clip": _vit("vit_large_patch14_clip_224", pre_norm=True),
    "small_mci": _mci,
    "small_siglip": _vit("vit_base_patch16_siglip_224", class_token=False, global_pool="map", act_layer="gelu_tanh"),
    "small_eva01": _eva("eva_giant_patch14_224", mlp_ratio=3),
    "small_eva02": _eva(
        "eva02_base_patch16_clip_224",
        qkv_fused=False,
        mlp_ratio=8 / 3,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(3, 5),
    ),
    "small_eva02_e": _eva("eva02_enormous_patch14_clip_224", use_post_norm=True),
    "small_pe": _eva("vit_pe_core_base_patch16_224", **PE),
    "small_pe_g": _eva("vit_pe_core_gigantic_patch14_448", **{**PE, "class_token": False, "rope_grid_offset": 0.0}),
}
for name, function in TRUNKS.items():
    if not is_model(name):
        function.__name__, function.__module__ = name, vision_transformer.__name__
        register_model(function)

PLAIN_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
OWN_TEXT = {**PLAIN_TEXT, "vocab_size": len(WORDS) + len(SPECIAL)}
SIGLIP_TEXT = {**OWN_TEXT, "hf_tokenizer_name": "tokenizer", "tokenizer_kwargs": {"clean": "canonicalize"},
               "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
               "act_kwargs": {"approximate": "tanh"}}  # fmt: skip
CLIP_VISION = {"image_size": SIDE, "layers": 4, "width": WIDTH, "patch_size": PATCH, "head_width": 16}


def _timm(trunk: str, pool: str, proj: str | None = None) -> dict[str, Any]:
    return {"image_size": SIDE, "timm_model_name": trunk, "timm_pool": pool, "timm_proj": proj}


def _model(vision: dict[str, Any], text: dict[str, Any], channels: int = CHANNELS, **other: Any) -> dict[str, Any]:
    return {"embed_dim": channels, "vision_cfg": vision, "text_cfg": text, **other}


# every family, and what varies inside one
ENCODERS: dict[str, dict[str, Any]] = {
    "plain CLIP": _model(CLIP_VISION, PLAIN_TEXT, quick_gelu=True),
    "plain CLIP, layer scale": _model({**CLIP_VISION, "ls_init_value": 0.3}, {**PLAIN_TEXT, "ls_init_value": 0.4}),
    "plain CLIP, no ln_pre, norm eps": _model(
        {**CLIP_VISION, "no_ln_pre": True, "norm_kwargs": {"eps": 1e-3}}, PLAIN_TEXT
    ),
    "worldwide": _model(CLIP_VISION, {**OWN_TEXT, "hf_tokenizer_name": "tokenizer", "pool_type": "eos", "eos_id": 1}),
    "MobileCLIP2-L": _model(_timm("small_clip", "token"), {**PLAIN_TEXT, "no_causal_mask": True}, custom_text=True),
    "MobileCLIP2-B": _model(_timm("small_mci", "token"), PLAIN_TEXT, custom_text=True),
    "SigLIP": _model(_timm("small_siglip", "map", "none"), SIGLIP_TEXT, WIDTH, custom_text=True, init_logit_bias=-10),
    "SigLIP, no projection": _model(
        _timm("small_siglip", "map", "none"),
        {**SIGLIP_TEXT, "proj_bias": False, "proj_type": "none"},
        WIDTH,
        custom_text=True,
        init_logit_bias=-10,
    ),
    "EVA-01": _model(_timm("small_eva01", "token"), PLAIN_TEXT, custom_text=True),
    "EVA-02": _model(_timm("small_eva02", "token"), PLAIN_TEXT, custom_text=True),
    "EVA-02 E": _model(_timm("small_eva02_e", "token"), PLAIN_TEXT, custom_text=True),
    "PE-Core": _model(_timm("small_pe", "map"), PLAIN_TEXT, custom_text=True),
    "PE-Core bigG": _model(_timm("small_pe_g", "map"), PLAIN_TEXT, custom_text=True),
}


def make_tokenizer(folder: Path) -> Path:
    """A small tokenizer in Hugging Face's format: one word, one token, then the end of text and padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def fill(module: nn.Module, seed: int = 0) -> None:
    """Random values for every weight and statistic, so that none of them could be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                if value.ndim > 1:
                    value.copy_(noise / value[0].numel() ** 0.5 * 1.2)
                elif key.endswith("running_var"):
                    value.copy_(noise.abs() + 0.5)
                else:
                    value.add_(noise * 0.3)


def open_clip_model(family: str, seed: int = 0) -> Any:
    """open_clip's own model of a family, in evaluation mode, with random weights."""
    torch.manual_seed(seed)
    model = instantiate(deepcopy(ENCODERS[family]), family)
    fill(model, seed)
    return model.eval()


def encoder_section(family: str, tokenizer: Path, **switches: Any) -> dict[str, Any]:
    """The `encoder` section of a configuration: the family's small model, random weights, all of it training."""
    architecture = deepcopy(ENCODERS[family])
    if "hf_tokenizer_name" in architecture["text_cfg"]:
        architecture["text_cfg"]["hf_tokenizer_name"] = str(tokenizer)
    return {"name": family, "architecture": architecture, "finetune": "scratch", **switches}


def small_encoder(family: str, tokenizer: Path, weights: dict[str, Any] | None = None, **switches: Any) -> Any:
    """Our encoder of a family, in evaluation mode and float64, with random weights or open_clip's."""
    encoder = OpenClipEncoder(EncoderConfig(**encoder_section(family, tokenizer, **switches)))
    fill(encoder.module)
    if weights is not None:
        encoder.module.load_state_dict(split_projections(weights))
    encoder.module.double().eval()
    return encoder


def small_model(family: str, tokenizer: Path, encoder: dict[str, Any] | None = None, **switches: Any) -> FGASeg:
    """A model on a small encoder, in evaluation mode."""
    section = encoder_section(family, tokenizer, **(encoder or {}))
    torch.manual_seed(0)
    model = FGASeg(ModelConfig(encoder=section, **{**SIZES, **switches}))
    fill(model.clip)
    return model.eval()
