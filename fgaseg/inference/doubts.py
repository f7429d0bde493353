"""Answers that say little, because every pixel gets one of the names that were given: told once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..notes import note_once
from .results import Result

_EVERY = "every pixel gets one of the given names, whether it is there or not"
_CURE = "give names for all that the photos show, or a background (--background stuff) for the rest"
_SAMPLED = 100_000  # scores that are looked at
_UNSURE = 0.1  # of the way from chance to certainty, which the scores of half the pixels do not reach


def note_doubts(
    result: Result, softmax: bool, threshold: float | None = None, given: int | None = None, what: str = "the photo"
) -> None:
    """Log a note if only one class was given, if one takes all of a photo, or if no name fits most of its pixels; or if
    a threshold cannot have an effect.

    softmax  whether scores are shares among the classes, instead of a probability for each
    given    how many of the classes the model knows; None: all
    what     the result is of
    """
    classes = result.classes[:given]
    if note_choice(classes, result.nothing, softmax, threshold):
        return
    label = int(result.labels.flat[0])
    if result.labels.size > 1 and (result.labels == label).all():
        note_all_one(result.classes[label], what)
        return
    chance = 1 / len(set(classes)) if softmax else 0.0
    median = _median(result.scores)
    if 0 <= median < chance + _UNSURE * (1 - chance):
        note_once(("unsure",), f"half of {what} has scores below {median:.2f}: {_EVERY}; {_CURE}")


def note_choice(classes: Sequence[str], nothing: int | None, softmax: bool, threshold: float | None = None) -> bool:
    """Log a note if there is one class only, or if a threshold cannot have an effect. Whether no doubt is left to note:
    what is none of the names has a label, or there is one class only."""
    count = len(set(classes))
    chance = 1 / max(count, 1) if softmax else 0.0
    if threshold is not None and softmax and threshold <= chance:
        note_once(
            ("no effect", threshold, count),
            f"threshold {threshold}: has no effect: scores are shares among the {count} classes, so that the winner "
            f"has at least {chance:.2g}",
        )
    if nothing is None and count == 1:
        note_once(("one class",), f"one class, {classes[0]!r}: {_EVERY}; {_CURE}")
    return nothing is not None or count == 1


def note_all_one(name: str, what: str) -> None:
    """Log that one class takes all of a photo or a raster."""
    note_once(("one class found", name), f"all of {what} is {name!r}: {_EVERY}; {_CURE}")


def _median(scores: np.ndarray) -> float:
    step = max(int((scores.size / _SAMPLED) ** 0.5), 1)
    return float(np.median(scores[::step, ::step]))
