"""Answers that say little are told, once, with what to do."""

import numpy as np
import pytest
from PIL import Image
from tiny import NAMES, tiny_model

from fgaseg.inference import Result, note_doubts


@pytest.fixture(autouse=True)
def told(monkeypatch, caplog):
    return caplog


def result(labels: np.ndarray, classes: tuple[str, ...], score: float) -> Result:
    image = Image.new("RGB", labels.shape[::-1])
    return Result(labels, classes, np.full(labels.shape, score, np.float32), image)


@pytest.mark.parametrize("classes", [("cat",), ("zebra",), ("a dog", "a dog")])
def test_one_class_is_told(told, classes):
    for _ in range(2):
        note_doubts(result(np.zeros((5, 6), int), classes, 1.0), softmax=True)
    assert len(told.messages) == 1
    assert (
        f"one class, {classes[0]!r}: every pixel gets one of the given names" in told.text and "background" in told.text
    )


@pytest.mark.parametrize("name", ["zebra", "submarine", "volcano"])
def test_a_name_that_takes_the_whole_photo_is_told(told, name):
    for _ in range(2):
        note_doubts(result(np.ones((50, 60), int), ("sky", name), 1.0), softmax=True)
    assert len(told.messages) == 1 and f"all of the photo is '{name}': every pixel gets" in told.text


@pytest.mark.parametrize(("classes", "softmax", "score"), [(2, True, 0.52), (10, True, 0.15), (3, False, 0.05)])
def test_scores_near_chance_are_told(told, classes, softmax, score):
    labels = np.arange(30).reshape(5, 6) % classes
    names = tuple(f"class {i}" for i in range(classes))
    note_doubts(result(labels, names, score), softmax)
    assert "half of the photo has scores below" in told.text and "background" in told.text


@pytest.mark.parametrize(("classes", "softmax", "score"), [(2, True, 0.9), (10, True, 0.5), (3, False, 0.2)])
def test_an_ordinary_answer_is_not(told, classes, softmax, score):
    labels = np.arange(30).reshape(5, 6) % classes
    note_doubts(result(labels, tuple(f"class {i}" for i in range(classes)), score), softmax)
    assert not told.messages


def test_segment_tells_it(told):
    model = tiny_model()
    model.segment(np.zeros((9, 9), np.uint8), ["cat"])
    assert "one class, 'cat'" in told.text
    told.clear()
    model.predict_labels(np.zeros((9, 9), np.uint8), model.encode(NAMES))  # of an evaluation
    assert not told.messages
