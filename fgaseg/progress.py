"""Progress of long work: a bar if stderr is a terminal, else a line in the log once a minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from .visible import visible

T = TypeVar("T")

LOG_SECONDS = 60.0  # between two lines of the log

log = logging.getLogger(__name__)


class _Speed(ProgressColumn):
    """How many items a second, lately."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(_speed(task.speed, self.unit) if task.speed else "", style="progress.data.speed")


def track(
    items: Iterable[T], title: str, total: int | None, *, done: int = 0, unit: str = "", shown: bool = True
) -> Iterator[T]:
    """Yield the items and show how many have been consumed, how many a second, and the time left.

    title  what is being done, such as "scoring"
    total  the number of all items, with those done before; None: not known
    done   how many of `total` were finished before, by an earlier run; speed and time left do not count them
    unit   what the items are, in the plural, such as "photos"
    shown  False: only yield the items
    """
    if not shown:
        yield from items
        return
    console = Console(stderr=True)
    start = last = time.monotonic()
    # what is printed meanwhile appears above the bar, unless it goes elsewhere: then it must not end up here
    above = sys.stdout is not None and sys.stdout.isatty()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Speed(unit),
               TimeRemainingColumn())  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=above
    ) as bar:
        task = bar.add_task(visible(title), total=total, completed=done)
        for count, item in enumerate(items, done + 1):
            yield item
            bar.update(task, completed=count)
            now = time.monotonic()
            if not console.is_terminal and now - last >= LOG_SECONDS:
                last = now
                of = "" if total is None else f" of {total}"
                left = None if total is None else max(total - count, 0)
                log.info("%s: %d%s%s", title, count, of, _pace(count - done, left, now - start, unit))


def _speed(per_second: float, unit: str) -> str:
    """Slow work in items a minute: 0.0 a second says nothing."""
    amount, time_unit = (per_second, "s") if per_second >= 0.1 else (60 * per_second, "min")
    return f"{amount:.3g} {unit}/{time_unit}" if unit else f"{amount:.3g}/{time_unit}"


def _pace(count: int, left: int | None, seconds: float, unit: str) -> str:
    """Speed so far and, if it is known how many are left, the time they take at that speed, for a line of the log."""
    if not seconds:
        return ""
    rest = "" if left is None else f", {timedelta(seconds=round(left * seconds / count))} left"
    return f", {_speed(count / seconds, unit)}{rest}"
