import math

import pytest
import torch
from accuracy import DTYPES, LAYOUTS, backends, check_backend, needs_cpp, random

from fgaseg.kernels import window_attention
from fgaseg.kernels._dispatch import OPS
from fgaseg.kernels.window_attention.op import _not_for_cuda
from fgaseg.kernels.window_attention.reference import window_attention_reference, window_mask

COMPILED = backends("cpp", "triton")
CUDA = backends("cuda")  # its kernels take heads of 32 channels of 16 bits only, so it has tests of its own
BACKENDS = backends("cpp", "triton", "reference")
# B, T, H, W, D, heads, window, shift: one pixel; whole windows; padding on both sides, d odd; a window larger than the
# grid; a first block of keys that is nothing but padding
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1, 0), (2, 2, 8, 4, 8, 2, 4, 0), (2, 1, 5, 6, 6, 2, 4, 2), (1, 2, 3, 2, 5, 1, 4, 1),
    (1, 1, 7, 8, 3, 1, 6, 3),
]  # fmt: skip
# as above, heads of 32 channels: one pixel; whole windows of 144 pixels, which need no mask; regions and padding in
# one window; regions without padding, seven heads; small windows
CUDA_SHAPES = [
    (1, 1, 1, 1, 32, 1, 1, 0), (2, 2, 12, 12, 64, 2, 12, 0), (2, 1, 9, 13, 32, 1, 12, 6), (1, 1, 12, 12, 224, 7, 12, 5),
    (2, 2, 5, 6, 96, 3, 4, 2),
]  # fmt: skip
EMPTY_CUDA = [(0, 3, 4, 5, 32, 1, 3, 1), (2, 0, 4, 5, 64, 2, 3, 1)]
HALVES = [torch.bfloat16, torch.float16]
EMPTY = [(0, 3, 4, 5, 4, 2, 3, 1), (2, 0, 4, 5, 4, 2, 3, 1)]


def inputs(b, t, h, w, d, spread=2):
    rows = [spread * random(b * t, h, w, d, seed=i) for i in range(3)]
    return [*rows, *(random(b, h, w, d, seed=i) for i in (3, 4))]


