"""A warm start takes what a file has, and leaves the rest of the model as it was initialised."""

import re

import pytest
import torch
from declip import narrow_weights, register_narrow
from tiny import ARCHITECTURE, tiny_model

from fgaseg import FGASeg
from fgaseg.errors import CheckpointError
from fgaseg.weights import WarmStartReport, read_released, read_weights, to_released, warm_start, write_weights

CATSEG = {"preset": "released", "p2t_layers": 0, "t2p": False, "lcs": False}


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture
def catseg(tmp_path):
    """A made-up CAT-Seg checkpoint of the tiny model, and its weights under our keys."""
    model = tiny_model(seed=7, **CATSEG)
    weights, _ = to_released(model.state_dict(), model.config, quick_gelu=False)
    write_weights(tmp_path / "catseg.safetensors", weights)
    return tmp_path / "catseg.safetensors", state(model)


def test_catseg_weights_are_taken_and_added_parts_stay_as_they_were(catseg):
    source, given = catseg
    model = tiny_model(seed=1)
    before = state(model)
    with pytest.warns(UserWarning, match="does otherwise.*model.encoder.quick_gelu=true"):
        report = warm_start(model, source, encoder={"quick_gelu": False, "dense": "value"})
    after = model.state_dict()
    assert all(torch.equal(after[key], given[key]) for key in report.loaded)
    assert all(torch.equal(after[key], before[key]) for key in report.fresh)
    assert {*report.loaded, *report.fresh} == {*after} and any(key.startswith("head.lcs.") for key in report.fresh)
    assert sum("padding_tokens" in key for key in report.skipped) == 2  # this model has no pad tokens
    taken, fresh, aside = report.lines("x.pth")
    assert taken.startswith(f"x.pth: {len(report.loaded)} weights taken from it") and "start fresh" in fresh
    assert "left aside" in aside and "attn_mask" in aside


def test_a_saved_model_is_taken_whole_and_without_a_warning(tmp_path, recwarn):
    saved = tiny_model(seed=3)
    saved.save_pretrained(tmp_path)
    model = tiny_model(seed=1)
    report = warm_start(model, tmp_path, encoder={"quick_gelu": False})
    assert not report.fresh and not report.skipped and not recwarn.list
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in saved.state_dict().items())


@pytest.mark.parametrize(
    "saved, words",
    [
        ({"dense": "qq"}, 'model.encoder.dense="qq"'),
        ({"mean": (0.5, 0.5, 0.5)}, "model.encoder.mean=[0.5, 0.5, 0.5]"),
        ({"architecture": {**ARCHITECTURE, "quick_gelu": True}}, "model.encoder.quick_gelu=true"),
    ],
)
def test_weights_of_an_encoder_that_does_otherwise_are_warned_of(tmp_path, saved, words):
    tiny_model(encoder=saved).save_pretrained(tmp_path)
    model = tiny_model(seed=1)
    encoder = model.encoder
    traits = {"quick_gelu": False, "dense": encoder.dense, "mean": list(encoder.mean), "std": list(encoder.std)}
    with pytest.warns(UserWarning, match=re.escape(f"set {words}") + "$"):
        warm_start(model, tmp_path, encoder=traits)


@pytest.mark.parametrize("change, words", [("remove", "missing from the file: head.decoder.head"),
                                           ("add", "not in the model: other.weight"),
                                           ("shape", "another shape: head.decoder.head")])  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_changed(catseg, change, words):
    source, _ = catseg
    weights = read_weights(source)
    key = next(key for key in weights if key.endswith("transformer.head.weight"))
    if change == "remove":
        del weights[key]
    elif change == "add":
        weights["other.weight"] = torch.zeros(1)
    else:
        weights[key] = weights[key][:, :1]
    write_weights(source, weights)
    model = tiny_model(seed=1)
    before = state(model)
    with pytest.raises(CheckpointError, match=words):
        warm_start(model, source, encoder={"quick_gelu": True})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_report_as_text():
    report = WarmStartReport(
        ["clip.visual.proj", "head.layers.0.w", "head.layers.1.w"], ["head.p2t.layers.0.w"], ["a.3"]
    )
    assert report.lines("x") == [
        "x: 3 weights taken from it: clip.visual, head.layers",
        "x: 1 weights not in it, start fresh: head.p2t.layers",
        "x: 1 weights of it left aside: a.#",
    ]
    short = WarmStartReport(["a.b.c.d"], ["a.b.c.d"], []).lines("x")
    assert [line.rpartition(": ")[2] for line in short] == ["a.b", "a.b.c"]


def test_pad_tokens_are_taken_where_the_model_has_them(catseg):
    source, given = catseg
    model = tiny_model(seed=1, preset="released")
    report = warm_start(model, source, encoder={"quick_gelu": True, "dense": "value"})
    pads = [key for key in model.state_dict() if key.endswith(("pad_token", "pad_guidance"))]
    assert len(pads) == 4 and set(pads) <= set(report.loaded) and not any("padding" in key for key in report.skipped)
    assert all(torch.equal(model.state_dict()[key], given[key]) for key in pads)


def test_a_file_of_a_saved_model_says_nothing_of_its_encoder(tmp_path, recwarn):
    tiny_model(encoder={"dense": "qq"}).save_pretrained(tmp_path)
    warm_start(tiny_model(), tmp_path / "model.safetensors", encoder={"quick_gelu": True, "dense": "value"})
    assert not recwarn.list


def test_declip_reads_its_tower_by_csa(tmp_path, monkeypatch):
    register_narrow(monkeypatch)
    write_weights(tmp_path / "x.safetensors", narrow_weights())
    model = FGASeg(read_released(tmp_path / "x.safetensors").config)
    with pytest.warns(UserWarning, match='does otherwise than this configuration\'s; set model.encoder.dense="csa"$'):
        report = warm_start(model, tmp_path / "x.safetensors", encoder={"quick_gelu": False, "dense": "value"})
    assert len(report.loaded) == len(model.state_dict()) and not report.fresh
