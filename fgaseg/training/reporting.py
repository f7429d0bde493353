"""What a training run tells: a line or a bar for people, <out>/log.jsonl and TensorBoard for later, a callback."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..config import Config
from ..files import atomic_write


def peak_memory_mb() -> float:
    """The most that this process has held: of its GPU if it uses one, else resident in main memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class JsonLog:
    """A file of JSON objects, one a line, each with its "step" and "set"; no line of a step twice after a resume.

    step    where the run goes on: lines after it are dropped, and those of a "set" other than train
    scored  unless their step is among these
    A last line without its end, which a killed process may leave, is dropped too. Raises OSError.
    """

    def __init__(self, path: Path, step: int, scored: Iterable[int]):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _belongs(line, step, set(scored))]
        if kept != lines:
            atomic_write(path, lambda file: file.write("".join(kept).encode()))

    def add(self, row: dict[str, Any]) -> None:
        """One write of one line at the end of the file; a full disk leaves no part of it (OSError)."""
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
        at, of = row["step"], row["set"]
    except (ValueError, KeyError, TypeError):
        return False
    return line.endswith("\n") and at <= step and (of == "train" or at in scored)


class Reporter:
    """Used by the main process only.

    start   the step at which the run goes on
    scored  the steps that were scored before
    """

    def __init__(
        self,
        config: Config,
        start: int,
        scored: Iterable[int],
        progress: bool,
        callback: Callable[[dict[str, Any]], None] | None,
    ):
        self.config, self.start, self.callback = config.train, start, callback
        self.console = Console(stderr=True, quiet=not progress)
        self.log: JsonLog | None = JsonLog(config.train.out / "log.jsonl", start, scored)
        self.bar: Progress | None = None
        if progress and self.console.is_terminal:
            count = TextColumn("step {task.completed:.0f}/{task.total:.0f}")
            self.bar = Progress(count, BarColumn(12), TextColumn("{task.description}"), console=self.console)
            self.bar.start()
            self.task = self.bar.add_task("", total=config.train.steps, completed=start)
        self.writer: Any = None
        if config.train.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.writer = SummaryWriter(str(config.train.out / "tensorboard"), purge_step=start + 1)
        self.began = time.monotonic()
        self.last, self.since = start, 0.0  # the step of the last line, and seconds in steps since then
        self.miou = ""

    def step(self, step: int, values: dict[str, float], seconds: float, log: bool) -> None:
        """After a step that took `seconds`; `values` are means since the last log."""
        self.since += seconds
        speed = (step - self.last) * self.config.batch / self.since
        elapsed = time.monotonic() - self.began
        left = timedelta(seconds=round(elapsed / (step - self.start) * (self.config.steps - step)))
        line = f"loss {values['loss']:.3f}  {self.miou}{speed:.1f} images/s  {left} left"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=line)
        if not log:
            return
        if self.bar is None:
            self.say(f"step {step}/{self.config.steps}  {line}")
        values = values | {"images_per_second": speed, "peak_memory_mb": peak_memory_mb()}
        self.last, self.since = step, 0.0
        self._write(step, {"train": values})
        self._tell({"step": step, **values})

    def scores(self, step: int, figures: dict[str, dict[str, Any]], images_per_second: float) -> None:
        """After an evaluation; figures of each validation set."""
        self.miou = f"mIoU {'/'.join('{miou_gt:.3f}'.format(**row) for row in figures.values())}  "
        named = [f"mIoU {row['miou_gt']:.4f} on {name}" for name, row in figures.items()]
        self.say(f"step {step}/{self.config.steps}  {', '.join(named)}")
        rate = {"images_per_second": images_per_second, "peak_memory_mb": peak_memory_mb()}
        self._write(step, {name: row | rate for name, row in figures.items()})
        self._tell({"step": step, **figures})

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """To TensorBoard."""
        if self.writer is not None:
            with self._stopping_on_full_disk(step):
                self.writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _write(self, step: int, sets: dict[str, dict[str, Any]]) -> None:
        if self.writer is not None:
            with self._stopping_on_full_disk(step):
                for of, row in sets.items():
                    for name, scalar in row.items():
                        self.writer.add_scalar(f"{of}/{name}", scalar, step)
        try:
            for of, row in sets.items() if self.log else ():
                assert self.log is not None
                self.log.add({"step": step, "set": of, **row})
        except OSError as error:
            self.say(f"log.jsonl stops at step {step}: {error}")
            self.log = None

    @contextlib.contextmanager
    def _stopping_on_full_disk(self, step: int) -> Any:
        try:
            yield
        except OSError as error:  # the next checkpoint has more to say about it
            self.say(f"TensorBoard stops at step {step}: {error}")
            self.writer = None

    def _tell(self, event: dict[str, Any]) -> None:
        if self.callback is not None:
            self.callback(event)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        if self.writer is not None:
            with contextlib.suppress(OSError):  # would hide the error that ended the run
                self.writer.close()
