import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import BACKENDS, DTYPES, backend_layouts, backends, check_backend, needs, needs_cpp, random
from paths import SHARED

from fgaseg.kernels import lcs_conv
from fgaseg.kernels.lcs_conv.reference import lcs_conv_reference

CLIP_TEXT = SHARED / "data" / "clip_text" / "voc12_single.npy"
# B, C, T, H, W, K; K larger than the map in the third
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 37, 5, 7, 9, 5), (2, 3, 2, 2, 3, 7), (1, 64, 3, 5, 4, 3), (3, 2, 4, 1, 13, 3)]
# several tiles of classes, of pixels (576 or 320 at most) and of channels, tiles narrower than the image
LARGE = [(1, 20, 40, 26, 27, 3), (1, 33, 35, 10, 37, 5), (1, 17, 66, 33, 20, 7)]
TILES = [
    *(
        pytest.param("triton", one, marks=[needs["triton"], pytest.mark.slow, *more])
        for one, more in [((3, 70, 40, 3, 5, 3), []), (LARGE[2], [pytest.mark.exhaustive])]
    ),
    *(pytest.param("triton", one, marks=needs["triton"]) for one in LARGE[:2]),
    *(pytest.param("cuda", one, marks=needs["cuda"]) for one in [*LARGE, (3, 180, 40, 3, 5, 3)]),
]
EMPTY = [(0, 3, 2, 4, 5, 3), (2, 0, 2, 4, 5, 3), (2, 3, 0, 4, 5, 3)]
NORMS = ["taps", "channels", "none"]


