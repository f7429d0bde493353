"""The definitions of upsample_argmax and upsample_argmax_windows, in plain PyTorch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = 16  # upsampled together, so that memory does not grow with T


def upsample_argmax_reference(maps: Tensor, height: int, width: int, total: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum over the classes of the upsampled maps, and with total sum_t exp(upsampled - maximum)."""
    parts = [slice(first, first + CLASSES) for first in range(0, maps.shape[1], CLASSES)]

    def upsampled(part: slice) -> Tensor:
        return _resized(maps[:, part], height, width)

    labels, scores = _best(upsampled, parts)
    if not total:
        return labels, scores, scores.new_empty(0, height, width)
    return labels, scores, sum((upsampled(part) - scores[:, None]).exp().sum(1) for part in parts)  # type: ignore[return-value]


def upsample_argmax_windows_reference(
    logits: Tensor, side: int, window: int, stride: int, height: int, width: int, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    """The maximum over the classes of the averaged scores at the photo's size."""
    parts = [slice(first, first + CLASSES) for first in range(0, logits.shape[1], CLASSES)]

    def upsampled(part: slice) -> Tensor:
        return _resized(averaged_scores(logits[:, part], side, window, stride, sigmoid)[None], height, width)

    labels, scores = _best(upsampled, parts)
    return labels[0], scores[0]


def averaged_scores(logits: Tensor, side: int, window: int, stride: int, sigmoid: bool) -> Tensor:
    """Scores [T, frame, frame] of side * side crops and one global view, logits [side * side + 1, T, h, w].

    Every view is resized to the window and passed through the sigmoid. Crops are averaged where they overlap; the
    result is the mean of that average and the global view at the frame's size.
    """
    tiles = _resized(logits, window, window)
    tiles = tiles.sigmoid() if sigmoid else tiles
    frame = (side - 1) * stride + window
    summed = tiles.new_zeros(tiles.shape[1], frame, frame)
    counts = tiles.new_zeros(frame, frame)
    for view, tile in enumerate(tiles[:-1]):
        y, x = view // side * stride, view % side * stride
        summed[:, y : y + window, x : x + window] += tile
        counts[y : y + window, x : x + window] += 1
    return (summed / counts + _resized(tiles[-1:], frame, frame)[0]) / 2


def _resized(maps: Tensor, height: int, width: int) -> Tensor:
    maps = maps if maps.dtype == torch.float64 else maps.float()
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)


def _best(upsampled: Callable[[slice], Tensor], parts: list[slice]) -> tuple[Tensor, Tensor]:
    scores, labels = upsampled(parts[0]).max(1)
    for part in parts[1:]:
        value, index = upsampled(part).max(1)
        scores, later = torch.stack([scores, value]).max(0)  # the first of equal ones, and the first NaN
        labels = torch.where(later == 1, index + part.start, labels)
    return labels, scores
