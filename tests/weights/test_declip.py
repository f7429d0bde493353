"""The published EVA-02 head (CAT-Seg on DeCLIP): made-up checkpoints with the keys that its public code registers."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from declip import BASE, CLIP, LARGE, narrow_weights, register_narrow
from open_clip import tokenize
from tiny import pixels
from torch import Tensor

import fgaseg
from fgaseg import FGASeg
from fgaseg.errors import CheckpointError
from fgaseg.weights import MODELS, read_released, released_config, to_released
from fgaseg.weights.recognition import DECLIP

NAMES = ["cat", "wooden floor", "a much longer name of a thing"]


@pytest.mark.parametrize(
    "shapes, name, image", [(BASE, "EVA02-B-16", 384), (LARGE, "EVA02-L-14-336", 336)], ids=["B", "L"]
)
def test_full_size_keys_and_shapes(shapes, name, image):
    read = read_released({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    config = read.config
    assert (config.encoder.name, config.encoder.dense, config.image_size) == (name, "csa", image)
    assert (config.class_cap, config.pad_classes, config.window, config.inference) == (256, 256, 12, "windows")
    with torch.device("meta"):
        model = FGASeg(config)
    own = {key: value.shape for key, value in model.state_dict().items()}
    assert own == {key: value.shape for key, value in read.weights.tensors.items()}
    assert not read.weights.unknown and model.encoder.guidance_blocks == ((3, 7) if name.endswith("B-16") else (7, 15))


@pytest.fixture
def narrow(monkeypatch) -> dict[str, Tensor]:
    register_narrow(monkeypatch)
    return narrow_weights()


def affine(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def normed(w: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def turned(x: Tensor, grid: int) -> Tensor:
    """Rotary positions on the patches of [B, heads, 1 + grid², d], as the code makes them for any grid."""
    d = x.shape[-1] // 2
    angles = (torch.arange(grid) / grid * 16)[:, None] / 10000 ** (torch.arange(0, d, 2) / d)
    angles = angles.double().repeat_interleave(2, dim=-1)
    table = torch.cat([angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)], dim=-1).flatten(0, 1)
    patches = x[:, :, 1:]
    half = torch.stack([-patches[..., 1::2], patches[..., 0::2]], dim=-1).flatten(-2)
    return torch.cat([x[:, :, :1], patches * table.cos() + half * table.sin()], dim=2)


def published_images(w: dict[str, Tensor], x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """V_I and the outputs of the first two of three blocks, [B, N, .], as the published branch computes them."""
    grid = x.shape[-1] // 16
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16).flatten(2).mT
    table = w["pos_embed"][:, 1:].mT.unflatten(2, (4, 4))
    table = F.interpolate(table, (grid, grid), mode="bicubic", align_corners=False).flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + torch.cat([w["pos_embed"][:, :1], table], dim=1)
    outputs = []
    for n in range(3):
        b = f"blocks.{n}"
        y = normed(w, f"{b}.norm1", x, 1e-6)
        q, k, v = (
            F.linear(y, w[f"{b}.attn.{name}_proj.weight"], w.get(f"{b}.attn.{name}_bias"))
            .unflatten(2, (2, -1))
            .transpose(1, 2)
            for name in "qkv"
        )
        if n < 2:
            attention = (turned(q, grid) @ turned(k, grid).mT / 8).softmax(-1)
        else:
            attention = (scale * q @ q.mT).softmax(-1) + (scale * k @ k.mT).softmax(-1)
        y = normed(w, f"{b}.attn.inner_attn_ln", (attention @ v).transpose(1, 2).flatten(2), 1e-6)
        y = affine(w, f"{b}.attn.proj", y)
        if n == 2:
            break
        x = x + y
        y = normed(w, f"{b}.norm2", x, 1e-6)
        y = normed(w, f"{b}.mlp.ffn_ln", F.silu(affine(w, f"{b}.mlp.w1", y)) * affine(w, f"{b}.mlp.w2", y), 1e-6)
        x = x + affine(w, f"{b}.mlp.w3", y)
        outputs.append(x[:, 1:])
    dense = affine(w, "head", normed(w, "norm", y[:, 1:], 1e-6))
    return F.normalize(dense, dim=-1), outputs[0], outputs[1]


def published_texts(w: dict[str, Tensor], names: list[str]) -> Tensor:
    tokens = tokenize([f"A photo of a {name} in the scene" for name in names])
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    mask = torch.full((77, 77), float("-inf"), dtype=x.dtype).triu(1)
    for n in range(2):
        b = f"transformer.resblocks.{n}"
        y = F.linear(normed(w, f"{b}.ln_1", x, 1e-5), w[f"{b}.attn.in_proj_weight"], w[f"{b}.attn.in_proj_bias"])
        q, k, v = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in y.chunk(3, dim=-1))
        y = ((q @ k.mT / math.sqrt(32) + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + affine(w, f"{b}.attn.out_proj", y)
        y = F.gelu(affine(w, f"{b}.mlp.c_fc", normed(w, f"{b}.ln_2", x, 1e-5)))
        x = x + affine(w, f"{b}.mlp.c_proj", y)
    x = normed(w, "ln_final", x, 1e-5)[torch.arange(len(x)), tokens.argmax(-1)] @ w["text_projection"]
    return F.normalize(x, dim=-1)


@torch.no_grad()
def test_encoders_compute_what_the_published_code_computes(narrow):
    model = FGASeg.from_released(narrow).double()
    doubles = {key.removeprefix(CLIP): value.double() for key, value in narrow.items()}
    visual = {key.removeprefix("visual."): x for key, x in doubles.items()}
    image = pixels(2, 96, 96).double()
    found = model.image_encoder(image)
    for got, expected in zip(found, published_images(visual, image), strict=True):
        assert torch.allclose(got.flatten(2).mT, expected, rtol=0, atol=1e-6)  # tables of positions are float32
    scaled = published_images(visual, image, scale=1 / 8)[0]
    assert (found.embedding.flatten(2).mT - scaled).abs().max() > 1e-3  # the other public version of csa
    texts = published_texts({key.removeprefix("text."): x for key, x in doubles.items()}, NAMES)
    assert torch.allclose(model.encode(NAMES).embeddings, texts, rtol=0, atol=1e-6)


def test_it_converts_saves_and_says_what_is_assumed(narrow, tmp_path):
    read = read_released({"model": narrow, "iteration": 1})
    model = FGASeg(read.config).eval()
    report = read.load_into(model)
    assert report.kind == "CAT-Seg on DeCLIP's EVA-02" and report.assumed["encoder.dense"] == "csa"
    assert len(report.mapped) + len(report.ignored) == len(narrow) and not report.foreign
    assert "encoder.quick_gelu" not in report.assumed and any("rope" in key for key in report.ignored)
    model.save_pretrained(tmp_path / "model")
    again = FGASeg.from_pretrained(tmp_path / "model")
    image = pixels(1, 64, 64)
    with torch.no_grad():
        one, two = (m(image, m.encode(NAMES)).logits for m in (model, again))
    assert torch.equal(one, two) and one.isfinite().all() and one.std() > 0
    with pytest.raises(CheckpointError, match="no plain CLIP ViT"):
        to_released(model.state_dict(), model.config, quick_gelu=False)
    assert read_released(narrow, "encoder.dense=qq").config.encoder.dense == "qq"


def test_its_name_fetches_converts_and_loads(narrow, hub):
    data = io.BytesIO()
    torch.save({"model": narrow, "iteration": 80000}, data)
    hub.add(MODELS["declip-eva-b16"].repo, {"README.md": b"#", "model_final.pth": data.getvalue()})
    model, direct = fgaseg.load("declip-eva-b16"), FGASeg.from_released(narrow)
    assert all(torch.equal(value, direct.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.config.encoder.dense == "csa" and model.config.inference == "windows"


@pytest.mark.parametrize(
    "key, shape, words",
    [
        (
            "visual.blocks.0.attn.relative_position_bias_table",
            [3, 3],
            "1 unknown to CAT-Seg on DeCLIP's EVA-02: .*bias_table",
        ),
        ("text.transformer.resblocks.0.attn.in_proj_weight", [], "1 unknown to .*in_proj_weight"),
        ("text.transformer.resblocks.1.attn.in_proj_weight", [192, 8], r"of another shape: .*in_proj_weight \[64, 8\]"),
        ("visual.blocks.2.mlp.w1.weight", None, "1 missing from the file: .*blocks.2.mlp.w1.weight"),
        ("text.transformer.resblocks.1.attn.in_proj_weight", None, "1 missing from the file: .*1.attn.in_proj_weight"),
    ],
)
def test_what_does_not_fit_is_named(narrow, key, shape, words):
    narrow.pop(CLIP + key, None)
    if shape is not None:
        narrow[CLIP + key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match="(?s)" + words):
        FGASeg.from_released(narrow)


def test_another_size_of_tower_is_refused(narrow, monkeypatch):
    monkeypatch.delitem(released_config.EVA_NAMES, (128, 3, 16, 17))
    with pytest.raises(CheckpointError, match="an EVA-02 of width 128, 3 blocks.* is none of EVA02-B-16"):
        read_released(narrow)


def test_every_key_goes_there_and_back(narrow):
    keys = DECLIP.keys
    for key in FGASeg(read_released(narrow).config).state_dict():
        theirs = keys.to_theirs(key)
        assert theirs in narrow and key in (keys.parts(theirs) or [keys.to_ours(theirs)])
