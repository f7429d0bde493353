"""The prompts of a class for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import VocabularyError
from ..vocabulary import check_names
from .benchmark_sets import BENCHMARK_SETS
from .typed_names import read_typed

STUFF = "stuff"


def stuff_names() -> list[str]:
    """The 39 prompts that stand for the background of PASCAL VOC in `pas20b`: wall, sky, grass, ... (CAT-Seg)."""
    return BENCHMARK_SETS["pas20b"].names[20:]


def read_background(background: str | Sequence[str]) -> list[str]:
    """The prompts of a class for everything else, for `model.encode`.

    background  a list, taken as it is; a text as typed after --background, with commas or | between the prompts; or
                "stuff", the prompts of ``stuff_names``

    Raises DataError for a text without names, VocabularyError for what is neither text nor a list.
    """
    if not isinstance(background, str):
        if not isinstance(background, Iterable):
            raise VocabularyError(f"background: got {background!r}: give names, such as 'wall, sky', or a list of them")
        return list(background)
    if background.strip().lower() == STUFF:
        return stuff_names()
    return [prompt for one in check_names(read_typed(background.replace("|", ","))) for prompt in one.prompts]
