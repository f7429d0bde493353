"""How others follow a run: objects with methods, or plain functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..evaluation import Scores
from .validation import figures


class Callback:
    """Follows a run. Override what you need; the methods are called on the main process (rank 0) only, in this order.

    An exception ends the run like any other error: the last checkpoint stays. A callback that needs the model is given
    it by whoever makes it: `trainer = Trainer(config); trainer.callbacks.append(MyCallback(trainer.model))`.
    """

    def on_start(self, step: int, history: list[dict[str, Any]]) -> None:
        """Before the first step of this process, when `step` steps are done and `history` holds their evaluations."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """After every step.

        metrics  "loss", "seg", "align", "aux" and "gradient_norm" (means since the last `on_log`), "lr",
                 "images_per_second" (also since then) and "peak_memory_mb"
        """

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """After `on_step`, every train.log_every steps and after the last one."""

    def on_evaluation(self, step: int, scores: dict[str, Scores], seconds: float) -> None:
        """After the evaluation of all validation sets, which took `seconds`."""

    def on_save(self, step: int, folder: Path) -> None:
        """After a checkpoint was written to `folder`."""

    def on_end(self) -> None:
        """At the very end of the run, also when an error ends it."""


Event = Callable[[dict[str, Any]], None]


class FunctionCallback(Callback):
    """Calls a function with {"step", "loss", ..., "lr", "images_per_second"} for every line of the log, and with
    {"step", "<set>": {"miou_gt", ...}} for every evaluation."""

    def __init__(self, function: Event):
        self.function = function

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self.function({"step": step, **metrics})

    def on_evaluation(self, step: int, scores: dict[str, Scores], seconds: float) -> None:
        self.function({"step": step, **figures(scores)})


def as_callback(callback: Callback | Event) -> Callback:
    return callback if isinstance(callback, Callback) else FunctionCallback(callback)
