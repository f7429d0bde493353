"""The trainer: one loop for one process and many (torchrun), interrupted at any moment and resumed exactly.

Everything that a step does is a function of the configuration, the weights and the step number: the samples of its
batch, their augmentation, its vocabulary, its learning rate, its random numbers. A checkpoint therefore needs no more
than weights, optimizer and step, and the number of processes and of loader workers changes nothing beyond rounding.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import Config
from ..data import data_sets
from ..distributed import (
    any_process,
    detect_lost_processes,
    gather_objects,
    gather_rows,
    rank,
    share_rows,
    sum_gradients,
    sum_over_processes,
    use_global_batch_norm,
    world_size,
)
from ..errors import CheckpointError, ImageError, Interrupted, NotFiniteError, ProcessLostError, TrainingError
from ..evaluation import FIGURES, Scores, evaluate
from ..files import atomic_write
from ..inference import heat, legend, overlay, panel, pseudo_masks
from ..model import PROMPTS_PER_BATCH, FGASeg
from ..vocabulary import Vocabulary
from ..weights import load_training, remove_leftovers, save_training, set_damaged_aside, warm_start, write_weights
from .losses import segmentation_losses
from .reporting import Reporter
from .sharding import (
    clip_gradients,
    load_optimizer_state,
    optimizer_state,
    shard_encoders,
    split_groups,
    unsharded,
    whole_encoders,
    whole_state,
)

# what may differ between the run that wrote a checkpoint and the one that resumes it
FREE_ON_RESUME = {
    "train.out", "train.init", "train.eval_every", "train.save_every", "train.log_every", "train.tensorboard",
    "train.accumulate", "train.fsdp", "train.skip_unreadable", "train.pictures",
    "data.workers", "data.val_list", "data.val_images", "data.val_labels", "data.val_count",
    "data.images", "data.labels", "data.names", "data.train_list", "data.root", "data.val_set",
}  # fmt: skip
PATIENCE = timedelta(minutes=10)  # that a process waits for the others before it gives them up
SHUFFLE, CLASSES, STEP = 1, 2, 3  # streams of random numbers under one seed


@dataclass
class Summary:
    """What a finished run leaves behind; `dump` is JSON-able and is written to <out>/summary.json."""

    out: str
    model: str  # folder for FGASeg.from_pretrained
    steps: int
    seconds: float  # of training, scoring and saving, all interrupted parts together
    images_per_second: float
    processes: int
    device: str
    parameters: int
    trained_parameters: int
    losses: dict[str, float]  # means over the last log_every steps
    scores: dict[str, Scores]  # of the last step, by validation set: "val", or "seen" and "unseen"
    history: list[dict[str, Any]]  # {"step", "<set>": {"miou_gt", ...}} of every evaluation
    skipped: list[str]  # pictures that could not be read and were replaced (train.skip_unreadable), and why

    def dump(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {key: value for key, value in vars(self).items() if key != "scores"}
        return plain | {"scores": {name: scores.dump() for name, scores in self.scores.items()}}


def train(
    config: Config,
    *,
    resume: bool = True,
    progress: bool = True,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Summary:
    """Train a model, score it, and leave it in <train.out>/model (with config.yaml and summary.json beside it).

    resume    go on from <train.out>/checkpoint if there is one; False starts over, and the old checkpoint is replaced
              by the first new one
    progress  a live bar on a terminal, else a line every log_every steps, on stderr
    callback  called on the main process with {"step", "loss", ..., "lr", "images_per_second"} every log_every steps,
              and with {"step", "<set>": {"miou_gt", ...}} after every evaluation
    Under torchrun each process calls this; batch is their total.
    Raises TrainingError, Interrupted, CheckpointError, DataError, ConfigError; the last checkpoint survives them all.
    """
    return _Training(config, resume, progress, callback).run()


class _Stream(Dataset[Any]):
    """A training set addressed by (epoch, index), so that one loader serves the whole run.

    A picture that cannot be read is an error, or, where up to `allowed` may be skipped, the next one that can be read
    takes its place: a choice that depends on the data set alone, whichever process or worker makes it.
    """

    def __init__(self, source: Any, allowed: int = 0):
        self.source, self.allowed = source, allowed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        try:
            self.source.set_epoch(epoch)
            return self._readable(index)
        except Exception as error:  # handed over as it is: the loader would wrap it in a traceback of the worker
            return error

    def _readable(self, index: int) -> Any:
        skipped: dict[int, str] = {}
        while True:
            try:
                return self.source[index] | {"skipped": skipped}
            except ImageError as error:
                skipped[index] = str(error)
                if len(skipped) > self.allowed or len(skipped) == len(self.source):
                    raise
                index = (index + 1) % len(self.source)


class _Batch(NamedTuple):
    """This process's part of a batch."""

    pixels: Tensor
    labels: Tensor
    stems: list[str]
    skipped: dict[int, str]  # items that could not be read, others in their place: index in the data set, and why


