"""What a score is for a model, and the probabilities of all classes, which are computed one class at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import VocabularyError


@dataclass(frozen=True)
class ScoreRule:
    """How logits become probabilities between 0 and 1, by the loss that a model was trained with.

    softmax  cross-entropy: shares among the classes of a vocabulary; else a probability of each class by itself
    before   probabilities are made on the small grid and resized (`resize` scores); else logits are
    inner    the decoder ends in a sigmoid (`released_fast_scores`); the released code applies a second one before it
             resizes, which is undone in what is given as probability
    """

    softmax: bool
    before: bool
    inner: bool

    @classmethod
    def of(cls, config: ModelConfig) -> ScoreRule:
        inner = config.released_fast_scores
        return cls(config.loss.seg == "ce" and not inner, config.resize == "scores", inner)

    @property
    def needs_total(self) -> bool:
        """Whether the softmax comes after the resize, over what `upsample_argmax` totals."""
        return self.softmax and not self.before

    def prepare(self, logits: Tensor) -> Tensor:
        """The maps that are resized, from logits [..., T, h, w] of all classes (without softmax: of any)."""
        if not self.before:
            return logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.softmax(dim=-3) if self.softmax else logits.sigmoid()

    def finish(self, best: Tensor, total: Tensor | None = None) -> Tensor:
        """Probabilities from the resized maps of winners (with their total, as of `upsample_argmax`)."""
        if total is not None:
            return 1 / total
        return self.of_class(best)

    def of_class(self, resized: Tensor) -> Tensor:
        """Probabilities from the resized maps of classes, where no total is needed."""
        if self.inner:
            return resized.logit() if self.before else resized
        return resized if self.before else resized.sigmoid()


class Probabilities:
    """The probability of every class at every pixel, float32 [H, W] each, computed when it is asked for.

        result = model.segment("photo.jpg", ["cat", "sofa"], probabilities=True)
        result.probabilities["cat"]  # or [0]; iteration goes over all classes in their order

    Only the model's small maps are kept, [T, 4H / patch, 4W / patch], so that [T, H, W] is never in memory. What a
    probability is, `fgaseg.Result` says. The label "nothing" of a threshold is no class of the model and has none.

    classes  the names, in the order of the indices
    shape    (T, H, W)
    """

    def __init__(self, classes: tuple[str, ...], size: tuple[int, int], compute: Callable[[int], Tensor]):
        self.classes = classes
        self.shape = (len(classes), *size)
        self._compute = compute

    def __len__(self) -> int:
        return len(self.classes)

    def __contains__(self, name: object) -> bool:
        """Whether a class has that name."""
        return name in self.classes

    def __getitem__(self, index: int | str) -> np.ndarray:
        """Of a class, by its index or its name. Raises VocabularyError for an unknown name, IndexError, TypeError."""
        if isinstance(index, str):
            index = class_index(index, self.classes)
        if isinstance(index, slice):
            raise TypeError("probabilities: are made of one class at a time: give an index or a name")
        if not -len(self) <= index < len(self):
            raise IndexError(f"class {index}: there are {len(self)} classes, 0 to {len(self) - 1}")
        with torch.inference_mode():
            values = self._compute(index % len(self))
        return values.clamp(0, 1).float().cpu().numpy()

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


def class_index(name: str, classes: Sequence[str]) -> int:
    """The first class of that name. Raises VocabularyError that lists the classes."""
    if name not in classes:
        shown = ", ".join(map(repr, classes[:8])) + (", ..." if len(classes) > 8 else "")
        raise VocabularyError(f"{name!r} is none of the classes: {shown}")
    return list(classes).index(name)
