"""Models, class names and views as the options of a command say, ready for one photo after the other."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import ImageError
from .options import background_values, class_values, load_model, view_values
from .photos import STDIN, Photo
from .processes import own_device

if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Result
    from ..inference.results import PseudoMasks
    from ..vocabulary import ClassPrompts

TOO_LARGE = 4  # times as long and as broad as what the model sees of it


class Labeller:
    """Labels photos with one or several models; each encodes the names once."""

    def __init__(self, options: argparse.Namespace, overrides: list[str], probabilities: bool = False) -> None:
        self.view = view_values(options)
        self.background, self.threshold = background_values(options)
        self.classes = class_values(options)
        self.probabilities = probabilities
        sources, device = [options.model, *options.compare], own_device(options.device)
        self.models = {source: load_model(source, overrides, device, options.precision) for source in sources}
        self.vocabularies = {
            source: model.encode(self.classes, self.background) for source, model in self.models.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Of all labels, in the order of their values."""
        from ..inference import label_names

        return label_names(next(iter(self.vocabularies.values())), self.threshold)[0]

    @property
    def with_background(self) -> tuple[ClassPrompts, ...]:
        """The classes with their prompts, that of the background included."""
        from ..data import with_background

        return self.classes if self.background is None else with_background(self.classes, self.background)[0]

    def read(self, photo: Photo) -> Image.Image:
        """Raises ImageError."""
        from ..data import read_image

        if photo.error:
            raise ImageError(photo.error)
        self._note_raster(photo)
        return read_image(photo.source(), **self.view)

    def label(self, photo: Photo, image: Image.Image) -> dict[str, Result]:
        """The results of all models, by what they were given as."""
        results = {}
        for source, model in self.models.items():
            result = model.segment(
                image, self.vocabularies[source], threshold=self.threshold, probabilities=self.probabilities
            )
            results[source] = replace(result, source="stdin" if photo.name == STDIN else photo.name)
        return results

    def pseudo_masks(self, result: Result) -> PseudoMasks:
        """Of the first model."""
        from ..inference import pseudo_masks

        source, model = next(iter(self.models.items()))
        return pseudo_masks(model, result.image, self.vocabularies[source])

    def _note_raster(self, photo: Photo) -> None:
        """A large map that is seen whole loses what makes it worth its size."""
        from ..data import georeferenced_size
        from ..notes import note_once

        if photo.path is None or photo.path.suffix.lower() not in (".tif", ".tiff"):
            return
        size = georeferenced_size(photo.path)
        seen = max(model.config.image_size for model in self.models.values())
        if size is not None and min(size) > TOO_LARGE * seen:
            note_once(
                ("georeferenced",),
                f"{photo.name}: is a georeferenced raster of {size[0]}x{size[1]} pixels, and is seen whole, its short "
                f"side at {seen} pixels: `fgaseg raster` labels it in tiles at its own size and keeps the georeference",
            )
