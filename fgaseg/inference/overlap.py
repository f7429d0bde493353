"""Reading and writing in threads of their own, while the model is at work; little is held at any time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """The items, the next `count` of which another thread gets meanwhile. Raises what getting them raises."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[Any]] = deque(thread.submit(next, iterator, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, iterator, end))
            yield item


class Behind:
    """Calls that another thread makes one after the other; at most `count` of them wait."""

    def __init__(self, count: int) -> None:
        self._thread, self._count = ThreadPoolExecutor(1), count
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Raises what an earlier call raised."""
        while len(self._waiting) >= self._count:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(call, *arguments))

    def finish(self) -> None:
        """Wait for all calls; no more are taken. Raises what the first that failed raised."""
        self._thread.shutdown()
        while self._waiting:
            self._waiting.popleft().result()
