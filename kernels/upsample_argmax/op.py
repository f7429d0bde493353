"""upsample_argmax and upsample_argmax_windows: schemas, shape rules and backends. Neither has a gradient."""

from math import isqrt

import torch
from torch import Tensor

from .._dispatch import LONGEST_AXIS, LONGEST_SIDE, check_same, dispatch, register
from .._library import define
from .reference import upsample_argmax_reference, upsample_argmax_windows_reference

ACTIVATIONS = ("sigmoid", "none")


def _check(maps: Tensor, height: int, width: int, total: bool) -> None:
    check_same("upsample_argmax", maps=maps)
    if maps.dim() != 4 or any(n < 1 for n in maps.shape[1:]):
        raise ValueError(
            f"upsample_argmax: maps has shape {list(maps.shape)}; expected [B, T, h, w], all but B at least 1"
        )
    _check_size("upsample_argmax", (height, width))


def _check_windows(logits: Tensor, side: int, window: int, stride: int, height: int, width: int, sigmoid: bool) -> None:
    op = "upsample_argmax_windows"
    check_same(op, logits=logits)
    if side != _crops_per_side(logits):
        raise ValueError(f"{op}: side is {side}; expected {_crops_per_side(logits)}")
    if not 1 <= stride <= window:
        raise ValueError(
            f"{op}: stride {stride}, window {window}; expected 1 <= stride <= window, so that crops leave no gap"
        )
    if (frame := (side - 1) * stride + window) > LONGEST_SIDE:
        raise ValueError(f"{op}: the frame's side is {frame}; expected at most {LONGEST_SIDE}")
    _check_size(op, (height, width))


def _crops_per_side(logits: Tensor) -> int:
    side = isqrt(logits.shape[0] - 1) if logits.dim() == 4 and logits.shape[0] > 1 else 0
    if side == 0 or side**2 + 1 != logits.shape[0] or min(logits.shape) < 1:
        raise ValueError(
            f"upsample_argmax_windows: logits has shape {list(logits.shape)}; expected [n*n + 1, T, h, w] of n*n crops "
            "and one global view, all at least 1"
        )
    return side


def _check_size(op: str, size: tuple[int, int]) -> None:
    if len(size) != 2 or any(n < 1 for n in size):
        raise ValueError(f"{op}: size is {tuple(size)}; expected (H, W), both at least 1")
    # sizes that are symbols get no upper bound
    if any(isinstance(n, int) and n > LONGEST_AXIS for n in size):
        raise ValueError(f"{op}: size is {tuple(size)}; expected at most {LONGEST_AXIS} each")


def _empty_scores(like, *sizes):
    return like.new_empty(sizes, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32)


def _fake(maps, height, width, total):
    sizes = (maps.shape[0], height, width)
    totals = _empty_scores(maps, maps.shape[0] if total else 0, height, width)
    return maps.new_empty(sizes, dtype=torch.int64), _empty_scores(maps, *sizes), totals


def _fake_windows(logits, side, window, stride, height, width, sigmoid):
    return logits.new_empty(height, width, dtype=torch.int64), _empty_scores(logits, height, width)


define(
    "upsample_argmax",
    "(Tensor maps, SymInt height, SymInt width, bool total) -> (Tensor, Tensor, Tensor)",
    _check,
    _fake,
    __package__,
)
define(
    "upsample_argmax_windows",
    "(Tensor logits, int side, int window, int stride, SymInt height, SymInt width, bool sigmoid) -> (Tensor, Tensor)",
    _check_windows,
    _fake_windows,
    __package__,
)


# Triton needs many times as many instructions: see docs/design/kernels.md
ORDER = ("cpp", "cuda", "triton")
register("upsample_argmax", upsample_argmax_reference, order=ORDER)
register("upsample_argmax_windows", upsample_argmax_windows_reference, order=ORDER)


def upsample_argmax(
    maps: Tensor, size: tuple[int, int], total: bool = False, *, backend: str = "auto"
) -> tuple[Tensor, ...]:
    """The winning class of every pixel of the upsampled maps, which are never stored.

        up[b,t]       = maps[b,t] at H x W, bilinear, as F.interpolate(..., align_corners=False), also where H < h:
                        source = max((dst + 0.5) * h / H - 0.5, 0), clamped at the far edge
        labels[b,y,x] = argmax_t up[b,t,y,x]       scores = max_t up       total = sum_t exp(up - scores)

    maps     [B, T, h, w]  float32, float64, float16 or bfloat16; any strides; T, h and w at least 1
    size     (H, W), both at least 1
    total    also return the softmax's denominator relative to the winner: the winner's probability is 1 / total
    returns  labels [B, H, W] int64, scores [B, H, W], with total [B, H, W]; computed in float32, or float64 for float64

    Ties go to the lowest class. NaN wins, the first one, as in torch.max; 0 * inf is NaN, as in F.interpolate. The
    total is NaN where the winner is infinite or NaN. Memory beyond maps and results does not grow with T, except for
    the float32 copy that C++ makes of half types and of strided maps. Time grows with T·H·W. Not differentiable: the
    results are detached. Autocast changes nothing. ``backend`` is "auto" or a name that ``explain`` lists. Source: the
    evaluation of FGAseg and CAT-Seg. Raises ValueError for other shapes or sizes, TypeError for other dtypes.
    """
    labels, scores, totals = dispatch("upsample_argmax", backend, maps.detach(), *size, total)
    return (labels, scores, totals) if total else (labels, scores)


def upsample_argmax_windows(
    logits: Tensor,
    window: int,
    stride: int,
    size: tuple[int, int],
    activation: str = "sigmoid",
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The winning class of every pixel of a photo that was seen in n x n overlapping crops and once as a whole.

        tile[v,t] = activation(logits[v,t] at window x window)
        crops[t]  = mean of the tiles over each pixel of the frame; crop v lies at (v // n * stride, v % n * stride)
        frame[t]  = (crops[t] + the last tile at the frame's size) / 2
        labels    = argmax_t frame[t] at H x W        scores = its maximum

    All resizing is bilinear, as in ``upsample_argmax``; the frame's side is (n - 1) * stride + window.

    logits      [n*n + 1, T, h, w]  crops row by row, then the global view; float32, float64, float16 or bfloat16, any
                strides; T, h and w at least 1
    window      side of a crop, at least 1; the frame's is at most 32767
    stride      1..window: no pixel of the frame may lie between the crops
    size        (H, W) of the photo, both at least 1
    activation  "sigmoid" or "none"
    returns     labels [H, W] int64, scores [H, W]; computed in float32, or float64 for float64

    Ties, NaN, gradients, autocast and ``backend`` as in ``upsample_argmax``. C++ keeps a few rows per class in memory,
    the others the frames of 16 classes. Source: the sliding-window evaluation of FGAseg and CAT-Seg.
    Raises ValueError for other shapes, sizes or activations, TypeError for other dtypes.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"upsample_argmax_windows: activation is '{activation}'; expected one of {', '.join(ACTIVATIONS)}"
        )
    call = (logits.detach(), _crops_per_side(logits), window, stride, *size, activation == "sigmoid")
    return dispatch("upsample_argmax_windows", backend, *call)
