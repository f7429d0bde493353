"""Answers that say little, because every pixel gets one of the names that were given: told once."""

from __future__ import annotations

import numpy as np

from ..notes import note_once
from .results import Result

_EVERY = "every pixel gets one of the given names, whether it is there or not"
_CURE = "give names for all that the photos show, or a background (--background stuff) for the rest"
_SAMPLED = 100_000  # scores that are looked at
_UNSURE = 0.1  # of the way from chance to certainty, which the scores of half the pixels do not reach


def note_doubts(result: Result, softmax: bool, threshold: float | None = None, given: int | None = None) -> None:
    """Log a note if only one class was given, if one takes the whole photo, or if no name fits most pixels; or if a
    threshold cannot have an effect.

    softmax  whether scores are shares among the classes, instead of a probability for each
    given    how many of the classes the model knows; None: all
    """
    count = len(set(result.classes[:given]))
    chance = 1 / max(count, 1) if softmax else 0.0
    if threshold is not None and softmax and threshold <= chance:
        note_once(
            ("no effect", threshold, count),
            f"threshold {threshold}: has no effect: scores are shares among the {count} classes, so that the winner "
            f"has at least {chance:.2g}",
        )
    if result.nothing is not None:
        return  # what is none of the names has a label
    if count == 1:
        note_once(("one class",), f"one class, {result.classes[0]!r}: {_EVERY}; {_CURE}")
        return
    label = int(result.labels.flat[0])
    if result.labels.size > 1 and (result.labels == label).all():
        name = result.classes[label]
        note_once(("one class found", name), f"all of the photo is {name!r}: {_EVERY}; {_CURE}")
        return
    median = _median(result.scores)
    if 0 <= median < chance + _UNSURE * (1 - chance):
        note_once(("unsure",), f"half of the photo has scores below {median:.2f}: {_EVERY}; {_CURE}")


def _median(scores: np.ndarray) -> float:
    step = max(int((scores.size / _SAMPLED) ** 0.5), 1)
    return float(np.median(scores[::step, ::step]))