def check(backend, dtype, layout, shape, spread=2, least=0.0):
    *sizes, heads, window, shift = shape
    check_backend(
        lambda *a: window_attention(*a, heads, window, shift, backend=backend),
        lambda *a: window_attention_reference(*a, heads, window, shift),
        inputs(*sizes, spread), dtype, layout, least,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_reference(shape, dtype, layout, backend):
    check(backend, dtype, layout, shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_released_models_windows(dtype, backend):
    """Several blocks of tokens, a head of 32 channels, windows of 144, and a grid that they do not divide."""
    check(backend, dtype, "contiguous", (1, 1, 13, 12, 32, 1, 12, 6))


@pytest.mark.parametrize("size", [16, 40, 64])
@pytest.mark.parametrize("backend", backends("cpp", "triton", slow=["triton"]))
def test_other_sizes_of_a_head(backend, size):
    # with wider scores the exponentials' rounding decides, which on some processors PyTorch has unusually little of
    check(backend, torch.float32, "contiguous", (1, 1, 9, 5, 2 * size, 2, 7, 3), spread=1)


def pixel_by_pixel(q, k, v, q_guidance, k_guidance, heads, window, shift):
    """Plain loops that decide from coordinates which pixels share a window, independently of the reference."""
    rows, height, width, channels = q.shape
    q, k = (x + g.repeat_interleave(rows // len(g), 0) for x, g in ((q, q_guidance), (k, k_guidance)))

    def window_of(n, size):  # and whether it was rolled over the edge
        moved = (n - shift) % (size + -size % window)
        return moved // window, moved != n - shift

    pixels = [(y, x) for y in range(height) for x in range(width)]
    windows = {p: (*zip(window_of(p[0], height), window_of(p[1], width), strict=True),) for p in pixels}
    out = torch.empty_like(q)
    for p in pixels:
        mine, region = windows[p]
        keys = [other for other in pixels if windows[other][0] == mine]
        mask = q.new_tensor([0.0 if windows[other][1] == region else -100.0 for other in keys])
        for c in torch.arange(channels).view(heads, -1):
            ks, vs = (torch.stack([x[:, y, z][:, c] for y, z in keys], 1) for x in (k, v))
            scores = torch.einsum("nc,njc->nj", q[:, p[0], p[1]][:, c], ks) / math.sqrt(len(c)) + mask
            out[:, p[0], p[1], c] = torch.einsum("nj,njc->nc", scores.softmax(1), vs)
    return out


@pytest.mark.parametrize("scale", [1, 12], ids=["", "scores beyond the mask of -100"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_attention_inside_shifted_windows(backend, scale):
    for *sizes, heads, window, shift in [(2, 2, 7, 6, 4, 2, 4, 2), (1, 1, 4, 5, 3, 1, 3, 1), (1, 1, 6, 6, 2, 1, 3, 0)]:
        args = [scale * x for x in inputs(*sizes)]
        expected = pixel_by_pixel(*(x.double().cpu() for x in args), heads, window, shift)
        got = window_attention(*args, heads, window, shift, backend=backend)
        tolerance = {} if got.dtype == torch.float64 else {"atol": 2e-4 * scale, "rtol": 1e-4}
        torch.testing.assert_close(got.double().cpu(), expected, **tolerance)


@pytest.mark.parametrize("backend", backends("cpp", "triton", "reference", slow=["triton"]))
def test_slices_of_one_packed_projection(backend):
    """As the model calls it; what lies beside a slice must not be read or written."""
    q, k, v, *guidance = inputs(2, 2, 5, 6, 8)
    packed = torch.cat([q, k, v], -1).requires_grad_()
    y = window_attention(*packed.split(8, -1), *guidance, 2, 4, 2, backend=backend)
    assert torch.equal(y, window_attention(q, k, v, *guidance, 2, 4, 2, backend=backend)) and y.is_contiguous()
    leaves = [x.requires_grad_() for x in (q, k, v)]
    apart = torch.autograd.grad(window_attention(*leaves, *guidance, 2, 4, 2, backend=backend).square().sum(), leaves)
    assert torch.equal(torch.autograd.grad(y.square().sum(), packed)[0], torch.cat(apart, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_does_not_see_beyond_itself(backend):
    """NaN in one window stays there, also in the gradients."""
    leaves = [x.requires_grad_() for x in inputs(1, 2, 4, 8, 4)]
    with torch.no_grad():
        leaves[2][1, 0, 5] = math.nan
    y = window_attention(*leaves, 2, 4, 0, backend=backend)
    dq, dk, dv, *_ = torch.autograd.grad(y[0].sum() + y[1, :, :4].sum(), leaves)
    assert y[1, :, 4:].isnan().all() and not y[0].isnan().any() and not y[1, :, :4].isnan().any()
    assert not any(x[:, :, :4].isnan().any() for x in (dq, dk, dv))


@pytest.mark.parametrize("shape", [*CUDA_SHAPES, *EMPTY_CUDA], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", CUDA)
def test_cuda_matches_reference(shape, dtype, backend):
    check(backend, dtype, "contiguous", shape, least=0.1)  # the gradients of a single pixel are 0 in exact arithmetic


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("backend", CUDA)
def test_cuda_reads_any_layout(layout, backend):
    check(backend, torch.float16, layout, (2, 2, 5, 6, 64, 2, 4, 2))


@pytest.mark.parametrize("spread", [0.1, 30], ids=["even weights", "scores beyond the mask of -100"])
@pytest.mark.parametrize("backend", CUDA)
def test_cuda_with_small_and_large_scores(spread, backend):
    check(backend, torch.float16, "contiguous", (1, 1, 7, 6, 32, 1, 4, 2), spread)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", CUDA)
def test_cuda_is_attention_inside_shifted_windows(dtype, backend):
    for *sizes, heads, window, shift in [(2, 2, 7, 6, 64, 2, 4, 2), (1, 1, 13, 12, 32, 1, 12, 5)]:
        args = [x.to(dtype) for x in inputs(*sizes)]
        got = window_attention(*args, heads, window, shift, backend=backend).double().cpu()
        args[0], args[1] = (x + g.repeat_interleave(sizes[1], 0) for x, g in ((args[0], args[3]), (args[1], args[4])))
        rounded = [*(x.double().cpu() for x in args[:3]), *(torch.zeros_like(x).double().cpu() for x in args[3:])]
        expected = pixel_by_pixel(*rounded, heads, window, shift)
        torch.testing.assert_close(got, expected, atol=2 * torch.finfo(dtype).eps * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("backend", CUDA)
def test_cuda_on_slices_of_one_packed_projection(backend):
    """As the model calls it, also where a slice is not aligned to 16 bytes; what lies beside it is NaN."""
    q, k, v, *guidance = (x.half() for x in inputs(2, 2, 5, 6, 64))
    beside = torch.full_like(q[..., :8], math.nan)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    y = window_attention(*leaves, *guidance, 2, 4, 2, backend=backend)
    apart = torch.autograd.grad(y.square().sum(), leaves)
    for gap in (8, 1):
        packed = torch.cat([x for leaf in leaves for x in (leaf, beside[..., :gap])], -1).detach().requires_grad_()
        sizes = [64, gap] * 3
        together = window_attention(*packed.split(sizes, -1)[::2], *guidance, 2, 4, 2, backend=backend)
        assert torch.equal(together, y) and together.is_contiguous()
        (grad,) = torch.autograd.grad(together.square().sum(), packed)
        assert torch.equal(torch.cat(grad.split(sizes, -1)[::2], -1), torch.cat(apart, -1))


@pytest.mark.parametrize("backend", CUDA)
def test_cuda_does_not_see_beyond_a_window_or_a_head(backend):
    leaves = [x.half().requires_grad_() for x in inputs(1, 2, 4, 8, 64)]
    with torch.no_grad():
        leaves[2][1, 0, 5, 40] = math.nan
    y = window_attention(*leaves, 2, 4, 0, backend=backend)
    rest = y[0].sum() + y[1, :, :4].sum() + y[1, ..., :32].sum()
    dq, dk, dv, *_ = torch.autograd.grad(rest, leaves)
    assert y[1, :, 4:, 40].isnan().all() and y.isnan().sum() == 16
    beside = [x.isnan() for x in (dq, dk, dv)]
    assert not any(x[:, :, :4].any() or x[..., :32].any() for x in beside)


@pytest.mark.parametrize("backend", CUDA)
def test_cuda_runs_twice_to_the_same_bits(backend):
    leaves = [x.half().requires_grad_() for x in inputs(2, 3, 7, 5, 32)]
    first, second = (
        torch.autograd.grad(window_attention(*leaves, 1, 4, 2, backend=backend).square().sum(), leaves)
        for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_what_the_cuda_kernels_leave_to_triton():
    maps, guide = torch.zeros(2, 4, 4, 64, dtype=torch.float16), torch.zeros(1, 4, 4, 64, dtype=torch.float16)
    cuda = next(b for b in OPS["window_attention"] if b.name == "cuda")
    limits = {
        "heads of 32 channels, not 16": (maps, maps, maps, guide, guide, 4, 4, 0),
        "at most 12 pixels, not 13": (maps, maps, maps, guide, guide, 2, 13, 0),
        "float16 and bfloat16, not torch.float32": (*(x.float() for x in (maps, maps, maps, guide, guide)), 2, 4, 0),
    }
    for words, call in limits.items():
        assert words in _not_for_cuda(*call) and cuda.why_not(*call)
    assert not _not_for_cuda(maps, maps, maps, guide, guide, 2, 12, 0)
    names = [b.name for b in OPS["window_attention"]]
    assert names.index("cuda") < names.index("triton")


@needs_cpp
@pytest.mark.parametrize("shift", [0, 1])
def test_gradients_by_differences(shift):
    args = [v.requires_grad_() for v in inputs(1, 2, 3, 4, 4)]
    assert torch.autograd.gradcheck(lambda *a: window_attention(*a, 2, 3, shift, backend="cpp"), args)


@pytest.mark.parametrize("backend", backends("cpp", "triton", "reference", slow=["triton"]))
def test_runs_twice_to_the_same_bits(backend):
    leaves = [x.float().requires_grad_() for x in inputs(2, 3, 7, 10, 6)]
    first, second = (
        torch.autograd.grad(window_attention(*leaves, 2, 4, 2, backend=backend).square().sum(), leaves)
        for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_runs_like_a_product(backend):
    q, *others = (x.float().requires_grad_() for x in inputs(2, 2, 4, 5, 4))
    with torch.autocast(q.device.type, torch.bfloat16):
        y = window_attention(q, *others[:2], others[2].bfloat16(), others[3], 2, 3, 1, backend=backend)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert q.grad.dtype == others[3].grad.dtype == torch.float32


def test_no_mask_is_made_where_everything_may_attend():
    assert window_mask((8, 8), 4, 0, torch.device("cpu")) is None
    assert window_mask((8, 8), 4, 2, torch.device("cpu")).shape == (4, 16, 16)


def test_says_what_is_wrong():
    maps, guide = torch.zeros(6, 4, 5, 8), torch.zeros(2, 4, 5, 8)
    with pytest.raises(ValueError, match=r"q has shape \[6, 0, 5, 8\]; expected \[N, H, W, D\], H, W and D at least 1"):
        window_attention(maps[:, :0], maps[:, :0], maps[:, :0], guide, guide, 2, 3, 1)
    with pytest.raises(ValueError, match=r"v has shape \[6, 4, 5, 7\]; expected that of q, \[6, 4, 5, 8\]"):
        window_attention(maps, maps, maps[..., :7], guide, guide, 2, 3, 1)
    with pytest.raises(ValueError, match=r"k_guidance has shape \[1, 4, 5, 8\]; expected \[B, 4, 5, 8\], B the same"):
        window_attention(maps, maps, maps, guide, guide[:1], 2, 3, 1)
    with pytest.raises(ValueError, match="q has 5 rows for 2 images; expected equally many rows for every image"):
        window_attention(maps[:5], maps[:5], maps[:5], guide, guide, 2, 3, 1)
    with pytest.raises(ValueError, match="heads is 3; expected a divisor of D = 8"):
        window_attention(maps, maps, maps, guide, guide, 3, 3, 1)
    with pytest.raises(ValueError, match="window is 3 and shift 3; expected 0 <= shift < window"):
        window_attention(maps, maps, maps, guide, guide, 2, 3, 3)
    with pytest.raises(TypeError, match="k_guidance has dtype torch.float64 but q has torch.float32"):
        window_attention(maps, maps, maps, guide, guide.double(), 2, 3, 1)
    with pytest.raises(RuntimeError, match="backend='cuda' cannot run this call"):
        window_attention(maps, maps, maps, guide, guide, 2, 3, 1, backend="cuda")
