"""The confusion matrix is that of the predictions, in whatever order and number of threads it was counted."""

import logging

import numpy as np
import pytest
import torch
from paths import SHARED
from sample_data import make_folder
from sklearn.metrics import confusion_matrix, jaccard_score
from tiny import tiny_model

from fgaseg import FGASeg
from fgaseg.config import DataConfig
from fgaseg.data import FolderDataset, default_root
from fgaseg.errors import DataError
from fgaseg.evaluation import EvalOptions, evaluate, evaluator
from fgaseg.evaluation.evaluator import open_validation_set, run_evaluation

PHOTOS = SHARED / "data" / "protocol" / "ADEChallengeData2016"


def test_a_validation_set_is_sought_in_the_root_of_the_configuration(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluator, "open_set", lambda name, root: (name, root))
    assert open_validation_set(DataConfig(val_set="a150", root=tmp_path)) == ("a150", tmp_path)
    assert open_validation_set(DataConfig(val_set="a150")) == ("a150", default_root())


class Images:
    """Images of several sizes whose labels are what the model predicts, except where a test changes them."""

    names = ("cat", "dog", "tree", "sky")

    def __init__(self, model):
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 56), (33, 30), (64, 20))]
        vocabulary = model.encode(self.names)
        with torch.no_grad():
            self.labels = [model.predict_labels(image, vocabulary) for image in self.images]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, labels = torch.from_numpy(self.images[index]), self.labels[index]
        return {"image": image, "labels": labels, "stem": f"image {index}"}


@pytest.fixture
def images(model):
    return Images(model)


def test_evaluates_at_the_images_own_sizes(model, images):
    perfect = evaluate(model, images)
    assert perfect.miou_gt == perfect.miou_union == 1
    assert (perfect.images, perfect.pixels) == (3, sum(labels.numel() for labels in images.labels))
    images.labels[0] = (images.labels[0] + 1) % 4
    one_wrong = evaluate(model, images)
    wrong = images.labels[0].numel() / perfect.pixels
    assert one_wrong.pixel_accuracy == pytest.approx(1 - wrong)
    assert evaluate(model, images, count=1).pixel_accuracy == 0
    assert evaluate(model, images, count=2).images == 2


def test_leaves_the_model_as_it_was_even_after_an_error(model, images):
    model.train()
    evaluate(model, images)
    assert model.training
    images.labels[1] = images.labels[1] + 77
    with pytest.raises(DataError, match=r"image 1: label \d+ is none of the 4 classes"):
        evaluate(model, images)
    assert model.training
    model.eval()


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_in_evaluation_mode_meanwhile(training):
    module = torch.nn.Dropout().train(training)
    with pytest.raises(ZeroDivisionError), evaluator.evaluation_mode(module):
        assert not module.training
        raise ZeroDivisionError
    assert module.training == training


