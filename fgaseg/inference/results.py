"""What prediction gives: labels with their classes and scores, and the pseudo-masks of Fig. 6."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..kernels.labels import encode_runs


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
