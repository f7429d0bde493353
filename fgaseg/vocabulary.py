"""A vocabulary: class names with their text embeddings."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from .errors import VocabularyError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Class names with their text embeddings, in the order of the logits' class axis. `model.encode(names)` makes one.

    names       T of them
    embeddings  [T, C], of unit length, in the joint space of the CLIP model that made them
    """

    names: tuple[str, ...]
    embeddings: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names as a tuple. Duplicates are allowed (ADE-847 has ten): a pixel gets the first of them.

    Raises VocabularyError for an empty list, an entry that is empty or not a string, or a string in place of a list.
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
