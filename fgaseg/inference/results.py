"""What prediction gives: labels with their classes and scores, and the pseudo-masks of Fig. 6."""

import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import ResultError
from ..kernels.labels import encode_runs
from .scores import Probabilities, class_index


@dataclass(frozen=True)
class Result:
    """What `model.segment` gives for one photo.

    labels   int64 [H, W], indices into classes, at the photo's own size (after its EXIF rotation)
    classes  the names that were asked for, in that order; then, where they were asked for, the background or "nothing"
    scores   float32 [H, W], the winning class's probability, 0 to 1: softmax over the classes for a model trained with
             cross-entropy, sigmoid for one trained with binary cross-entropy. Where a threshold has decided that none
             of the classes is there, that of the class that would have won
    image    the photo, RGB
    nothing  which of the classes means "none of these"; None: no label does
    source   the path or address that the photo was read from; "" for images, arrays and tensors
    """

    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    scores: np.ndarray = field(repr=False)
    image: Image.Image = field(repr=False)
    nothing: int | None = None
    source: str = ""
    maps: Probabilities | None = field(default=None, repr=False)

    @property
    def present(self) -> dict[str, float]:
        """Share of the pixels of every class that was found, largest first."""
        found, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {self.classes[found[i]]: float(counts[i] / self.labels.size) for i in order}

    @property
    def probabilities(self) -> Probabilities:
        """Of every class, not only the winner's, at every pixel; computed one class at a time.

        Raises ResultError unless they were asked for: `model.segment(photo, names, probabilities=True)`.
        """
        if self.maps is None:
            raise ResultError("probabilities: were not kept; give model.segment probabilities=True")
        return self.maps

    def mask(self, name: str) -> np.ndarray:
        """bool [H, W], where a class is. Raises VocabularyError for a name that is none of the classes."""
        return np.asarray(self.labels == class_index(name, self.classes))

    def overlay(self, alpha: float = 0.7, legend: bool = True) -> Image.Image:
        """The labels over the photo, with a legend below, or at the photo's own size without one."""
        from .pictures import overlay

        return overlay(self.image, self.labels, list(self.classes), alpha, with_legend=legend)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all, in the format that its suffix says.

        .png                the labels: class i is the value i, with the colours of the overlay as its palette; void is
                            255. With more than 255 classes 16-bit grey, and void is 65535
        .jpg, .jpeg, .webp  the overlay at the photo's size, without a legend
        .npz                arrays ``labels``, ``scores``, ``classes``, ``nothing`` (an index, -1 for none) and, where
                            they were asked for, ``probabilities`` float32 [T, H, W], of the first T classes
        .json               COCO annotations, as of `to_coco`
        .tif, .tiff         a GeoTIFF of the values of the .png, with colours, names and the source's georeference
        .geojson, .gpkg     polygons, as of `write_polygons`, where the source is georeferenced

        Void is a label that is no index of the classes. Raises UsageError for another suffix, a photo that would be
        overwritten, or a missing package, which it names; DataError for polygons without georeference, OSError.
        """
        from .formats import save_result

        save_result(self, path)

    def to_coco(self, file_name: str | None = None) -> dict[str, Any]:
        """The labels as a file of COCO annotations, one of each class found; `CocoWriter` is for many photos.

        file_name  the photo's name in it; None: that of the source. Raises ResultError if there is none
        """
        from .formats import to_coco

        return to_coco(self, file_name)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one of each class found: mask bool [H, W], class_id, the mean score of its pixels
        as confidence, and ``data["class_name"]``. Raises UsageError if supervision is not installed.
        """
        from .formats import to_supervision

        return to_supervision(self)

    def to_geojson(self) -> dict[str, Any]:
        """A FeatureCollection in longitude and latitude of the polygons that `write_polygons` writes.

        Raises DataError unless the source is a georeferenced file, UsageError if packages are missing.
        """
        from .georeference import to_geojson

        return to_geojson(self)

    def run_lengths(self) -> dict[str, list[int]]:
        """The mask of every class found, as COCO's uncompressed run lengths (column-major, zeros first)."""
        return {name: encode_runs(self.mask(name)).tolist() for name in self.present}


class PseudoMasks(NamedTuple):
    """The two maps of Fig. 6 for one photo."""

    gcs: np.ndarray  # S_g, float32 [T, H, W] on the patch grid
    lcs: np.ndarray | None  # S_l, the same shape; None for a model without LCS


def draw_pseudo_masks(result: Result, masks: PseudoMasks, most: int = 6) -> Image.Image:
    """The photo, and S_g and S_l of the largest classes found in it, one row a map."""
    from .pictures import heat, panel

    size = (result.image.height, result.image.width)
    found = [result.classes.index(name) for name in result.present]
    shown = [index for index in found if index < len(masks.gcs)][:most]  # "nothing" has no map
    rows = [[("photo", result.image), ("labels", result.overlay())]]
    for title, maps in (("S_g", masks.gcs), ("S_l", masks.lcs)):
        if maps is not None and shown:
            rows.append([(f"{title}: {result.classes[i]}", heat(maps[i], size)) for i in shown])
    return panel(rows)
