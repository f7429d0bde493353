"""Which samples make up a batch, and how they reach the trainer, through worker processes or not.

Samples and errors travel the same way: a sample that cannot be made arrives as the exception in its place, so that
all processes can agree on what to do before one of them raises.
"""

from __future__ import annotations

import copy
import logging
import signal
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import Config, TrainConfig
from ..distributed import gather_objects, rank, sum_over_processes, world_size
from ..errors import ImageError, TrainingError
from .random_streams import SHUFFLE, generator

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """This process's share of the batch of a step."""

    pixels: Tensor  # [B, 3, crop, crop] float32
    labels: Tensor  # [B, crop, crop] int64
    stems: list[str]
    skipped: dict[int, str]  # unreadable items that others replace: index in the data set, and why


class EpochStream(Dataset[Any]):
    """A training set indexed by (epoch, index), so that one data loader serves the whole run.

    A photo that cannot be read is an error, or, where up to `allowed` may be skipped, is replaced by the next one that
    can be read: a choice that depends on the data set alone, whichever process or worker makes it.
    """

    def __init__(self, source: Any, allowed: int = 0):
        self.source, self.allowed = source, allowed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | Exception:
        epoch, index = key
        try:
            self.source.set_epoch(epoch)
            return self._readable(index)
        except Exception as error:  # returned: the loader would wrap it in the worker's traceback
            return error

    def _readable(self, index: int) -> dict[str, Any]:
        skipped: dict[int, str] = {}
        while True:
            try:
                item: dict[str, Any] = self.source[index]
                return item | {"skipped": skipped}
            except ImageError as error:
                skipped[index] = str(error)
                if len(skipped) > self.allowed or len(skipped) == len(self.source):
                    raise
                index = (index + 1) % len(self.source)


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """The samples that this process takes at each step from `start` on: lists of (epoch, index).

    The samples of a run are one sequence, a new permutation of the data set every epoch. Step s takes the next `batch`
    of them, of which rank r takes the r-th share of every micro-batch: BatchNorm sees the same photos on any number of
    processes.
    """

    def __init__(self, length: int, recipe: TrainConfig, start: int):
        self.length, self.recipe, self.start = length, recipe, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        parts = self.recipe.accumulate
        share = self.recipe.batch // (world_size() * parts)
        orders: dict[int, np.ndarray[Any, Any]] = {}  # the permutation of the epoch under way
        for step in range(self.start, self.recipe.steps):
            keys = []
            starts = [step * self.recipe.batch + (part * world_size() + rank()) * share for part in range(parts)]
            for position in (first + i for first in starts for i in range(share)):
                epoch, place = divmod(position, self.length)
                if epoch not in orders:
                    orders = {epoch: generator(self.recipe.seed, SHUFFLE, epoch).permutation(self.length)}
                keys.append((epoch, int(orders[epoch][place])))
            yield keys


def collate(items: list[dict[str, Any] | Exception]) -> Batch | Exception:
    """The samples of a batch stacked, or the first of their errors."""
    samples = []
    for item in items:
        if isinstance(item, Exception):
            return item
        samples.append(item)
    return Batch(
        torch.stack([sample["pixels"] for sample in samples]),
        torch.stack([sample["labels"] for sample in samples]),
        [sample["stem"] for sample in samples],
        {index: why for sample in samples for index, why in sample["skipped"].items()},
    )


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the main process decides
    worker: Any = torch.utils.data.get_worker_info()
    stream = worker.dataset
    stream.source = copy.deepcopy(stream.source)  # threads share it, and workers differ in epoch around its end


def make_loader(train_set: Any, config: Config, start: int, pin_memory: bool) -> Iterable[Batch | Exception]:
    """This process's share of every batch from step `start` on."""
    return DataLoader(
        EpochStream(train_set, config.train.skip_unreadable),
        batch_sampler=BatchSampler(len(train_set), config.train, start),
        num_workers=config.data.workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


class BatchSource:
    """Takes batches from a loader, and makes all processes agree on whether every one of them has its share.

    skipped  unreadable photos of the whole run by index in the data set, and why; new ones are added and logged
    """

    def __init__(
        self, loader: Iterable[Batch | Exception], config: Config, skipped: dict[int, str], device: torch.device
    ):
        self.batches, self.skipped, self.device = iter(loader), skipped, device
        self.allowed, self.workers = config.train.skip_unreadable, config.data.workers

    def next(self, step: int) -> Batch | Exception:
        """The share of the batch of `step` (1-based), or, on every process, an error when some process has none."""
        found = self._next_here(step)
        failed = isinstance(found, Exception)
        skipped = {} if isinstance(found, Exception) else found.skipped
        flags = torch.tensor([int(failed), len(skipped)], device=self.device)
        any_failed, any_skipped = sum_over_processes(flags).tolist()
        if any_skipped and (too_many := self._note_skipped(skipped)):
            return too_many
        if any_failed and not failed:
            return TrainingError(f"another process could not read its part of step {step}; its message says why")
        return found

    def _next_here(self, step: int) -> Batch | Exception:
        try:
            return next(self.batches)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # errors of samples are returned, not raised: this is the connection to a worker that is gone
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
            return TrainingError(
                f"a loader worker died before step {step} ({reason}): the system may be out of memory; run the same "
                f"command again to resume, with fewer data.workers (now {self.workers}) if it happens again"
            )

    def _note_skipped(self, here: dict[int, str]) -> TrainingError | None:
        """Collect what all processes skipped; an error when that is more than allowed."""
        known = len(self.skipped)
        for one in gather_objects(here):
            self.skipped |= {index: why for index, why in sorted(one.items()) if index not in self.skipped}
        reasons = list(self.skipped.values())
        if rank() == 0:
            for number, why in enumerate(reasons[known:], known + 1):
                log.warning("skipped %d (train.skip_unreadable=%d): %s", number, self.allowed, why)
        if len(reasons) <= self.allowed:
            return None
        listed = "; ".join(reasons)
        return TrainingError(
            f"{len(reasons)} photos cannot be read and train.skip_unreadable allows {self.allowed}: {listed}"
        )
