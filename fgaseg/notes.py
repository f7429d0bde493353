"""Notes that are told once: what was assumed about an input, and how to say otherwise."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger(__name__)

_LOCK = threading.Lock()
_TOLD: set[Hashable] = set()
_TOLD_HERE: ContextVar[set[Hashable] | None] = ContextVar("_TOLD_HERE", default=None)


def note_once(kind: Hashable, message: str) -> None:
    """Log a message, unless one of the same kind was logged before: a thousand photos alike are one note."""
    here = _TOLD_HERE.get()
    told = _TOLD if here is None else here
    with _LOCK:  # photos are read by several threads
        new = kind not in told
        told.add(kind)
    if new:
        log.warning(message)


@contextmanager
def told_anew() -> Iterator[list[str]]:
    """A list of all that is logged inside the block by this thread, notes among them that were told before.

    For programs that serve several people, each of whom is to be told what was assumed of their own input.
    """
    token, collected = _TOLD_HERE.set(set()), _Collector()
    logger = logging.getLogger(__package__)
    logger.addHandler(collected)
    try:
        yield collected.messages
    finally:
        logger.removeHandler(collected)
        _TOLD_HERE.reset(token)


class _Collector(logging.Handler):
    """Messages of the thread that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.messages.append(record.getMessage())