def inputs(b, c, t, h, w, k, seed=0):
    return [random(b, c, h, w, seed=seed), 2 * random(b, t, c * k * k, seed=seed + 1), random(b, t, seed=seed + 2)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend, layout", backend_layouts("cpp", "triton", "cuda", "reference"))
def test_matches_reference(norm, dtype, layout, backend):
    for *sizes, k in SHAPES + EMPTY:
        check_backend(
            lambda *a, k=k: lcs_conv(*a, k, norm, backend=backend),
            lambda *a, k=k: lcs_conv_reference(*a, k, norm),
            inputs(*sizes, k),
            dtype,
            layout,
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_convolution_of_equation_10(backend):
    """Against plain loops over every index, independently of the reference."""
    (b, c, t, h, w, k), (x, logits, bias) = (2, 3, 2, 4, 5, 3), inputs(2, 3, 2, 4, 5, 3)
    kernels = logits.view(b, t, c, k * k).softmax(-1)
    expected = bias[:, :, None, None].repeat(1, 1, h, w)
    for y, dy in ((y, dy) for y in range(h) for dy in range(k) if 0 <= y + dy - 1 < h):
        for z, dz in ((z, dz) for z in range(w) for dz in range(k) if 0 <= z + dz - 1 < w):
            expected[:, :, y, z] += (kernels[..., dy * k + dz] * x[:, None, :, y + dy - 1, z + dz - 1]).sum(2)
    torch.testing.assert_close(lcs_conv(x, logits, bias, k, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend, sizes", TILES, ids=str)
def test_more_than_one_tile(sizes, dtype, backend, monkeypatch):
    """Blocks of 32 or 64 classes, tiles of pixels, and chunks of kernels: several of each, the last ones partial."""
    if backend == "triton":  # two images at a time and then one, 32 channels at a time
        module = importlib.import_module("fgaseg.kernels.lcs_conv.triton")
        monkeypatch.setattr(module, "SCRATCH", 2 * sizes[2] * sizes[5] ** 2 * 32)
    check_backend(
        lambda *a: lcs_conv(*a, sizes[5], backend=backend), lambda *a: lcs_conv_reference(*a, sizes[5], "taps"),
        inputs(*sizes), dtype, "contiguous",
    )  # fmt: skip


# 3x3 kernels of 16-bit elements on CUDA: units of 32 or 48 classes, pixels that are read four or one at a time, tiles
# that begin between four, results that are written two or one at a time, a multiple of 8 channels that is none of 16
SHARED_SIZES = [(2, 40, 50, 6, 8, 3), (1, 18, 40, 26, 36, 3), (1, 33, 100, 5, 7, 3), (3, 16, 33, 4, 6, 3)]


@pytest.mark.parametrize("processors", [1, 2, 5, 132])
@pytest.mark.parametrize("sizes", SHARED_SIZES, ids=str)
@pytest.mark.parametrize("backend", backends("cuda"))
def test_units_are_shared_by_blocks(sizes, processors, backend, monkeypatch):
    """A block has several units, parts of two, or a part of one: as the number of multiprocessors says."""
    monkeypatch.setenv("FGASEG_SHIM_PROCESSORS", str(processors))
    dtype, layout = (torch.float16, "contiguous") if processors % 2 else (torch.bfloat16, "sliced")
    check_backend(
        lambda *a: lcs_conv(*a, sizes[5], backend=backend), lambda *a: lcs_conv_reference(*a, sizes[5], "taps"),
        inputs(*sizes), dtype, layout,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_far_apart(backend, dtype):
    """Exponentials that overflow unless the largest logit is subtracted, and taps without any weight."""
    x, logits, bias = inputs(1, 17, 3, 4, 5, 3)
    logits = 300 * logits
    logits[..., ::7] = -torch.inf
    check_backend(
        lambda *a: lcs_conv(*a, 3, backend=backend), lambda *a: lcs_conv_reference(*a, 3, "taps"),
        [x, logits, bias], dtype, "contiguous",
    )  # fmt: skip


@pytest.mark.parametrize("backend", backends("cuda"))
def test_an_infinite_pixel_reaches_only_what_sees_it(backend):
    """What fills up tiles of pixels and steps of channels is zero on both sides: zero times infinity is NaN."""
    x, logits, bias = (v.half() for v in inputs(1, 17, 3, 5, 5, 3))
    x[0, 3, 0, 0] = torch.inf

    def results(function):
        leaves = [v.detach().requires_grad_() for v in (x, logits, bias)]
        y = function(*leaves)
        y.backward(torch.ones_like(y))
        return [y, *(v.grad for v in leaves)]

    got = results(lambda *a: lcs_conv(*a, 3, "none", backend=backend))
    expected = results(lambda *a: lcs_conv_reference(*a, 3, "none"))
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite()) and torch.equal(one.isnan(), other.isnan())


@needs_cpp
def test_many_kernels_are_worked_off_in_parts():
    """More normalised kernels than the C++ backend holds at once: the same numbers, and the pixel gradients add up."""
    x, logits, bias = (v.float() for v in inputs(2, 128, 151, 3, 4, 11))
    assert logits[0].numel() * 4 > 8 << 20
    check_backend(
        lambda *a: lcs_conv(*a, 11, backend="cpp"), lambda *a: lcs_conv_reference(*a, 11, "taps"),
        [x, logits, bias], torch.float32, "contiguous",
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_real_text_embeddings(dtype, backend):
    """Twenty CLIP text embeddings as classes, and pixels made of them, through a fixed random projection to kernels."""
    if not CLIP_TEXT.exists():
        pytest.skip(reason=f"no {CLIP_TEXT.name} beside the repository")
    texts = torch.from_numpy(np.load(CLIP_TEXT)).to(torch.get_default_device(), random.dtype)
    pixels = (texts.T.reshape(1, 512, 4, 5) + 0.02 * random(1, 512, 4, 5)).contiguous()
    logits = F.linear(texts, random(512 * 9, 512) / 16)[None]
    check_backend(
        lambda *a: lcs_conv(*a, 3, backend=backend), lambda *a: lcs_conv_reference(*a, 3, "taps"),
        [F.normalize(pixels, dim=1), logits, random(1, 20)], dtype, "contiguous",
    )  # fmt: skip


@needs_cpp
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_by_differences(norm):
    args = [v.requires_grad_() for v in inputs(2, 2, 3, 3, 2, 3)]
    assert torch.autograd.gradcheck(lambda *a: lcs_conv(*a, 3, norm, backend="cpp"), args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_twice_to_the_same_bits(backend):
    args = [v.float() for v in inputs(2, 37, 5, 7, 9, 5)]
    assert torch.equal(lcs_conv(*args, 5, backend=backend), lcs_conv(*args, 5, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_runs_like_a_convolution(backend):
    """Inputs of different dtypes, as autocast leaves them, come out in its dtype with float32 gradients."""
    x, logits, bias = (v.float().requires_grad_() for v in inputs(2, 3, 4, 5, 6, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = lcs_conv(x, logits.bfloat16(), bias, 3, backend=backend)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == logits.grad.dtype == torch.float32


def test_says_what_is_wrong():
    x, logits, bias = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 27), torch.zeros(2, 6)
    with pytest.raises(ValueError, match="kernel_size is 2; expected an odd number"):
        lcs_conv(x, torch.zeros(2, 6, 12), bias, 2)
    with pytest.raises(ValueError, match=r"kernel_logits has shape \[2, 6, 18\].* expect \[2, T, 27\]"):
        lcs_conv(x, logits[..., :18], bias, 3)
    with pytest.raises(ValueError, match=r"bias has shape \[2, 5\]; expected \[2, 6\]"):
        lcs_conv(x, logits, bias[:, :5], 3)
    with pytest.raises(ValueError, match="H and W at least 1"):
        lcs_conv(x[:, :, :0], logits, bias, 3)
    with pytest.raises(TypeError, match=r"bias has dtype torch.float64 but pixels has torch.float32"):
        lcs_conv(x, logits, bias.double(), 3)
    with pytest.raises(ValueError, match="kernel_logits is on meta but pixels is on cpu"):
        lcs_conv(x, logits.to("meta"), bias, 3)
