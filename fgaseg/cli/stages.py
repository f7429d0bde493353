"""Many photos through three stages that overlap: read, label, write. A bad one costs only itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import ImageError
from .printing import say

READ_AHEAD = 4  # photos that threads decode while one is labelled
WRITE_BEHIND = 2  # photos that threads write meanwhile
LARGE = 30_000_000  # pixels of a photo whose result is written before the next is labelled: 12 bytes a pixel
LISTED = 5  # photos that the summary names

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why a photo has no result: one line that names it."""

    reason: str


def run_stages(
    items: Sequence[T],
    name_of: Callable[[T], str],
    read: Callable[[T], Any],
    label: Callable[[T, Any], Any],
    write: Callable[[T, Any], Any],
    pixels: Callable[[Any], int] = lambda _: 0,
) -> Generator[tuple[T, Any], None, None]:
    """Yield every item, in order, with what its last stage returned, or a Failure.

    read, write  called in threads
    label        called with what ``read`` returned, in this thread; ``write`` with what it returned
    pixels       of what ``read`` returned: large photos wait for one another, since memory holds a few results

    An ImageError, and memory that does not suffice, are the failure of one item; any other exception ends it all. So
    does closing the generator; what is being written then is finished.
    """
    reading, labelling, writing = _of_one(name_of, read), _of_one(name_of, label), _of_one(name_of, write)
    pending: deque[tuple[T, Future[Any]]] = deque()
    with closing(_ahead(reading, items)) as images, ThreadPoolExecutor(WRITE_BEHIND) as writers:
        for item, image in zip(items, images, strict=True):
            pending.append((item, writers.submit(writing, item, labelling(item, image))))
            behind = WRITE_BEHIND if isinstance(image, Failure) or pixels(image) <= LARGE else 0
            while pending and (len(pending) > behind or pending[0][1].done()):
                done, result = pending.popleft()
                yield done, result.result()
        for done, result in pending:
            yield done, result.result()


def _ahead(read: Callable[[T], Any], items: Sequence[T]) -> Any:
    from ..data import read_ahead

    return read_ahead(read, items, READ_AHEAD)


def _of_one(name_of: Callable[[T], str], stage: Callable[..., Any]) -> Callable[..., Any]:
    """The stage with the errors of one photo as its result; an earlier stage's failure is passed on."""
    import torch

    def call(item: T, *before: Any) -> Any:
        if before and isinstance(before[0], Failure):
            return before[0]
        try:
            return stage(item, *before)
        except (torch.OutOfMemoryError, MemoryError):
            return Failure(f"{name_of(item)}: there is not enough memory for it: make it smaller")
        except ImageError as error:
            return Failure(str(error))

    return call


def report(failed: Mapping[str, str], count: int) -> int:
    """The exit status; of several photos, how many were not labelled is printed on stderr.

    failed  the reason by the photo's name

    Raises ImageError if the only photo failed.
    """
    if not failed:
        return 0
    if count == 1:
        raise ImageError(next(iter(failed.values())))
    listed = ", ".join(list(failed)[:LISTED]) + (", ..." if len(failed) > LISTED else "")
    say(f"fgaseg segment: {len(failed)} of {count} photos were not labelled: {listed}", error=True)
    return 1
