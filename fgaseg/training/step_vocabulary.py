"""The classes that a step trains on, and the embeddings of their names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import Config
from ..distributed import rank, share_rows, sum_over_processes, world_size
from ..model import PROMPTS_PER_BATCH, FGASeg
from ..vocabulary import ClassPrompts, Vocabulary
from .precision import autocast
from .random_streams import CLASSES, generator


def choose_classes(present: Tensor, count: int | None, seed: int, step: int) -> Tensor:
    """The vocabulary of one step: all classes present, and random others so that there are `count` in all.

    present   [T] bool, on the CPU: the classes in the whole batch (all processes)
    returns   int64 indices, ascending; more than `count` if more are present; all T for count None

    It depends on (seed, step) and `present` alone, and so is the same on every process.
    """
    if count is None:
        return torch.arange(len(present))
    chosen, absent = present.nonzero()[:, 0], (~present).nonzero()[:, 0]
    missing = max(count - len(chosen), 0)
    drawn = generator(seed, CLASSES, step).choice(len(absent), min(missing, len(absent)), replace=False)
    return torch.cat([chosen, absent[torch.from_numpy(drawn)]]).sort().values


def relabel(labels: Tensor, chosen: Tensor, classes: int, ignore: int) -> Tensor:
    """Labels (int64, 0..classes-1 or `ignore`) as indices into `chosen`; classes that are not in it become `ignore`."""
    table = torch.full((max(classes, ignore) + 1,), ignore, device=labels.device)
    table[chosen.to(labels.device)] = torch.arange(len(chosen), device=labels.device)
    table[ignore] = ignore
    return table[labels]


class StepVocabulary:
    """Chooses the classes of every step, and embeds their names: once if the text tower is frozen.

    names  all classes of the training set, names or with prompts
    """

    def __init__(self, model: FGASeg, names: Sequence[str | ClassPrompts], config: Config, device: torch.device):
        self.model, self.names, self.device = model, names, device
        self.plan = model.text_encoder.plan(names)
        self.recipe, self.ignore = config.train, config.data.void
        self.trains = model.text_encoder.trains()
        self._frozen: Vocabulary | None = None

    def choose(self, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The labels of this process [B, h, w] as indices into the classes of a step (0-based), and these classes."""
        if self.recipe.classes_per_step is None:
            return labels, torch.arange(len(self.names))
        counts = torch.bincount(labels[labels != self.ignore], minlength=len(self.names))
        present = sum_over_processes(counts).cpu() > 0
        chosen = choose_classes(present, self.recipe.classes_per_step, self.recipe.seed, step)
        return relabel(labels, chosen, len(self.names), self.ignore), chosen

    def of(self, chosen: Tensor) -> Vocabulary:
        """The vocabulary of the chosen classes, the same on every process."""
        rows = self.plan.rows(chosen)
        if self.trains:
            return self.plan.vocabulary(self.embed(rows), chosen.tolist())
        whole = self.frozen()
        names = tuple(whole.names[index] for index in chosen)
        if whole.counts is None:  # one row for each class
            return Vocabulary(names, whole.embeddings[chosen.to(self.device)])
        counts = tuple(whole.counts[index] for index in chosen) if len(rows) > len(chosen) else None
        return Vocabulary(names, whole.embeddings[rows.to(self.device)], counts)

    def embed(self, chosen: Tensor) -> Tensor:
        """Text embeddings [T, C] of the chosen prompts by a text tower that trains, the same on every process."""
        # Sharded weights are gathered in every block, so all processes must embed equally many batches of prompts: the
        # last ranks repeat some of the first ones where the prompts do not go round, and drop them again.
        share = -(-len(chosen) // world_size())
        indices = torch.arange(share) * world_size() + rank()
        parts = (indices % len(chosen)).split(PROMPTS_PER_BATCH)
        with autocast(self.device, self.recipe.amp):
            rows = torch.cat([self._embed(chosen[part]) for part in parts])
        if world_size() == 1:
            return rows
        indices = indices[indices < len(chosen)]
        return share_rows(rows[: len(indices)], indices.to(self.device), len(chosen))

    def frozen(self) -> Vocabulary:
        """The vocabulary of all classes by a frozen text tower, computed at the first call."""
        if self._frozen is None:
            self._frozen = self.model.encode(self.names)
        return self._frozen

    def _embed(self, indices: Tensor) -> Tensor:
        return self.model.embed_prompts([self.plan.prompts[index] for index in indices])
