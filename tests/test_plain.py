"""The accelerated model against its plain form, in float64 and for one configuration of every kind."""

import pytest
import torch
from tiny import NAMES, pixels, tiny_model

from fgaseg import plain

NAMES_20 = [f"{a} {b}" for a in ("red", "old", "wet", "tall") for b in NAMES[:5]]


def case(size=(64, 64), names=None, **switches):
    return pytest.param(size, names or NAMES_20, switches)


@pytest.mark.parametrize(
    "size, names, switches",
    [
        case(),
        case(names=NAMES_20[:1]),
        case(size=(80, 48)),  # an odd grid: windows padded
        case(window=2),
        case(window=3, size=(64, 80)),
        case(pad_classes=32),
        case(pad_classes=12, class_cap=7),
        case(class_pooling_eval=2, pad_classes=32, size=(48, 80)),
        case(fusion="add", kernel_size=5),
        case(kernel_norm="channels"),
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
        expected = plain.run(model, images, vocabulary.embeddings)
    assert expected.amax() - expected.amin() > 0.1  # there is something to compare
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_same_embeddings():
    model = tiny_model().eval().double()
    encoder = model.text_encoder
    prompts = [encoder.templates[0].format(name) for name in (*NAMES_20, "a much longer name of something, in words")]
    torch.testing.assert_close(encoder._prompts(prompts), plain.text_tower(encoder, prompts), rtol=0, atol=1e-13)
