import pytest
import torch
import torch.nn.functional as F
from accuracy import (
    BACKENDS,
    DTYPES,
    EXHAUSTIVE,
    LAYOUTS,
    SLOW,
    backend_layouts,
    check_error,
    laid_out,
    needs_cpp,
    random,
)
from torch import Tensor

from fgaseg.kernels import upsample_argmax, upsample_argmax_windows
from fgaseg.kernels._dispatch import OPS

SHAPES = [  # B, T, h, w -> H, W
    ((1, 1, 1, 1), (1, 1)),
    ((1, 3, 1, 1), (4, 5)),
    ((2, 37, 7, 9), (23, 31)),
    ((1, 5, 6, 8), (48, 64)),
    ((1, 18, 13, 11), (13, 11)),
    ((1, 4, 17, 13), (5, 12)),
    ((2, 5, 5, 40), (19, 3)),
    ((1, 2, 3, 5), (3, 300)),
    ((2, 19, 9, 10), (41, 70)),
    ((1, 11, 12, 20), (30, 65)),
    ((0, 3, 4, 5), (7, 9)),
    ((0, 3, 4, 5), (20, 30)),
]
WINDOWS = [  # crops a side, window, stride, T, (h, w), (H, W)
    (2, 12, 8, 17, (3, 4), (15, 31)),
    (1, 9, 9, 2, (9, 9), (9, 9)),
    (3, 7, 3, 5, (5, 2), (40, 5)),
    (2, 6, 1, 1, (8, 7), (1, 1)),
    (2, 16, 16, 3, (4, 4), (32, 70)),
    (3, 27, 11, 2, (7, 6), (35, 50)),
]


def upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def averaged(logits: Tensor, side: int, window: int, stride: int, sigmoid: bool) -> Tensor:
    """The protocol's frame [1, T, frame, frame], the crops put together by fold, independently of the reference."""
    frame = (side - 1) * stride + window
    tiles = upsampled(logits, (window, window))
    tiles = tiles.sigmoid() if sigmoid else tiles
    crops = tiles[:-1].flatten(2).permute(1, 2, 0)
    sums, counts = (F.fold(x, (frame, frame), window, stride=stride)[:, 0] for x in (crops, torch.ones_like(crops)))
    return ((sums / counts + upsampled(tiles[-1:], (frame, frame))[0]) / 2)[None]


