"""Checkpoints of Pi-Seg: made up, with the keys and shapes that its public code registers."""

import io

import pytest
import torch
from checkpoint_shapes import HEAD, aggregator, clip
from pi_seg import noise, pi_seg_names
from tiny import NAMES, pixels, tiny_model

import fgaseg
from fgaseg import FGASeg
from fgaseg.cli import main
from fgaseg.errors import CheckpointError
from fgaseg.weights import MODELS, PI_SEG_KEYS, RELEASED_KEYS, read_released, to_released, warm_start, write_weights
from fgaseg.weights.warm_start import ADDED

CATSEG = {"preset": "released", "p2t_layers": 0, "t2p": False, "lcs": False, "fast": False}


def checkpoint(width: int, layers: int, patch: int, rows: int, channels: int) -> dict[str, torch.Tensor]:
    """Every key of a Pi-Seg checkpoint as a meta tensor: configs/vitb_384_*.yaml and configs/vitl_336_*.yaml."""
    shapes = {HEAD + key: shape for key, shape in noise(channels).items()} | clip(width, layers, patch, rows, channels)
    shapes |= aggregator(width, channels, spatial="sptial_agg", classes="class_agg")
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


BASE, LARGE = (768, 12, 16, 197, 512), (1024, 24, 14, 577, 768)


@pytest.mark.parametrize("size, name, image", [(BASE, "ViT-B-16", 384), (LARGE, "ViT-L-14", 336)], ids=["B", "L"])
def test_full_size_keys_and_shapes(size, name, image):
    theirs = checkpoint(*size)
    read = read_released(theirs)
    config = read.config
    assert (config.encoder.name, config.image_size, config.window) == (name, image, 12)
    assert (config.p2t_layers, config.t2p, config.lcs, config.fast) == (0, False, False, False)
    assert (config.class_cap, config.pad_classes, config.aggregation_layers) == (None, 256, 2)
    assert (config.inference, config.first_synonym) == ("windows", True)
    assert config.template == "A photo of a {} in the scene"
    with torch.device("meta"):
        model = FGASeg(config)
    own = {key: value.shape for key, value in model.state_dict().items()}
    assert own == {key: value.shape for key, value in read.weights.tensors.items()}
    assert not read.weights.unknown and len(read.weights.structural) == 2 and len(read.weights.training_only) == 12


def narrow(**switches) -> tuple[FGASeg, dict[str, torch.Tensor]]:
    """A small CAT-Seg model, and its weights by CAT-Seg's names."""
    architecture = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16, "head_width": 64},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    encoder = {"name": "tiny", "architecture": architecture}
    sizes = {"window": 12, "image_size": 384}
    model = tiny_model(seed=5, encoder=encoder, **{**CATSEG, **sizes, **switches})
    return model, to_released(model.state_dict(), model.config, quick_gelu=True)[0]


@torch.no_grad()
def test_the_same_weights_by_either_name_give_the_same_logits(tmp_path):
    _, weights = narrow()
    torch.save({"model": pi_seg_names(weights), "iteration": 40000}, tmp_path / "pi.pth")
    torch.save({"model": weights}, tmp_path / "cat.pth")
    models, reports = [], []
    for file in ("pi.pth", "cat.pth"):
        read = read_released(tmp_path / file)
        models.append(FGASeg(read.config).eval())
        reports.append(read.load_into(models[-1]))
    pi, cat = reports
    assert (pi.kind, cat.kind) == ("Pi-Seg", "CAT-Seg") and len(pi.training_only) == 12 and not cat.training_only
    assert pi.mapped != cat.mapped and len(pi.mapped) == len(cat.mapped) == len(models[0].state_dict())
    image = pixels(1, 192, 192)
    one, two = (model(image, model.encode(NAMES)).logits for model in models)
    assert torch.equal(one, two) and one.std() > 0


def test_the_report_names_what_is_left_out_and_assumed():
    read = read_released(pi_seg_names(narrow()[1]))
    report = read.load_into(FGASeg(read.config))
    lines = report.lines()
    assert lines[0].startswith("Pi-Seg, no_fast, ViT-3x64-16") and "only training uses them" in "\n".join(lines)
    assert "text_vpn.mu" in "\n".join(lines) and "assumed, as in the code of Pi-Seg" in lines[-1]
    assert "class_cap=null" in lines[-1] and report.assumed["pad_classes"] == 256
    again = read_released(pi_seg_names(narrow()[1]), "class_cap=300")
    assert again.config.class_cap == 300 and "class_cap" not in again.load_into(FGASeg(again.config)).assumed


def test_every_key_goes_there_and_back():
    for key in narrow()[0].state_dict():
        theirs = PI_SEG_KEYS.to_theirs(key)
        assert theirs is not None and PI_SEG_KEYS.to_ours(theirs) == key
        assert (theirs == RELEASED_KEYS.to_theirs(key)) == (not key.startswith("head.layers."))
    parts = [key for key in tiny_model(fast=True).state_dict() if ADDED.match(key)]
    assert parts and all(PI_SEG_KEYS.to_theirs(key) is None for key in parts)


@pytest.mark.parametrize(
    "key, words",
    [
        ("text_vpn.scale", "1 unknown to Pi-Seg: .*text_vpn.scale"),
        ("transformer.layers.0.swin_block.guidance_norm.weight", "1 unknown to Pi-Seg: .*swin_block"),
        ("DCDT.gamma_text", "1 unknown to Pi-Seg: .*DCDT"),
        ("transformer.layers.0.class_agg.padding_tokens", "1 missing from the file: .*layers.0.class_agg.padding_tok"),
        ("transformer.head.weight", r"1 of another shape: .*transformer.head.weight \[3\]"),
    ],
)
def test_what_does_not_fit_is_named(key, words):
    weights = pi_seg_names(narrow()[1])
    if "missing" in words:
        del weights[HEAD + key]
    else:
        weights[HEAD + key] = torch.zeros(3)
    read = read_released(weights)
    with pytest.raises(CheckpointError, match="(?s)keys that do not fit a model of Pi-Seg.*" + words):
        read.load_into(FGASeg(read.config))


def test_the_command_converts_it_and_a_training_starts_from_it(tmp_path, capsys):
    model, weights = narrow()
    write_weights(tmp_path / "pi.safetensors", pi_seg_names(weights))
    assert main(["convert", str(tmp_path / "pi.safetensors"), "--out", str(tmp_path / "model")]) == 0
    assert "Pi-Seg" in capsys.readouterr().out
    converted = FGASeg.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, converted[key]) for key, value in model.state_dict().items())
    fresh = tiny_model(seed=9, encoder=model.config.encoder.dump(), preset="released", window=12, image_size=384)
    report = warm_start(fresh, tmp_path / "pi.safetensors", encoder={"quick_gelu": True})
    assert all(torch.equal(fresh.state_dict()[key], model.state_dict()[key]) for key in report.loaded)
    assert report.fresh and all(ADDED.match(key) for key in report.fresh)
    assert any("text_vpn" in key for key in report.skipped) and not any(
        "sptial_agg.block_1" in k for k in report.skipped
    )


def test_its_name_fetches_converts_and_loads(hub):
    model, weights = narrow()
    data = io.BytesIO()
    torch.save({"model": pi_seg_names(weights), "iteration": 40000}, data)
    hub.add(MODELS["pi-seg-v2"].repo, {"README.md": b"#", "any_name.pth": data.getvalue()})
    loaded = fgaseg.load("pi-seg-v2")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert loaded.config.class_cap is None and loaded.config.pad_classes == 256
