"""upsample_argmax and its windowed form against max over upsampled maps, all at once and a few classes at a time.

Operations: 7 per pixel and class, in the windowed form 20 per pixel of every view. Labels are computed too; the scores
are compared.
"""

import pytest
import torch
import torch.nn.functional as F
from shapes import providers

from fgaseg.kernels import upsample_argmax, upsample_argmax_windows
from fgaseg.kernels.upsample_argmax.reference import averaged_scores, upsample_argmax_reference

SIZE = (480, 640)
CLASSES = {"small": 2} | {f"T={t}": t for t in (20, 150, 847, 2000)}  # maps of 96x96, those of a view of 384x384
WINDOW, STRIDE = 384, 256  # the released evaluation's: four crops of a frame of 640x640
SCORES = 2**25  # the scores that the chunked form upsamples at once


def full_size(maps):
    return F.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False).max(1).values


def chunked(part, classes: int):
    """The running maximum over maps(classes) of a slice of classes."""
    step = max(SCORES // (SIZE[0] * SIZE[1]), 1)
    best = labels = None
    for first in range(0, classes, step):
        maps = F.interpolate(part(slice(first, first + step)), size=SIZE, mode="bilinear", align_corners=False)
        value, index = maps.max(1)
        if best is None:
            best, labels = value, index
        else:
            wins = value > best
            best, labels = torch.where(wins, value, best), torch.where(wins, index + first, labels)
    return best


def form(provider: str):
    if provider == "chunked":
        return lambda maps: chunked(lambda part: maps[:, part], maps.shape[1])
    if provider in ("full size", "torch.compile"):
        return full_size
    return lambda maps: upsample_argmax(maps, SIZE, backend=provider)[1]


@pytest.mark.parametrize("shape", CLASSES)
@pytest.mark.parametrize("provider", providers("upsample_argmax", "full size", "chunked"))
def test_upsample_argmax(measure, new, shape, provider):
    maps, pixels = new(1, CLASSES[shape], 96, 96), SIZE[0] * SIZE[1]
    nbytes = maps.numel() * maps.element_size() + 12 * pixels

    def reference(maps):
        return upsample_argmax_reference(maps, *SIZE, False)[1]

    flops = 7.0 * pixels * CLASSES[shape]
    measure("upsample_argmax", shape, provider, form(provider), reference, [maps], False, flops, nbytes)


@pytest.mark.parametrize("shape", CLASSES)
@pytest.mark.parametrize("provider", [p for p in providers("upsample_argmax", "chunked") if p != "torch.compile"])
def test_upsample_argmax_windows(measure, new, shape, provider):
    classes = CLASSES[shape]
    views = new(1, 5, classes, 96, 96)  # `measure` takes the first dimension for the batch
    nbytes = views.numel() * views.element_size() + 12 * SIZE[0] * SIZE[1]

    def run(views):
        if provider == "chunked":
            return chunked(lambda part: averaged_scores(views[0, :, part], 2, WINDOW, STRIDE, True)[None], classes)
        return upsample_argmax_windows(views[0], WINDOW, STRIDE, SIZE, backend=provider)[1][None]

    def reference(views):
        return upsample_argmax_windows(views[0], WINDOW, STRIDE, SIZE, backend="reference")[1][None]

    flops = 20.0 * 5 * WINDOW**2 * classes
    measure("upsample_argmax_windows", shape, provider, run, reference, [views], False, flops, nbytes)
