"""From a photo to labels at its own size. Score maps are upsampled while they are compared: [T, H, W] never exists."""

import contextlib
from collections.abc import Iterator
from math import isqrt
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..config import ModelConfig
from ..data import Normalization, to_pixels
from ..kernels import upsample_argmax, upsample_argmax_windows
from ..kernels.upsample_argmax.reference import averaged_scores
from ..notes import note_once
from ..vocabulary import Vocabulary
from .panoramas import tiles
from .results import PseudoMasks, Result

LONGEST_ASPECT = 4  # the long side is at most this many times image_size
WINDOWS_SIZE, WINDOW, STRIDE, LONGEST = 640, 384, 256, 2560  # the released evaluation (protocol)


def input_size(height: int, width: int, short: int, patch: int) -> tuple[int, int]:
    """Network input of a photo: short side to `short`, aspect kept, long side at most 4 × short, whole patches."""
    scale = min(short / min(height, width), LONGEST_ASPECT * short / max(height, width))
    return tuple(max(round(n * scale / patch), 1) * patch for n in (height, width))  # type: ignore[return-value]


class Segmenter(Protocol):
    """What prediction needs of a model; FGASeg has it."""

    config: ModelConfig
    normalization: Normalization
    mean: Tensor
    std: Tensor

    @property
    def patch(self) -> int: ...

    def __call__(self, pixels: Tensor, vocabulary: Vocabulary) -> Any: ...

    def stream(self, pixels: Tensor, vocabulary: Vocabulary) -> Iterator[tuple[Tensor, Tensor]]: ...

    def first_of_equals(self, vocabulary: Vocabulary) -> list[int]: ...


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Every module of the model in evaluation mode inside the block, and in its own mode again after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def pseudo_masks(model: Segmenter, image: Image.Image, vocabulary: Vocabulary) -> PseudoMasks:
    """S_g and S_l of a photo (Fig. 6), seen whole even if it is a panorama."""
    with torch.inference_mode(), evaluation_mode(model):
        out = model(_whole(model, image), vocabulary)
    return PseudoMasks(out.gcs[0].float().cpu().numpy(), None if out.lcs is None else out.lcs[0].float().cpu().numpy())


def predict(model: Segmenter, image: Image.Image, vocabulary: Vocabulary) -> Result:
    """Label a photo as `model.config.inference` says, in evaluation mode whatever mode the model is in.

    whole    one view, aspect kept; argmax of the bilinearly upsampled logits. A photo more than four times as long as
             broad is seen in overlapping tiles along its long side, each of which is such a view
    windows  the released evaluation: short edge to 640, squashed to 640×640, four 384 windows and one global view,
             scores averaged; argmax of the averaged scores upsampled to the photo's size
    """
    size = (image.height, image.width)
    with evaluation_mode(model):
        if model.config.inference == "windows":
            if _is_panorama(image):
                note_once(
                    ("squashed",),
                    f"a photo of {image.width}x{image.height} is squashed to a square, as inference=windows does with "
                    "every photo; inference=whole sees it in tiles",
                )
            photo = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(model.mean)
            labels, scores = by_windows(model, photo, vocabulary, size)
        else:
            labels, scores = by_tiles(model, image, vocabulary)
    # equal classes differ by rounding only: the first of them gets the pixel
    first = torch.tensor(model.first_of_equals(vocabulary), device=labels.device)
    return Result(first[labels].cpu().numpy(), vocabulary.names, scores.float().cpu().numpy(), image)


