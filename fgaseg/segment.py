"""From a photo to labels at its own size; score maps are streamed over classes, so that [T, H, W] never exists."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .images import to_pixels
from .kernels.labels import encode_runs
from .text import Vocabulary

if TYPE_CHECKING:
    from .model import FGASeg

LONGEST_ASPECT = 4  # the long side is at most this many times image_size
SCORES_PER_STEP = 2**25  # elements of upsampled score maps held at once
WINDOWS_SIZE, WINDOW, STRIDE, LONGEST = 640, 384, 256, 2560  # the released evaluation (protocol)


@dataclass(frozen=True)
class Result:
    """What `model.segment` gives for one photo.

    labels   int64 [H, W], indices into classes, at the photo's own size (after its EXIF rotation)
    classes  the names that were asked for, in that order
    scores   float32 [H, W], the winning class's probability: softmax over the classes for a model trained with
             cross-entropy, sigmoid for one trained with binary cross-entropy
    image    the photo, RGB
    """

    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    scores: np.ndarray = field(repr=False)
    image: Image.Image = field(repr=False)

    @property
    def present(self) -> dict[str, float]:
        """Share of the pixels of every class that was found, largest first."""
        found, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {self.classes[found[i]]: float(counts[i] / self.labels.size) for i in order}

    def overlay(self, alpha: float = 0.7) -> Image.Image:
        """The labels over the photo, with a legend."""
        from .pictures import overlay

        return overlay(self.image, self.labels, list(self.classes), alpha)

    def run_lengths(self) -> dict[str, list[int]]:
        """The mask of every class found, as COCO's uncompressed run lengths (column-major, zeros first)."""
        return {name: encode_runs(self.labels == self.classes.index(name)).tolist() for name in self.present}


class PseudoMasks(NamedTuple):
    """The two maps of Fig. 6 for one photo."""

    gcs: np.ndarray  # S_g, float32 [T, H, W] on the patch grid
    lcs: np.ndarray | None  # S_l, the same shape; None for a model without LCS


def input_size(height: int, width: int, short: int, patch: int) -> tuple[int, int]:
    """Network input of a photo: short side to `short`, aspect kept, long side at most 4 × short, whole patches."""
    scale = min(short / min(height, width), LONGEST_ASPECT * short / max(height, width))
    return tuple(max(round(n * scale / patch), 1) * patch for n in (height, width))  # type: ignore[return-value]


def pseudo_masks(model: "FGASeg", image: Image.Image, vocabulary: Vocabulary) -> PseudoMasks:
    """S_g and S_l of a photo (Fig. 6)."""
    with torch.inference_mode():
        out = model(_whole(model, image), vocabulary)
    return PseudoMasks(out.gcs[0].float().cpu().numpy(), None if out.lcs is None else out.lcs[0].float().cpu().numpy())


def draw_pseudo_masks(result: Result, masks: PseudoMasks, most: int = 6) -> Image.Image:
    """The photo, and S_g and S_l of the largest classes found in it, one row a map."""
    from .pictures import heat, panel

    size = (result.image.height, result.image.width)
    shown = [result.classes.index(name) for name in list(result.present)[:most]]
    rows = [[("photo", result.image), ("labels", result.overlay())]]
    for title, maps in (("S_g", masks.gcs), ("S_l", masks.lcs)):
        if maps is not None:
            rows.append([(f"{title}: {result.classes[i]}", heat(maps[i], size)) for i in shown])
    return panel(rows)


def predict(model: "FGASeg", image: Image.Image, vocabulary: Vocabulary) -> Result:
    """Label a photo the way `model.config.inference` says.

    whole    one view, aspect kept; argmax of the bilinearly upsampled logits
    windows  the released evaluation: short edge to 640, squashed to 640×640, four 384 windows and one global view,
             scores averaged; argmax of the averaged scores upsampled to the photo's size
    """
    if model.training:
        raise RuntimeError("segment: the model is in training mode; call model.eval() first")
    size = (image.height, image.width)
    if model.config.inference == "windows":
        chunks = _window_scores(model, image, vocabulary)
        labels, scores = _best_class(chunks, size, len(vocabulary))
    else:
        logits = model(_whole(model, image), vocabulary).logits[0]
        labels, scores = _best_class(logits.__getitem__, size, len(vocabulary))
        scores = _probability(model, logits, scores, size)
    first: dict[str, int] = {}
    for i, name in enumerate(vocabulary.names):  # equal classes tie but for rounding: the first one has the pixel
        first.setdefault(model.text_encoder.subject(name), i)
    same = torch.tensor([first[model.text_encoder.subject(name)] for name in vocabulary.names], device=labels.device)
    return Result(same[labels].cpu().numpy(), vocabulary.names, scores.float().cpu().numpy(), image)


