"""Progress of long work: a bar if stderr is a terminal, else a line in the log once a minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

T = TypeVar("T")

LOG_SECONDS = 60.0  # between two lines of the log

log = logging.getLogger(__name__)


def track(items: Iterable[T], title: str, total: int, *, done: int = 0, shown: bool = True) -> Iterator[T]:
    """Yield the items and show how many have been consumed.

    title  what is being done, such as "scoring"
    total  the number of all items, with those done before
    done   how many of `total` were finished before, by an earlier run
    shown  False: only yield the items
    """
    if not shown:
        yield from items
        return
    console = Console(stderr=True)
    last = time.monotonic()
    # what is printed meanwhile appears above the bar, unless it goes elsewhere: then it must not end up here
    above = sys.stdout is not None and sys.stdout.isatty()
    with Progress(console=console, transient=True, disable=not console.is_terminal, redirect_stdout=above) as bar:
        task = bar.add_task(escape(title), total=total, completed=done)
        for count, item in enumerate(items, done + 1):
            yield item
            bar.update(task, completed=count)
            if not console.is_terminal and time.monotonic() - last >= LOG_SECONDS:
                log.info("%s: %d of %d", title, count, total)
                last = time.monotonic()
