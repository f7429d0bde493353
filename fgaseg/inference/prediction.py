"""From a photo to labels at its own size. Score maps are upsampled while they are compared: [T, H, W] never exists."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..config import ModelConfig
from ..data import Normalization, to_pixels
from ..errors import PredictionError, VocabularyError
from ..kernels import upsample_argmax, upsample_argmax_windows
from ..kernels.upsample_argmax.reference import averaged_scores
from ..notes import note_once
from ..vocabulary import NOTHING, ClassNames, Vocabulary
from .panoramas import tiles
from .results import PseudoMasks, Result
from .scores import Probabilities, ScoreRule

LONGEST_ASPECT = 4  # the long side is at most this many times image_size
WINDOWS_SIZE, WINDOW, STRIDE, LONGEST = 640, 384, 256, 2560  # the released evaluation (protocol)
DROPPED = -50.0  # the logit of classes that the model drops, where logits are averaged or resized


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

    def encode(self, names: ClassNames, background: str | Sequence[str] | None = None) -> Vocabulary: ...


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


def predict(
    model: Segmenter,
    image: Image.Image,
    vocabulary: Vocabulary,
    *,
    threshold: float | None = None,
    probabilities: bool = False,
    source: str = "",
) -> Result:
    """Label a photo as `model.config.inference` says, in evaluation mode whatever mode the model is in.

    whole    one view, aspect kept; argmax of the logits, or the scores (`model.config.resize`), bilinearly resized. A
             photo more than four times as long as broad is seen in overlapping tiles along its long side, each of which
             is such a view
    windows  the released evaluation: short edge to 640, squashed to 640×640, four 384 windows and one global view,
             scores averaged; argmax of the averaged scores upsampled to the photo's size

    threshold, probabilities  as of `FGASeg.segment`
    source                    the path or address of the photo
    """
    classes, nothing = label_names(vocabulary, threshold)
    size = (image.height, image.width)
    with evaluation_mode(model):
        if model.config.inference == "windows":
            if _is_panorama(image):
                note_once(
                    ("squashed",),
                    f"a photo of {image.width}x{image.height} is squashed to a square, as inference=windows does with "
                    "every photo; inference=whole sees it in tiles",
                )
            wide = torch.promote_types(model.mean.dtype, torch.float32)
            photo = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(model.mean.device, wide)
            seen = by_windows(model, photo, vocabulary, size, probabilities)
        else:
            seen = by_tiles(model, image, vocabulary, probabilities)
    labels = _final_labels(model, vocabulary, seen.labels, seen.scores, threshold, source)
    maps = Probabilities(vocabulary.names, size, seen.probability) if seen.probability else None
    scores = seen.scores.float().cpu().numpy()
    return Result(labels.cpu().numpy(), classes, scores, image, nothing, source, maps)


def label_names(vocabulary: Vocabulary, threshold: float | None = None) -> tuple[tuple[str, ...], int | None]:
    """The names that labels index, and which of them means "none of these" (None: no label does).

    That is the background of the vocabulary or, with a threshold, a label "nothing" after its classes. Raises
    VocabularyError if the threshold is not between 0 and 1, or if a class is called "nothing" already.
    """
    if threshold is not None and (isinstance(threshold, str) or not 0 < threshold < 1):
        raise VocabularyError(f"threshold: {threshold!r} is not between 0 and 1, as probabilities are")
    if threshold is None or vocabulary.background is not None:
        return vocabulary.names, vocabulary.background
    if NOTHING in vocabulary.names:
        raise VocabularyError(
            f"threshold: a class is called {NOTHING!r}, as pixels below the threshold are; give {NOTHING!r} as the "
            "background, which makes them one, or rename the class"
        )
    return (*vocabulary.names, NOTHING), len(vocabulary)


def _final_labels(
    model: Segmenter, vocabulary: Vocabulary, labels: Tensor, scores: Tensor, threshold: float | None, source: str = ""
) -> Tensor:
    """Equal classes differ by rounding only: the first of them gets the pixel. Then the threshold.

    Raises PredictionError for scores that are NaN, which follow from NaN anywhere in the model: looked for here alone,
    where the host waits for the device anyway, and not at every layer.
    """
    if bool(scores.isnan().any()):
        remedy = "; give bfloat16 or float32" if model.mean.dtype == torch.float16 else ""
        raise PredictionError(
            f"{source or 'photo'}: the model has no answer: its scores are NaN, by its weights or its encoder, in "
            f"{str(model.mean.dtype).removeprefix('torch.')}{remedy}"
        )
    first = model.first_of_equals(vocabulary)
    if first != list(range(len(first))):
        labels = torch.tensor(first, device=labels.device)[labels]
    if threshold is None:
        return labels
    nothing = label_names(vocabulary, threshold)[1]
    return torch.where(scores < threshold, torch.full_like(labels, cast(int, nothing)), labels)


class Seen(NamedTuple):
    """A labelled photo, or a part of one.

    labels       int64 [H, W], indices into the vocabulary
    scores       [H, W], the winners' probabilities
    probability  of a class, [H, W], where it was asked for
    """

    labels: Tensor
    scores: Tensor
    probability: Callable[[int], Tensor] | None = None


def by_tiles(model: Segmenter, image: Image.Image, vocabulary: Vocabulary, probabilities: bool = False) -> Seen:
    """A photo seen whole or, if it is longer than four times its breadth, in tiles."""
    if not _is_panorama(image):
        return _label_view(model, image, vocabulary, probabilities)
    length, breadth = max(image.size), min(image.size)
    along = int(image.width > image.height)
    # one patch for a pixel is as much as the longest view of a tile can give
    parts: list[Seen] = []
    spans: list[tuple[int, int]] = []
    for tile in tiles(length, breadth, LONGEST_ASPECT * model.config.image_size // model.patch):
        box = (tile.start, 0, tile.stop, breadth) if along else (0, tile.start, breadth, tile.stop)
        spans.append((tile.first - tile.start, tile.last - tile.first))
        seen = _label_view(model, image.crop(box), vocabulary, probabilities)
        parts.append(Seen(seen.labels.narrow(along, *spans[-1]), seen.scores.narrow(along, *spans[-1]),
                          seen.probability))  # fmt: skip

    def probability(index: int) -> Tensor:
        maps = (cast(Callable[[int], Tensor], part.probability)(index) for part in parts)
        return torch.cat([one.narrow(along, *span) for one, span in zip(maps, spans, strict=True)], dim=along)

    labels, scores = (torch.cat([part[i] for part in parts], dim=along) for i in (0, 1))  # type: ignore[misc]
    return Seen(labels, scores, probability if probabilities else None)


def _is_panorama(image: Image.Image) -> bool:
    return max(image.size) > LONGEST_ASPECT * min(image.size)


def _label_view(model: Segmenter, image: Image.Image, vocabulary: Vocabulary, probabilities: bool) -> Seen:
    size, pixels = (image.height, image.width), _whole(model, image)
    if not probabilities:
        labels, scores = label(model, pixels, vocabulary, size)
        return Seen(labels[0], scores[0])
    return _decided(model, _all_logits(model, pixels, vocabulary)[0], size)


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

    No map of a class is ever at that size, and beyond `class_maps_budget` not all of them exist at any, unless a
    softmax comes before the resize.
    """
    rule = ScoreRule.of(model.config)
    winners = Winners()
    for classes, logits in _parts(model, pixels, vocabulary, together=rule.softmax and rule.before):
        winners.add(classes, *upsample_argmax(rule.prepare(logits), size, total=rule.needs_total))
    labels, best = winners.best()
    return labels, rule.finish(best, winners.total)


