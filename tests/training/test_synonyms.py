"""Data sets whose classes have several prompts: training, its resumption, and evaluation, by class."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from runs import NAMES, TINY_MODEL, configure, fail_at, state, weights
from tiny import tiny_model

import fgaseg.training.gradients
from fgaseg import Config, FGASeg
from fgaseg.data import FolderDataset
from fgaseg.errors import CheckpointError
from fgaseg.evaluation import evaluate, evaluate_with_provenance
from fgaseg.evaluation.evaluator import EvalOptions
from fgaseg.model import prompts
from fgaseg.training import train
from fgaseg.training.state import StateStore
from fgaseg.training.step_vocabulary import StepVocabulary

CLASSES = ["grass | lawn | meadow", "red star", "blue ring | blue circle", "sky", "wooden floor", "cat | kitten"]
PROMPTS = [["grass", "lawn", "meadow"], ["red star"], ["blue ring", "blue circle"], ["sky"], ["wooden floor"],
           ["cat", "kitten"]]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*validation photos are the training photos")


@pytest.fixture(scope="module")
def synonyms(data, tmp_path_factory):
    """The same pictures with other names files."""
    folder = tmp_path_factory.mktemp("synonyms") / "data"
    shutil.copytree(data, folder)
    (folder / "names.txt").write_text("\n".join(CLASSES))
    return folder


@pytest.mark.parametrize("synonyms_of", ["best", "average"])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4, 5], [2], [1, 3], [0, 5]], ids=str)
@pytest.mark.parametrize("finetune", ["attention", "none"])
def test_the_vocabulary_of_a_step_is_that_of_its_classes(chosen, finetune, synonyms_of):
    model = tiny_model(encoder={"finetune": finetune}, synonyms=synonyms_of).train()
    with torch.no_grad():
        found = StepVocabulary(model, CLASSES, Config(), torch.device("cpu")).of(torch.tensor(chosen))
        expected = model.encode([CLASSES[one] for one in chosen])
    assert found.names == expected.names and found.counts == expected.counts
    torch.testing.assert_close(found.embeddings, expected.embeddings)
    assert StepVocabulary(model, CLASSES, Config(), torch.device("cpu")).of(
        torch.tensor(chosen)
    ).embeddings.requires_grad == (finetune != "none")


@pytest.mark.parametrize("synonyms_of", ["best", "average"])
def test_every_prompt_of_a_class_takes_part(synonyms, synonyms_of, tmp_path, monkeypatch):
    """Other synonyms are other trainings; and the losses count classes, not prompts."""
    runs, maps, losses = {}, set(), fgaseg.training.gradients.segmentation_losses

    def spy(out, *args):
        maps.update(x.shape[1] for x in (out.logits, out.align, out.gcs, *out.aux) if x is not None)
        return losses(out, *args)

    monkeypatch.setattr(fgaseg.training.gradients, "segmentation_losses", spy)
    for name, classes in {"plain": NAMES, "synonyms": CLASSES, "others": ["grass | lawn | turf", *CLASSES[1:]]}.items():
        folder = tmp_path / name
        shutil.copytree(synonyms, folder)
        (folder / "names.txt").write_text("\n".join(classes))
        overrides = [f"model.synonyms={synonyms_of}", "train.steps=2", "train.batch=2"]
        summary = train(configure(folder, folder / "out", overrides), progress=False)
        assert [row.name for row in summary.scores["val"].rows] == NAMES
        runs[name] = weights(folder / "out")
    assert maps <= {5, 6}  # classes in a step; they have at least seven prompts
    for name in ("plain", "others"):
        assert any(not torch.equal(value, runs["synonyms"][key]) for key, value in runs[name].items())


def test_the_gradient_reaches_the_prompt_that_wins():
    """With the best prompt counting, at each pixel that one alone is trained."""
    x = torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]], [[7.0, 7.5]]]], requires_grad=True)
    prompts.merge_rows(x, (2, 1)).sum().backward()
    assert x.grad.flatten().tolist() == [0, 1, 1, 0, 1, 1]


def test_an_interrupted_run_continues_to_the_same_weights(synonyms, tmp_path):
    train(configure(synonyms, tmp_path / "whole"), progress=False)
    parts = configure(synonyms, tmp_path / "parts")
    with pytest.raises(ZeroDivisionError):
        train(parts, progress=False, callbacks=[fail_at(5)])
    names = state(tmp_path / "parts")["names"]
    assert names[:2] == ["grass: grass | lawn | meadow", "red star"]
    train(parts, progress=False)
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / "parts").items())


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize(("given", "fits"), [("best", True), ("average", False)])
def test_checkpoints_from_before_there_was_a_choice(data, uninterrupted, missing, given, fits):
    content = state(uninterrupted[0])
    config = json.loads(content["config"])
    assert config["model"]["synonyms"] == "best"
    if missing:
        del config["model"]["synonyms"]
    config_now = configure(data, uninterrupted[0], [f"model.synonyms={given}"])
    store = StateStore(config_now, FolderDataset(config_now.data, "train"), torch.device("cpu"))
    refused = contextlib.nullcontext() if fits else pytest.raises(CheckpointError, match=r"model\.synonyms was 'best'")
    with refused:
        store._refuse_other_run(content | {"config": json.dumps(config)})


def segmented(model, dataset):
    """The confusion matrix, from what a user sees."""
    matrix = np.zeros((len(dataset.classes),) * 2, int)
    for item in dataset:
        labels, found = item["labels"].numpy(), model.segment(item["image"].numpy(), dataset.names).labels
        seen = labels != dataset.ignore
        np.add.at(matrix, (labels[seen], found[seen]), 1)
    return matrix


@pytest.mark.parametrize("synonyms_of", ["best", "average"])
def test_evaluation_scores_classes_as_segment_labels_them(synonyms, synonyms_of):
    model = FGASeg(Config(model=TINY_MODEL).model.override(synonyms=synonyms_of)).eval()
    dataset = FolderDataset(configure(synonyms, synonyms / "out").data, "val")
    rows, matrix = evaluate(model, dataset, count=None).rows, segmented(model, dataset)
    assert [row.name for row in rows] == NAMES
    for index, row in enumerate(rows):
        assert (row.correct, row.labelled, row.predicted) == (
            matrix[index, index], matrix[index].sum(), matrix[:, index].sum()
        )  # fmt: skip
    named = evaluate(model, dataset, names=dict(zip(NAMES, PROMPTS, strict=True))).rows
    assert named == rows


def test_the_record_tells_the_choice_only_where_there_is_one(data, synonyms):
    def record(folder, choice):
        model = FGASeg(Config(model=TINY_MODEL).model.override(synonyms=choice)).eval()
        dataset = FolderDataset(configure(folder, folder / "out").data, "val")
        result = evaluate_with_provenance(model, dataset, "val", EvalOptions(count=1), weights="0")
        return result.record["text"], result.record["data"]["names"], "synonyms" in result.record["model"]

    assert record(data, "best") == record(data, "average") and "synonyms" not in record(data, "best")[0]
    assert record(synonyms, "best")[0]["synonyms"] == "best"
    assert record(synonyms, "average")[0]["synonyms"] == "average"
    assert record(synonyms, "best")[1] != record(data, "best")[1] and not record(synonyms, "best")[2]