def test_labels_in_folders_are_looked_at_for_a_second(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(
        evaluator, "check_labels", lambda dataset, title, seconds: looked.append((len(dataset), seconds))
    )
    assert len(open_validation_set(make_folder(tmp_path, count=3))) == 3
    assert looked == [(3, 1.0)]


def test_all_ignored_is_an_error_and_stop_is_not(model, images):
    asked = []
    part = evaluate(model, images, stop=lambda: len(asked) == 1 or asked.append(1))
    assert part.images == 1
    images.labels = [torch.full_like(labels, 255) for labels in images.labels]
    with pytest.raises(DataError, match="all pixels of the 3 images are ignored"):
        evaluate(model, images)


def test_evaluation_leaves_training_possible():
    """A vocabulary cached by the evaluation serves a later step: it must not be an inference tensor."""
    frozen = tiny_model(encoder={"finetune": "none"})
    names = Images.names[::-1]
    evaluate(frozen, Images(frozen), names=names)  # the first time that these names are encoded
    frozen.train()
    out = frozen(torch.randn(1, 3, 32, 32), frozen.encode(names))
    out.logits.sum().backward()


def test_any_segmenter_and_several_prompts_of_one_class(images, constant):
    images.classes, images.class_of, images.ignore = ["cat", "other"], [0, 1, 1, 1], 9
    images.labels = [torch.from_numpy(np.indices(image.shape[:2]).sum(0) % 3) for image in images.images]
    with pytest.raises(DataError, match="image 0: label 2 is none of the 2 classes, nor 9"):
        evaluate(constant, images)
    images.ignore = 2
    scores = evaluate(constant, images)
    counts = [sum(int((labels == n).sum()) for labels in images.labels) for n in range(2)]
    assert [row.labelled for row in scores.rows] == counts
    assert [row.predicted for row in scores.rows] == [0, sum(counts)]  # prompt 3 is of class 1
    assert scores.rows[1].correct == counts[1]


@pytest.mark.parametrize(
    "names, given",
    [
        (["a | b", "c", "d", "e"], ["a | b", "c", "d", "e"]),
        (
            {"a": ["b", "x"], "c": "c", "d": "d", "e": "e"},
            [("a", ("b", "x")), ("c", ("c",)), ("d", ("d",)), ("e", ("e",))],
        ),
    ],
)
def test_other_names_take_the_place_of_the_data_sets_names_and_classes(images, constant, names, given):
    images.classes, images.class_of = ["one", "two"], [0, 0, 1, 1]
    scores = evaluate(constant, images, names=names)
    assert constant.given == given
    assert [row.name for row in scores.rows] == ["a", "c", "d", "e"]
    assert [row.predicted for row in scores.rows] == [0, 0, 0, scores.pixels]


def test_nothing_is_shown_unless_asked_for(images, constant, monkeypatch, caplog):
    monkeypatch.setattr("fgaseg.progress.LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "fgaseg"):
        evaluate(constant, images)
        run_evaluation(constant, images, EvalOptions())
        assert not caplog.messages
        evaluate(constant, images, progress=True)
    lines = [message.split(", ") for message in caplog.messages]
    assert [line[0] for line in lines] == [f"scoring: {number} of 3" for number in (1, 2, 3)]
    assert all(" images/" in line[1] for line in lines)


def test_a_data_configuration_is_opened(model, folder, dataset):
    config = DataConfig(images=folder / "images", labels=folder / "labels", names=folder / "names.txt")
    assert evaluate(model, config) == evaluate(model, dataset)
    with pytest.raises(DataError, match="two validation sets"):
        evaluate(model, DataConfig(scenes=True))


def test_an_error_while_reading_ahead_comes_as_it_is_and_in_its_turn(model, dataset, folder):
    dataset.pairs[2] = ("gone", folder / "gone.png", dataset.pairs[2][2])
    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        evaluate(model, dataset)
    assert evaluate(model, dataset, count=2).images == 2


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}")
@pytest.mark.parametrize("inference, count", [("whole", 4), ("windows", 2)])
def test_same_counts_however_many_are_read_ahead_and_equal_to_scikit_learn(saved_model, inference, count, tmp_path):
    model = FGASeg.from_pretrained(saved_model, inference=inference)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {n}" for n in range(151)))
    config = DataConfig(images=PHOTOS / "images/validation", labels=PHOTOS / "annotations/validation", names=names)
    data = FolderDataset(config, "val")
    data.pairs = data.pairs[:count]
    ahead = (1, 2, 8)[: count - 1]
    scores, *others = [run_evaluation(model, data, EvalOptions(read_ahead=number)) for number in ahead]
    assert all(other == scores for other in others)
    vocabulary = model.encode(data.names)
    labels = np.concatenate([data[n]["labels"].numpy().ravel() for n in range(count)])
    predicted = np.concatenate([model.segment(data.pairs[n][1], vocabulary).labels.ravel() for n in range(count)])
    matrix = confusion_matrix(labels, predicted, labels=range(151))
    counts = [[row.correct, row.labelled, row.predicted] for row in scores.rows]
    assert counts == np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)], 1).tolist()
    with np.errstate(invalid="ignore"):
        per_class = jaccard_score(labels, predicted, labels=range(151), average=None, zero_division=0)
    present, union = np.unique(labels), np.union1d(labels, predicted)
    assert scores.miou_gt == pytest.approx(per_class[present].mean()) and len(present) == scores.present
    assert scores.miou_union == pytest.approx(per_class[union].mean()) and len(union) > len(present)
