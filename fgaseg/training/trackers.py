"""The callback that sends scalars to an experiment tracker (Weights & Biases, MLflow, ...), through accelerate's."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable
from typing import Any

from ..config import Config
from ..errors import TrainingError
from ..evaluation import Scores
from .callbacks import Callback
from .changes import dotted
from .validation import rows

log = logging.getLogger(__name__)


class Tracker(Callback):
    """Sends the configuration, what is logged and what is scored, and stops doing so, with a warning, where that fails.

    name  of the tracker, as accelerate has it; its package has the same name

    Where it sends to, and as whom, is the package's own business (WANDB_MODE, MLFLOW_TRACKING_URI, ...); so is
    whether a resumed training is the same run there (WANDB_RUN_ID with WANDB_RESUME). Raises TrainingError where the
    package is missing.
    """

    def __init__(self, name: str, config: Config):
        self.name, self.config = name, config
        self.tracker: Any = None
        if importlib.util.find_spec(name) is None:
            raise TrainingError(
                f"train.trackers: {name} is not installed: pip install {name}, or leave it out of train.trackers"
            )

    def on_start(self, step: int, history: list[dict[str, Any]]) -> None:
        from accelerate import tracking  # type: ignore[import-untyped]  # slow to import

        out = self.config.train.out
        options = {"wandb": {"name": out.resolve().name, "dir": str(out)}}.get(self.name, {})
        kind = tracking.LOGGER_TYPE_TO_CLASS.get(self.name)
        if kind is None:
            raise TrainingError(f"train.trackers: this version of accelerate does not know {self.name}: update it")
        try:
            folder = [str(out)] if kind.requires_logging_directory else []
            tracker = kind(self.config.train.project, *folder, **options)
            if hasattr(tracker, "start"):  # earlier versions of accelerate start at once
                tracker.start()
            tracker.store_init_configuration(_scalars(dotted(self.config.dump())))
        except Exception as error:  # each package has its own
            raise TrainingError(
                f"train.trackers: {self.name} cannot start: {_line(error)}; or leave it out of train.trackers"
            ) from error
        self.tracker = tracker

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self._send(step, "train", metrics)

    def on_evaluation(self, step: int, scores: dict[str, Scores], seconds: float) -> None:
        for name, row in rows(scores, seconds).items():
            self._send(step, name, row)

    def on_end(self) -> None:
        if self.tracker is not None:
            self._try("at the end", self.tracker.finish)

    def _send(self, step: int, of: str, row: dict[str, Any]) -> None:
        values = {f"{of}/{key}": value for key, value in row.items() if not math.isnan(value)}
        if self.tracker is not None:
            self._try(f"at step {step}", lambda: self.tracker.log(values, step=step))

    def _try(self, when: str, send: Callable[[], Any]) -> None:
        try:
            send()
        except Exception as error:  # a network that is gone is no reason to lose a training
            log.warning("%s stops %s: %s", self.name, when, _line(error))
            self.tracker = None


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, bool | int | float | str | None) else str(value)
            for key, value in values.items()}  # fmt: skip


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
