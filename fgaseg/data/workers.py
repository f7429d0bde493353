"""Applying a function to many files, in worker processes or in threads that read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..progress import track

T = TypeVar("T")
R = TypeVar("R")


class _Results(Dataset[Any]):
    """Item i is the result of the function for the i-th task."""

    def __init__(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> None:
        self.function, self.tasks = function, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Any:
        return self.function(*self.tasks[index])


def _unchanged(result: Any) -> Any:
    return result  # in place of DataLoader's collation, which would make tensors of numbers


def run_tasks(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], workers: int, title: str, progress: bool
) -> Iterator[Any]:
    """Yield function(*task) for every task, in order.

    workers   processes; 0: run in this one. A DataLoader's processes also end when this process is killed
    title     of the progress bar, which is shown if ``progress``

    Raises DataError if a worker process dies.
    """
    results: Any = DataLoader(
        _Results(function, tasks), batch_size=None, num_workers=min(workers, len(tasks)), collate_fn=_unchanged
    )
    try:
        yield from track(results, title, len(tasks), shown=progress)
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise DataError(
            f"{title}: a worker process died, perhaps out of memory ({error}): run the same command again with fewer "
            "workers"
        ) from error


def read_ahead(read: Callable[[T], R], items: Iterable[T], ahead: int) -> Generator[R, None, None]:
    """Yield read(item) for every item, in order; threads read up to ``ahead`` of them before they are asked for.

    What ``read`` raises is raised in its turn. Closing the generator drops what has not begun.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(ahead)
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
