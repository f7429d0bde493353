"""Class names to embeddings: prompt template, tokens cut at the longest end-of-text, and a cache with a correct key."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from .errors import VocabularyError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Class names with their text embeddings, in the order of the logits' class axis.

    embeddings  [T, C], unit length, in the joint space of one CLIP
    """

    names: tuple[str, ...]
    embeddings: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple; an empty list, an empty name or a string in place of a list is an error.

    Duplicates are allowed (ADE-847 has ten): a pixel gets the first of them.
    """
    if isinstance(names, str):
        raise VocabularyError(f"class names: got the string {names!r}; give a list of names, such as [{names!r}]")
    names = tuple(names)
    if not names:
        raise VocabularyError("class names: the list is empty; give at least one name")
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise VocabularyError(f"class names: entry {i} is {name!r} of type {type(name).__name__}, not a string")
        if not name.strip():
            raise VocabularyError(f"class names: entry {i} is empty; every class needs a name")
    return names
