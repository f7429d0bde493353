"""The class for everything else: its prompts, its name, and classes that have that name already."""

import pytest

from fgaseg.data.backgrounds import stuff_names, with_background
from fgaseg.errors import DataError, VocabularyError
from fgaseg.vocabulary import ClassPrompts, check_names

CLASSES = check_names(["cat", ["dog", "puppy"]])

ADDED = {  # background, its class
    "wall": ClassPrompts("wall", ("wall",)),
    "wall, sky": ClassPrompts("background", ("wall", "sky")),
    "wall | sky": ClassPrompts("background", ("wall", "sky")),
    ("wall, sky",): ClassPrompts("wall, sky", ("wall, sky",)),
    ("wall", "sky"): ClassPrompts("background", ("wall", "sky")),
    " Stuff ": ClassPrompts("background", tuple(stuff_names())),
}


@pytest.mark.parametrize("background", ADDED, ids=str)
def test_a_class_is_added_behind_the_others(background):
    given = list(background) if isinstance(background, tuple) else background
    classes, index = with_background(CLASSES, given)
    assert classes == (*CLASSES, ADDED[background]) and index == 2


def test_the_background_of_pascal_voc():
    names = stuff_names()
    assert len(names) == 39 and {"wall", "sky", "grass"} <= set(names) and "cat" not in names


def test_a_class_that_is_there_is_taken():
    assert with_background(CLASSES, "CAT") == (CLASSES, 0)
    assert with_background(CLASSES, ["Cat"]) == (CLASSES, 0)
    named = check_names(["cat", "Back_Ground", "background"])
    assert with_background(named, "back  ground")[1] == 1
    assert with_background(named[:2], "background")[1] == 2
    own = (*CLASSES, ClassPrompts("background", ("wall", "sky")))
    assert with_background(own, "wall, sky") == (own, 2) and with_background(own, "Background") == (own, 2)
    with pytest.raises(
        VocabularyError, match="a class is called 'background' already, with its own prompts; leave these"
    ):
        with_background(own, "wall, sea")
    assert with_background(own, ["background"]) == (own, 2)


def test_no_background():
    for wrong in (3, None):
        with pytest.raises(
            VocabularyError, match=f"background: got {wrong}: give names, such as 'wall, sky', or a list"
        ):
            with_background(CLASSES, wrong)
    for empty in ("", " , ", []):
        with pytest.raises((DataError, VocabularyError)):
            with_background(CLASSES, empty)