def view_logits(model: Segmenter, image: Image.Image, vocabulary: Vocabulary) -> Tensor:
    """Logits [T, h, w] of an image seen whole, float32 or wider, on the model's grid, which has four cells a patch.

    The image's short side becomes `image_size`, its long side at most four times that. A class that the model drops
    (`fast`) has DROPPED everywhere. The model has to be in evaluation mode (``evaluation_mode``).
    """
    return _all_logits(model, _whole(model, image), vocabulary)[0]


def decide(
    model: Segmenter, logits: Tensor, vocabulary: Vocabulary, size: tuple[int, int], threshold: float | None = None
) -> tuple[Tensor, Tensor]:
    """Labels int64 and scores [H, W] at `size` from logits [T, h, w], as `predict` makes them of one view.

    Labels index the names of ``label_names``.
    """
    rule = ScoreRule.of(model.config)
    labels, best, *total = upsample_argmax(rule.prepare(logits[None]), size, total=rule.needs_total)
    scores = rule.finish(best, *total)[0]
    return _final_labels(model, vocabulary, labels[0], scores, threshold), scores


def _decided(model: Segmenter, logits: Tensor, size: tuple[int, int]) -> Seen:
    """A view whose logits [T, h, w] are kept, to make probabilities of when they are asked for."""
    rule = ScoreRule.of(model.config)
    maps = rule.prepare(logits)
    labels, best, *total = upsample_argmax(maps[None], size, total=rule.needs_total)

    def probability(index: int) -> Tensor:
        resized = _resize(maps[index : index + 1], size)[0]
        return (resized - best[0]).exp() / total[0][0] if total else rule.of_class(resized)

    return Seen(labels[0], rule.finish(best, *total)[0], probability)


