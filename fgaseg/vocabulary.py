"""A vocabulary: classes, each with one or several prompts, and their text embeddings."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from .errors import VocabularyError
from .notes import note_once
from .visible import HIDDEN


class ClassPrompts(NamedTuple):
    """A class with the prompts that stand for it, synonyms or kinds of it."""

    name: str
    prompts: tuple[str, ...]


# what a model takes: names, which may hold synonyms ("car | automobile | van"), or the prompts of each class
ClassNames = Sequence[str | Sequence[str] | ClassPrompts] | Mapping[str, str | Sequence[str]]


LONGEST = 4000  # characters of a name: tokenizers take time that grows with its square
# what is no white space but not seen either: soft hyphens, joiners, fillers of Hangul, the empty cell of Braille
UNSEEN = re.compile(r"[\s\xad\u115f\u1160\u180e\u200b-\u200f\u2060-\u2064\u2800\u3164\ufeff\uffa0]+")
BREAKS = re.compile(r"[\n\r\t\v\f]+")
NOTHING = "nothing"  # the label of pixels below a threshold, without a background class


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Class names with their text embeddings, in the order of the logits' class axis. `model.encode(names)` makes one.

    names       S of them
    embeddings  [T, C], of unit length, in the joint space of the CLIP model that made them
    counts      how many rows of the embeddings, one after the other, each class has: the largest logit among them is
                that of the class; None: one row each, T = S
    first       the class that gets the pixels of each class, usually itself, the first of those that have the same
                prompt; None: not known
    background  the class that stands for everything else; None: there is none
    """

    names: tuple[str, ...]
    embeddings: Tensor = field(repr=False)
    counts: tuple[int, ...] | None = None
    first: tuple[int, ...] | None = field(default=None, repr=False)
    background: int | None = None

    def __len__(self) -> int:
        return len(self.names)


def split_synonyms(name: str) -> tuple[str, ...]:
    """The prompts of a class as they are written in one text, with | between them."""
    return tuple(filter(None, (" ".join(part.split()) for part in name.split("|"))))


def one_line(name: str) -> str:
    """The name with line breaks and tabs as spaces, and without those at its ends, as lines of a file have them."""
    return BREAKS.sub(" ", name.strip("\n\r\t\v\f"))


def why_no_name(name: str) -> str | None:
    """What is wrong with a name, already in one line, that cannot be shown as it is or is too long; None: nothing."""
    if len(name) > LONGEST:
        return f"has {len(name):,} characters: give a name of at most {LONGEST:,}"
    if name.strip() and UNSEEN.fullmatch(name):
        return "holds nothing that can be seen: write the name as plain text"
    found = HIDDEN.search(name)
    return None if found is None else f"holds the control character {found[0]!a}: write the name as plain text"


def as_text(entry: str | ClassPrompts) -> str:
    """A class in one text, for messages and records."""
    return entry if isinstance(entry, str) else f"{entry.name}: {' | '.join(entry.prompts)}"


def check_names(names: ClassNames | Iterable[str]) -> tuple[ClassPrompts, ...]:
    """Each class with its name and its prompts. A class without prompts of its own has its name.

    Duplicates are allowed (ADE-847 has ten): a pixel gets the first of them.

    names  a list, each entry a name, a text of synonyms with | between them (the first is the name), a list of these,
           or a ClassPrompts; or a mapping from names to prompts, in the same forms

    Line breaks and tabs in a name are spaces, and are left out at its ends.

    Raises VocabularyError for an empty list, an entry that is empty or not a string, a name with control characters
    or of more than 4000 characters, a string in place of a list, or one name for two classes with different prompts.
    """
    if isinstance(names, str):
        raise VocabularyError(f"class names: got the string {names!r}; give a list of names, such as [{names!r}]")
    entries: Iterable[Any] = names
    if isinstance(names, Mapping):
        entries = [ClassPrompts(name, words) for name, words in names.items()]  # type: ignore[arg-type]
    classes = tuple(_checked(i, entry) for i, entry in enumerate(entries))
    if not classes:
        raise VocabularyError("class names: the list is empty; give at least one name")
    seen: dict[str, tuple[str, ...]] = {}
    for name, prompts in classes:
        if seen.setdefault(name, prompts) != prompts:
            raise VocabularyError(
                f"class names: two classes are called {name!r} and have different prompts; write them as one class, "
                "or give them different names"
            )
    return classes


def _checked(i: int, entry: Any) -> ClassPrompts:
    name = entry.name if isinstance(entry, ClassPrompts) else None
    words = entry.prompts if isinstance(entry, ClassPrompts) else entry
    parts = [words] if isinstance(words, str) else words
    if not isinstance(parts, list | tuple):
        raise VocabularyError(f"class names: entry {i} is {entry!r} of type {type(entry).__name__}, not a string")
    for part in [*parts, *([] if name is None else [name])]:
        if not isinstance(part, str):
            raise VocabularyError(f"class names: entry {i} is {part!r} of type {type(part).__name__}, not a string")
    for part in parts:
        if BREAKS.search(part.strip()):
            note_once(("lines of a name", part), f"class names: read as one name, though it looks like several: "
                      f"{part[:40]!r}; give a list with one name for each class")  # fmt: skip
    parts, name = [one_line(part) for part in parts], None if name is None else one_line(name)
    for part in [*parts, *([] if name is None else [name])]:
        if (why := why_no_name(part)) is not None:
            raise VocabularyError(f"class names: entry {i}, {part[:80]!r}, {why}")
    # a name without synonyms stays as it is written
    prompts = tuple(one for part in parts for one in (split_synonyms(part) if "|" in part else [part]) if one.strip())
    if not prompts or (name is not None and not name.strip()):
        raise VocabularyError(f"class names: entry {i} is empty; every class needs a name")
    same = {" ".join(one.replace("_", " ").lower().split()): one for one in reversed(prompts)}
    return ClassPrompts(prompts[0] if name is None else name, tuple(reversed(same.values())))
