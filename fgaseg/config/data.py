"""The `data` section."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from .section import Section
from .view import Limit, wrong_bands, wrong_range


class DataConfig(Section):
    """The data sets for training and validation: a folder of photos, a folder of label images and a file of class
    names; or a benchmark set that `fgaseg data prepare` has prepared; or procedurally drawn scenes. Paths in a file
    that begin with ./ or ../ are relative to that file, others to the working directory."""

    images: Path | None = None
    """Folder of training photos."""
    labels: Path | None = None
    """Folder of label images, whose values index `names`; or a JSON file of COCO annotations. A photo and a label with
    the same stem are a pair."""
    names: Path | None = None
    """Class names, one per line, or in JSON, YAML, CSV or an annotation tool's format, also with their values, their
    colours or several prompts; null: the names of `label_map`, or of the COCO file."""
    label_map: str | dict[str, Any] | None = None
    """Names of the values or colours in label images: a YAML, JSON, CSV or labelmap.txt file, a preset such as
    cityscapes, or a mapping such as {0: background, 255: crack}; null: value n is the n-th name."""
    image_suffix: str | None = None
    """End of the stems of photos that labels do not share, such as _leftImg8bit; with a *, the whole stem."""
    label_suffix: str | None = None
    """The same of labels, such as _gtFine_labelIds, _mask or mask_*; photos and labels may then share a folder."""
    rotate_labels: bool | None = None
    """Labels were drawn on photos as stored, before their EXIF orientation is applied; null: where the sizes say so."""
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
    ignore: int | tuple[int, ...] = 255
    """Values, one or a list, of pixels that are neither trained on nor scored. Names begin after those from 0 on:
    with [0, 255] the first is that of value 1."""
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
    bands: tuple[PositiveInt, ...] | None = None
    """Bands of the photos that are red, green and blue, or the one that is grey, from 1 on; null: the first three."""
    value_range: tuple[Limit, Limit] | None = None
    """Values of the photos that become black and white, or percentiles: [0, 4095], ["2%", "98%"]; null: the whole range
    of the type."""
    workers: NonNegativeInt = 0
    """Loader processes per training process; their number never changes results."""
    scenes: bool = False
    """Train and score on procedurally drawn scenes."""

    @field_validator("label_map", mode="before")
    @classmethod
    def _text_keys(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, str | dict | Path):
            raise ValueError(f"give a file, a preset, or a mapping such as {{7: road, 11: car}}; got {value!r}")
        return {str(key): name for key, name in value.items()} if isinstance(value, dict) else value and str(value)

    @field_validator("ignore", mode="before")
    @classmethod
    def _check_ignore(cls, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= 65535 for one in values):
            raise ValueError(f"give a label value from 0 to 65535, or a list of them; got {value!r}")
        return value

    @property
    def void_values(self) -> tuple[int, ...]:
        """The values in label images that are neither trained on nor scored."""
        return (self.ignore,) if isinstance(self.ignore, int) else self.ignore

    @property
    def void(self) -> int:
        """The label that stands for all of them once the images are read; no class has it."""
        largest = max(self.void_values, default=0)
        return largest if largest >= 255 else 65535

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bands is not None and (why := wrong_bands(self.bands)):
            raise ValueError(f"bands: {why}")
        if self.value_range is not None and (why := wrong_range(self.value_range)):
            raise ValueError(f"value_range: {why}")
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: smallest first is needed, e.g. [0.5, 2.0]; got {list(self.scale)}")
        if self.set and (self.images or self.scenes):
            raise ValueError(
                f"set: {self.set} and {'images' if self.images else 'scenes'} are two training sets: give one"
            )
        own = [key for key in ("label_map", "image_suffix", "label_suffix") if getattr(self, key) is not None]
        if own and not (self.images or self.val_images):
            raise ValueError(f"{own[0]}: is for photos and labels of your own: give images too")
        if self.set and self.void_values != (255,):
            raise ValueError(f"ignore: {self.set} ignores label 255; got {self.ignore}")
        return self
