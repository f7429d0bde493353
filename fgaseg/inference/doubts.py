"""Answers that say little, because every pixel gets one of the names that were given: told once."""

from __future__ import annotations

import numpy as np

from ..notes import note_once
from .results import Result

_EVERY = "every pixel gets one of the given names, whether it is there or not"
_CURE = 'give names for all that the photos show, or one for the rest, such as "background"'
_SAMPLED = 100_000  # scores that are looked at
_UNSURE = 0.1  # of the way from chance to certainty, which the scores of half the pixels do not reach


def note_doubts(result: Result, softmax: bool) -> None:
    """Log a note if only one class was given, if one takes the whole photo, or if no name fits most pixels.

    softmax  whether scores are shares among the classes, instead of a probability for each
    """
    count = len(set(result.classes))
    if count == 1:
        note_once(("one class",), f"one class, {result.classes[0]!r}: {_EVERY}; {_CURE}")
        return
    label = int(result.labels.flat[0])
    if result.labels.size > 1 and (result.labels == label).all():
        name = result.classes[label]
        note_once(("one class found", name), f"all of the photo is {name!r}: {_EVERY}; {_CURE}")
        return
    chance = 1 / count if softmax else 0.0
    step = max(int((result.scores.size / _SAMPLED) ** 0.5), 1)
    median = float(np.median(result.scores[::step, ::step]))
    if 0 <= median < chance + _UNSURE * (1 - chance):
        note_once(("unsure",), f"half of the photo has scores below {median:.2f}: {_EVERY}; {_CURE}")
