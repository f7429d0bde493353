"""The figures mean what the protocol says."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, jaccard_score

from fgaseg.cli.tables import scores_table
from fgaseg.evaluation.scores import ConfusionMatrix, Scores


def scored(classes, *pairs, ignore=255):
    confusion = ConfusionMatrix(classes, ignore)
    for predicted, labels in pairs:
        confusion.add(torch.tensor(predicted), torch.tensor(labels))
    return Scores(len(pairs), confusion.rows([f"class {n}" for n in range(classes)]))


def test_both_definitions_by_hand():
    # ground truth 0 0 0 1 1 ignored; prediction 0 0 1 1 3 3: class 2 occurs nowhere, class 3 only in the prediction
    scores = scored(4, ([0, 0, 1, 1, 3, 3], [0, 0, 0, 1, 1, 255]))
    assert [row.correct for row in scores.rows] == [2, 1, 0, 0]
    assert [row.labelled for row in scores.rows] == [3, 2, 0, 0]
    assert [row.predicted for row in scores.rows] == [2, 2, 0, 1]  # the ignored pixel left this axis too
    assert scores.miou_gt == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert scores.miou_union == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert scores.fwiou == pytest.approx(3 / 5 * 2 / 3 + 2 / 5 * 1 / 3)
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.pixel_accuracy == pytest.approx(3 / 5)
    assert (scores.present, scores.pixels) == (2, 5)
    assert math.isnan(scores.rows[2].iou) and scores.rows[3].iou == 0 and math.isnan(scores.rows[3].accuracy)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_matches_scikit_learn_over_many_images():
    rng = np.random.default_rng(0)
    confusion, everything = ConfusionMatrix(7), []
    for _ in range(9):
        shape = rng.integers(1, 40, 2)
        labels = rng.choice([0, 1, 2, 3, 5, 255], shape, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])  # 4 and 6 never labelled
        predicted = np.where(rng.random(shape) < 0.6, labels, rng.integers(0, 6, shape)) % 255  # 6 never predicted
        confusion.add(torch.from_numpy(predicted), torch.from_numpy(labels))
        everything.append((labels.ravel(), predicted.ravel()))
    labels, predicted = (np.concatenate(part) for part in zip(*everything, strict=True))
    labels, predicted = labels[labels != 255], predicted[labels != 255]
    assert (confusion.matrix.numpy() == confusion_matrix(labels, predicted, labels=range(7))).all()
    scores = Scores(9, confusion.rows("abcdefg"))
    present = sorted(set(labels))
    assert scores.miou_gt == pytest.approx(jaccard_score(labels, predicted, labels=present, average="macro"))
    union = sorted({*labels, *predicted})
    assert union != present
    assert scores.miou_union == pytest.approx(jaccard_score(labels, predicted, labels=union, average="macro"))
    assert scores.fwiou == pytest.approx(jaccard_score(labels, predicted, average="weighted"))
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert scores.mean_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_the_set_is_one_matrix_not_an_average_over_images():
    pairs = [([0, 0, 0, 1], [0, 0, 0, 0]), ([1], [1])]
    assert scored(2, *pairs).miou_gt == pytest.approx((3 / 4 + 1 / 2) / 2)
    per_image = [scored(2, pair).miou_gt for pair in pairs]
    assert scored(2, *pairs).miou_gt != pytest.approx(np.mean(per_image))


def test_ignore_is_the_value_asked_for():
    assert scored(300, ([255, 0], [255, 459]), ignore=459).pixels == 1
    assert scored(300, ([255, 0], [255, 459]), ignore=459).rows[255].correct == 1


@pytest.mark.parametrize(
    "predicted, labels, words",
    [([0, 4], [0, 1], "predicted 4"), ([0, -1], [0, 1], "predicted -1"), ([0, 0], [4, 0], "label 4"),
     ([0], [-1], "label -1"), ([0, 1], [0], "differ in shape")],
)  # fmt: skip
def test_out_of_range_is_named(predicted, labels, words):
    with pytest.raises(ValueError, match=words):
        scored(4, (predicted, labels))


def test_subset_of_classes_from_the_same_matrix():
    scores = scored(4, ([0, 0, 1, 1, 3, 3], [0, 0, 0, 1, 1, 3]))
    part = scores.subset(["class 1", "class 3"])
    assert part.miou_gt == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert part.pixel_accuracy == pytest.approx(2 / 3)
    with pytest.raises(KeyError, match="dog"):
        scores.subset(["class 1", "dog"])


def test_a_class_is_present_with_a_single_pixel():
    assert scored(3, ([0, 2, 2], [0, 1, 0])).present == 2


def test_counts_are_whole_numbers_on_the_device_asked_for():
    assert ConfusionMatrix(2).matrix.dtype == torch.int64 and ConfusionMatrix(2, device="meta").matrix.is_meta
    with pytest.raises(ValueError, match="3 names for 2 classes"):
        ConfusionMatrix(2).rows("abc")


def test_shown_they_are_one_line_without_matrix_and_images():
    scores = Scores(1, [], "ab", torch.zeros(0, 0), {"photo": Scores(1, [])})
    assert repr(scores) == "Scores(images=1, rows=[], samples_hash='ab')"


def test_json_table_and_csv(tmp_path):
    scores = scored(3, ([0, 1], [0, 0]))
    data = json.loads(json.dumps(scores.dump(), allow_nan=False))
    assert data["miou_gt"] == 0.5 and data["miou_union"] == 0.25 and data["present"] == 1 and data["images"] == 1
    assert data["per_class"][2] == {
        "name": "class 2",
        "correct": 0,
        "labelled": 0,
        "predicted": 0,
        "iou": None,
        "accuracy": None,
    }
    scores.write_csv(tmp_path / "classes.csv")
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert (
        [row["class"] for row in rows] == ["class 0", "class 1", "class 2"]
        and rows[0]["iou"] == "0.5"
        and rows[2]["iou"] == ""
    )
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    console.print(scores_table(scores, "title"))
    text = console.export_text()
    assert "class 0" in text and "50.0" in text and "class 2" not in text and "1 of 3 classes" in text


def test_nothing_scored_is_nan_not_zero():
    scores = Scores(0, [])
    assert math.isnan(scores.miou_gt) and math.isnan(scores.pixel_accuracy) and scores.dump()["miou_gt"] is None
