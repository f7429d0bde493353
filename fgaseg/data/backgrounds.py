"""The prompts of a class for everything else."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import VocabularyError
from ..vocabulary import ClassPrompts, check_names
from .benchmark_sets import BENCHMARK_SETS
from .typed_names import read_typed

STUFF = "stuff"
NAME = "background"  # of a background with several prompts


def stuff_names() -> list[str]:
    """The 39 prompts that stand for the background of PASCAL VOC in `pas20b`: wall, sky, grass, ... (CAT-Seg)."""
    return BENCHMARK_SETS["pas20b"].names[20:]


def with_background(
    classes: Sequence[ClassPrompts], background: str | Sequence[str]
) -> tuple[tuple[ClassPrompts, ...], int]:
    """Classes with one that stands for everything else, the last, and its index.

    background  its prompts: a list, taken as it is; a text as typed after --background, with commas or | between them;
                or "stuff", those of ``stuff_names``. A single one is also the name of the class; several are called
                "background". A class that has that name already, in small or capital letters, is taken for it

    Raises DataError or VocabularyError where there is no prompt, VocabularyError where a class "background" is there
    with other prompts.
    """
    if not (isinstance(background, str) and _find(background, classes) is not None):
        background = _prompts(background)
    (given,) = check_names([[background] if isinstance(background, str) else background])
    name = given.name if len(given.prompts) == 1 else NAME
    index = _find(name, classes)
    if index is None:
        return (*classes, ClassPrompts(name, given.prompts)), len(classes)
    if len(given.prompts) > 1 and classes[index].prompts != given.prompts:
        raise VocabularyError(
            f"background: a class is called {name!r} already, with its own prompts; leave these prompts out of the "
            f"background (give {name!r} alone) or rename the class"
        )
    return tuple(classes), index


def _find(name: str, classes: Sequence[ClassPrompts]) -> int | None:
    return next((index for index, one in enumerate(classes) if _plain(one.name) == _plain(name)), None)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _prompts(background: str | Sequence[str]) -> list[str]:
    if isinstance(background, list | tuple):
        return list(background)
    if not isinstance(background, str):
        raise VocabularyError(f"background: got {background!r}: give names, such as 'wall, sky', or a list")
    if background.strip().lower() == STUFF:
        return stuff_names()
    return [prompt for one in check_names(read_typed(background.replace("|", ","))) for prompt in one.prompts]
