"""Models whose linear layers have 8 bits: errors, labels, and what is refused."""

import copy
import logging

import numpy as np
import pytest
import torch
from tiny import NAMES, pixels, tiny_model

import fgaseg
from fgaseg.cli import main
from fgaseg.environment import arithmetic
from fgaseg.kernels import Int8Weight
from fgaseg.model import set_precision

PHOTO = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def weights(model):
    return [name for name, module in model.named_modules() if isinstance(module, Int8Weight)]


@pytest.mark.parametrize("switches", [
    {}, {"fusion": "add"}, {"lcs": False}, {"preset": "released", "pad_classes": 32}, {"inference": "windows"},
    {"kernel_norm": "cosine", "lcs_padding": "replicate"},
])  # fmt: skip
def test_labels_differ_only_where_classes_are_nearly_equal(switches):
    model = tiny_model(**switches)
    expected = model.segment(PHOTO, NAMES, probabilities=True)
    assert fgaseg.quantize(model) is model and model.precision == "int8, else float32"
    result = model.segment(PHOTO, NAMES, probabilities=True)
    found, exact = np.stack([*result.probabilities]), np.stack([*expected.probabilities])
    assert 1e-6 < np.abs(found - exact).max() < 0.1
    chosen = np.take_along_axis(exact, result.labels[None], axis=0)[0]
    assert (chosen > exact.max(0) - 0.05).all()


def test_every_linear_layer_of_towers_and_aggregation_has_eight_bits():
    model = fgaseg.quantize(tiny_model())
    blocks = [block for tower in model.encoder.towers() for block in tower]
    left = [m for part in (*blocks, *model.head.layers) for m in part.modules() if isinstance(m, torch.nn.Linear)]
    assert len(left) == 4 * 2 + 2 * 2  # of the aggregation's queries and keys, whose guidance is not quantized
    assert len(weights(model)) == len(blocks) * 6 + 2 * len(model.head.layers) * 0 + sum(
        "head." in name for name in weights(model)
    )
    assert sum("head.layers" in name for name in weights(model)) >= 2 * (2 * 6 + 6) - 4
    before = sum(p.numel() * p.element_size() for p in tiny_model().encoder.towers()[0][0].parameters())
    block = model.encoder.towers()[0][0]
    assert sum(t.numel() * t.element_size() for t in (*block.parameters(), *block.buffers())) < 0.4 * before


def test_logits_are_closer_than_a_few_percent_and_the_rest_may_be_bfloat16():
    model, images = tiny_model(), pixels()
    with torch.no_grad():
        exact = model(images, model.encode(NAMES)).logits
        for dtype, most in ((torch.float32, 0.05), (torch.bfloat16, 0.1)):
            form = fgaseg.quantize(copy.deepcopy(model)).to(dtype)
            logits = form(images, form.encode(NAMES)).logits.float()
            assert 1e-4 < (logits - exact).std() / exact.std() < most
            assert form.precision == f"int8, else {str(dtype)[6:]}"


def test_training_saving_and_quantizing_again_are_refused(tmp_path):
    model = fgaseg.quantize(tiny_model())
    with pytest.raises(fgaseg.TrainingError, match="quantized to int8 and has no gradients"):
        model.train()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    for save in (model.save_pretrained, model.save_released, model.save_encoder, model.push_to_hub):
        with pytest.raises(fgaseg.CheckpointError, match="save a model before fgaseg.quantize"):
            save(str(tmp_path / "saved"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(fgaseg.UsageError, match="quantized already"):
        fgaseg.quantize(model)


def test_the_command_quantizes_and_the_record_says_so(tmp_path, monkeypatch, caplog):
    tiny_model().save_pretrained(tmp_path / "model")
    seen = []
    segment = fgaseg.FGASeg.segment
    monkeypatch.setattr(fgaseg.FGASeg, "segment",
                        lambda self, *a, **k: seen.append(self.precision) or segment(self, *a, **k))  # fmt: skip
    from PIL import Image

    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    command = ["segment", str(tmp_path / "photo.png"), "--model", str(tmp_path / "model"), "--classes", "cat, dog"]
    assert main([*command, "--precision", "int8", "--out", str(tmp_path / "o.png")]) == 0
    assert seen == [f"int8, else {'bfloat16' if arithmetic('bfloat16') else 'float32'}"]
    monkeypatch.setattr("fgaseg.environment._capabilities", lambda: {"avx2": True})
    with caplog.at_level(logging.WARNING, "fgaseg"):
        set_precision(tiny_model(), "int8")
    assert "precision int8: this processor" in caplog.text
