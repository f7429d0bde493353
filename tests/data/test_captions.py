"""Captions of pictures: what they name, and what their mistakes are."""

import itertools

import numpy as np
import pytest

from fgaseg.data import SEEN, UNSEEN, CaptionWriter, SceneDataset, classes_in
from fgaseg.data.scenes import GROUNDS

NAMES = SEEN + GROUNDS


@pytest.fixture
def writer():
    return CaptionWriter(NAMES, GROUNDS)


def named(caption, names=NAMES):
    return {name for name in names if f" {name}" in f" {caption}"}


def test_classes_are_those_that_cover_a_hundredth():
    labels = np.full((10, 100), 255)
    labels[0, :10], labels[1, :9], labels[2, :50] = 3, 4, 0
    assert classes_in(labels, 5) == [0, 3]
    assert classes_in(labels, 3) == [0]  # values beyond the names are void
    assert classes_in(np.full((4, 4), 255), 5) == []


def test_a_caption_names_what_is_there_and_nothing_else(writer):
    present = ["red ring", "blue cross", "pink ring", "grass", "sand"]
    rng = np.random.default_rng(0)
    texts = [writer.caption(present, rng) for _ in range(2000)]
    found = [named(text) for text in texts]
    assert all(some and some <= set(present) for some in found)
    subsets = set(map(frozenset, found))
    assert frozenset(present) in subsets and frozenset(["red ring"]) in subsets and len(subsets) > 20
    assert len(set(texts)) > 400  # orders, subsets and wordings
    # about half are names of things alone, in any order
    alone = {" and ".join([", ".join(order[:2]), order[2]]) for order in itertools.permutations(present[:3])}
    assert 900 < sum(text in alone for text in texts) < 1200
    whole = [named(writer.caption(present, rng, whole=True)) for _ in range(50)]
    assert all(some == set(present) for some in whole)


def test_wordings(writer):
    rng = np.random.default_rng(1)
    texts = {writer.caption(["orange ring", "water"], rng) for _ in range(400)}
    assert {
        "an orange ring on water",
        "a photo of the orange ring over water",
        "orange ring",
        "orange ring, water",
    } <= texts
    assert writer.caption(["grass"], rng).endswith("grass")  # nothing lies on it


def test_the_same_random_numbers_give_the_same_caption(writer):
    one, two = (writer.caption(["red ring", "sand"], np.random.default_rng(7)) for _ in range(2))
    assert one == two


def test_a_mistake_is_one_wrong_class_or_two_exchanged_words(writer):
    present, rng = ["red ring", "blue cross", "grass"], np.random.default_rng(0)
    exchanged, replaced = 0, set()
    for _ in range(300):
        wrong = writer.wrong(present, rng)
        assert set(wrong) != set(present) and set(wrong) <= set(NAMES) and "grass" in wrong
        if {"blue ring", "red cross"} <= set(wrong):
            exchanged += 1
        else:
            (old,), (new,) = set(present) - set(wrong), set(wrong) - set(present)
            assert set(old.split()) & set(new.split())  # the nearest mistake: colour or shape is right
            replaced.add(new)
    assert 100 < exchanged < 200 and len(replaced) > 8


def test_no_mistake_names_a_pair_that_training_never_shows(writer):
    rng, data = np.random.default_rng(0), SceneDataset("train", 200)
    for index in range(200):
        present = [data.names[one] for one in classes_in(data[index]["labels"].numpy(), len(data.names))]
        assert not set(UNSEEN) & set(writer.wrong(present, rng))


def test_mistakes_of_names_of_any_kind():
    writer, rng = CaptionWriter(["cow", "sky", "water"]), np.random.default_rng(0)
    assert {tuple(writer.wrong(["cow", "sky"], rng)) for _ in range(50)} == {("water", "sky"), ("cow", "water")}
    assert writer.wrong(["cow", "sky", "water"], rng) == ["sky", "water"]  # every class is there
    assert named(writer.caption(["cow", "sky"], rng, whole=True), writer.names) == {"cow", "sky"}


def test_how_often_captions_leave_something_out(writer):
    present, rng = ["red ring", "blue cross", "grass", "sand"], np.random.default_rng(2)
    texts = [writer.caption(present, rng) for _ in range(2000)]
    found = [named(text) for text in texts]
    assert all(text.count(name) == 1 for text, names in zip(texts, found, strict=True) for name in names)
    grounds = np.bincount([len(names & {"grass", "sand"}) for names in found], minlength=3) / 2000
    # one of two captions is the things alone; of the others two in five have some of the grounds, half of these none
    np.testing.assert_allclose(grounds, [0.5 + 0.5 * 0.4 * 0.5, 0.5 * 0.4 * 0.25, 0.5 * (0.6 + 0.4 * 0.25)], atol=0.035)
    assert np.mean([len(names - {"grass", "sand"}) == 1 for names in found]) == pytest.approx(0.1, abs=0.025)
    many = ["red ring", "blue cross", "pink ring", "cyan star"]
    counts = np.bincount([len(named(writer.caption(many, rng))) for _ in range(2000)], minlength=5)[1:] / 2000
    np.testing.assert_allclose(counts, [0.05, 0.05, 0.05, 0.85], atol=0.025)
    of_grounds = [named(writer.caption(["grass", "sand"], rng)) for _ in range(200)]
    assert all(len(names) == 2 for names in of_grounds)


def test_articles_and_joints():
    writer, rng = CaptionWriter(["Apple", "cow", "hill"], ["hill"]), np.random.default_rng(0)
    texts = [writer.caption(["Apple", "hill"], rng, whole=True) for _ in range(3000)]
    openings, articles, joints = (
        ("", "a picture of ", "a photo of "),
        ("an ", "the ", ""),
        (" on ", " over ", " and ", ", "),
    )
    expected = {f"{a}{b}Apple{c}hill" for a in openings for b in articles for c in joints}
    assert set(texts) == expected
    assert np.mean([text.startswith(("a picture", "a photo")) for text in texts]) == pytest.approx(0.5, abs=0.03)
    plain = {writer.caption(["cow"], rng, whole=True) for _ in range(100)}
    assert plain == {f"{a}{b}cow" for a in openings for b in ("a ", "the ", "")}
    several = {writer.caption(["cow", "Apple"], rng) for _ in range(300)}
    assert {"cow and Apple", "Apple and cow", "a cow and an Apple", "a photo of the Apple and the cow"} <= several
    assert CaptionWriter(["cow"]).caption([], rng, whole=True) in openings


def test_only_first_words_that_differ_are_exchanged():
    writer, rng = CaptionWriter(["red ring", "red star", "blue ring", "blue star", "cow"]), np.random.default_rng(0)
    swapped = {tuple(writer.wrong(["red ring", "blue star"], rng)) for _ in range(200)}
    assert ("blue ring", "red star") in swapped
    for present in (["red ring", "red star"], ["red ring", "blue ring"], ["cow", "red ring"]):
        for _ in range(100):
            wrong = writer.wrong(present, rng)
            assert len(wrong) == 2 and len(set(wrong) & set(present)) == 1
