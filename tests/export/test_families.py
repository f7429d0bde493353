"""Both towers of every family of encoders as graphs, at other sizes and counts than they were traced with."""

import copy

import pytest
import torch
import torch.nn.functional as F
from exported_graphs import runners
from small_encoders import make_tokenizer, small_model

from fgaseg.export.graphs import image_part, text_part

pytest.importorskip("onnxscript", reason="onnxscript is not installed (fgaseg[export])")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (fgaseg[export])")
pytest.importorskip("openvino", reason="openvino is not installed (fgaseg[export])")
pytestmark = pytest.mark.slow

# every family with its dense rules, each where it does most; what differs most from one another in CI
IMAGES = [
    ("MobileCLIP2-L", "qq"),
    ("SigLIP", "value"),
    ("EVA-02", "csa"),
    ("PE-Core", "value"),
    *(
        pytest.param(*one, marks=pytest.mark.exhaustive)
        for one in [
            ("plain CLIP", "value"),
            ("plain CLIP, layer scale", "csa"),
            ("MobileCLIP2-B", "value"),
            ("SigLIP, no projection", "csa"),
            ("EVA-01", "qq"),
            ("EVA-02 E", "value"),
            ("PE-Core bigG", "csa"),
        ]
    ),
]
# by kind: causal or not, read at the largest id, the end or the last token, projected by a matrix, a layer or not
TEXTS = [
    "worldwide",
    "SigLIP",
    *(
        pytest.param(one, marks=pytest.mark.exhaustive)
        for one in ["plain CLIP, layer scale", "MobileCLIP2-L", "SigLIP, no projection"]
    ),
]
SIZES = [(3, 48, 40), (1, 32, 32), (2, 61, 9), (1, 8, 8)]  # images, height, width; the second is the towers' own
PROMPTS = ["a photo of a cat", "red star", "the name of a thing much longer than the others have"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def judged(got, same, exact):
    """Against float64, no worse than twice PyTorch's own error in float32."""
    for one, yardstick, truth in zip(got, same, exact, strict=True):
        assert one.shape == truth.shape and one.dtype == torch.float32
        largest = truth.abs().max()
        assert (one - truth).abs().max() <= 2 * (yardstick - truth).abs().max() + 1e-6 * largest


@pytest.mark.parametrize(("family", "dense"), IMAGES)
@torch.no_grad()
def test_features_are_those_of_the_model(family, dense, tokenizer, tmp_path):
    model = small_model(family, tokenizer, {"dense": dense})
    exact = copy.deepcopy(model).double()
    runs = runners(image_part(model), tmp_path)
    for images, height, width in SIZES:
        pixels = torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(height))
        same, truth = model.image_encoder(pixels), exact.image_encoder(pixels.double())
        for run in runs.values():
            judged(run(pixels), same, truth)


@pytest.mark.parametrize("family", TEXTS)
@torch.no_grad()
def test_embeddings_are_those_of_the_model(family, tokenizer, tmp_path):
    model = small_model(family, tokenizer)
    exact = copy.deepcopy(model).double()
    runs = runners(text_part(model), tmp_path)
    for prompts in (PROMPTS, PROMPTS[1:2], PROMPTS * 5):
        same, truth = (F.normalize(one.encoder.text(prompts), dim=-1) for one in (model, exact))
        for run in runs.values():
            judged(run(model.encoder.tokenizer(prompts)), [same], [truth])