def check_winners(labels: Tensor, scores: Tensor, same: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Scores by the common rule; a label where it is another class's, only if rounding can tell the two apart no more.

    same, exact [B, T, H, W]: the upsampled maps by PyTorch in the compute dtype, and in float64.
    """
    assert labels.dtype == torch.int64 and labels.shape == scores.shape == exact[:, 0].shape
    check_error(scores, same.amax(1), exact.amax(1), dtype)
    if labels.numel():
        lost = exact.amax(1) - exact.gather(1, labels[:, None])[:, 0]
        assert lost.max() <= 16 * torch.finfo(dtype).eps * max(exact.abs().max().item(), 1.0)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend, layout", backend_layouts("cpp", "triton", "cuda", "reference"))
def test_matches_interpolate_and_max(dtype, layout, backend):
    for sizes, size in SHAPES:
        maps = laid_out(3 * random(*sizes).to(dtype), layout)
        computed = compute_dtype(dtype)
        same, exact = upsampled(maps.detach().to(computed), size), upsampled(maps.detach().double(), size)
        labels, scores, total = upsample_argmax(maps, size, total=True, backend=backend)
        check_winners(labels, scores, same, exact, computed)
        totals = [(x - x.amax(1, keepdim=True)).exp().sum(1) for x in (same, exact)]
        check_error(total, *totals, computed)
        alone = upsample_argmax(maps, size, backend=backend)
        assert len(alone) == 2 and torch.equal(alone[0], labels) and torch.equal(alone[1], scores)
        assert not scores.requires_grad and not total.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_match_the_protocol_step_by_step(dtype, activation, backend):
    for (side, window, stride, classes, (h, w), size), layout in zip(WINDOWS, 2 * LAYOUTS, strict=False):
        logits = laid_out(3 * random(side**2 + 1, classes, h, w).to(dtype), layout).detach()
        arguments, computed = (side, window, stride, activation == "sigmoid"), compute_dtype(dtype)
        same, exact = (upsampled(averaged(logits.to(d), *arguments), size) for d in (computed, torch.float64))
        labels, scores = upsample_argmax_windows(logits, window, stride, size, activation, backend=backend)
        check_winners(labels[None], scores[None], same, exact, computed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lowest_class_wins_a_tie(backend):
    maps = random(1, 1, 4, 5).expand(1, 40, 4, 5).clone()
    assert not upsample_argmax(maps, (9, 13), backend=backend)[0].any()
    maps[:, 3] += 1
    maps[:, 21] += 1  # in another part of the classes, where they are taken in parts
    assert (upsample_argmax(maps, (9, 13), backend=backend)[0] == 3).all()
    logits = maps.expand(5, 40, 4, 5)
    assert (upsample_argmax_windows(logits, 6, 4, (9, 13), backend=backend)[0] == 3).all()


SIZES = [  # stretched as far as CUDA's runs need it, the last two: in Triton they are like the others, but slow
    pytest.param(*backend.values, size, marks=[*backend.marks, *([SLOW, EXHAUSTIVE] if shrunk_in_triton else [])])
    for backend in BACKENDS
    for size in [(4, 6), (9, 13), (2, 3), (7, 3), (10, 31), (18, 33)]
    if size[0] < 10 or backend.values != ("triton",)
    for shrunk_in_triton in [backend.values == ("triton",) and size in [(2, 3), (7, 3)]]
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend, size", SIZES)
def test_nan_and_infinity(dtype, backend, size):
    """As F.interpolate and torch.max have them: 0 * inf is NaN, and the first NaN wins."""
    maps = random(1, 40, 4, 6).to(dtype)
    maps[0, 30, 1, 2] = maps[0, 20, 1, 2] = maps[0, 25, 3, 0] = torch.nan
    maps[0, 5, 0, 5], maps[0, 6, 2, 2] = torch.inf, -torch.inf
    maps[0, 0, 3, 3] = -torch.inf
    lowest = torch.full_like(maps, -torch.inf)
    for x in (maps, lowest):
        expected = upsampled(x.to(compute_dtype(dtype)), size)
        best, first = expected.max(1)
        labels, scores, total = upsample_argmax(x, size, total=True, backend=backend)
        assert torch.equal(labels, first)
        torch.testing.assert_close(scores, best, equal_nan=True)
        sums = (expected - best[:, None]).exp().sum(1)
        torch.testing.assert_close(total, sums, equal_nan=True)
        logits, window = x.expand(2, 40, 4, 6), 5 if size[0] < 10 else 27
        labels, scores = upsample_argmax_windows(logits, window, window, size, "none", backend=backend)
        expected, first = upsampled(averaged(logits.to(compute_dtype(dtype)), 1, window, window, False), size).max(1)
        torch.testing.assert_close(scores, expected[0], equal_nan=True)
        assert torch.equal(labels, first[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_apart_logits_have_a_total(backend):
    """A class that wins late rescales what was summed before, however far below it is."""
    maps = torch.tensor([-500.0, -80.0, 0.0, 0.0, 300.0, 299.0]).view(1, 6, 1, 1)
    labels, scores, total = upsample_argmax(maps, (2, 2), total=True, backend=backend)
    assert (labels == 4).all() and (scores == 300).all()
    torch.testing.assert_close(total, torch.full_like(total, 1 + torch.tensor(-1.0).exp().item()))


@needs_cpp
@pytest.mark.parametrize("function", [upsample_argmax, upsample_argmax_windows])
def test_the_number_of_threads_changes_nothing(function):
    maps = random(2, 30, 9, 11).float().round()  # ties
    sizes = ((200, 37),) if function is upsample_argmax else (9, 9, (200, 37))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(function(maps, *sizes, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@needs_cpp
def test_runs_under_autocast_unchanged():
    maps = random(1, 5, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for backend in ("cpp", "reference"):
            inside = upsample_argmax(maps, (9, 9), total=True, backend=backend)
            assert inside[1].dtype == inside[2].dtype == torch.float32
            assert all(map(torch.equal, inside, upsample_argmax(maps.float(), (9, 9), total=True, backend=backend)))


@pytest.mark.parametrize("op", ["upsample_argmax", "upsample_argmax_windows"])
def test_a_gpu_prefers_the_form_with_fewer_instructions(op):
    assert [backend.name for backend in OPS[op]] == ["cpp", "cuda", "triton", "reference"]


def test_says_what_is_wrong():
    maps = random(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"maps has shape \[2, 3, 4\]; expected \[B, T, h, w\]"):
        upsample_argmax(maps[..., 0], (5, 5))
    with pytest.raises(ValueError, match=r"maps has shape \[2, 0, 4, 4\]; expected"):
        upsample_argmax(maps[:, :0], (5, 5))
    with pytest.raises(ValueError, match=r"size is \(5, 0\); expected \(H, W\), both at least 1"):
        upsample_argmax(maps, (5, 0))
    with pytest.raises(TypeError, match="maps has dtype torch.int64"):
        upsample_argmax(maps.long(), (5, 5))
    with pytest.raises(ValueError, match=r"logits has shape \[4, 3, 4, 4\]; expected \[n\*n \+ 1, T, h, w\]"):
        upsample_argmax_windows(maps.repeat(2, 1, 1, 1), 5, 5, (5, 5))
    with pytest.raises(ValueError, match="stride 6, window 5; expected 1 <= stride <= window"):
        upsample_argmax_windows(maps, 5, 6, (5, 5))
    with pytest.raises(ValueError, match="activation is 'softmax'; expected one of sigmoid, none"):
        upsample_argmax_windows(maps, 5, 5, (5, 5), "softmax")
    with pytest.raises(ValueError, match=r"size is \(0, 5\)"):
        upsample_argmax_windows(maps, 5, 5, (0, 5))
    with pytest.raises(TypeError, match="logits has dtype torch.int32"):
        upsample_argmax_windows(maps.int(), 5, 5, (5, 5))
