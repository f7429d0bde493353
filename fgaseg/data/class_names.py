"""Class names: reading them from a file, and what the values in label images mean."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from ..vocabulary import ClassPrompts
from .label_formats import COLOURS, UNPAINTED, colour, describe
from .names_files import read_table

log = logging.getLogger(__name__)


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Class names in label order, from a file in any of the formats of ``read_table``: in the order of their values,
    where it has values, and without those that mean void there.

    Raises DataError naming the file: unreadable, no names, an empty or a repeated one, a line that is no name.
    """
    return read_table(path).class_names(by_value=True)


def read_classes(path: str | os.PathLike[str]) -> list[str | ClassPrompts]:
    """The names of ``read_names``, with the prompts of the classes that have several, for ``model.encode``.

    Names such as "void" in a file of values are left out, and logged. Raises DataError as ``read_names`` does.
    """
    table = read_table(path)
    if void := table.void_names():
        log.info("%s: %s names no class and is left out", path, ", ".join(map(repr, void)))
    return table.with_prompts(table.class_names(by_value=True))


@dataclass(frozen=True)
class LabelSpace:
    """What the stored values in the label images of a data set mean (see ``label_formats``).

    prompts   the T classes that the model is given: names, or with prompts of their own
    classes   the S <= T classes that are scored; label v is classes[v]
    ignore    the label of pixels that are neither trained on nor scored
    class_of  the class of each prompt, T numbers in 0..S-1; None: prompt i is class i
    origin    where the classes come from, for error messages
    label_of  the label of each stored value that has one; None: the stored value v is the label v
    others    the label of all further stored values; None: they are errors
    numbered  the values of the classes stand beside their names
    """

    prompts: Sequence[str | ClassPrompts]
    classes: list[str]
    ignore: int
    class_of: list[int] | None
    origin: str
    label_of: dict[int, int] | None = None
    others: int | None = None
    numbered: bool = False

    @functools.cached_property
    def named(self) -> list[int]:
        """The stored values that have a label, ascending; none where values are labels."""
        return sorted(self.label_of or ())

    def fingerprint(self) -> str | None:
        """Changes with the meaning of any stored value; None where values are labels."""
        if self.label_of is None:
            return None
        return hashlib.sha256(repr((sorted(self.label_of.items()), self.others)).encode()).hexdigest()

    def undefined(self, labels: np.ndarray) -> list[int]:
        """The values of ``labels`` (int64, any shape) that are neither a class nor ``ignore``, ascending."""
        outside = labels[(labels < 0) | (labels >= len(self.classes))]
        return np.unique(outside[outside != self.ignore]).tolist()

    def labels(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The labels of stored values (int64, any shape), and a mask of the pixels whose value has no label."""
        if self.label_of is None:
            labels = np.where(stored == UNPAINTED, self.ignore, stored)
            return labels, ((labels < 0) | (labels >= len(self.classes))) & (labels != self.ignore)
        keys = np.array(self.named, np.int64)
        values = np.array([self.label_of[key] for key in self.named], np.int64)
        index = np.searchsorted(keys, stored).clip(max=len(keys) - 1)
        missing = keys[index] != stored
        labels = np.where(missing, self.ignore if self.others is None else self.others, values[index])
        return labels, missing & (self.others is None)

    def decode(self, stored: np.ndarray, source: object) -> np.ndarray:
        """The labels of stored values. Raises DataError naming ``source`` and a value that has no label."""
        labels, missing = self.labels(stored)
        if missing.any():
            values, counts = np.unique(stored[missing], return_counts=True)
            raise DataError(f"{source}: {self.explain_missing(int(values[0]), int(counts[0]) / stored.size)}")
        return labels

    def explain_missing(self, stored: int, share: float) -> str:
        """What is wrong with a stored value that has no label, of which ``share`` of the pixels are."""
        pixels = f"{percent(share)} of the pixels"
        if self.label_of is None and stored < COLOURS:
            return (
                f"holds label {stored} ({pixels}), but labels are 0 to {len(self.classes) - 1} ({self.origin}) or "
                f"{self.ignore} (ignored): correct the file, the names or data.ignore, or give data.label_map"
            )
        what = f"the {'colour' if stored >= COLOURS else 'value'} {describe(stored)} ({pixels})"
        return (
            f"{what} has no name in {self.origin}{self._nearest(stored)}: add it there, with the name null if it is "
            "void, or give all further values one name: {others: null}"
        )

    def _nearest(self, stored: int) -> str:
        """The named colour nearest to one that has no name: often the file was resized or compressed."""
        colours = [key for key in self.named if COLOURS <= key < UNPAINTED]
        if not COLOURS <= stored < UNPAINTED or not colours:
            return ""
        parts = [np.array([key >> shift & 255 for shift in (16, 8, 0)]) for key in (stored, *colours)]
        red, green, blue = parts[0].tolist()
        if (swapped := colour(blue, green, red)) in colours and red != blue:
            return f" (red and blue may be swapped: {describe(swapped)} has one)"
        apart = [int(np.abs(part - parts[0]).max()) for part in parts[1:]]
        label = (self.label_of or {})[nearest := colours[int(np.argmin(apart))]]
        name = "void" if label == self.ignore else self.classes[label]
        why = "; resized or JPEG-compressed labels have such colours" if min(apart) <= 16 else ""
        return f" (the nearest is {describe(nearest)}, {name}{why})"


def percent(share: float) -> str:
    """A share as text: 12 %, 1.3 %, 0.004 %."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"
