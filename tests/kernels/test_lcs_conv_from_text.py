import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import (
    DTYPES,
    backend_layouts,
    backends,
    check_backend,
    check_error,
    needs_cpp,
    random,
)
from paths import SHARED

from fgaseg.kernels import lcs_conv, lcs_conv_from_text
from fgaseg.kernels.lcs_conv_from_text.reference import lcs_conv_from_text_reference

CLIP_TEXT = SHARED / "data" / "clip_text" / "voc12_single.npy"
# B, T, D, C, H, W, K; K larger than the map in the third
SHAPES = [(1, 1, 1, 1, 1, 1, 1), (2, 5, 11, 7, 5, 6, 3), (2, 2, 3, 3, 2, 3, 5), (1, 3, 8, 33, 3, 4, 3)]
EMPTY = [(0, 2, 4, 3, 4, 5, 3), (2, 0, 4, 3, 4, 5, 3)]
NORMS = ["taps", "channels", "none"]
COMPILED = backends("cpp", "triton")  # there is no CUDA kernel
BACKENDS = backends("cpp", "triton", "reference")


def inputs(b, t, d, c, h, w, k):
    weight = random(c * k * k + 1, d, seed=1) / d**0.5
    return [random(b, t, d), weight, random(c * k * k + 1, seed=2), random(b, c, h, w, seed=3)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend, layout", backend_layouts("cpp", "triton", "reference"))
def test_matches_reference(norm, dtype, layout, backend):
    for *sizes, k in SHAPES + EMPTY:
        check_backend(
            lambda *a, k=k: lcs_conv_from_text(*a, k, norm, backend=backend),
            lambda *a, k=k: lcs_conv_from_text_reference(*a, k, norm),
            inputs(*sizes, k),
            dtype,
            layout,
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_lcs_conv_after_a_linear_layer(backend):
    """On CLIP text embeddings, against the two steps that a model would otherwise take."""
    if not CLIP_TEXT.exists():
        pytest.skip(reason=f"no {CLIP_TEXT.name} beside the repository")
    texts = torch.from_numpy(np.load(CLIP_TEXT)).float().to(torch.get_default_device())[None]
    weight, bias = random(6 * 9 + 1, 512).float(), random(6 * 9 + 1, seed=1).float()
    pixels = F.normalize(random(1, 6, 4, 5, seed=2).float(), dim=1)
    outputs = F.linear(texts, weight, bias)
    same = lcs_conv(pixels, outputs[..., :-1], outputs[..., -1], 3, backend="reference")
    exact = lcs_conv_from_text_reference(*(x.double() for x in (texts, weight, bias, pixels)), 3, "taps")
    check_error(lcs_conv_from_text(texts, weight, bias, pixels, 3, backend=backend), same, exact, torch.float32)


@needs_cpp
@pytest.mark.parametrize("kept, limits", [(True, (0, 2**25)), (False, (0, 0)), (False, (2**16, 2**25))])
def test_auto_keeps_logits_of_middle_size_for_the_backward_pass(kept, limits, monkeypatch):
    monkeypatch.setattr(sys.modules[lcs_conv_from_text.__module__], "KEPT_LOGITS", limits)
    args = [v.requires_grad_() for v in inputs(2, 3, 4, 2, 3, 2, 3)]
    maps = lcs_conv_from_text(*args, 3)
    assert ("lcs_conv_from_text" in maps.grad_fn.name()) != kept
    fused = lcs_conv_from_text(*args, 3, backend="cpp")
    for got, same in zip(*(torch.autograd.grad(y.square().sum(), args) for y in (maps, fused)), strict=True):
        torch.testing.assert_close(got, same)


@needs_cpp
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_by_differences(norm):
    args = [v.requires_grad_() for v in inputs(2, 3, 4, 2, 3, 2, 3)]
    assert torch.autograd.gradcheck(lambda *a: lcs_conv_from_text(*a, 3, norm, backend="cpp"), args)


def test_says_what_is_wrong():
    texts, weight, bias, pixels = (torch.zeros(*s) for s in [(2, 6, 5), (28, 5), (28,), (2, 3, 4, 5)])
    with pytest.raises(ValueError, match="kernel_size is 2; expected an odd number"):
        lcs_conv_from_text(texts, weight, bias, pixels, 2)
    with pytest.raises(ValueError, match=r"weight has shape \[27, 5\].* expect \[28, 5\]"):
        lcs_conv_from_text(texts, weight[:-1], bias, pixels, 3)
    with pytest.raises(ValueError, match=r"bias has shape \[27\]; expected \[28\]"):
        lcs_conv_from_text(texts, weight, bias[:-1], pixels, 3)
    with pytest.raises(ValueError, match=r"texts has shape \[1, 6, 5\]; expected \[2, T, D\]"):
        lcs_conv_from_text(texts[:1], weight, bias, pixels, 3)
    with pytest.raises(TypeError, match="pixels has dtype torch.float64 but texts has torch.float32"):
        lcs_conv_from_text(texts, weight, bias, pixels.double(), 3)
