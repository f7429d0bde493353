"""The accelerated model against the reference implementation, in float64 and for one configuration of every kind."""

import pytest
import torch
from tiny import NAMES, pixels, tiny_model

import fgaseg
from fgaseg.model import reference

NAMES_20 = [f"{a} {b}" for a in ("red", "old", "wet", "tall") for b in NAMES[:5]]


def case(size=(64, 64), names=None, **switches):
    return pytest.param(size, names or NAMES_20, switches)


@pytest.mark.parametrize(
    "size, names, switches",
    [
        case(),
        case(names=NAMES_20[:1]),
        case(size=(80, 48)),  # an odd grid: windows padded
        case(window=2, guidance_channels=(12, 20)),
        case(window=3, size=(64, 80)),
        case(pad_classes=32),
        case(pad_classes=12, class_cap=7),
        case(class_pooling_eval=2, pad_classes=32, size=(48, 80)),
        case(fusion="add", kernel_size=5),
        case(kernel_norm="channels"),
        case(kernel_norm="cosine", kernel_size=5, class_cap=7),
        case(kernel_norm="cosine", lcs_padding="replicate", size=(80, 48)),
        case(lcs_padding="replicate"),
        case(lcs=False),
        case(p2t_layers=0),
        case(preset="released"),
    ],
)
def test_same_logits(size, names, switches):
    model = tiny_model(**switches).eval().double()
    with torch.no_grad():
        images = pixels(2, *size).double()
        vocabulary = model.encode(names)
        got = model(images, vocabulary).logits
        expected = reference.forward(model, images, vocabulary.embeddings)
    assert expected.amax() - expected.amin() > 0.1  # there is something to compare
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_same_embeddings():
    model = tiny_model().eval().double()
    encoder = model.text_encoder
    prompts = [encoder.templates[0].format(name) for name in (*NAMES_20, "a much longer name of something, in words")]
    torch.testing.assert_close(encoder._prompts(prompts), reference.text_tower(encoder, prompts), rtol=0, atol=1e-13)


@pytest.mark.parametrize("inference", ["whole", "windows"])
@pytest.mark.parametrize(
    "switches",
    [{}, {"class_cap": 6}, {"preset": "released"}, {"kernel_norm": "cosine", "lcs_padding": "replicate"}],
    ids=["ce", "cap", "bce", "cosine"],
)
def test_a_budget_changes_no_number(inference, switches, monkeypatch):
    """Class maps that are forgotten and made again, classes part after part, one or three rows at a time."""
    monkeypatch.setitem(fgaseg.model.packed_maps.PIXELS_PER_CHUNK, "cpu", 3 * 64)
    model = tiny_model(inference=inference, **switches).double()
    budgeted = tiny_model(inference=inference, class_maps_budget=0, **switches).double()
    images, embedded = pixels(2).double(), []
    for one in (model, budgeted):
        one.head.embed_global.register_forward_hook(lambda *_: embedded.append(1))
    with torch.no_grad():
        vocabulary = model.encode(NAMES_20)
        expected = model(images[:1], vocabulary)
        chunks, embedded[:] = len(embedded), []
        got = budgeted(images[:1], vocabulary)
    assert len(embedded) == 3 * chunks  # once for each of the two sums over classes, and once to decode
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-10, atol=1e-10)
    photo = (images[0].permute(1, 2, 0) * 50 + 128).clamp(0, 255).to(torch.uint8).numpy()
    one, other = (m.segment(photo, vocabulary) for m in (model, budgeted))
    torch.testing.assert_close(torch.from_numpy(one.scores), torch.from_numpy(other.scores), rtol=1e-5, atol=1e-6)
    assert (one.labels == other.labels).mean() > 0.999


def test_parts_of_the_classes_come_in_order():
    model = tiny_model(class_maps_budget=0)
    with torch.no_grad():
        vocabulary = model.encode([f"thing {i}" for i in range(200)])
        parts = list(model.stream(pixels(2), vocabulary))
        whole = model(pixels(2), vocabulary).logits
    assert len(parts) > 1
    assert torch.equal(torch.cat([classes for classes, _ in parts]), torch.arange(200))
    torch.testing.assert_close(torch.cat([logits for _, logits in parts], dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [False, True])
def test_checkpointing_changes_no_gradient(fast, monkeypatch):
    monkeypatch.setitem(fgaseg.model.packed_maps.PIXELS_PER_CHUNK, "cpu", 7 * 64)  # in pieces
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(checkpointing=checkpointing, fast=fast).double().train()
        out = model(pixels(2).double(), model.encode(NAMES_20))
        sum(x.square().mean() for x in (out.logits, out.align, *out.aux)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)