class _Batches:
    """Which samples this process takes at each step from `start` on: lists of (epoch, index).

    The samples of a run are one sequence, a new permutation of the data set every epoch; step s takes its next `batch`,
    of which process r takes the r-th part of every micro-batch: BatchNorm sees the same pictures on any number of them.
    """

    def __init__(self, length: int, config: Config, start: int):
        self.length, self.config, self.start = length, config.train, start

    def __len__(self) -> int:
        return self.config.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        parts = self.config.accumulate
        share = self.config.batch // (world_size() * parts)
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.config.steps):
            keys = []
            starts = [step * self.config.batch + (part * world_size() + rank()) * share for part in range(parts)]
            for position in (first + place for first in starts for place in range(share)):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng([self.config.seed, SHUFFLE, epoch]).permutation(self.length)
                keys.append((epoch, int(order[position % self.length])))
            yield keys


def _collate(items: list[Any]) -> Any:
    failed = next((item for item in items if isinstance(item, Exception)), None)
    if failed is not None:
        return failed
    return _Batch(
        torch.stack([item["pixels"] for item in items]),
        torch.stack([item["labels"] for item in items]),
        [item["stem"] for item in items],
        {index: why for item in items for index, why in item["skipped"].items()},
    )


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    worker: Any = torch.utils.data.get_worker_info()
    stream = worker.dataset
    stream.source = copy.deepcopy(stream.source)  # an epoch of its own: workers are on both sides of an epoch's end


def choose_classes(present: Tensor, count: int | None, seed: int, step: int) -> Tensor:
    """The vocabulary of one step: all classes present, and random others so that there are `count` in all.

    present   [T] bool, on the CPU: the classes in the whole batch (all processes)
    returns   ascending int64 indices; more than `count` if more are present; all T for count None
    The same for the same (seed, step), in every process.
    """
    if count is None or count >= len(present):
        return torch.arange(len(present))
    chosen, absent = present.nonzero()[:, 0], (~present).nonzero()[:, 0]
    missing = max(count - len(chosen), 0)
    drawn = np.random.default_rng([seed, CLASSES, step]).choice(len(absent), min(missing, len(absent)), replace=False)
    return torch.cat([chosen, absent[torch.from_numpy(drawn)]]).sort().values


def relabel(labels: Tensor, chosen: Tensor, classes: int, ignore: int) -> Tensor:
    """Labels (int64, 0..classes-1 or `ignore`) as indices into `chosen`; those that are not chosen become `ignore`."""
    table = torch.full((max(classes, ignore) + 1,), ignore, dtype=torch.int64, device=labels.device)
    table[chosen.to(labels.device)] = torch.arange(len(chosen), device=labels.device)
    table[ignore] = ignore
    return table[labels]


def learning_rate_factor(step: int, config: Config) -> float:
    """What every learning rate is multiplied by at a step (0-based): linear warm-up, then cosine to 0 at the end."""
    recipe = config.train
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup)))


