"""The confusion matrix and the scores of each image: those of the predictions, kept, drawn and written."""

import csv
import hashlib
import json
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from tiny import NAMES

from fgaseg.cli import main
from fgaseg.errors import ResultError
from fgaseg.evaluation import Scores, evaluate, evaluate_with_provenance
from fgaseg.evaluation.partial import PartialCounts
from fgaseg.evaluation.scores import ClassScore, ConfusionMatrix
from fgaseg.inference import confusion_picture
from fgaseg.weights import read_weights, write_weights


def same(one, other):
    return one == other and torch.equal(one.confusion, other.confusion) and list(one.per_image) == list(other.per_image)


def table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def scores(model, folder, open_folder):
    return evaluate(model, open_folder(folder))


def test_they_are_those_of_the_predictions(model, dataset, scores):
    vocabulary, everything = model.encode(dataset.names), []
    for index, (stem, photo, _) in enumerate(dataset.pairs):
        labels = dataset[index]["labels"].numpy().ravel()
        predicted = model.segment(photo, vocabulary).labels.ravel()
        labels, predicted = labels[labels != 255], predicted[labels != 255]
        everything.append((labels, predicted))
        one = scores.per_image[stem]
        expected = confusion_matrix(labels, predicted, labels=range(5))
        counts = np.stack([expected.diagonal(), expected.sum(1), expected.sum(0)], 1)
        occurring = [(NAMES[c], *row) for c, row in enumerate(counts.tolist()) if any(row)]
        assert [(row.name, row.correct, row.labelled, row.predicted) for row in one.rows] == occurring
        ious = [counts[c, 0] / (counts[c, 1] + counts[c, 2] - counts[c, 0]) for c in range(5) if counts[c, 1]]
        assert one.miou_gt == pytest.approx(np.mean(ious)) and one.pixels == len(labels)
        assert one.pixel_accuracy == pytest.approx((labels == predicted).mean())
    labels, predicted = (np.concatenate(part) for part in zip(*everything, strict=True))
    assert scores.confusion.tolist() == confusion_matrix(labels, predicted, labels=range(5)).tolist()
    assert list(scores.per_image) == [stem for stem, *_ in dataset.pairs]


def test_an_image_alone_scores_what_it_scores_among_others(model, folder, open_folder, scores):
    data = open_folder(folder)
    data.pairs = data.pairs[7:8]
    alone, stem = evaluate(model, data), data.pairs[0][0]
    assert alone.miou_gt == scores.per_image[stem].miou_gt and alone.fwiou == scores.per_image[stem].fwiou


def test_interrupted_or_read_from_its_file_they_are_the_same(model, dataset, interrupted, scores, tmp_path):
    interrupted(model, dataset, 4, out=tmp_path)
    interrupted(model, dataset, 5, out=tmp_path)
    resumed = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    again = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    assert "read_from" in again.unhashed
    assert same(resumed.scores, scores) and same(again.scores, scores)


