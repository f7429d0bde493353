"""SIGINT and SIGTERM noted, to be acted on at a point where nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from ..distributed import world_size
from ..errors import ProcessLostError


class Signals:
    """A context in which the first SIGINT or SIGTERM is only noted: its number in `number`, which is 0 before.

    In a single process a second one acts as usual. torchrun passes on a Ctrl-C that the terminal has already sent to
    all processes, so among several of them repeats carry no meaning (torchrun itself kills those that take longer than
    30 s).
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
            # The data loader's own handler raises a worker's death anywhere, even in the middle of an optimizer step;
            # without it the loader notices when it next waits for that worker.
            self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if world_size() == 1:
            self._restore(signal.SIGINT, signal.SIGTERM)  # not SIGCHLD: workers may have got the signal too

    def _restore(self, *numbers: int) -> None:
        for number in self._previous.keys() & numbers:
            signal.signal(number, self._previous[number])

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is ProcessLostError:  # torchrun sends SIGTERM next, which must not come before the message
            self._previous.pop(signal.SIGTERM, None)
        self._restore(*self._previous)
