"""A model with the interface of transformers' image-segmentation pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..data import ImageSource
from ..errors import VocabularyError
from ..inference import Result
from ..vocabulary import ClassNames, Vocabulary
from .fgaseg import FGASeg
from .loading import load

Segments = list[dict[str, Any]]


class SegmentationPipeline:
    """What `fgaseg.pipeline` returns: called with photos, it gives what transformers' image-segmentation gives.

    model  the FGASeg that it calls, as `pipe.model`
    """

    task = "image-segmentation"

    def __init__(
        self,
        model: FGASeg,
        classes: ClassNames | None = None,
        background: str | Sequence[str] | None = None,
        threshold: float | None = None,
    ):
        self.model = model
        self._classes, self._background, self._threshold = classes, background, threshold

    def __call__(
        self,
        inputs: Any,
        *,
        classes: ClassNames | None = None,
        background: str | Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> Segments | list[Segments] | Iterator[Segments]:
        """The segments of a photo, of each photo in a list, or, one after the other, of those of a generator.

        inputs      a photo as `read_image` takes it (path, address, PIL image, array, tensor, binary file); a list of
                    these; or a generator, another iterator or a torch Dataset, of which the answers are an iterator
        classes, background, threshold
                    as of `FGASeg.segment`; None: what `fgaseg.pipeline` was given
        returns     for each photo a list of dictionaries, one a class found, in the order of the classes:
                    "label" (str), the class; "mask", a PIL image of mode L at the photo's own size, upright, 255 where
                    the class is and 0 elsewhere; "score" (float), the mean score of its pixels, where transformers
                    gives None for semantic segmentation. Masks do not overlap and cover the photo; "nothing" is a
                    class like the others

        Raises ImageError and VocabularyError.
        """
        names = self._classes if classes is None else classes
        if names is None:
            raise VocabularyError("classes: were not given; call the pipeline with classes=[...]")
        vocabulary = self.model.encode(names, self._background if background is None else background)
        threshold = self._threshold if threshold is None else threshold
        if isinstance(inputs, list | tuple):
            return [self._segments(one, vocabulary, threshold) for one in inputs]
        if isinstance(inputs, Dataset) or (isinstance(inputs, Iterator) and not hasattr(inputs, "read")):
            return (self._segments(one, vocabulary, threshold) for one in _items(inputs))
        return self._segments(inputs, vocabulary, threshold)

    def _segments(self, image: ImageSource, vocabulary: Vocabulary, threshold: float | None) -> Segments:
        return segments_of(self.model.segment(image, vocabulary, threshold=threshold))


def segments_of(result: Result) -> Segments:
    """A result in the form of transformers' image-segmentation pipelines."""
    found = []
    for index in np.unique(result.labels).tolist():
        inside = result.labels == index
        mask = Image.fromarray(inside.astype(np.uint8) * np.uint8(255))
        score = float(result.scores[inside].mean(dtype=np.float64))
        found.append({"score": score, "label": result.classes[index], "mask": mask})
    return found


def _items(inputs: Any) -> Iterator[Any]:
    """Of an iterator, or of a data set that is indexed."""
    return inputs if isinstance(inputs, Iterator) else (inputs[index] for index in range(len(inputs)))


def pipeline(
    model: FGASeg | str | Path = "cat-seg-b16",
    *words: str,
    classes: ClassNames | None = None,
    background: str | Sequence[str] | None = None,
    threshold: float | None = None,
    device: str | torch.device | None = None,
) -> SegmentationPipeline:
    """A model with the interface of transformers' `pipeline("image-segmentation")`, and any classes at every call.

        pipe = fgaseg.pipeline("runs/mine/model")
        for segment in pipe("photo.jpg", classes=["cat", "sofa"], background="other"):
            print(segment["label"], segment["score"], segment["mask"].size)

    model                           an FGASeg, or what `fgaseg.load` takes: a name, a folder, a file, a hub id
    words                           overrides of its configuration, "inference=windows"; only where it is loaded here
    classes, background, threshold  for calls that do not give their own, as of `FGASeg.segment`
    device                          as of `fgaseg.load`; an FGASeg stays where it is unless it is given

    Raises what `fgaseg.load` raises, and VocabularyError.
    """
    if isinstance(model, FGASeg):
        if words:
            raise VocabularyError(f"{words[0]}: the model is loaded already: give overrides where it is loaded")
        model = model if device is None else model.to(device)
    else:
        model = load(model, *words, device=device)
    return SegmentationPipeline(model, classes, background, threshold)
