"""What a conversion says: keys, what was assumed, and what the released code would do otherwise."""

import pytest
import torch
from pi_seg import pi_seg_names
from tiny import tiny_model

from fgaseg import FGASeg, ModelConfig
from fgaseg.errors import CheckpointError
from fgaseg.weights import ConversionReport, read_released, to_released
from fgaseg.weights.released import shift_masks

CATSEG = {"p2t_layers": 0, "t2p": False, "lcs": False}
HEAD = "sem_seg_head.predictor."


def released(**switches):
    model = tiny_model(**{"preset": "released", **switches})
    return to_released(model.state_dict(), model.config, quick_gelu=True)


def test_a_report_as_text():
    keys = ["a.0.w", "a.1.w", "b.w"]
    groups = {
        "ignored": ["m.0.x"],
        "training_only": ["t"],
        "foreign": keys,
        "absent": ["n"],
        "computed": ["c.0.w", "c.1.w"],
    }
    switches = {"assumed": {"top_k": 16, "template": "a {}"}, "different": {"pad_classes": 0}}
    whole = ConversionReport("FGAseg", "fast cat", "ViT-B-16", 3, keys, **groups, **switches)
    assert whole.lines() == [
        "FGAseg, fast cat, ViT-B-16, K = 3: 3 keys mapped",
        "1 keys ignored (structural): m.0.x",
        "1 keys left out (only training uses them): t",
        "3 keys left over (not FGAseg's): a.#.w (2), b.w",
        "1 keys not in the file, initial value kept: n",
        "2 keys computed (structural): c.#.w (2)",
        'assumed, as in the code of FGAseg: top_k=16, template="a {}"',
        "WARNING: the released code does not compute these switches: pad_classes=0",
    ]
    assert ConversionReport("CAT-Seg", "no_fast", "mine", None, []).lines() == [
        "CAT-Seg, no_fast, mine, no LCS: 0 keys mapped"
    ]


ALWAYS = {"template": "A photo of a {} in the scene", "first_synonym": True, "inference": "windows", "heads": 4}
CLASSES = {"class_cap": 256, "pad_classes": 256}
ENCODER = {"encoder.finetune": "attention", "encoder.quick_gelu": True, "encoder.head_width": 64}
P2T = {"p2t_heads": 8, "p2t_value_positions": False}
FAST = {"top_k": 16, "topk_union": "batch", "released_fast_scores": True}
NO_MASK = {"window": 12, "image_size": 192}


@pytest.mark.parametrize(
    "switches, words, assumed",
    [
        ({}, [], ALWAYS | CLASSES | ENCODER | P2T | {"t2p_text": "aligned", "kernel_norm": "taps"} | NO_MASK),
        (CATSEG, [], ALWAYS | CLASSES | ENCODER | NO_MASK),
        (CATSEG | {"fast": True, "window": 12, "image_size": 192}, [], ALWAYS | CLASSES | ENCODER | FAST),
        (CATSEG | {"pad_classes": 0, "class_cap": None}, [], ALWAYS | ENCODER | NO_MASK),
        (CATSEG, ["heads=2", "image_size=96", "encoder.finetune=full"], ALWAYS | CLASSES | ENCODER | NO_MASK),
    ],
    ids=["FGAseg", "CAT-Seg", "with masks", "without padding", "with overrides"],
)
def test_what_keys_do_not_show_is_assumed(switches, words, assumed):
    weights, _ = released(**{"window": 2, **switches})
    if "window" not in switches:
        weights = {key: value for key, value in weights.items() if "attn_mask" not in key}
    read = read_released(weights, *words)
    found = read.load_into(FGASeg(read.config)).assumed
    overridden = {word.partition("=")[0] for word in words}
    expected = {key: value for key, value in assumed.items() if key not in overridden - {"image_size"}}
    if "image_size=96" in words:
        expected["image_size"] = 96
    assert {key: found[key] for key in sorted(found)} == {key: expected[key] for key in sorted(expected)}


@pytest.mark.parametrize("part", [{"p2t_layers": 1}, {"t2p": True}, {"lcs": True}], ids=str)
def test_a_model_with_any_part_of_fgaseg_is_one(part):
    assert released(**CATSEG | part)[1].kind == "FGAseg"
    _, report = released(**CATSEG)
    assert (report.kind, report.mode, report.kernel_size, report.encoder) == ("CAT-Seg", "no_fast", None, "tiny")


@pytest.mark.parametrize(
    "switches, different",
    [
        ({}, {}),
        ({"kernel_size": 5}, {}),  # the T2P branch keeps its own
        ({"t2p_kernel_size": 5}, {"t2p_kernel_size": 5}),
        ({"t2p": False, "t2p_kernel_size": 5}, {}),
        ({"kernel_norm": "cosine", "class_cap": None}, {"kernel_norm": "cosine", "class_cap": None}),
        ({"fast": True, "loss": {"aux_heads": 2}}, {"loss.aux_heads": 2}),
        ({"loss": {"aux_heads": 2}, "gamma": 0.5}, {}),
    ],
    ids=str,
)
def test_switches_that_the_released_code_does_not_have(switches, different):
    assert released(**switches)[1].different == different


def test_the_paper_s_switches_and_another_gelu():
    model = tiny_model(kernel_size=5)
    _, report = to_released(model.state_dict(), model.config, quick_gelu=False)
    assert report.different["t2p_kernel_size"] == 5 and report.different["encoder.quick_gelu"] is False
    assert report.different["inference"] == "whole" and "preset" not in report.different


def test_shift_masks_are_there_where_windows_shift():
    size = {"image_size": 96, "window": 6}  # a grid of 12 by 12 patches of 8
    masks = shift_masks(ModelConfig(preset="released", image_size=96, window=6, aggregation_layers=3), 8)
    assert list(masks) == [f"{HEAD}transformer.layers.{n}.swin_block.block_2.attn_mask" for n in range(3)]
    assert all(mask.shape == (4, 36, 36) for mask in masks.values())
    assert released(**size)[1].computed == list(masks)[:2]
    for window in (12, 24, 5):  # one window, none, and windows that do not divide the grid
        assert shift_masks(ModelConfig(preset="released", image_size=96, window=window), 8) == {}


def test_keys_of_no_project_are_refused_before_a_model_is_built_and_left_aside_when_asked():
    weights, _ = released(**CATSEG)
    strange = {HEAD + "transformer.extra.weight": torch.zeros(1)}
    read = read_released(weights | strange)
    shapes = {key: tuple(value.shape) for key, value in FGASeg(read.config).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1 unknown to CAT-Seg: .*transformer\.extra\.weight$"):
        read.check_shapes(shapes)
    read.check_shapes(shapes, allow_foreign=True)
    pi = read_released(pi_seg_names(weights))
    assert pi.load_into(FGASeg(pi.config)).kind == "Pi-Seg"
