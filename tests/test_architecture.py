"""An architecture has known keys and sizes that towers can have, or one line says where it has not."""

import copy
import re

import pytest

from fgaseg.config import architecture, load_config
from fgaseg.config.architecture import check_architecture
from fgaseg.errors import ConfigError

BASE = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 2, "layers": 1},
}
VISION, TEXT = "vision_cfg.", "text_cfg."


def described(**values) -> dict:
    """The base with other values, of dotted keys."""
    found = copy.deepcopy(BASE)
    for key, value in values.items():
        *sections, name = key.split(".")
        part = found
        for section in sections:
            part = part.setdefault(section, {})
        part[name] = value
    return found


def refused(**values) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        check_architecture(described(**values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# key -> the least and the largest value; and what else must be so that it is right
BOUNDS = {
    "embed_dim": (1, 16384, {}),
    "vision_cfg.width": (1, 16384, {VISION + "head_width": 1}),
    "vision_cfg.layers": (1, 256, {}),
    "vision_cfg.head_width": (1, 1024, {VISION + "width": 1024}),
    "vision_cfg.attn_pooler_queries": (1, 16384, {}),
    "vision_cfg.attn_pooler_heads": (1, 1024, {}),
    "vision_cfg.image_size": (32, 4096, {VISION + "patch_size": 32}),
    "vision_cfg.patch_size": (1, 4096, {VISION + "image_size": [4096, 4]}),
    "text_cfg.width": (1, 16384, {TEXT + "heads": 1}),
    "text_cfg.layers": (1, 256, {}),
    "text_cfg.heads": (1, 1024, {TEXT + "width": 1024}),
    "text_cfg.context_length": (1, 2048, {}),
    "text_cfg.vocab_size": (1, 2_097_152, {}),
    "text_cfg.pad_id": (0, 2_097_152, {}),
    "text_cfg.eos_id": (0, 2_097_152, {}),
}


@pytest.mark.parametrize("key", BOUNDS)
def test_whole_numbers_have_bounds_and_are_nothing_else(key):
    least, largest, others = BOUNDS[key]
    sides = key.endswith("_size") and "vocab" not in key
    largest_here = 4 if key.endswith("patch_size") else largest
    for value in (least, largest_here):
        whole = described(**others, **{key: value})
        assert check_architecture(whole) is whole
    for value in (least - 1, largest + 1, str(largest_here), True, float(largest_here), None):
        if sides and value is None:
            continue  # of a tower of timm
        assert refused(**others, **{key: value}).startswith((key, key.rpartition(".")[0]))


@pytest.mark.parametrize(
    "key, right, wrong",
    [
        (VISION + "mlp_ratio", [0.1, 1, 64], [0, -1, 64.1, "4", True, float("nan")]),
        (VISION + "patch_dropout", [0, 0.5, 1], [-0.1, 1.1, "0", True]),
        (VISION + "ls_init_value", [-1, 0.5, 1e6, None], ["1", True, float("inf"), float("nan")]),
        (VISION + "norm_kwargs", [{"eps": 1e-9}, {"eps": 1}, {}, None], [{"eps": 0}, {"eps": 1.1}, {"eps": "1"}]),
        (VISION + "act_kwargs", [{"approximate": "tanh"}], [{"e": 1}]),
        (VISION + "no_ln_pre", [True, False], [0, 1, "true", None]),
        (VISION + "attentional_pool", [True, "parallel"], [1, "serial"]),
        (VISION + "timm_model_name", ["a" * 100, "vit_b.openai", None], ["a" * 101, "a/b", "a:b", "a.b.c", "", 3]),
        (VISION + "timm_model_pretrained", [False], [True]),
        (TEXT + "hf_tokenizer_name", ["a" * 1000, None], ["a" * 1001, 3]),
        (TEXT + "tokenizer_kwargs", [{"clean": "lower", "strip_sep_token": True}], [{"bpe_path": "x"}, {"clean": "x"}]),
        ("init_logit_scale", [-3, 2.6], ["2", None, True]),
        ("quick_gelu", [True], [1, None]),
        ("multimodal_cfg", [], [{}]),
    ],
)  # fmt: skip
def test_other_values(key, right, wrong):
    for value in right:
        check_architecture(described(**{key: value}))
    for value in wrong:
        assert key.rpartition(".")[2] in refused(**{key: value})


IMAGES = [
    # image, patch -> how many patches
    (32, 32, 1), (32, 33, 0), ([64, 32], 32, 2), ([32, 64], [32, 16], 4), ([64, 64], [64, 8], 8),
    ([64, 64], [8, 64], 8), ([64, 64], [65, 8], 0), ([64, 64], [8, 65], 0), (4096, 32, 16384),
    ([4060, 3164], 28, 16385), (4096, [1, 32], 524288), (32, [8], 16), ([32], 8, 16),
]  # fmt: skip


@pytest.mark.parametrize("image, patch, patches", IMAGES, ids=str)
def test_an_image_has_a_bearable_number_of_patches(image, patch, patches):
    size = {VISION + "image_size": image, VISION + "patch_size": patch}
    if 1 <= patches <= 16384:
        check_architecture(described(**size))
    else:
        words = f"vision_cfg.image_size: must hold 1 to 16384 patches of {patch} pixels; got {image}"
        assert refused(**size) == words
    check_architecture(described(**size, **{VISION + "timm_model_name": "vit"}))  # whose sizes are timm's


@pytest.mark.parametrize("sides", [[], [8, 8, 8], [8, 0], [8, 4097], [8, "8"], "8", [8, True], 8.0], ids=str)
def test_sides_are_one_number_of_pixels_or_two(sides):
    for key in ("image_size", "patch_size"):
        words = f"vision_cfg.{key}: must be a number of pixels, 1 to 4096, or two of them; got {sides!r}"
        assert words in refused(**{VISION + key: sides})


def test_heads_divide_widths_and_a_patch_is_needed():
    assert refused(**{VISION + "head_width": 48}) == "vision_cfg.head_width: must divide width (64); got 48"
    assert refused(**{TEXT + "heads": 5}) == "text_cfg.heads: must divide width (64); got 5"
    assert refused(**{VISION + "patch_size": None}) == "vision_cfg.patch_size: a number of pixels is needed; got null"
    timm = {VISION + "timm_model_name": "vit", VISION + "head_width": 48, VISION + "patch_size": None}
    check_architecture(described(**timm))


def test_what_is_left_out_is_as_open_clip_has_it():
    """What must fit together is checked with the sizes that the tower will have."""
    model = pytest.importorskip("open_clip.model")
    sections = architecture._Architecture.model_fields
    for name, theirs in (("vision_cfg", model.CLIPVisionCfg), ("text_cfg", model.CLIPTextCfg)):
        known = {key: field.default for key, field in theirs.__dataclass_fields__.items()}
        ours = sections[name].annotation.model_fields
        assert len(ours) > 25
        assert {key: field.default for key, field in ours.items() if key in known and known[key] != field.default} == {}


def test_the_configuration_names_the_key():
    words = re.escape("model.encoder.architecture.vision_cfg.head_width: must divide width (64); got 48")
    with pytest.raises(ConfigError, match=words):
        load_config(**{"model.encoder.architecture": described(**{VISION + "head_width": 48})})
