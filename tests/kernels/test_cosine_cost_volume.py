import importlib

import numpy as np
import pytest
import torch
from accuracy import BACKENDS, COMPILED, DTYPES, LAYOUTS, backends, check_backend, needs_cpp, random
from paths import SHARED

from fgaseg.kernels import cosine_cost_volume
from fgaseg.kernels.cosine_cost_volume.reference import cosine_cost_volume_reference

CLIP_TEXT = SHARED / "data" / "clip_text"
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 37, 5, 2, 7, 9), (1, 64, 3, 1, 13, 11), (3, 8, 2, 3, 1, 5)]  # B, C, T, P, H, W
EMPTY = [(0, 3, 2, 1, 4, 5), (2, 3, 0, 1, 4, 5), (2, 3, 2, 0, 4, 5), (2, 3, 2, 1, 0, 5), (2, 0, 2, 1, 4, 5)]


def inputs(b, c, t, p, h, w):
    return [random(b, c, h, w), 3 * random(b, t, p, c, seed=1)]


def reference(pixels, texts):
    return cosine_cost_volume_reference(pixels, texts, max(1e-12, torch.finfo(pixels.dtype).tiny))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_reference(dtype, layout, backend):
    for sizes in SHAPES + EMPTY:
        check_backend(lambda *a: cosine_cost_volume(*a, backend=backend), reference, inputs(*sizes), dtype, layout)


@pytest.mark.parametrize("sizes", [(2, 70, 67, 2, 9, 11), (2, 72, 67, 1, 8, 13), (1, 72, 5, 2, 4, 18)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", backends("triton", "cuda"))
def test_more_than_one_tile(backend, dtype, sizes, monkeypatch):
    """Texts and pixels beyond a tile, in the larger of Triton's two; CUDA reads some sizes 16 bytes at a time."""
    monkeypatch.setattr(importlib.import_module("fgaseg.kernels.cosine_cost_volume.triton"), "PROCESSORS", 1)
    args = inputs(*sizes)
    check_backend(lambda *a: cosine_cost_volume(*a, backend=backend), reference, args, dtype, "contiguous")


@pytest.mark.parametrize("backend", backends("triton", "cuda"))
def test_channels_last(backend):
    pixels, texts = inputs(2, 72, 67, 1, 8, 13)
    pixels = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    args = [pixels, texts]
    check_backend(lambda *a: cosine_cost_volume(*a, backend=backend), reference, args, torch.float16, "contiguous")


@pytest.mark.slow
@pytest.mark.exhaustive  # emulated: three minutes
@pytest.mark.parametrize("backend", backends("cuda"))
def test_more_images_than_a_grid_is_tall(backend):
    """Forward alone: backward, whose grids are of one dimension too, would take the emulator twice as long again."""
    pixels, texts = (x.float() for x in inputs(65537, 2, 1, 1, 1, 1))
    got = cosine_cost_volume(pixels, texts, backend=backend)
    torch.testing.assert_close(got, reference(pixels, texts))


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_cosine_of_equation_9(backend):
    pixels, texts = inputs(2, 5, 3, 2, 4, 6)
    got = cosine_cost_volume(pixels, texts, backend=backend)
    for b, p, t, y, x in [(0, 0, 0, 0, 0), (1, 1, 2, 3, 5), (1, 0, 1, 2, 4)]:
        expected = torch.cosine_similarity(pixels[b, :, y, x], texts[b, t, p], dim=0)
        torch.testing.assert_close(got[b, p, t, y, x], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_vectors_have_cosine_zero(dtype, backend):
    pixels, texts = (v.to(dtype) for v in inputs(1, 8, 3, 1, 2, 2))
    pixels[..., 0, 1] = 0
    texts[:, 2] = 0
    got = cosine_cost_volume(pixels, texts, backend=backend)
    assert not got[..., 0, 1].any() and not got[:, :, 2].any() and got[0, 0, :2, 1, 1].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_length_does_not_matter(backend):
    pixels, texts = (v.float() for v in inputs(1, 8, 3, 1, 2, 2))
    expected = cosine_cost_volume(pixels, texts, backend=backend)
    for scale in (1e-10, 1e10):
        torch.testing.assert_close(cosine_cost_volume(pixels * scale, texts / scale, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_text_embeddings(dtype, backend):
    """171 CLIP text embeddings against pixels that are the same ones: 1 on the diagonal, CLIP's narrow cone off it."""
    if not CLIP_TEXT.exists():
        pytest.skip(reason=f"no {CLIP_TEXT.name} beside the repository")
    texts = torch.from_numpy(np.load(CLIP_TEXT / "coco_single.npy").astype(np.float64))
    pixels = texts.T.reshape(1, 512, 9, 19).contiguous()
    args = [pixels, texts[None, :, None]]
    check_backend(lambda *a: cosine_cost_volume(*a, backend=backend), reference, args, dtype, "contiguous")
    cosines = cosine_cost_volume(pixels.to(dtype), texts[None, :, None].to(dtype), backend=backend).reshape(171, 171)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(171, dtype=dtype))
    assert 0.4 < cosines.min() and cosines.fill_diagonal_(0).max() < 1


@needs_cpp
def test_gradients_by_differences():
    args = [v.requires_grad_() for v in inputs(2, 5, 3, 2, 4, 3)]
    assert torch.autograd.gradcheck(lambda *a: cosine_cost_volume(*a, backend="cpp"), args)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_a_length_below_eps(which, backend):
    """A length that was raised to eps is a constant; the cosine is then linear in the vector."""
    args = inputs(1, 4, 2, 1, 2, 2)
    args[which] = args[which] * 1e-14
    args = [v.requires_grad_() for v in args]
    grads = [
        torch.autograd.grad(f(*args).square().sum(), args)
        for f in (lambda *a: cosine_cost_volume(*a, backend=backend), reference)
    ]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_runs_like_a_matrix_product(backend):
    pixels, texts = (v.float() for v in inputs(1, 8, 3, 1, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert cosine_cost_volume(pixels, texts.bfloat16(), backend=backend).dtype == torch.bfloat16


def test_says_what_is_wrong():
    pixels, texts = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 1, 3)
    with pytest.raises(ValueError, match=r"texts has shape \[2, 6, 1, 2\]; expected \[2, T, P, 3\]"):
        cosine_cost_volume(pixels, texts[..., :2])
    with pytest.raises(ValueError, match=r"pixels has shape \[3, 4, 5\]; expected \[B, C, H, W\]"):
        cosine_cost_volume(pixels[0], texts)
    with pytest.raises(TypeError, match="texts has dtype torch.float16 but pixels has torch.float32"):
        cosine_cost_volume(pixels, texts.half())
    with pytest.raises(ValueError, match="texts is on meta but pixels is on cpu"):
        cosine_cost_volume(pixels, texts.to("meta"))
