"""Notes that are told once: what was assumed about an input, and how to say otherwise."""

from __future__ import annotations

import logging
from collections.abc import Hashable

log = logging.getLogger(__name__)

_TOLD: set[Hashable] = set()


def note_once(kind: Hashable, message: str) -> None:
    """Log a message, unless one of the same kind was logged before: a thousand photos alike are one note."""
    if kind not in _TOLD:
        _TOLD.add(kind)
        log.warning(message)