def _whole(model: "FGASeg", image: Image.Image) -> Tensor:
    size = input_size(image.height, image.width, model.config.image_size, model.patch)
    return to_pixels(image, size)[None].to(model.mean)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


def _chunks(classes: int, size: tuple[int, int]) -> Iterator[slice]:
    step = max(SCORES_PER_STEP // (size[0] * size[1]), 1)
    for start in range(0, classes, step):
        yield slice(start, min(start + step, classes))


def _best_class(maps: Callable[[slice], Tensor], size: tuple[int, int], classes: int) -> tuple[Tensor, Tensor]:
    """Winner and its value of score maps (maps(classes) [c, h, w]) upsampled to size; ties go to the lowest index."""
    labels, best = None, None
    for part in _chunks(classes, size):
        value, index = _resize(maps(part).float(), size).max(dim=0)
        if labels is None or best is None:
            labels, best = index, value
        else:
            wins = value > best
            labels = torch.where(wins, index + part.start, labels)
            best = torch.where(wins, value, best)
    assert labels is not None and best is not None  # a vocabulary is never empty
    return labels, best


def _probability(model: "FGASeg", logits: Tensor, best: Tensor, size: tuple[int, int]) -> Tensor:
    """Probability of the winner from its upsampled logit."""
    if model.config.released_fast_scores:
        return best
    if model.config.loss.seg == "bce":
        return best.sigmoid()
    total = torch.zeros_like(best)
    for part in _chunks(len(logits), size):
        total += (_resize(logits[part].float(), size) - best).exp().sum(0)
    return 1 / total


def _window_scores(model: "FGASeg", image: Image.Image, vocabulary: Vocabulary) -> Callable[[slice], Tensor]:
    """Averaged scores [c, 640, 640] of any slice of classes, from five views computed once."""
    photo = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(model.mean)
    scale = min(WINDOWS_SIZE / min(photo.shape[1:]), LONGEST / max(photo.shape[1:]))
    photo = _resize(photo, tuple(max(round(n * scale), 1) for n in photo.shape[1:]))  # type: ignore[arg-type]
    return sliding_scores(model, photo, vocabulary)


def sliding_scores(model: "FGASeg", photo: Tensor, vocabulary: Vocabulary) -> Callable[[slice], Tensor]:
    """As the released code averages them; photo [3, h, w], RGB 0..255, any size."""
    squashed = _resize(photo, (WINDOWS_SIZE, WINDOWS_SIZE))
    starts = range(0, WINDOWS_SIZE - WINDOW + 1, STRIDE)
    corners = [(y, x) for y in starts for x in starts]
    views = [squashed[:, y : y + WINDOW, x : x + WINDOW] for y, x in corners]
    views.append(_resize(photo, (WINDOW, WINDOW)))
    batch = (torch.stack(views) / 255 - model.mean[:, None, None]) / model.std[:, None, None]
    side = model.config.image_size // model.patch * model.patch
    if side != WINDOW:
        batch = F.interpolate(batch, size=(side, side), mode="bilinear", align_corners=False)
    together = model.config.fast and model.config.topk_union == "batch"  # the released union is over all views
    logits = torch.cat([model(views, vocabulary).logits for views in batch.split(len(batch) if together else 1)])
    softmax = model.config.loss.seg == "ce"
    if softmax:  # over all classes, before the resize: afterwards only some classes are at hand
        logits = logits.float().softmax(dim=1)
    done = softmax or model.config.released_fast_scores

    def scores(part: slice) -> Tensor:
        tiles = F.interpolate(logits[:, part].float(), size=(WINDOW, WINDOW), mode="bilinear", align_corners=False)
        tiles = tiles if done else tiles.sigmoid()
        summed = tiles.new_zeros(tiles.shape[1], WINDOWS_SIZE, WINDOWS_SIZE)
        counts = tiles.new_zeros(WINDOWS_SIZE, WINDOWS_SIZE)
        for (y, x), tile in zip(corners, tiles[:-1], strict=True):
            summed[:, y : y + WINDOW, x : x + WINDOW] += tile
            counts[y : y + WINDOW, x : x + WINDOW] += 1
        return (summed / counts + _resize(tiles[-1], (WINDOWS_SIZE, WINDOWS_SIZE))) / 2

    return scores
