"""Captions of whole pictures, made from label maps: what is in a picture, never where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

Names = tuple[str, ...]

OPENINGS = ("", "", "a picture of ", "a photo of ")
ARTICLES = ("a ", "the ", "")
JOINTS = (" on ", " over ", " and ", ", ")  # between things and what they are on
SMALLEST = 0.01  # share of a picture that a class must cover to be named


def classes_in(labels: np.ndarray, classes: int) -> list[int]:
    """The classes that cover at least SMALLEST of a label map [H, W], ascending; other values are void."""
    counts = np.bincount(labels.ravel(), minlength=classes)[:classes]
    return np.flatnonzero(counts >= SMALLEST * labels.size).tolist()


class CaptionWriter:
    """Words captions for pictures whose classes are known, and wrong ones that are nearly right.

    names      class names
    backdrops  those that things lie on ("grass"): named last, without an article
    """

    def __init__(self, names: Sequence[str], backdrops: Sequence[str] = ()):
        self.names = list(names)
        self.backdrops = frozenset(backdrops)
        self._known = frozenset(names)
        self._with_word: dict[str, list[str]] = {}
        for name in self.names:
            for word in name.split():
                self._with_word.setdefault(word, []).append(name)

    def caption(self, present: Sequence[str], rng: Generator, whole: bool = False) -> str:
        """A caption of the present classes: all of them if `whole`, else all or some, and often names alone.

        Half of the captions are nothing but the names of things ("red star and blue ring"): the words by which things
        differ have to stand out before longer sentences can be learned.
        """
        things = [name for name in present if name not in self.backdrops]
        grounds = [name for name in present if name in self.backdrops]
        if not whole:
            if rng.random() < 0.5:
                return self._listed(things or grounds, "", rng)
            if len(things) > 1 and rng.random() < 0.4:
                things = _some(things, rng)
            if things and rng.random() < 0.4:
                grounds = _some(grounds, rng) if rng.random() < 0.5 else []
        named = self._listed(things, str(rng.choice(ARTICLES)), rng)
        around = self._listed(grounds, "", rng)
        joint = str(rng.choice(JOINTS)) if named and around else ""
        return str(rng.choice(OPENINGS)) + named + joint + around

    def wrong(self, present: Sequence[str], rng: Generator) -> list[str]:
        """The present classes with one mistake, which a caption of them then has.

        Two things exchange a word ("red star, blue ring" becomes "blue star, red ring") if both results are classes; or
        one is replaced by an absent class, one that shares a word with it if there is any, each of its words being as
        likely to be the one.
        """
        things = [name for name in present if name not in self.backdrops] or list(present)
        absent = [name for name in self.names if name not in present]
        swaps = self._exchanges(things)
        if swaps and rng.random() < 0.5:
            old, new = swaps[int(rng.integers(len(swaps)))]
        elif absent:
            one = things[int(rng.integers(len(things)))]
            groups = [[name for name in self._with_word[word] if name not in present] for word in one.split()]
            groups = [group for group in groups if group] or [absent]
            near = groups[int(rng.integers(len(groups)))]
            old, new = (one,), (near[int(rng.integers(len(near)))],)
        else:
            return list(present[1:])  # every class is there: leave one out
        replaced = dict(zip(old, new, strict=True))
        return [replaced.get(name, name) for name in present]

    def _exchanges(self, things: Sequence[str]) -> list[tuple[Names, Names]]:
        """Pairs of things, and the pairs that they become when they exchange their first words."""
        found: list[tuple[Names, Names]] = []
        for number, first in enumerate(things):
            for second in things[number + 1 :]:
                (a, _, rest_a), (b, _, rest_b) = first.partition(" "), second.partition(" ")
                new = (f"{b} {rest_a}", f"{a} {rest_b}")
                if a != b and rest_a != rest_b and self._known.issuperset(new):
                    found.append(((first, second), new))
        return found

    def _listed(self, names: Sequence[str], article: str, rng: Generator) -> str:
        """ "a red star, an orange ring and a blue cross", in random order."""
        words = [_with_article(names[index], article) for index in rng.permutation(len(names))]
        return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _some(names: Sequence[str], rng: Generator) -> list[str]:
    """A random part of the names, at least one of them if there are any."""
    count = int(rng.integers(1, len(names) + 1)) if names else 0
    return [names[index] for index in rng.choice(len(names), count, replace=False)] if count else []


def _with_article(name: str, article: str) -> str:
    return f"an {name}" if article == "a " and name[:1].lower() in "aeiou" else article + name
