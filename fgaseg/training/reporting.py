"""Callbacks that report a run: a live bar or lines of the log for people, and <out>/log.jsonl for programs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..config import Config
from ..evaluation import Scores
from ..files import atomic_write
from .callbacks import Callback
from .processes import opening
from .validation import rows

log = logging.getLogger(__name__)


class ProgressReporter(Callback):
    """Shows loss, mIoU, speed and time left: in a live bar on a terminal, else in a line of the log every log_every
    steps."""

    def __init__(self, config: Config):
        self.out, self.recipe = config.train.out, config.train
        self.bar: Progress | None = None
        self.miou = ""

    def on_start(self, step: int, history: list[dict[str, Any]]) -> None:
        if step:
            log.info("resuming %s at step %d/%d", self.out, step, self.recipe.steps)
        self.start, self.began = step, time.monotonic()
        console = Console(stderr=True)
        if console.is_terminal:
            count = TextColumn("step {task.completed:.0f}/{task.total:.0f}")
            self.bar = Progress(count, BarColumn(12), TextColumn("{task.description}"), console=console)
            self.task = self.bar.add_task("", total=self.recipe.steps, completed=step)
            self.bar.start()

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=self._line(step, metrics))

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        if self.bar is None:
            log.info("step %d/%d  %s", step, self.recipe.steps, self._line(step, metrics))

    def _line(self, step: int, metrics: dict[str, float]) -> str:
        elapsed = time.monotonic() - self.began
        left = timedelta(seconds=round(elapsed / (step - self.start) * (self.recipe.steps - step)))
        return f"loss {metrics['loss']:.3f}  {self.miou}{metrics['images_per_second']:.1f} images/s  {left} left"

    def on_evaluation(self, step: int, scores: dict[str, Scores], seconds: float) -> None:
        self.miou = f"mIoU {'/'.join(f'{one.miou_gt:.3f}' for one in scores.values())}  "
        each = ", ".join(f"mIoU {one.miou_gt:.4f} on {name}" for name, one in scores.items())
        log.info("step %d/%d  %s", step, self.recipe.steps, each)

    def on_end(self) -> None:
        if self.bar is not None:
            self.bar.stop()


class LogFile(Callback):
    """Writes what is logged and scored to <out>/log.jsonl, and stops doing so, with a warning, on a full disk."""

    def __init__(self, out: Path):
        self.path = out / "log.jsonl"
        self.file: JsonLines | None = None

    def on_start(self, step: int, history: list[dict[str, Any]]) -> None:
        with opening(self.path.parent):
            self.file = JsonLines(self.path, step, [entry["step"] for entry in history])

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self._add(step, "train", metrics)

    def on_evaluation(self, step: int, scores: dict[str, Scores], seconds: float) -> None:
        for name, row in rows(scores, seconds).items():
            self._add(step, name, row)

    def _add(self, step: int, name: str, row: dict[str, Any]) -> None:
        if self.file is None:
            return
        try:
            self.file.add({"step": step, "set": name, **row})
        except OSError as error:
            log.warning("log.jsonl stops at step %d: %s", step, error)
            self.file = None


class JsonLines:
    """A file of JSON objects, one per line, each with its "step" and "set"; after a resume no step appears twice.

    step    the step that the run resumes from: later lines are dropped, and those of a "set" other than train
    scored  unless their step is among these

    A last line that is cut off, as a killed process may leave it, is dropped too. Raises OSError.
    """

    def __init__(self, path: Path, step: int, scored: Iterable[int]):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _belongs(line, step, set(scored))]
        if kept != lines:
            atomic_write(path, lambda file: file.write("".join(kept).encode()))

    def add(self, row: dict[str, Any]) -> None:
        """Append one line in one write; a full disk leaves no part of it (OSError). NaN becomes null."""
        line = (json.dumps({k: v if v == v else None for k, v in row.items()}, allow_nan=False) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) < len(line):
                    raise OSError(28, "No space left on device")
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def _belongs(line: str, step: int, scored: set[int]) -> bool:
    try:
        row = json.loads(line)
        at, name = row["step"], row["set"]
    except (ValueError, KeyError, TypeError):
        return False
    return line.endswith("\n") and at <= step and (name == "train" or at in scored)
