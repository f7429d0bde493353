"""Applying a function to many files in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..progress import track


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
