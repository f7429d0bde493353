"""The `data` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from .section import Section


class DataConfig(Section):
    """The data sets for training and validation: a folder of photos, a folder of label PNGs and a file of class names;
    or a benchmark set that `fgaseg data prepare` has prepared; or procedurally drawn scenes."""

    images: Path | None = None
    """Folder of training photos."""
    labels: Path | None = None
    """Folder of label PNGs, whose pixel values index `names`. A photo and a label with the same stem are a pair."""
    names: Path | None = None
    """Class names, one per line or as a JSON list."""
    train_list: Path | None = None
    """File of the stems or file names to train on, one per line; null: every pair."""
    val_list: Path | None = None
    """File of the stems or file names to score, one per line; null: every pair."""
    val_images: Path | None = None
    """Folder of validation photos; null: `images`."""
    val_labels: Path | None = None
    """Folder of validation labels; null: `labels`."""
    set: Literal["coco-stuff", "a150"] | None = None
    """Train on the training split of this benchmark set (the paper: coco-stuff)."""
    val_set: Literal["coco-stuff", "a150", "a847", "pc59", "pc459", "pas20", "pas20b"] | None = None
    """Score on this benchmark set."""
    root: Path | None = None
    """Folder of the benchmark sets; null: $DETECTRON2_DATASETS, or ./datasets."""
    val_count: PositiveInt | None = None
    """Score the first so many validation photos only; null: all of them (drawn scenes: 100)."""
    ignore: Annotated[int, Field(ge=0, le=65535)] = 255
    """Label value of pixels that are neither trained on nor scored."""
    crop: PositiveInt = 384
    """Side of the training crop, and of a drawn scene, in pixels."""
    short_edge: PositiveInt | None = None
    """Resize the short edge to this many pixels before the random scale; null: to `crop`."""
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Range of the uniform random scale."""
    flip: bool = True
    """Mirror half of the training photos."""
    color_jitter: bool = True
    """Change brightness, contrast, saturation and hue of the training photos at random."""
    workers: NonNegativeInt = 0
    """Loader processes per training process; their number never changes results."""
    scenes: bool = False
    """Train and score on procedurally drawn scenes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: smallest first is needed, e.g. [0.5, 2.0]; got {list(self.scale)}")
        if self.set and (self.images or self.scenes):
            raise ValueError(
                f"set: {self.set} and {'images' if self.images else 'scenes'} are two training sets: give one"
            )
        if self.set and self.ignore != 255:
            raise ValueError(f"ignore: {self.set} ignores label 255; got {self.ignore}")
        return self