def test_results_and_parts_of_earlier_versions(model, dataset, interrupted, scores, tmp_path):
    """A result is read without what it lacks, and says so when that is asked for; a part is counted again."""
    evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    file = tmp_path / "val.json"
    data = json.loads(file.read_text())
    del data["details"]
    file.write_text(json.dumps(data))
    old = evaluate_with_provenance(model, dataset, "val", out=tmp_path).scores
    assert old.rows == scores.rows and old.confusion is None and old.per_image == {}
    for write in (old.write_confusion_csv, old.write_confusion_png, old.write_images_csv):
        with pytest.raises(ResultError, match=r"neither confusion matrix nor images.*--restart"):
            write(tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()
    interrupted(model, dataset, 4, out=tmp_path, restart=True)
    part = tmp_path / "val.part0.safetensors"
    older = {key: value for key, value in read_weights(part).items() if key in ("matrix", "pictures", "done")}
    from fgaseg.evaluation.partial import _digest, _read_part

    record, _ = _read_part(part)
    write_weights(part, older, {"record": json.dumps(record), "sha256": _digest(older)})
    with pytest.warns(UserWarning, match="of an earlier version, without counts for each image.*scored again"):
        resumed = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    assert same(resumed.scores, scores)


def test_a_part_without_a_sample_in_it_is_read(tmp_path):
    from fgaseg.evaluation.state import EvalState

    state, partial = EvalState(ConfusionMatrix(3)), PartialCounts(tmp_path, "val", {})
    state.add(5, "all void", torch.zeros(2, 2), torch.full((2, 2), 255), torch.ones(4, dtype=torch.int64))
    partial.save(state)
    other = EvalState(ConfusionMatrix(3))
    partial.restore(other)
    assert other.done == {5} and other.per_image[5][0] == "all void" and other.per_image[5][1].shape == (0, 4)
    assert math.isnan(other.scores(["a", "b", "c"]).per_image["all void"].miou_gt)


def test_a_subset_keeps_its_classes_of_each_image(scores):
    part = scores.subset(NAMES[:2])
    assert part.confusion is None and list(part.per_image) == list(scores.per_image)
    for stem, one in part.per_image.items():
        assert one == Scores(1, [row for row in scores.per_image[stem].rows if row.name in NAMES[:2]])


def test_what_is_written_as_json_is_read_back(scores):
    dump, details = (json.loads(json.dumps(one, allow_nan=False)) for one in (scores.dump(), scores.details()))
    assert same(Scores.load(dump, details), scores)
    assert details["confusion"] == scores.confusion.tolist() and len(details["per_image"]) == 12
    alone = Scores.load(dump)
    assert (alone.rows, alone.confusion, alone.per_image) == (scores.rows, None, {})
    part = scores.subset(NAMES[:2])
    assert part.details()["confusion"] is None and Scores.load(part.dump(), part.details()) == part


def test_tables(scores, tmp_path):
    scores.write_confusion_csv(tmp_path / "confusion.csv")
    head, *rows = table(tmp_path / "confusion.csv")
    assert head[1:] == [row[0] for row in rows] == NAMES
    assert [[int(value) for value in row[1:]] for row in rows] == scores.confusion.tolist()
    scores.write_images_csv(tmp_path / "images.csv")
    head, *rows = table(tmp_path / "images.csv")
    assert head == ["image", "pixels", "miou_gt", "miou_union", "pixel_accuracy", *NAMES] and len(rows) == 12
    for row in rows:
        one = scores.per_image[row[0]]
        assert (int(row[1]), float(row[2]), float(row[4])) == (one.pixels, one.miou_gt, one.pixel_accuracy)
        assert {name: float(value) for name, value in zip(NAMES, row[5:], strict=True) if value} == {
            found.name: found.iou for found in one.rows
        }


def test_a_class_that_an_image_lacks_is_an_empty_cell_and_equal_names_have_no_column(tmp_path):
    rows = [ClassScore("bank", 1, 2, 2), ClassScore("bank", 3, 3, 3), ClassScore("sky", 0, 0, 1)]
    each = {"a": Scores(1, rows), "b": Scores(1, [ClassScore("tree", 4, 4, 4)]), "void": Scores(1, [])}
    Scores(3, [*rows, ClassScore("tree", 4, 4, 4), ClassScore("cat", 0, 0, 0)], "", None, each).write_images_csv(
        tmp_path / "images.csv"
    )
    assert table(tmp_path / "images.csv") == [
        ["image", "pixels", "miou_gt", "miou_union", "pixel_accuracy", "sky", "tree"],
        ["a", "5", str((1 / 3 + 1) / 2), str((1 / 3 + 1 + 0) / 3), "0.8", "0.0", ""],
        ["b", "4", "1.0", "1.0", "1.0", "", "1.0"],
        ["void", "0", "", "", "", "", ""],
    ]


def test_images_with_equal_stems_are_both_kept():
    from fgaseg.evaluation.state import EvalState

    state = EvalState(ConfusionMatrix(2))
    for index, label in ((4, 1), (0, 0)):  # of several processes, in any order
        state.add(index, "photo", torch.zeros(2, 2), torch.full((2, 2), label), torch.ones(4, dtype=torch.int64))
    found = state.scores(["a", "b"]).per_image
    assert [(stem, one.images, one.pixel_accuracy) for stem, one in found.items()] == [
        ("photo", 1, 1.0),
        ("photo (4)", 1, 0.0),
    ]


def test_samples_are_identified_by_stem_size_labels_and_pixels():
    """By SHA-256, whose four numbers are added over the samples, modulo 2^64."""
    from fgaseg.evaluation.state import EvalState, sample_hash

    state, total = EvalState(ConfusionMatrix(2)), 4 * [0]
    for index, stem in enumerate(("a", "b")):
        sample = {
            "stem": stem,
            "labels": torch.tensor([[0, 1, 255]]),
            "image": torch.full((1, 3, 3), 7, dtype=torch.uint8),
        }
        digest = hashlib.sha256(stem.encode() + b" (1, 3)" + b"\0\0\1\0\xff\0" + 9 * b"\7").digest()
        assert sample_hash(sample).numpy().tobytes() == digest
        state.add(index, stem, torch.zeros(1, 3), sample["labels"], sample_hash(sample))
        total = [one + number for one, number in zip(total, struct.unpack("<4Q", digest), strict=True)]
    expected = struct.pack("<4Q", *(number % 2**64 for number in total)).hex()
    assert state.scores(["a", "b"]).samples_hash == expected and len(expected) == 64


# --- the picture


def cells(matrix, names, **options):
    """The colours of the cells' corners, where no number is written."""
    picture = confusion_picture(np.array(matrix), names, **options)
    side = sum(1 for n, row in enumerate(matrix) if sum(row) or sum(one[n] for one in matrix))
    side = min(side, options.get("most", side))
    assert picture.height - 8 - 30 * side > 0
    top = picture.height - 8 - 30 * side
    left = top - 36 + 0  # the margins of both sides are equal, but for the heading
    pixels = np.asarray(picture).astype(int)
    return pixels[top + 2 :: 30][:side, left + 2 :: 30][:, :side]


def test_the_picture_shows_shares_of_the_ground_truth():
    found = cells([[90, 10, 0], [0, 7, 0], [0, 0, 0]], ["cat", "dog", "tree"])
    light = found.sum(-1)  # the ramp goes from dark to light
    assert found.shape == (2, 2, 3)
    assert light[1, 1] > light[0, 0] > light[0, 1] > light[1, 0]
    absent = cells([[5, 0, 5], [0, 0, 0], [0, 0, 0]], ["cat", "dog", "tree"])
    assert (absent[1] == 128).all() and not (absent[0] == 128).all()  # tree is predicted and not in the ground truth


def test_many_classes_are_shown_by_frequency_and_counted():
    matrix = np.zeros((847, 847), np.int64)
    matrix[np.arange(0, 847, 2), np.arange(0, 847, 2)] = np.arange(1, 425)
    names = [f"a rather long name of the class number {n}" for n in range(847)]
    picture = confusion_picture(matrix, names, most=10)
    wider = confusion_picture(matrix, names)
    assert picture.width < wider.width < 2000 and wider.height < 2000
    last = cells(matrix.tolist(), names, most=10)
    assert (last[np.arange(10), np.arange(10)] == last[0, 0]).all()  # the most frequent ones: all are on the diagonal


def test_scores_are_drawn_with_the_same_number_of_classes(tmp_path):
    matrix = torch.arange(1, 51).diag()
    scores = Scores(1, [ClassScore(str(n), n, n, n) for n in range(50)], "", matrix)
    expected = confusion_picture(matrix.numpy(), list(map(str, range(50))))
    assert np.array_equal(scores.confusion_picture(), expected)
    scores.write_confusion_png(tmp_path / "new" / "confusion.png")
    with Image.open(tmp_path / "new" / "confusion.png") as picture:
        assert picture.format == "PNG" and np.array_equal(picture, expected)
    assert scores.confusion_picture(39).height < scores.confusion_picture(40).height == expected.height


def test_nothing_to_draw_is_a_picture_without_cells():
    assert confusion_picture(np.zeros((3, 3), np.int64), ["a", "b", "c"]).width > 0


# --- the command


def test_the_command_writes_what_is_asked_for(saved_model, folder, scores, tmp_path, capsys):
    flags = [word for key in ("images", "labels") for word in (f"--{key}", str(folder / key))]
    command = ["eval", str(saved_model), *flags, "--names", str(folder / "names.txt"), "--device", "cpu"]
    one, two, three = (tmp_path / name for name in ("new/per_image.csv", "confusion.csv", "confusion.png"))
    asked = ["--per-image", str(one), "--confusion", str(two), "--out", str(tmp_path / "out"), "--json"]
    assert main([*command, *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["details"]["val"] == json.loads(json.dumps(scores.details(), allow_nan=False))
    assert found["details"]["val"]["confusion"] == scores.confusion.tolist()
    assert (tmp_path / "out" / "val_images.csv").read_text() == one.read_text()
    assert (tmp_path / "out" / "val_confusion.csv").read_text() == two.read_text()
    assert main([*command, "--out", str(tmp_path / "out"), "--confusion", str(three)]) == 0  # from its file
    with Image.open(three) as picture, Image.open(tmp_path / "out" / "val_confusion.png") as other:
        assert picture.format == "PNG" and np.array_equal(picture, other)
    for option, file in (("--per-image", "x.png"), ("--confusion", "x.tif"), ("--confusion", "x")):
        assert main([*command, option, str(tmp_path / file)]) == 1
        error = capsys.readouterr().err
        assert f"{option} {tmp_path / file}: give a name that ends in .csv" in error and "Traceback" not in error
        assert not (tmp_path / file).exists()