class Signals:
    """While active, the first SIGINT or SIGTERM is only noted (`number`); a second one acts as usual, in one process.

    torchrun passes on a Ctrl-C that the terminal already sent to all, so among several processes repeats say nothing
    new (torchrun itself kills those that take longer than 30 s).
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
            # the loader's own handler raises the death of a worker anywhere, in the middle of an update too; without
            # it the loader notices when it next waits for that worker
            self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if world_size() == 1:
            self._restore(signal.SIGINT, signal.SIGTERM)  # workers may have got it too: their deaths wait for the step

    def _restore(self, *numbers: int) -> None:
        for number in self._previous.keys() & numbers:
            signal.signal(number, self._previous[number])

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is ProcessLostError:  # torchrun's SIGTERM follows, and must not come before the message
            self._previous.pop(signal.SIGTERM, None)
        self._restore(*self._previous)


@dataclass
class _Means:
    """Running sums of the scalars since the last line of the log."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # fp16 leaves out an infinite gradient_norm

    def add(self, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def values(self) -> dict[str, float]:
        return {key: value / self.counts[key] for key, value in self.sums.items()}


class _Training:
    """The state of one run and what can be done with it."""

    def __init__(
        self, config: Config, resume: bool, progress: bool, callback: Callable[[dict[str, Any]], None] | None
    ) -> None:
        self.config, self.out = config, config.train.out
        self.device = _join_processes()
        parts = world_size() * config.train.accumulate
        if config.train.batch % parts:
            micro = f" of {config.train.accumulate} micro-batches (train.accumulate)" if parts > world_size() else ""
            raise TrainingError(
                f"train.batch={config.train.batch} cannot be shared evenly by {world_size()} processes{micro}: "
                f"give a multiple of {parts}"
            )
        self.train_set, self.val_sets = data_sets(config)
        torch.manual_seed(config.train.seed)
        self.model = FGASeg(config.model)
        notes: list[str] = []
        if config.train.init is not None:
            quick_gelu = bool(self.model.architecture.get("quick_gelu"))
            notes = warm_start(self.model, config.train.init, quick_gelu=quick_gelu).lines(config.train.init)
        self.model.to(self.device).train()
        text = [p for name, p in self.model.clip.named_parameters() if not name.startswith("visual.")]
        self.text_trains = any(p.requires_grad for p in text)
        self.frozen_texts: Tensor | None = None  # of the whole vocabulary, once it is needed
        self.step, self.saved, self.seconds = 0, -1, 0.0
        self.history: list[dict[str, Any]] = []
        self.scores: dict[str, Scores] = {}
        self.means = _Means()
        self.losses: dict[str, float] = {}
        self.skipped: dict[int, str] = {}
        with self._explaining_lost_processes():
            state, damage = self._load() if resume else (None, [])
            self._build_optimizer()
            if state is not None:
                self._restore(state)
            found = set(gather_objects(self.step))
        if len(found) > 1:
            raise CheckpointError(
                f"{self.folder}: the processes found checkpoints of steps {', '.join(map(str, sorted(found)))}; give a "
                "train.out on a disk that all machines share"
            )
        self.reporter: Reporter | None = None
        if rank() == 0:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.out)
                config.save(self.out / "config.yaml")
                scored = [entry["step"] for entry in self.history]
                self.reporter = Reporter(config, self.step, scored, progress, callback)
                for note in damage if self.step else notes:
                    self.reporter.say(note)
            except OSError as error:
                raise CheckpointError(
                    f"train.out={self.out}: cannot be written to: {error.strerror or error}; "
                    "make room or give another folder"
                ) from error

    @property
    def folder(self) -> Path:
        return self.out / "checkpoint"

    def _build_optimizer(self) -> None:
        """Ready the model for its processes, and make the optimizer of the parameters that it then has."""
        recipe = self.config.train
        if world_size() > 1:
            use_global_batch_norm(self.model)
        self.sharded = world_size() > 1 and recipe.fsdp
        if self.sharded:
            if not self.text_trains:
                self.frozen_texts = self.model.encode(self.train_set.names).embeddings
            shard_encoders(self.model)
        groups = self.model.parameter_groups(recipe.lr, recipe.encoder_lr_factor, recipe.weight_decay)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # fused: one pass over the weights, on the CPU too
        self.optimizer = torch.optim.AdamW(split_groups(groups), lr=recipe.lr, fused=True)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")

    # --- the loop

    def run(self) -> Summary:
        if self.reporter and self.step:
            self.reporter.say(f"resuming {self.out} at step {self.step}/{self.config.train.steps}")
        try:
            with _deterministic(self.config.train.deterministic), self._explaining_lost_processes():
                return self._loop()
        finally:
            if self.reporter:
                self.reporter.close()

    def _loop(self) -> Summary:
        batches = iter(self._loader()) if self.step < self.config.train.steps else iter(())
        with Signals() as signals:
            self.signals = signals
            while True:
                began = time.monotonic()
                stop = self._between_steps()
                if not stop and self.step < self.config.train.steps:
                    stop = self._train_step(self._next(batches))
                self.seconds += time.monotonic() - began
                if stop:
                    self._stop()
                if self.step == self.config.train.steps and not self._evaluation_due() and not self._save_due():
                    return self._finish()

    @contextlib.contextmanager
    def _explaining_lost_processes(self) -> Iterator[None]:
        try:
            yield
        except ProcessLostError as error:
            kept = f"the checkpoint of step {self.saved} in {self.folder} is intact"
            raise TrainingError(
                f"process {rank()} stops after step {self.step}: another training process is gone ({error}); its own "
                f"message, or the system's log (out of memory?), says why; "
                f"{kept if self.saved >= 0 else 'this run has saved nothing'}. Run the same command again to resume"
            ) from error

    def _next(self, batches: Iterator[Any]) -> _Batch:
        """This process's part of the next batch; when some process cannot have its own, all save and stop."""
        began = time.monotonic()
        try:
            found = next(batches)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # the pictures come as values or errors; what is raised is the way to a worker that is gone
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
            found = TrainingError(
                f"a loader worker died before step {self.step + 1} ({reason}): the "
                f"system may be out of memory; run the same command again to resume, with fewer data.workers (now "
                f"{self.config.data.workers}) if it happens again"
            )
        self.waited = time.monotonic() - began
        failed = isinstance(found, Exception)
        skips = torch.tensor([failed, not failed and bool(found.skipped)], dtype=torch.int32, device=self.device)
        anywhere_failed, anywhere_skipped = sum_over_processes(skips).tolist()
        problem = found if failed else None
        if anywhere_skipped:
            problem = self._too_many_skipped({} if failed else found.skipped) or problem
        if problem is None and not anywhere_failed:
            return found
        if self._anywhere(self.signals.number > 0):  # a signal to the whole group kills workers too
            self._stop()
        if self.step > max(self.saved, 0):
            self._save()  # nothing of the step has begun
        raise problem or TrainingError(
            f"another process could not read its part of step {self.step + 1}; its message says why"
        )

    def _too_many_skipped(self, here: dict[int, str]) -> TrainingError | None:
        """Note the pictures that were skipped, of all processes, and say which are new."""
        known, allowed = len(self.skipped), self.config.train.skip_unreadable
        for one in gather_objects(here):
            self.skipped |= {index: why for index, why in sorted(one.items()) if index not in self.skipped}
        whys = list(self.skipped.values())
        if self.reporter:
            for number, why in enumerate(whys[known:], known + 1):
                self.reporter.say(f"skipped {number} (train.skip_unreadable={allowed}): {why}")
        if len(whys) <= allowed:
            return None
        return TrainingError(
            f"{len(whys)} pictures cannot be read and train.skip_unreadable allows {allowed}: {'; '.join(whys)}"
        )

    def _between_steps(self) -> bool:
        """Save and score when the step number says so; True when a signal came meanwhile.

        Saving comes first: scoring takes long and may fail. A run resumed there scores again.
        """
        if self._save_due():
            self._save()
        return self._evaluate() if self._evaluation_due() else False

    def _evaluation_due(self) -> bool:
        every = self.config.train.eval_every
        due = self.step == self.config.train.steps or (every > 0 and self.step > 0 and self.step % every == 0)
        return due and bool(self.val_sets) and not any(entry["step"] == self.step for entry in self.history)

    def _save_due(self) -> bool:
        every = self.config.train.save_every
        due = self.step == self.config.train.steps or (every > 0 and self.step > 0 and self.step % every == 0)
        return due and self.saved != self.step

    def _train_step(self, batch: _Batch) -> bool:
        """One step of the optimizer; True when some process was signalled to stop."""
        began = time.monotonic()
        recipe = self.config.train
        torch.manual_seed(_seed(recipe.seed, STEP, self.step, rank()))
        pixels, labels = (x.to(self.device, non_blocking=True) for x in (batch.pixels, batch.labels))
        if recipe.image_size is not None:  # as the released code: bilinear, no antialias
            pixels = F.interpolate(pixels, (recipe.image_size,) * 2, mode="bilinear", align_corners=False)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(self.step, self.config)
        vocabulary = self._vocabulary(labels)
        with detect_lost_processes():
            losses = self._backward(pixels, *vocabulary)
        sum_gradients(unsharded(self.parameters))
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.parameters, math.inf if recipe.clip_norm is None else recipe.clip_norm)
        # one message and one wait for the device: the losses of the whole batch, and whether anyone wants to stop
        stop = torch.tensor(float(self.signals.number), device=self.device)
        *totals, stopped = sum_over_processes(torch.stack([*losses.values(), stop])).tolist()
        values = dict(zip(losses, totals, strict=True)) | {"gradient_norm": float(norm)}
        self._refuse_nan(values, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._log(values, self.waited + time.monotonic() - began)
        return stopped > 0

    def _backward(self, pixels: Tensor, labels: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """Gradients of this process's part of the batch, micro-batch after micro-batch, and its losses.

        The texts are embedded once for all micro-batches. Means divide by counts over the whole batch; only BatchNorm
        (in the T2P branch) takes the statistics of one micro-batch, of all processes, at a time.
        """
        texts = self._texts(chosen)
        leaf = texts.detach().requires_grad_(texts.requires_grad)
        vocabulary = Vocabulary(tuple(self.train_set.names[index] for index in chosen), leaf)
        totals: dict[str, Tensor] = {}
        pieces = (x.chunk(self.config.train.accumulate) for x in (pixels, labels))
        for some_pixels, some_labels in zip(*pieces, strict=True):
            with self._autocast():
                out = self.model(some_pixels, vocabulary)
            losses = segmentation_losses(
                out, some_labels, self.config.model.loss, self.config.data.ignore, sum_over_processes, labels
            )
            self.scaler.scale(losses["loss"]).backward()
            for key, value in losses.items():
                value = value.detach().float()
                totals[key] = totals[key] + value if key in totals else value
        if leaf.grad is not None:
            texts.backward(leaf.grad)
        return totals

    def _texts(self, chosen: Tensor) -> Tensor:
        """Embeddings [T, C] of the chosen classes: frozen ones embedded once, others shared out among processes."""
        names = self.train_set.names
        if not self.text_trains:
            if self.frozen_texts is None:
                self.frozen_texts = self.model.encode(names).embeddings
            return self.frozen_texts[chosen.to(self.device)]
        # as many names and batches of names on each process, for sharded weights meet in every block: the last ones of
        # a short list go round to names that others embed too, and are left out
        share = -(-len(chosen) // world_size())
        places = torch.arange(share) * world_size() + rank()
        parts = (places % len(chosen)).split(PROMPTS_PER_BATCH)
        with self._autocast():
            rows = torch.cat([self.model.encode([names[index] for index in chosen[part]]).embeddings for part in parts])
        if world_size() == 1:
            return rows
        places = places[places < len(chosen)]
        return share_rows(rows[: len(places)], places.to(self.device), len(chosen))

    def _vocabulary(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The labels as indices into the classes of this step, and which these are."""
        names, recipe = self.train_set.names, self.config.train
        if recipe.classes_per_step is None:
            return labels, torch.arange(len(names))
        present = torch.zeros(max(len(names), self.config.data.ignore + 1), device=self.device)
        present[labels.flatten()] = 1
        present[self.config.data.ignore] = 0
        present = sum_over_processes(present)[: len(names)].cpu() > 0
        chosen = choose_classes(present, recipe.classes_per_step, recipe.seed, self.step)
        return relabel(labels, chosen, len(names), self.config.data.ignore), chosen

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.config.train.amp == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.config.train.amp != "no")

    def _refuse_nan(self, values: dict[str, float], batch: _Batch) -> None:
        """Stop before the optimizer spreads a NaN; an infinite gradient under fp16 is the loss scaler's daily bread."""
        if all(map(math.isfinite, values.values())):
            return
        if math.isfinite(values["loss"]) and self.scaler.is_enabled() and self.scaler.get_scale() > 1:
            values.pop("gradient_norm")  # the scaler will skip this step and scale less
            return
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        kept = f"the checkpoint of step {self.saved} in {self.folder} is intact"
        recipe = self.config.train
        stems = [stem for part in gather_objects(batch.stems) for stem in part]
        saved = self._save_batch(batch, stems)
        raise NotFiniteError(
            f"step {self.step + 1}: loss or gradient is not finite ({shown}); "
            f"the batch was {', '.join(stems)} ({saved}); "
            f"{kept if self.saved >= 0 else 'nothing was saved yet'}. "
            f"Try a smaller train.lr (now {recipe.lr}), train.warmup, or train.amp=no (now {recipe.amp})"
        )

    def _save_batch(self, batch: _Batch, stems: list[str]) -> str:
        """Write the batch of all processes to <out>/nan_batch.safetensors; what to tell about it."""
        pixels, labels = (gather_rows(tensor.to(self.device)) for tensor in (batch.pixels, batch.labels))
        path = self.out / "nan_batch.safetensors"
        about = {"stems": json.dumps(stems), "step": str(self.step + 1)}
        try:
            if rank() == 0:
                write_weights(path, {"pixels": pixels, "labels": labels}, about)
        except OSError as error:
            return f"{path} could not be written: {error.strerror or error}"
        return f"kept in {path}"

    def _log(self, values: dict[str, float], seconds: float) -> None:
        self.means.add(values)
        log = self.step % self.config.train.log_every == 0 or self.step == self.config.train.steps
        rate = max(group["lr"] for group in self.optimizer.param_groups)  # the encoder has its own, smaller
        if self.reporter:
            self.reporter.step(self.step, self.means.values() | {"lr": rate}, seconds, log)
        if log:
            self.losses = self.means.values()
            self.means = _Means()

    # --- scoring, saving, stopping

    def _evaluate(self) -> bool:
        """Score all validation sets; True, and nothing recorded, when a signal came meanwhile."""
        began = time.monotonic()
        with whole_encoders(self.model):
            scores = self._score(lambda: self.signals.number > 0)
            if self._anywhere(self.signals.number > 0):
                return True
            self.scores = scores
            figures = {name: {key: getattr(row, key) for key in FIGURES} for name, row in scores.items()}
            self.history.append({"step": self.step, **figures})
            if self.reporter:
                images = sum(row.images for row in scores.values())
                self.reporter.scores(self.step, figures, images / (time.monotonic() - began))
                self._draw(self.reporter)
            return False

    def _draw(self, reporter: Reporter) -> None:
        """The first few pictures of each validation set to TensorBoard: photo, label, prediction, pseudo-masks."""
        for name, dataset in self.val_sets.items() if reporter.writer is not None else ():
            for index in range(min(self.config.train.pictures, len(dataset))):
                try:
                    item = dataset[index]
                    drawn = picture(self.model, item, dataset.names)
                except Exception as error:  # memory, fonts: nothing that training needs
                    if self.sharded:  # what broke off in the middle of a block leaves the processes out of step
                        raise
                    reporter.say(f"no picture {index} of {name} at step {self.step}: {error}")
                    return
                reporter.picture(self.step, f"{name}/{item['stem']}", drawn)

    def _score(self, stop: Callable[[], bool]) -> dict[str, Scores]:
        count = self.config.data.val_count
        scores = {name: evaluate(self.model, one, count=count, stop=stop) for name, one in self.val_sets.items()}
        if self.config.data.scenes:  # all names compete for a pixel, whichever are scored
            scores = {name: scores[name].subset(self.val_sets[name].scored) for name in scores}
        return scores

    def _anywhere(self, here: bool) -> bool:
        """Logical OR across ranks; all wait for each other."""
        return any_process(here, self.device)

    def _on_main(self, write: Callable[[], None]) -> None:
        """Let the main process write files; the others wait, and stop too when it fails."""
        error: CheckpointError | None = None
        if rank() == 0:
            try:
                write()
            except CheckpointError as caught:
                error = caught
        if self._anywhere(error is not None):
            raise error or CheckpointError(f"{self.out}: the main process could not write; its message says why")

    def _save(self) -> None:
        """Write <out>/checkpoint."""
        weights = whole_state(self.model.state_dict())
        state = {
            "step": self.step,
            "optimizer": optimizer_state(self.model, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "config": self.config.to_json(),
            "samples": len(self.train_set),
            "names": self.train_set.names,
            "history": self.history,
            "losses": self.losses,
            "means": asdict(self.means),
            "seconds": self.seconds,
            "skipped": self.skipped,
        }
        keep = self.saved >= 0  # what lies there is of this run
        self._on_main(lambda: save_training(self.folder, weights, state, keep))
        self.saved = self.step

    def _load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Put the weights of the last whole checkpoint, if there is one, into the model.

        Returns the rest of the checkpoint, and what there is to say about damage.
        """
        notes: list[str] = []
        self._on_main(lambda: notes.append(set_damaged_aside(self.folder)))
        state = load_training(self.folder, self.model)
        if state is None:
            return None, []
        self._refuse_other_run(state)
        return state, [note for note in notes if note]

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            load_optimizer_state(self.model, self.optimizer, state["optimizer"])
        except ValueError as error:
            raise CheckpointError(
                f"{self.folder}: {error}: it was written by another version; start over with --restart"
            ) from None
        self.scaler.load_state_dict(state["scaler"])
        self.step = self.saved = state["step"]
        self.history, self.losses, self.seconds = state["history"], state["losses"], state["seconds"]
        self.means, self.skipped = _Means(**state["means"]), state["skipped"]

    def _refuse_other_run(self, state: dict[str, Any]) -> None:
        before, now = _flat(json.loads(state["config"])), _flat(self.config.dump())
        differing = [key for key in now if key not in FREE_ON_RESUME and before.get(key) != now[key]]
        changes = [f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in differing]
        if state["names"] != self.train_set.names or state["samples"] != len(self.train_set):
            changes.append(f"the data set had {state['samples']} items of {len(state['names'])} classes, now "
                           f"{len(self.train_set)} of {len(self.train_set.names)}, or other names")  # fmt: skip
        if changes:
            raise CheckpointError(
                f"{self.folder}: belongs to another configuration ({'; '.join(changes)}). Give another train.out, go "
                "back to that configuration, or start over with --restart (which replaces it)"
            )

    def _stop(self) -> None:
        if self.saved != self.step:
            self._save()
        number = self.signals.number or signal.SIGTERM  # another process was signalled
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} after step {self.step} of {self.config.train.steps}; everything "
            f"is saved in {self.folder}. Run the same command again to resume",
            number,
        )

    def _finish(self) -> Summary:
        summary = Summary(
            out=str(self.out),
            model=str(self.out / "model"),
            steps=self.step,
            seconds=self.seconds,
            images_per_second=self.step * self.config.train.batch / self.seconds if self.seconds else 0.0,
            processes=world_size(),
            device=str(self.device),
            parameters=sum(p.numel() for p in self.model.parameters()),
            trained_parameters=sum(p.numel() for p in self.parameters),
            losses=self.losses,
            scores=self.scores,
            history=self.history,
            skipped=list(self.skipped.values()),
        )
        weights = whole_state(self.model.state_dict())
        self._on_main(lambda: self._write_results(summary, weights))
        return summary

    def _write_results(self, summary: Summary, weights: dict[str, Tensor]) -> None:
        try:
            self.model.save_pretrained(summary.model, weights)
            text = json.dumps(summary.dump(), indent=2) + "\n"
            atomic_write(self.out / "summary.json", lambda file: file.write(text.encode()))
        except OSError as error:
            raise CheckpointError(
                f"{summary.model}: could not be written: {error.strerror or error}; {self.folder} holds the finished "
                "training. Make room and run the same command again"
            ) from error

    def _loader(self) -> DataLoader[Any]:
        workers = self.config.data.workers
        return DataLoader(
            _Stream(self.train_set, self.config.train.skip_unreadable),
            batch_sampler=_Batches(len(self.train_set), self.config, self.step),
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
        )


def _join_processes() -> torch.device:
    """Join the other processes when started by torchrun (nccl on GPUs, gloo on CPUs); the device of this one."""
    from accelerate import PartialState  # type: ignore[import-untyped]  # its choice of device and backend

    device = PartialState(timeout=PATIENCE).device
    if world_size() > 1:
        atexit.unregister(_leave_processes)
        atexit.register(_leave_processes)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # the protocol: float32 with TF32 products
    return device


def _leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Only algorithms that give the same bits every time; PyTorch raises where it has none."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on a GPU
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]


def picture(model: FGASeg, item: dict[str, Any], names: list[str]) -> Image.Image:
    """A validation item's photo, labels, prediction, and the pseudo-masks S_g and S_l of its largest class."""
    photo, labels = Image.fromarray(item["image"].numpy()), item["labels"].numpy()
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # as in evaluate
            vocabulary = model.encode(names)
            predicted, masks = model.segment(photo, vocabulary).labels, pseudo_masks(model, photo, vocabulary)
    finally:
        model.train(training)
    counts = np.bincount(labels[labels < len(names)], minlength=len(names))
    subject, size = int(counts.argmax()), (photo.height, photo.width)
    shown = [("photo", photo)]
    shown += [(title, overlay(photo, x, names, with_legend=False)) for title, x in
              (("labels", labels), ("prediction", predicted))]  # fmt: skip
    for title, maps in (("S_g", masks.gcs), ("S_l", masks.lcs)):
        if maps is not None:
            shown.append((f"{title}: {names[subject]}", heat(maps[subject], size)))
    return panel([shown], below=legend([labels, predicted], names, 240 * len(shown)))


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; an inline architecture stays one value."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and key != "architecture":
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
