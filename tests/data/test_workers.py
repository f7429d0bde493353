"""Work on many files: results in the order of the tasks, whoever does them, and reading ahead."""

import os

import pytest
from torch.utils.data import DataLoader

from fgaseg.data.workers import read_ahead, run_tasks
from fgaseg.errors import DataError


def work(number, text):
    return number * 2, text, os.getpid()


def fail(message):
    raise RuntimeError(message)


def end():
    os._exit(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_as_they_are(workers):
    tasks = [(number, "x" * number) for number in range(5)]
    results = list(run_tasks(work, tasks, workers, "working", progress=False))
    assert [result[:2] for result in results] == [(number * 2, "x" * number) for number in range(5)]
    processes = {process for *_, process in results}
    assert processes == {os.getpid()} if workers == 0 else os.getpid() not in processes and len(processes) == 2
    assert list(run_tasks(work, [], workers, "working", progress=False)) == []


def test_one_task_starts_one_process(monkeypatch):
    counts = []

    def loader(*args, num_workers, **options):
        counts.append(num_workers)
        return DataLoader(*args, num_workers=0, **options)

    monkeypatch.setattr("fgaseg.data.workers.DataLoader", loader)
    for tasks in (1, 5):
        list(run_tasks(work, [(1, "a")] * tasks, 3, "working", progress=False))
    assert counts == [1, 3]


def test_a_worker_that_dies_is_told_and_other_errors_stay():
    with pytest.raises(DataError, match="working: a worker process died, perhaps out of memory .*run the same command"):
        list(run_tasks(end, [()], 1, "working", progress=False))
    with pytest.raises(RuntimeError, match="^something$"):
        list(run_tasks(fail, [("something",)], 0, "working", progress=False))


def test_so_many_are_read_ahead():
    begun = []
    reading = read_ahead(lambda number: begun.append(number) or number, range(20), 2)
    assert not begun and next(reading) == 0
    assert [next(reading), next(reading)] == [1, 2]
    reading.close()
    assert max(begun) <= 4 and len(set(begun)) == len(begun)
    assert list(read_ahead(lambda number: number + 1, range(7), 3)) == list(range(1, 8))
    failing = read_ahead(lambda number: 1 // number, [1, 0, 1], 2)
    assert next(failing) == 1
    with pytest.raises(ZeroDivisionError):
        next(failing)