def _parts(
    model: Segmenter, pixels: Tensor, vocabulary: Vocabulary, together: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """`model.stream`; `together` in one part."""
    parts = model.stream(pixels, vocabulary)
    if not together:
        return parts
    classes, logits = zip(*parts, strict=True)
    return iter([(torch.cat(classes), torch.cat(logits, dim=1))])


def _all_logits(model: Segmenter, pixels: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Logits [B, T, h, w] of all classes."""
    parts = list(model.stream(pixels, vocabulary))
    first = parts[0][1].float() if parts[0][1].dtype != torch.float64 else parts[0][1]
    # what the released fast mode gives are scores
    dropped = 0.0 if model.config.released_fast_scores else DROPPED
    logits = first.new_full((len(first), len(vocabulary), *first.shape[2:]), dropped)
    for classes, some in parts:
        logits[:, classes] = some.to(logits).clamp(min=DROPPED)
    return logits


def by_windows(
    model: Segmenter, photo: Tensor, vocabulary: Vocabulary, size: tuple[int, int], probabilities: bool = False
) -> Seen:
    """A photo [3, h, w] 0..255 labelled at `size` by the averaged scores of its windows, as `predict` says."""
    scale = min(WINDOWS_SIZE / min(photo.shape[1:]), LONGEST / max(photo.shape[1:]))
    photo = _resize(photo, tuple(max(round(n * scale), 1) for n in photo.shape[1:]))  # type: ignore[arg-type]
    inner = model.config.released_fast_scores
    winners, kept = Winners(), dict[int, tuple[Tensor, bool]]()
    for classes, logits, activation in _view_scores(model, photo, vocabulary):
        winners.add(classes, *upsample_argmax_windows(logits, WINDOW, STRIDE, size, activation))
        if probabilities:
            kept |= {one: (logits[:, i], activation == "sigmoid") for i, one in enumerate(classes.tolist())}
    labels, scores = winners.best()

    def probability(index: int) -> Tensor:
        if index not in kept:
            return torch.zeros_like(scores)
        views, sigmoid = kept[index]
        frame = averaged_scores(views[:, None], isqrt(len(views) - 1), WINDOW, STRIDE, sigmoid)
        resized = _resize(frame, size)[0]
        return resized.logit() if inner and sigmoid else resized

    # the second sigmoid of the released fast mode is undone: scores are probabilities in every mode
    undone = scores.logit() if inner and model.config.loss.seg != "ce" else scores
    return Seen(labels, undone, probability if probabilities else None)


def released_views(model: Segmenter, photo: Tensor) -> Tensor:
    """The released code's views [5, 3, side, side] of a photo [3, h, w], RGB 0..255: four crops, then all of it."""
    squashed = _resize(photo, (WINDOWS_SIZE, WINDOWS_SIZE))
    starts = range(0, WINDOWS_SIZE - WINDOW + 1, STRIDE)
    views = [squashed[:, y : y + WINDOW, x : x + WINDOW] for y in starts for x in starts]
    views.append(_resize(photo, (WINDOW, WINDOW)))
    mean, std = (photo.new_tensor(values)[:, None, None] for values in model.normalization)
    batch = (torch.stack(views) / 255 - mean) / std
    side = model.config.image_size // model.patch * model.patch
    if side != WINDOW:
        batch = F.interpolate(batch, (side, side), mode="bilinear", align_corners=False)
    return batch.to(model.mean.dtype)


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
