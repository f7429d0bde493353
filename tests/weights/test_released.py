"""Checkpoints of the released code and of CAT-Seg, there and back."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import SHARED
from tiny import NAMES, pixels, tiny_model

from fgaseg import FGASeg, ModelConfig
from fgaseg.cli import main
from fgaseg.errors import CheckpointError, ConfigError
from fgaseg.inference.prediction import sliding_scores
from fgaseg.kernels.window_attention.reference import window_mask
from fgaseg.weights import ConversionReport, read_released, to_released, write_weights
from fgaseg.weights.released import shift_masks
from fgaseg.weights.released_config import infer_config

PARITY = SHARED / "parity"
recorded = pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recordings of the released code at {PARITY}")

PREFIX = "sem_seg_head.predictor."
MODES = {
    "fast cat": (True, "cat"),
    "fast add": (True, "add"),
    "no_fast cat": (False, "cat"),
    "no_fast add": (False, "add"),
}
FGASEG_PARTS = r"DCDT|proj\.|transformer\.(conv2|conv_cat|corr_local|Local_align|head_auxi)"  # CAT-Seg has none


def small(patch: int = 16, **switches) -> FGASeg:
    """A released model with narrow encoders (patch 16 as ViT-B, 14 as ViT-L), all weights and buffers set."""
    architecture = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 2 * patch, "layers": 3, "width": 64, "patch_size": patch, "head_width": 64},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    encoder = {"name": f"ViT-3x64-{patch}", "architecture": architecture, **switches.pop("encoder", {})}
    model = FGASeg(ModelConfig(preset="released", encoder=encoder, image_size=24 * patch, **switches)).eval()
    torch.manual_seed(patch)
    for value in model.state_dict().values():
        value.copy_(torch.rand_like(value) + 0.5 if value.is_floating_point() else torch.tensor(7))
    return model


def written(model: FGASeg) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    quick_gelu = bool(model.architecture.get("quick_gelu"))
    return to_released(model.state_dict(), model.config, quick_gelu=quick_gelu)


def read(source, overrides=(), allow_foreign=False) -> tuple[FGASeg, ConversionReport]:
    checkpoint = read_released(source, *overrides)
    model = FGASeg(checkpoint.config).eval()
    return model, checkpoint.load_into(model, allow_foreign)


def torch_file(path: Path, data) -> Path:
    torch.save(data, path)
    return path


def keys(mode: str) -> dict[str, torch.Tensor]:
    """Every key of a released model as a meta tensor of its shape."""
    rows = (line.split("\t") for line in (PARITY / f"state_dict_keys_{mode}.txt").read_text().splitlines()[1:])
    return {row[0]: torch.empty([int(n) for n in re.findall(r"\d+", row[1])], device="meta") for row in rows}


def without_prefix(weights):
    return {key.removeprefix(PREFIX): value for key, value in weights.items()}


def same(a: FGASeg, b: FGASeg) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("patch", [16, 14])
@pytest.mark.parametrize("fast, fusion", MODES.values(), ids=MODES)
def test_there_and_back_is_bit_for_bit(fast, fusion, patch):
    model = small(patch, fast=fast, fusion=fusion)
    weights, there = written(model)
    assert not there.different and len(there.mapped) == len(model.state_dict())
    again, back = read(weights)
    same(model, again)
    assert back.mode == f"{'fast' if fast else 'no_fast'} {fusion}" and not (back.foreign or back.absent)
    assert again.config.dump() == {**model.config.dump(), "encoder": again.config.encoder.dump()}
    assert again.architecture == model.architecture
    once_more, _ = written(again)
    assert all(torch.equal(once_more[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    "switches",
    [{"kernel_size": 7}, {"p2t_layers": 0}, {"p2t_layers": 4}, {"t2p": False}, {"lcs": False}, {"pad_classes": 0,
     "class_cap": None}, {"aggregation_layers": 1}, {"hidden": 64, "decoder_channels": (48, 32)},
     {"guidance_channels": (32, 48), "guidance_hidden": (16, 24)}, {"window": 8},
     {"encoder": {"finetune": "prompt", "prompt_tokens": 5}}],
    ids=str,
)  # fmt: skip
def test_what_keys_tell_is_read_off(switches):
    model = small(**switches)
    again = FGASeg.from_released(written(model)[0])
    same(model, again)
    for name in {*switches} - {"encoder"}:
        assert getattr(again.config, name) == getattr(model.config, name)
    assert again.config.encoder.finetune == model.config.encoder.finetune


@recorded
@pytest.mark.parametrize("mode", ["no_fast_cat", "no_fast_add", "fast_cat", "fast_add", "L_no_fast_cat"])
def test_full_size_keys_and_shapes(mode):
    theirs = keys(mode)
    config = infer_config(without_prefix(theirs))
    size = "ViT-L-14" if mode.startswith("L") else "ViT-B-16"
    assert (config.encoder.name, config.image_size) == (size, 336 if mode.startswith("L") else 384)
    assert (config.fast, config.fusion) == (not mode.removeprefix("L_").startswith("no"), mode[-3:])
    with torch.device("meta"):
        ours, report = written(FGASeg(config))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert len(report.computed) == 2


@recorded
@pytest.mark.parametrize("mode", ["no_fast_cat", "L_no_fast_cat"])
def test_catseg_keys_and_shapes(mode):
    theirs = {key: v for key, v in keys(mode).items() if not re.match(FGASEG_PARTS, key.removeprefix(PREFIX))}
    config = infer_config(without_prefix(theirs))
    assert (config.p2t_layers, config.t2p, config.lcs, config.fast) == (0, False, False, False)
    assert (config.pad_classes, config.class_cap) == (256, 256)
    with torch.device("meta"):
        ours, report = written(FGASeg(config))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert report.kind == "CAT-Seg" and not report.different


def test_catseg_checkpoint_loads_and_runs():
    whole = written(small())[0]
    catseg = {key: v for key, v in whole.items() if not re.match(FGASEG_PARTS, key.removeprefix(PREFIX))}
    model, report = read({"model": catseg, "iteration": 3})
    assert report.kind == "CAT-Seg" and report.kernel_size is None and "CAT-Seg" in report.lines()[0]
    out = model(pixels(1, 64, 64), model.encode(NAMES))
    assert out.lcs is None and out.logits.isfinite().all() and out.logits.std() > 0
    same(model, FGASeg.from_released(written(model)[0]))


def test_shift_masks_are_0_within_a_region_and_100_below_without():
    masks = shift_masks(ModelConfig(preset="released"), 16)
    mask = next(iter(masks.values()))
    assert mask.shape == (4, 144, 144) and set(mask.unique().tolist()) == {0, -100}
    # the first window is of one region; the last one of four, 6×6 tokens each
    assert (mask[0] == 0).all() and (mask[3] == 0).sum() == 4 * 36**2
    ours = window_mask((24, 24), 12, 6, torch.device("cpu"))
    assert torch.equal(mask, ours)


def test_every_container(tmp_path):
    model = small()
    weights, _ = written(model)
    bare = without_prefix(weights)
    as_numpy = {key: value.numpy() for key, value in weights.items()}
    nested = {"model": weights, "optimizer": {"state": {}, "lr": np.float64(0.1)}, "iteration": 3}
    sources = [
        weights,
        nested,
        as_numpy,
        torch_file(tmp_path / "flat.pth", bare),
        torch_file(tmp_path / "nested.pth", nested),
        torch_file(tmp_path / "head.pth", {"model": {f"sem_seg_head.{key}": value for key, value in bare.items()}}),
        torch_file(tmp_path / "numpy.pth", {"model": as_numpy, "best": np.float32(3)}),
        torch_file(tmp_path / "wrapped.pth", {f"module.{key}": value for key, value in weights.items()}),
    ]
    write_weights(tmp_path / "x.safetensors", weights)
    for source in [*sources, tmp_path / "x.safetensors"]:
        same(model, FGASeg.from_released(source))


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    for name, data in {
        "evil.pth": {"model": written(small())[0], "scheduler": Evil(tmp_path / "proof")},
        "objects.pth": {"model": {"a": np.array([1, "x"], dtype=object)}},
    }.items():
        with pytest.raises(CheckpointError, match=rf"{name}.*refused") as caught:
            FGASeg.from_released(torch_file(tmp_path / name, data))
        assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "proof").exists()


def broken(weights, change: str):
    weights = dict(weights)
    head = PREFIX + "transformer.head.weight"
    if change == "foreign":
        weights[PREFIX + "transformer.extra.weight"] = torch.zeros(1)
    if change == "missing":
        del weights[head]
    if change == "misshapen":
        weights[head] = weights[head][:, :16]
    if change == "twice":
        weights["transformer.head.weight"] = weights[head]
    if change == "even K":
        key = PREFIX + "transformer.Local_align.txt.weight"
        weights[key] = torch.zeros(64 * 16 + 1, 64)
    if change == "no encoder":
        weights = {key: value for key, value in weights.items() if "clip_model" not in key}
    if change == "a number":
        weights["iteration"] = 3
    return weights


MISFITS = {
    "foreign": r"1 unknown to .*: sem_seg_head\.predictor\.transformer\.extra\.weight",
    "missing": r"1 missing from .*: sem_seg_head\.predictor\.transformer\.head\.weight",
    "misshapen": r"1 of another shape: sem_seg_head.*transformer\.head\.weight \[1, 16, 3, 3\], not \[1, 32, 3, 3\]",
    "twice": "are the same weight",
    "even K": r"Local_align.*\[1025, 64\].*odd number squared",
    "no encoder": "it has no clip_model",
    "a number": "'iteration' is of type int",
}


@pytest.mark.parametrize("change, message", MISFITS.items(), ids=MISFITS)
def test_a_key_that_does_not_fit_is_named(change, message):
    weights, _ = written(small())
    with pytest.raises(CheckpointError, match="(?s)" + message):
        FGASeg.from_released(broken(weights, change))


def test_foreign_keys_are_left_aside_only_when_asked_and_then_listed():
    weights, _ = written(small())
    weights |= {"pixel_mean": torch.zeros(3, 1, 1), PREFIX + "transformer.extra.weight": torch.zeros(1)}
    model, report = read(weights, allow_foreign=True)
    same(model, small())
    assert report.foreign == [PREFIX + "transformer.extra.weight"] and "pixel_mean" in report.ignored
    assert sum("attn_mask" in key for key in report.ignored) == 2
    del weights[PREFIX + "transformer.head.bias"]
    with pytest.raises(CheckpointError, match=r"transformer\.head\.bias"):
        read(weights, allow_foreign=True)


def test_structural_keys_are_not_needed():
    weights, _ = written(small(fast=True))
    bare = {key: v for key, v in weights.items() if "attn_mask" not in key and "num_batches_tracked" not in key}
    model, report = read(bare)
    assert len(report.absent) == 2 and model.config.image_size == 384
    assert report.assumed["image_size"] == 384 and report.assumed["window"] == 12
    assert {"top_k", "class_cap", "kernel_norm", "template", "encoder.quick_gelu"} <= set(report.assumed)
    told = read(bare, ["top_k=2", "encoder.finetune=full"])
    assert told[0].config.top_k == 2 and told[0].config.encoder.finetune == "full"
    assert not {"top_k", "encoder.finetune"} & set(told[1].assumed)


def test_switches_win_and_are_checked():
    weights, _ = written(small(fast=True))
    model = FGASeg.from_released(weights, top_k=3, released_fast_scores=False, template=["a {}", "the {}"])
    assert (model.config.top_k, model.config.template) == (3, ("a {}", "the {}"))
    with pytest.raises(ConfigError, match="top_k"):
        FGASeg.from_released(weights, topk=3)
    with pytest.raises(CheckpointError, match=r"DCDT\.gamma_text"):
        FGASeg.from_released(weights, p2t_layers=0)
    with pytest.raises(CheckpointError, match="from_pretrained"):
        FGASeg.from_released(small().state_dict())


def test_what_the_released_code_would_compute_otherwise_is_said():
    _, report = written(tiny_model(fast=True))
    assert {"p2t_value_positions", "pad_classes", "template", "top_k", "loss.aux_heads"} <= set(report.different)
    assert any(line.startswith("WARNING") and "pad_classes=0" in line for line in report.lines())
    constant, _ = written(small(gamma=0.5, gamma_trainable=False))
    assert (constant[PREFIX + "DCDT.gamma_text"] == 0.5).all()
    with pytest.raises(CheckpointError, match="propagation"):
        written(tiny_model(propagation=False, lcs=False, t2p=False))


def test_the_command_converts_both_ways(tmp_path, capsys):
    model = small(14)
    source = str(torch_file(tmp_path / "x.pth", {"model": written(model)[0]}))
    folder, back = str(tmp_path / "model"), str(tmp_path / "back.pth")
    for _ in range(2):  # a model may be replaced
        assert main(["convert", source, "--out", folder]) == 0
    text = capsys.readouterr().out
    assert "FGAseg, no_fast cat, ViT-3x64-14, K = 3" in text and "assumed" in text and "attn_mask" in text
    same(model, FGASeg.from_pretrained(folder))
    assert main(["convert", folder, "--to-released", "--out", back, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["different"] == {}
    assert torch.load(back, weights_only=True).keys() == {"model"}
    same(model, FGASeg.from_released(back))
    assert main(["convert", back, "--out", str(tmp_path / "one"), "kernel_norm=channels"]) == 0
    assert FGASeg.from_pretrained(tmp_path / "one").config.kernel_norm == "channels"


def test_the_command_says_what_is_wrong_and_writes_nothing(tmp_path, capsys):
    weights, _ = written(small())
    bad = str(torch_file(tmp_path / "bad.pth", broken(weights, "foreign")))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    wrong = {
        "transformer.extra.weight": ["convert", bad, "--out", str(tmp_path / "out")],
        "thesis.txt": ["convert", bad, "--allow-foreign", "--out", str(mine)],
        "no such file or folder": ["convert", str(tmp_path / "no.pth"), "--out", str(tmp_path / "out")],
        "leave key=value": ["convert", bad, "--to-released", "--out", str(tmp_path / "out"), "top_k=3"],
    }
    for message, command in wrong.items():
        assert main(command) == 1
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth", "mine"] and (mine / "thesis.txt").exists()
    assert main(["convert", bad, "--allow-foreign", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["foreign"] == [PREFIX + "transformer.extra.weight"]


def test_released_scores_of_classes_that_the_cap_and_the_pruning_dropped():
    model = tiny_model(preset="released", fast=True, top_k=1, class_cap=4)
    with torch.no_grad():
        out = model(pixels(), model.encode(NAMES))
    best = out.gcs.flatten(2).amax(-1)[0]
    capped = out.logits[0].flatten(1).amax(-1) == -100
    assert capped.sum() == 1 and best[capped] == best.min()  # spec, section 3: filled with -100
    pruned = (out.logits[0] == 0).all(-1).all(-1)  # section 5: filled with 0
    assert not out.kept[0, capped | pruned].any() and out.kept[0, ~(capped | pruned)].all()


@torch.no_grad()
def test_windows_take_the_sigmoid_of_released_fast_scores_again():
    model = tiny_model(preset="released", fast=True, top_k=2)
    scores = sliding_scores(model, torch.rand(3, 48, 64) * 255, model.encode(NAMES))
    assert scores.min() >= 0.5 and scores.max() <= 1 / (1 + np.exp(-1))
