"""The trainer: one loop for one process and many (torchrun), interrupted at any moment and resumed exactly.

Everything that a step does is a function of the configuration, the weights and the step number: the samples of its
batch, their augmentation, its vocabulary, its learning rate, its random numbers. A checkpoint therefore needs no more
than weights, optimizer and step, and the number of processes and of loader workers changes nothing beyond rounding.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

import torch
from torch import Tensor

from ..config import Config
from ..data import data_sets
from ..distributed import any_process, rank, sum_over_processes, use_global_batch_norm, world_size
from ..errors import Interrupted, ProcessLostError, TrainingError
from ..evaluation import Scores
from ..files import folder_lock
from ..model import FGASeg, local_weights
from ..weights import remove_leftovers, warm_start
from .batches import BatchSource, make_loader
from .best import BestModel, evaluations_without_rise
from .callbacks import Callback, Event, as_callback
from .captions import CaptionGradients, train_temperature
from .card import result_facts, training_facts
from .finite import FiniteCheck
from .gradients import GradientComputer
from .label_check import check_before_training
from .metrics import Speed, peak_memory_mb
from .optimizer import Optimizer
from .processes import check_batch, deterministic, join_processes, opening, write_on_main
from .reporting import LogFile, ProgressReporter
from .results import Summary, write_results
from .schedule import is_due
from .sharding import shard_encoders, whole_encoders, whole_state
from .signals import Signals
from .state import Means, StateStore, TrainingState
from .step_vocabulary import StepVocabulary
from .tensorboard import TensorBoard
from .trackers import Tracker
from .validation import Validation, figures

log = logging.getLogger(__name__)


def train(
    config: Config, *, resume: bool = True, progress: bool = True, callbacks: Iterable[Callback | Event] = ()
) -> Summary:
    """Train a model, score it, and leave it in <train.out>/model (with config.yaml and summary.json beside it).

    resume     resume from <train.out>/checkpoint if there is one; False starts over, and the first checkpoint replaces
               an old one
    progress   show a live bar if stderr is a terminal, else log a line every log_every steps
    callbacks  `Callback` objects, or functions, which are called on the main process with {"step", "loss", ..., "lr",
               "images_per_second"} every log_every steps and {"step", "<set>": {"miou_gt", ...}} after every evaluation

    Under torchrun each process calls this; train.batch is their total. What happens is logged to "fgaseg" loggers.
    Raises TrainingError, Interrupted, CheckpointError, DataError, ConfigError; the last checkpoint survives them all.
    """
    return Trainer(config, resume=resume, progress=progress, callbacks=callbacks).train()


class Trainer:
    """One training run: `Trainer(config).train()` is `train(config)`, whose arguments it takes.

    config               the configuration
    device               the device of this process
    train_set, val_sets  the training set, and the validation sets by name
    model                the FGASeg, in training mode
    state                finished steps, history of scores, ...
    callbacks            the list of callbacks, our own reporters first; more may be added before `train`

    Its parts, each in a module of its own: `batches`, `step_vocabulary`, `gradients`, `optimizer`, `finite`, `state`
    (checkpoints), `best`, `validation`, `reporting`, `tensorboard` and `trackers` (callbacks), `results`.
    """

    def __init__(
        self,
        config: Config,
        *,
        resume: bool = True,
        progress: bool = True,
        callbacks: Iterable[Callback | Event] = (),
    ):
        self.config, self.resume = config, resume
        self.device = join_processes()
        check_batch(config.train)
        self.train_set, self.val_sets = data_sets(config)
        torch.manual_seed(config.train.seed)
        self.model = FGASeg(config.model).to(self.device).train()
        self.train_set.normalization = self.model.normalization
        self.state, self.scores = TrainingState(), dict[str, Scores]()
        self.store = StateStore(config, self.train_set, self.device)
        self.best = BestModel(config.train, self.val_sets, self.device)
        self.signals = Signals()
        self.sharded = config.train.fsdp and world_size() > 1
        self.progress = progress
        self.callbacks: list[Callback | Event] = [ProgressReporter(config)] if progress else []
        self.callbacks.append(LogFile(config.train.out))
        if config.train.tensorboard or "tensorboard" in config.train.trackers:
            self.callbacks.append(TensorBoard(config, self.model, self.val_sets, sharded=self.sharded))
        self.callbacks.extend(Tracker(name, config) for name in config.train.trackers if name != "tensorboard")
        self.callbacks.extend(callbacks)

    def train(self) -> Summary:
        """Train until the last step. Raises what `fgaseg.train` raises."""
        try:
            with (
                contextlib.ExitStack() as lock,
                deterministic(self.config.train.deterministic),
                self._explaining_lost_processes(),
            ):
                if rank() == 0:
                    self._lock_output(lock)
                self._prepare()
                with self.signals:
                    return self._loop()
        finally:
            self._notify(lambda callback: callback.on_end())

    # --- the loop

    def _loop(self) -> Summary:
        """Save and score when the step number says so, take a step, and so on until the last.

        Saving comes first: scoring takes long and may fail. A run resumed there scores again.
        """
        while True:
            began = time.monotonic()
            if self._save_due():
                self._save()
            stop = self._evaluate() if self._evaluation_due() else False
            if not stop and self.state.step < self._last_step():
                stop = self._step()
            self.state.seconds += time.monotonic() - began
            if stop:
                self._stop()
            if self.state.step == self._last_step() and not self._save_due() and not self._evaluation_due():
                return self._finish()

    def _last_step(self) -> int:
        """The step to end at: the last, or this one when patience has run out. The same on every process."""
        return self.state.step if self._without_rise() else self.config.train.steps

    def _without_rise(self) -> str:
        """Why to stop early, or ""."""
        recipe, history = self.config.train, self.state.history
        if recipe.patience is None or recipe.keep_best is None or not history:
            return ""
        count, best = evaluations_without_rise(history, recipe.keep_best)
        if count < recipe.patience:
            return ""
        return (
            f"{recipe.keep_best} has not risen in {count} evaluations (train.patience={recipe.patience}) since "
            f"{best['score']:.4f} at step {best['step']}"
        )

    def _step(self) -> bool:
        """One step of the optimizer. True when some process was signalled to stop."""
        began = time.monotonic()
        step = self.state.step
        batch = self.batches.next(step + 1)
        if isinstance(batch, Exception):
            self._give_up(batch)
        self.optimizer.set_learning_rate(step)
        losses = self.gradients.compute(batch, step)
        norm = self.optimizer.reduce_gradients()
        totals, stop = self._over_processes(losses)
        values = self.finite.check(totals | {"gradient_norm": float(norm)}, batch, step + 1, self.store.describe())
        self.optimizer.step()
        self.state.step += 1
        self._report(values, time.monotonic() - began)
        return stop

    def _over_processes(self, losses: dict[str, Tensor]) -> tuple[dict[str, float], bool]:
        """The losses of the whole batch, and whether a process was signalled: one message, one wait for the device."""
        signalled = torch.tensor(float(self.signals.number), device=self.device)
        *totals, stop = sum_over_processes(torch.stack([*losses.values(), signalled])).tolist()
        return dict(zip(losses, totals, strict=True)), bool(stop)

    def _report(self, values: dict[str, float], seconds: float) -> None:
        state, recipe = self.state, self.config.train
        state.means.add(values)
        self.speed.add(seconds)
        metrics = {
            **state.means.values(),
            "lr": self.optimizer.learning_rate,
            "images_per_second": self.speed.images_per_second,
            "peak_memory_mb": peak_memory_mb(),
        }
        self._notify(lambda callback: callback.on_step(state.step, metrics))
        if state.step % recipe.log_every == 0 or state.step == recipe.steps:
            self._notify(lambda callback: callback.on_log(state.step, metrics))
            state.losses, state.means = state.means.values(), Means()
            self.speed.reset()

    def _evaluation_due(self) -> bool:
        done = any(entry["step"] == self.state.step for entry in self.state.history)
        due = is_due(self.state.step, self.config.train.eval_every, self._last_step())
        return due and bool(self.val_sets) and not done

    def _evaluate(self) -> bool:
        """Score all validation sets. True, and nothing recorded, when a signal came meanwhile."""
        began = time.monotonic()
        with whole_encoders(self.model):
            scores = self.validation.run(stop=lambda: bool(self.signals.number))
            if any_process(bool(self.signals.number), self.device):
                return True
            self.scores = scores
            self.state.history.append({"step": self.state.step, **figures(scores)})
            seconds = time.monotonic() - began
            self._notify(lambda callback: callback.on_evaluation(self.state.step, scores, seconds))
        if self.best.is_beaten_by(scores):
            self.best.write(self.model, self._whole_weights(), self.state.step, scores)
        return False

    def _save_due(self) -> bool:
        due = is_due(self.state.step, self.config.train.save_every, self._last_step())
        return due and self.store.saved != self.state.step

    def _save(self) -> None:
        if self.store.saved is None:
            self.best.discard_other()
        self.store.save(self.model, self.optimizer, self.state)
        self._notify(lambda callback: callback.on_save(self.state.step, self.store.folder))

    def _notify(self, event: Callable[[Callback], None]) -> None:
        for callback in map(as_callback, self.callbacks) if rank() == 0 else ():
            event(callback)

    # --- the beginning

    def _prepare(self) -> None:
        """Load the checkpoint or the initial weights, share the model among processes, and open the output folder."""
        content = self.store.load(self.model) if self.resume else None
        if content is None and self.config.train.init is not None:
            self._warm_start()
        self._build_parts()
        if content is not None:
            self.state = self.store.restore(content, self.optimizer)
        self.store.check_shared(self.state.step)
        self.best.start(resumed=content is not None)
        scored = bool(self.state.history) and self.state.history[-1]["step"] == self.state.step
        if scored and self.state.step == self._last_step():  # its scores are wanted once more, and not in a checkpoint
            self.state.history.pop()
        left = self.state.step < self.config.train.steps  # where patience has run out too: this score may rise
        if left:
            check_before_training(self.train_set, self.val_sets, self.config.data.val_count, self.device, self.progress)
        pinned = self.device.type == "cuda"
        loader = make_loader(self.train_set, self.config, self.state.step, pinned) if left else ()
        self.batches = BatchSource(loader, self.config, self.state.skipped, self.device)
        if rank() == 0:
            self._open_output()
        self._notify(lambda callback: callback.on_start(self.state.step, self.state.history))

    def _warm_start(self) -> None:
        source = self.config.train.init
        assert source is not None
        encoder = self.model.encoder
        traits = {"quick_gelu": self.model.quick_gelu, "dense": encoder.dense, "mean": list(encoder.mean),
                  "std": list(encoder.std)}  # fmt: skip
        report = warm_start(self.model, local_weights(source), encoder=traits)
        for line in report.lines(source) if rank() == 0 else ():
            log.info("%s", line)

    def _build_parts(self) -> None:
        """What depends on how the model's parameters are laid out over processes."""
        config, device = self.config, self.device
        if captions := config.train.objective == "captions":
            train_temperature(self.model)
        self.vocabulary = StepVocabulary(self.model, self.train_set.names, config, device)
        if world_size() > 1:
            use_global_batch_norm(self.model)
        if self.sharded:
            if not self.vocabulary.trains:
                self.vocabulary.frozen()  # while every process has the whole text tower
            shard_encoders(self.model)
        self.optimizer = Optimizer(self.model, config.train, device)
        self.gradients: GradientComputer | CaptionGradients
        if captions:
            names, backdrops = self.train_set.names, self.train_set.backdrops
            self.gradients = CaptionGradients(self.model, names, backdrops, self.optimizer, config, device)
        else:
            self.gradients = GradientComputer(self.model, self.vocabulary, self.optimizer, config, device)
        self.finite = FiniteCheck(config, self.optimizer.scaler, device)
        self.validation = Validation(self.model, self.val_sets, config)
        self.speed = Speed(config.train.batch)

    def _lock_output(self, lock: contextlib.ExitStack) -> None:
        """Until the end of the run: another one would remove its unfinished files and replace its checkpoints."""
        out = self.config.train.out
        with opening(out):
            free = lock.enter_context(folder_lock(out))
        if not free:
            raise TrainingError(f"{out}: another training writes there: wait for its end, or give another train.out")

    def _open_output(self) -> None:
        out = self.config.train.out
        with opening(out):
            remove_leftovers(out)
            self.config.save(out / "config.yaml")

    # --- the end

    def _give_up(self, problem: Exception) -> NoReturn:
        """End the run because some process has no batch, after saving: nothing of the step has begun."""
        if any_process(bool(self.signals.number), self.device):  # a signal to the process group kills workers too
            self._stop()
        if self.state.step > (self.store.saved or 0):
            self._save()
        raise problem

    def _stop(self) -> NoReturn:
        """End the run because of a signal, here or to another process."""
        if self.store.saved != self.state.step:
            self._save()
        number = self.signals.number or signal.SIGTERM
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} after step {self.state.step} of {self.config.train.steps}; "
            f"everything is saved in {self.store.folder}. Run the same command again to resume",
            number,
        )

    @contextlib.contextmanager
    def _explaining_lost_processes(self) -> Iterator[None]:
        try:
            yield
        except ProcessLostError as error:
            raise TrainingError(
                f"process {rank()} stops after step {self.state.step}: another training process is gone ({error}); its "
                f"own message, or the system's log (out of memory?), says why; {self.store.describe()}. Run the same "
                "command again to resume"
            ) from error

    def _finish(self) -> Summary:
        state, out = self.state, self.config.train.out
        early = self._without_rise() if state.step < self.config.train.steps else ""
        if early and rank() == 0:
            log.warning("stopped after step %d of %d: %s", state.step, self.config.train.steps, early)
        summary = Summary(
            out=str(out),
            model=str(out / "model"),
            steps=state.step,
            seconds=state.seconds,
            images_per_second=state.step * self.config.train.batch / state.seconds,
            processes=world_size(),
            device=str(self.device),
            parameters=sum(p.numel() for p in self.model.parameters()),
            trained_parameters=sum(p.numel() for p in self.optimizer.parameters),
            losses=state.losses,
            scores=self.scores,
            history=state.history,
            best=self.best.summary(),
            stopped_early=early,
            changes=state.changes,
            skipped=list(state.skipped.values()),
        )
        weights = self._whole_weights()
        write_on_main(lambda: write_results(summary, self.model, weights, self.store.folder), self.device)
        return summary

    def _whole_weights(self) -> dict[str, Tensor]:
        """The model's whole state dict, and in its facts what a card says of it."""
        weights = whole_state(self.model.state_dict())
        if rank() == 0:
            facts = self.model.facts
            facts["training"] = training_facts(self.config, self.train_set, world_size(), self.state)
            facts["results"] = result_facts(self.model, self.scores, self.val_sets, self.config, weights)
        return weights