def by_tiles(model: Segmenter, image: Image.Image, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Labels and scores [H, W] of a photo seen whole or, if it is longer than four times its breadth, in tiles."""
    if not _is_panorama(image):
        return _label_view(model, image, vocabulary)
    length, breadth = max(image.size), min(image.size)
    along = int(image.width > image.height)
    # one patch for a pixel is as much as the longest view of a tile can give
    parts: list[tuple[Tensor, Tensor]] = []
    for tile in tiles(length, breadth, LONGEST_ASPECT * model.config.image_size // model.patch):
        box = (tile.start, 0, tile.stop, breadth) if along else (0, tile.start, breadth, tile.stop)
        seen = _label_view(model, image.crop(box), vocabulary)
        first, count = tile.first - tile.start, tile.last - tile.first
        parts.append((seen[0].narrow(along, first, count), seen[1].narrow(along, first, count)))
    labels, scores = (torch.cat(x, dim=along) for x in zip(*parts, strict=True))
    return labels, scores


def _is_panorama(image: Image.Image) -> bool:
    return max(image.size) > LONGEST_ASPECT * min(image.size)


def _label_view(model: Segmenter, image: Image.Image, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    labels, scores = label(model, _whole(model, image), vocabulary, (image.height, image.width))
    return labels[0], scores[0]


def _whole(model: Segmenter, image: Image.Image) -> Tensor:
    size = input_size(image.height, image.width, model.config.image_size, model.patch)
    return to_pixels(image, size, normalization=model.normalization)[None].to(model.mean)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


class Winners:
    """The best class of every pixel, and its score, over parts of the classes; ties go to the class that came first."""

    def __init__(self) -> None:
        self.labels: Tensor | None = None

    def add(self, classes: Tensor, labels: Tensor, scores: Tensor, total: Tensor | None = None) -> None:
        """labels index classes [c]; total is the sum of exp(score - best) over these, as of ``upsample_argmax``."""
        labels = classes[labels]
        if self.labels is None:
            self.labels, self.scores, self.total = labels, scores, total
            return
        wins = (scores > self.scores) | (scores.isnan() & ~self.scores.isnan())
        best = torch.where(wins, scores, self.scores)
        if total is not None and self.total is not None:
            self.total = self.total * (self.scores - best).exp() + total * (scores - best).exp()
        self.labels, self.scores = torch.where(wins, labels, self.labels), best

    def best(self) -> tuple[Tensor, Tensor]:
        assert self.labels is not None  # a vocabulary is never empty
        return self.labels, self.scores


def label(model: Segmenter, pixels: Tensor, vocabulary: Vocabulary, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Labels and the winners' probabilities [B, H, W] at `size` of normalised pixels [B, 3, h, w], seen whole.

    No map of a class is ever at that size, and beyond `class_maps_budget` not all of them exist at any.
    """
    softmax = model.config.loss.seg == "ce" and not model.config.released_fast_scores
    winners = Winners()
    for classes, logits in model.stream(pixels, vocabulary):
        winners.add(classes, *upsample_argmax(logits, size, total=softmax))
    labels, scores = winners.best()
    if softmax:
        return labels, 1 / cast(Tensor, winners.total)
    return labels, scores if model.config.released_fast_scores else scores.sigmoid()


def by_windows(model: Segmenter, photo: Tensor, vocabulary: Vocabulary, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Labels and the winners' averaged scores [H, W] at `size` of a photo [3, h, w] 0..255, as `predict` says."""
    scale = min(WINDOWS_SIZE / min(photo.shape[1:]), LONGEST / max(photo.shape[1:]))
    photo = _resize(photo, tuple(max(round(n * scale), 1) for n in photo.shape[1:]))  # type: ignore[arg-type]
    winners = Winners()
    for classes, logits, activation in _view_scores(model, photo, vocabulary):
        winners.add(classes, *upsample_argmax_windows(logits, WINDOW, STRIDE, size, activation))
    return winners.best()


def released_views(model: Segmenter, photo: Tensor) -> Tensor:
    """The released code's views [5, 3, side, side] of a photo [3, h, w], RGB 0..255: four crops, then all of it."""
    squashed = _resize(photo, (WINDOWS_SIZE, WINDOWS_SIZE))
    starts = range(0, WINDOWS_SIZE - WINDOW + 1, STRIDE)
    views = [squashed[:, y : y + WINDOW, x : x + WINDOW] for y in starts for x in starts]
    views.append(_resize(photo, (WINDOW, WINDOW)))
    batch = (torch.stack(views) / 255 - model.mean[:, None, None]) / model.std[:, None, None]
    side = model.config.image_size // model.patch * model.patch
    return batch if side == WINDOW else F.interpolate(batch, (side, side), mode="bilinear", align_corners=False)


def _view_scores(
    model: Segmenter, photo: Tensor, vocabulary: Vocabulary
) -> Iterator[tuple[Tensor, Tensor, Literal["sigmoid", "none"]]]:
    """Classes [c], their logits [5, c, h, w] in every view, and what makes scores of these once they are resized.

    Several parts come only beyond `class_maps_budget`, and not with a softmax, which is over all classes.
    """
    parts = model.stream(released_views(model, photo), vocabulary)
    if model.config.loss.seg == "ce":  # before the resize
        classes, logits = (torch.cat(x, dim=d) for x, d in zip(zip(*parts, strict=True), (0, 1), strict=True))
        yield classes, logits.float().softmax(dim=1), "none"
    else:
        for classes, logits in parts:
            yield classes, logits, "sigmoid"


def sliding_scores(model: Segmenter, photo: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The released code's averaged scores [T, 640, 640], all in memory, to compare with it; photo [3, h, w] 0..255."""
    views = released_views(model, photo)
    together = model.config.fast and model.config.topk_union == "batch"  # the released union is over all views
    logits = torch.cat([model(part, vocabulary).logits for part in views.split(len(views) if together else 1)])
    if model.config.loss.seg == "ce":
        logits = logits.float().softmax(dim=1)
    side = isqrt(len(views) - 1)
    return averaged_scores(logits, side, WINDOW, STRIDE, model.config.loss.seg != "ce")
