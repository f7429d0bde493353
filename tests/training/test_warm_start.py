"""Training that starts from the weights of a file."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from catseg import catseg_file, catseg_model
from runs import TINY_MODEL, configure, initial, weights

from fgaseg import FGASeg, ModelConfig
from fgaseg.errors import CheckpointError
from fgaseg.training import train
from fgaseg.weights import MODELS, to_released


def test_starting_from_weights(uninterrupted, data, tmp_path):
    out, _ = uninterrupted
    config = configure(data, tmp_path, [f"train.init={out / 'model'}", "train.steps=1", "train.lr=1e-12"])
    train(config, progress=False)
    before, after = weights(out), weights(tmp_path)
    kept = [key for key in before if "running" not in key and "num_batches" not in key]
    assert all(torch.allclose(after[key], before[key], atol=1e-6) for key in kept)
    config = config.override("model.p2t_layers=0", f"train.out={tmp_path / 'other'}")
    with pytest.raises(CheckpointError, match="not in the model") as caught:
        train(config, progress=False)
    assert str(out / "model") in str(caught.value)


def test_a_name_and_a_hub_id_are_fetched(hub, data, tmp_path, monkeypatch):
    published = catseg_model()
    given = published.state_dict()
    hub.add("spaces/hamacojr/CAT-Seg-weights", {"model_base.pth": catseg_file(published)})
    monkeypatch.setitem(MODELS, "cat-seg-b16", replace(MODELS["cat-seg-b16"], sha256=""))
    switches = ["train.steps=1", "train.eval_every=0", "train.lr=1e-12", "model.aggregation_layers=2"]
    switches += ["model.pad_classes=256", f"model.encoder.architecture={json.dumps(published.architecture)}"]
    for size in ("guidance_channels", "guidance_hidden", "decoder_channels"):
        switches.append(f"model.{size}={json.dumps(getattr(published.config, size))}")
    for name in ("cat-seg-b16", "spaces/hamacojr/CAT-Seg-weights/model_base.pth"):
        out = tmp_path / name.rpartition("/")[2]
        train(configure(data, out, [f"train.init={name}", *switches]), progress=False)
        got = weights(out)
        assert all(torch.allclose(value, given[key], atol=1e-6) for key, value in got.items()
                   if key in given and "running" not in key)  # fmt: skip
        assert json.loads((out / "model/config.json").read_text())["facts"]["training"]["recipe"]["init"] == out.name
    for name, words in (("cat-seg-b1", "did you mean cat-seg-b16"), ("clip-b16", "encoder alone")):
        with pytest.raises(CheckpointError, match=words):
            train(configure(data, tmp_path / "no", [f"train.init={name}", *switches]), progress=False)


def catseg(path):
    """Made-up weights in the shape that a CAT-Seg checkpoint of the tiny model has."""
    switches = {"preset": "released", "p2t_layers": 0, "t2p": False, "lcs": False, "class_cap": 256, "pad_classes": 256}
    torch.manual_seed(7)
    model = FGASeg(ModelConfig.model_validate({**TINY_MODEL, **switches}))
    theirs, _ = to_released(model.state_dict(), model.config, quick_gelu=False)
    torch.save({"model": {f"{key}": value for key, value in theirs.items()}, "iteration": 80000}, path)
    return model.state_dict()


def test_a_catseg_checkpoint_fills_what_it_has_and_the_rest_starts_fresh(data, tmp_path, caplog):
    given = catseg(tmp_path / "catseg.pth")
    config = configure(data, tmp_path / "out", [f"train.init={tmp_path / 'catseg.pth'}", "train.steps=1",
                                                "train.eval_every=0", "train.lr=1e-12"])  # fmt: skip
    caplog.set_level(logging.INFO, "fgaseg")
    with pytest.warns(UserWarning, match="model.encoder.quick_gelu=true"):
        train(config)
    said = [line for line in caplog.messages if "catseg.pth: " in line]
    assert len(said) == 3 and "taken from it" in said[0] and "clip.visual" in said[0]
    assert "start fresh" in said[1] and "left aside" in said[2] and "padding_tokens" in said[2]
    for part in ("head.p2t", "head.t2p", "head.lcs", "head.fuse", "head.embed_local", "head.decoder"):
        assert part in said[1], part
    fresh, got = initial(), weights(tmp_path / "out")
    for key, value in got.items():
        if "running" in key or "num_batches" in key:
            continue
        source = given if key in given else fresh
        assert torch.allclose(value, source[key], atol=1e-6), key
        assert (key in given) != key.startswith(("head.p2t", "head.t2p", "head.lcs", "head.fuse", "head.embed_local",
                                                 "head.decoder.fuse", "head.decoder.local_up")), key  # fmt: skip
    # a key that CAT-Seg does have, and that is missing, is an error; so is a shape that does not fit
    theirs = torch.load(tmp_path / "catseg.pth", weights_only=True)["model"]
    torch.save(
        {key: v for key, v in theirs.items() if not key.endswith("transformer.head.weight")}, tmp_path / "cut.pth"
    )
    for init, words in (("cut.pth", "missing from the file: head.decoder.head"), ("catseg.pth", "another shape")):
        switches = ["model.hidden=64"] if init == "catseg.pth" else []
        changed = config.override(f"train.out={tmp_path / 'no'}", f"train.init={tmp_path / init}", *switches)
        with pytest.raises(CheckpointError, match=words):
            train(changed)
