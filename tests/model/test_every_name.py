"""Every model that has a name: from its name to the labels of a real photo, by the command and in Python."""

import io
import json
from dataclasses import replace

import open_clip
import pytest
import safetensors.torch
import torch
from catseg import catseg_file, catseg_model
from declip import narrow_weights, register_narrow
from paths import SHARED
from pi_seg import pi_seg_names
from tiny import ARCHITECTURE

import fgaseg
from fgaseg import ModelConfig
from fgaseg.cli import main
from fgaseg.weights import MODELS, NamedModel, to_released

PHOTOS = SHARED / "data" / "msrc_v2"


def saved(content: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def files(model: NamedModel, monkeypatch) -> dict[str, bytes]:
    """Made-up files of a model's repository, of small encoders, in the format of the published ones."""
    if model.config:  # OpenAI's, which open_clip knows how to read
        monkeypatch.setitem(
            open_clip.factory._MODEL_CONFIGS, ModelConfig(**model.config).encoder.name, {**ARCHITECTURE}
        )
        weights = open_clip.model.CLIP(**ARCHITECTURE, quick_gelu=True).state_dict()
        return {model.files[0]: safetensors.torch.save({key: value.contiguous() for key, value in weights.items()})}
    if model.name.startswith("cat-seg"):
        return {model.file: catseg_file(catseg_model(patch=14 if model.name.endswith("l14") else 16))}
    if model.name.startswith("pi-seg"):
        network = catseg_model()
        weights, _ = to_released(network.state_dict(), network.config, quick_gelu=True)
        return {"weights.pth": saved({"model": pi_seg_names(weights), "iteration": 40000})}
    assert model.name.startswith("declip"), f"{model.name}: this test has no made-up file of it"
    register_narrow(monkeypatch)
    return {"model_final.pth": saved({"model": narrow_weights(), "iteration": 80000})}


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}")
@pytest.mark.parametrize("name", MODELS)
def test_from_its_name_to_labels(hub, name, monkeypatch, tmp_path, capsys):
    model = MODELS[name]
    torch.manual_seed(1)
    hub.add({"space": "spaces/"}.get(model.repo_type, "") + model.repo, files(model, monkeypatch))
    monkeypatch.setitem(MODELS, name, replace(model, sha256=""))
    photo, names = PHOTOS / "images/10_10_s.jpg", (PHOTOS / "names.txt").read_text().splitlines()
    command = ["segment", str(photo), "--names", str(PHOTOS / "names.txt"), "--out", str(tmp_path / "out.png")]
    assert main([*command, "--model", name, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "fetching" in err and (tmp_path / "out.png").stat().st_size
    network = fgaseg.load(name)
    result = network.segment(photo, names)
    assert result.labels.shape == (result.image.height, result.image.width) and len(result.present) > 1
    assert result.present == pytest.approx(json.loads(out)["classes"])
    assert network.config.propagation != bool(model.config) and network.facts["name"] == name
