"""The classes of a step and their text embeddings."""

from types import SimpleNamespace

import pytest
import torch

import fgaseg.training.step_vocabulary
from fgaseg import Config
from fgaseg.model.prompts import PromptPlan
from fgaseg.training.step_vocabulary import StepVocabulary, choose_classes, relabel


def test_vocabulary_of_a_step():
    present = torch.zeros(100, dtype=torch.bool)
    present[[3, 50, 99]] = True
    chosen = choose_classes(present, 10, seed=0, step=5)
    assert len(chosen) == 10 == len(set(chosen.tolist())) and {3, 50, 99} <= set(chosen.tolist())
    assert (chosen.diff() > 0).all()
    assert torch.equal(chosen, choose_classes(present, 10, seed=0, step=5))
    assert not torch.equal(chosen, choose_classes(present, 10, seed=0, step=6))
    for count in (2, 3):  # what is present is never left out
        assert choose_classes(present, count, seed=0, step=5).tolist() == [3, 50, 99]
    assert choose_classes(present, 100, seed=0, step=5).tolist() == list(range(100))
    assert choose_classes(present, None, seed=0, step=5).tolist() == list(range(100))
    assert choose_classes(present, 1000, seed=0, step=5).tolist() == list(range(100))
    drawn = torch.cat([choose_classes(present, 10, seed=0, step=step) for step in range(300)]).bincount(minlength=100)
    assert drawn.min() > 0  # every class takes part in time


def test_labels_follow_the_vocabulary():
    labels = torch.tensor([[3, 50, 99, 255, 7]])
    assert relabel(labels, torch.tensor([3, 20, 50, 99]), 100, 255).tolist() == [[0, 2, 3, 255, 255]]
    assert relabel(torch.tensor([299, 300, 65535]), torch.tensor([299, 300]), 400, 65535).tolist() == [0, 1, 65535]


def test_the_classes_of_a_step_are_those_of_its_labels_on_any_process(monkeypatch):
    plan = SimpleNamespace(trains=lambda: False, plan=lambda names: None)
    labels = torch.tensor([[[0, 4, 255], [4, 4, 255]]])
    for ignore in (255, 65535):
        config = Config(data={"ignore": ignore}, train={"classes_per_step": 2})
        vocabulary = StepVocabulary(SimpleNamespace(text_encoder=plan), list("abcdef"), config, torch.device("cpu"))
        found, chosen = vocabulary.choose(labels.where(labels != 255, ignore), 0)
        assert chosen.tolist() == [0, 4] and found.tolist() == [[[0, 1, ignore], [1, 1, ignore]]]
    there = torch.tensor([0, 1, 0, 0, 0, 0])  # another process has class 1
    monkeypatch.setattr(fgaseg.training.step_vocabulary, "sum_over_processes", lambda counts: counts + there)
    found, chosen = vocabulary.choose(labels.where(labels != 255, 65535), 0)
    assert chosen.tolist() == [0, 1, 4] and found.tolist() == [[[0, 2, 65535], [2, 2, 65535]]]
    whole = StepVocabulary(SimpleNamespace(text_encoder=plan), list("abcdef"), Config(), torch.device("cpu"))
    found, chosen = whole.choose(labels, 0)
    assert found is labels and chosen.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("names, processes", [(7, 3), (2, 3), (1, 2), (6, 1)])
def test_every_name_is_embedded_once_in_as_many_batches_everywhere(monkeypatch, names, processes):
    """Else processes with sharded weights wait for each other for ever."""
    encoded = []

    def embed(some):
        encoded.append(some)
        return torch.tensor([[float(name)] for name in some])

    def plan(some):
        return PromptPlan(tuple(some), tuple(some), (1,) * len(some), tuple(range(len(some))), False)

    model = SimpleNamespace(
        training=True, text_encoder=SimpleNamespace(trains=lambda: True, plan=plan), embed_prompts=embed
    )
    vocabulary = StepVocabulary(model, [str(i) for i in range(10)], Config(), torch.device("cpu"))
    monkeypatch.setattr(fgaseg.training.step_vocabulary, "PROMPTS_PER_BATCH", 2)
    monkeypatch.setattr(fgaseg.training.step_vocabulary, "world_size", lambda: processes)
    monkeypatch.setattr(fgaseg.training.step_vocabulary, "share_rows", lambda rows, indices, total:
                        torch.zeros(total, 1).index_copy(0, indices, rows))  # fmt: skip
    chosen, total, batches = torch.arange(10)[-names:], torch.zeros(names, 1), set()
    for rank in range(processes):
        monkeypatch.setattr(fgaseg.training.step_vocabulary, "rank", lambda rank=rank: rank)
        encoded.clear()
        total += vocabulary.embed(chosen)
        batches.add(tuple(map(len, encoded)))
    assert len(batches) == 1 and max(batches.pop()) <= 2
    assert torch.equal(total[:, 0], chosen.float())
