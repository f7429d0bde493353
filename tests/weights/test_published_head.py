"""The whole head against the published computation, written out here on the checkpoint's own names, in float64."""

import pytest
import torch
import torch.nn.functional as F
from checkpoint_shapes import aggregator, clip
from torch import Tensor

from fgaseg import FGASeg
from fgaseg.model.image_encoder import ImageFeatures
from fgaseg.weights import read_released

GRID, WINDOW, HEADS, PADDED = 24, 12, 4, 8  # the published code pads to 256 classes; 8 is faster


def layer_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def affine(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def convolve(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def grow(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = w[f"{name}.weight"]
    return F.conv_transpose2d(x, weight, w[f"{name}.bias"], stride=weight.shape[-1])


def windows(x: Tensor) -> Tensor:
    """[N, GRID², C] to [N, windows, WINDOW², C]."""
    n = GRID // WINDOW
    return x.unflatten(1, (n, WINDOW, n, WINDOW)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def joined(x: Tensor) -> Tensor:
    n = GRID // WINDOW
    return x.unflatten(2, (WINDOW, WINDOW)).unflatten(1, (n, n)).transpose(2, 3).flatten(1, 4)


def rolled(x: Tensor, by: int) -> Tensor:
    return x.unflatten(1, (GRID, GRID)).roll((by, by), (1, 2)).flatten(1, 2)


def shift_mask(shift: int) -> Tensor:
    """-100 between tokens of a shifted window that were not neighbours, [windows, WINDOW², WINDOW²]."""
    region = torch.zeros(GRID, dtype=torch.float64)
    region[-WINDOW:-shift], region[-shift:] = 1, 2
    regions = windows((3 * region[:, None] + region).reshape(1, -1, 1))[0, :, :, 0]
    return -100.0 * (regions[:, :, None] != regions[:, None])


def swin(w: dict[str, Tensor], name: str, x: Tensor, guide: Tensor, shift: int) -> Tensor:
    y = layer_norm(w, f"{name}.norm1", x)
    both = windows(rolled(torch.cat([y, guide], dim=-1), -shift))
    q, k, v = (
        affine(w, f"{name}.attn.{part}", read).unflatten(-1, (HEADS, -1)).transpose(2, 3)
        for part, read in (("q", both), ("k", both), ("v", both[..., : y.shape[-1]]))
    )
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if shift:
        scores = scores + shift_mask(shift)[:, None]
    y = affine(w, f"{name}.attn.proj", (scores.softmax(-1) @ v).transpose(2, 3).flatten(3))
    x = x + rolled(joined(y), shift)
    return x + affine(w, f"{name}.mlp.fc2", F.gelu(affine(w, f"{name}.mlp.fc1", layer_norm(w, f"{name}.norm2", x))))


def across_classes(w: dict[str, Tensor], name: str, x: Tensor, guide: Tensor) -> Tensor:
    """x [B, T, N, C], guide [B, T, C]."""
    classes, more = x.shape[1], max(PADDED - x.shape[1], 0)
    y = torch.cat([x, w[f"{name}.padding_tokens"][None].expand(len(x), more, x.shape[2], -1)], dim=1)
    guide = torch.cat([guide, w[f"{name}.padding_guidance"].expand(len(x), more, -1)], dim=1)
    read = layer_norm(w, f"{name}.norm1", y)
    both = torch.cat([read, guide[:, :, None].expand_as(read)], dim=-1)
    q, k, v = (
        affine(w, f"{name}.attention.{part}", z).unflatten(-1, (HEADS, -1))
        for part, z in (("q", both), ("k", both), ("v", read))
    )
    q, k = F.elu(q) + 1, F.elu(k) + 1
    sums = torch.einsum("btnhd,btnhe->bnhde", k, v)
    total = torch.einsum("btnhd,bnhd->btnh", q, k.sum(1)) + 1e-6
    y = y + (torch.einsum("btnhd,bnhde->btnhe", q, sums) / total[..., None]).flatten(3)
    y = y + affine(w, f"{name}.MLP.2", F.relu(affine(w, f"{name}.MLP.0", layer_norm(w, f"{name}.norm2", y))))
    return x + y[:, :classes]


def decode(w: dict[str, Tensor], name: str, x: Tensor, guide: Tensor) -> Tensor:
    x = torch.cat([grow(w, f"{name}.up", x), guide.repeat_interleave(len(x) // len(guide), 0)], dim=1)
    for conv, norm in (("0", "1"), ("3", "4")):
        x = convolve(w, f"{name}.conv.double_conv.{conv}", x)
        scale, shift = (w[f"{name}.conv.double_conv.{norm}.{part}"] for part in ("weight", "bias"))
        x = F.relu(F.group_norm(x, x.shape[1] // 16, scale, shift))
    return x


def published(
    w: dict[str, Tensor], spatial: str, across: str, features: ImageFeatures, texts: Tensor, cap: int | None
) -> Tensor:
    """Logits [B, T, 4·GRID, 4·GRID] of encoded images and unit texts [T, C]."""
    embedding, early, late = features
    pixels, count = F.normalize(embedding, dim=1), len(embedding)
    texts = texts.expand(count, -1, -1)
    scores = torch.einsum("bchw,btc->bthw", pixels, texts)
    chosen = torch.arange(scores.shape[1]).expand(count, -1)
    if cap is not None and scores.shape[1] > cap:
        chosen = scores.flatten(2).amax(-1).topk(cap).indices
    texts = texts.gather(1, chosen[..., None].expand(-1, -1, texts.shape[-1]))
    kept = scores.gather(1, chosen[..., None, None].expand(-1, -1, GRID, GRID))
    guide = F.relu(convolve(w, "transformer.guidance_projection.0", embedding)).flatten(2).mT
    text_guide = F.relu(affine(w, "transformer.text_guidance_projection.0", texts))
    guides = [
        F.relu(convolve(w, f"transformer.decoder_guidance_projection.{i}.0", grow(w, f"upsample{i + 1}", x)))
        for i, x in enumerate((early, late))
    ]
    classes = kept.shape[1]
    x = convolve(w, "transformer.conv1", kept.flatten(0, 1)[:, None]).flatten(2).mT
    for n in (0, 1):
        name = f"transformer.layers.{n}"
        shared = layer_norm(w, f"{name}.{spatial}.guidance_norm", guide).repeat_interleave(classes, 0)
        x = swin(w, f"{name}.{spatial}.block_1", x, shared, 0)
        x = swin(w, f"{name}.{spatial}.block_2", x, shared, WINDOW // 2)
        x = across_classes(w, f"{name}.{across}", x.unflatten(0, (count, classes)), text_guide).flatten(0, 1)
    x = decode(w, "transformer.decoder1", x.mT.unflatten(2, (GRID, GRID)), guides[0])
    x = convolve(w, "transformer.head", decode(w, "transformer.decoder2", x, guides[1]))[:, 0]
    out = torch.full((count, scores.shape[1], *x.shape[1:]), -100.0, dtype=x.dtype)
    return out.scatter(1, chosen[..., None, None].expand(-1, -1, *x.shape[1:]), x.unflatten(0, (count, classes)))


NAMES = {"CAT-Seg": ("swin_block", "attention"), "Pi-Seg": ("sptial_agg", "class_agg")}


@torch.no_grad()
@pytest.mark.parametrize("classes", [5, 11], ids=["padded", "more than are padded to"])
@pytest.mark.parametrize("project", NAMES)
def test_a_checkpoint_gives_the_published_logits(project, classes):
    torch.manual_seed(classes)
    shapes = aggregator(128, 64, *NAMES[project]) | clip(128, 3, 16, 17, 64)
    weights = {key: torch.randn(shape) / max(shape[-1] if shape else 1, 4) ** 0.5 for key, shape in shapes.items()}
    cap = PADDED if project == "CAT-Seg" else None  # Pi-Seg lets all classes enter
    words = [f"pad_classes={PADDED}"] + ([f"class_cap={cap}"] if cap else [])
    read = read_released(weights, *words)
    assert read.config.class_cap == cap
    model = FGASeg(read.config).eval()
    assert read.load_into(model).kind == project
    features = ImageFeatures(*(torch.randn(2, c, GRID, GRID).double() for c in (64, 128, 128)))
    texts = F.normalize(torch.randn(classes, 64).double(), dim=-1)
    bare = {read.project.keys.bare(key): value.double() for key, value in weights.items()}
    found = model.double().head(features, texts).logits
    expected = published(bare, *NAMES[project], features, texts, cap)
    assert (found - expected).abs().max() < 1e-9 * expected.std() and expected.std() > 0
