"""What a training process sets up and leaves behind, alone and among others."""

import atexit
import gc
import os
import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from runs import configure

from fgaseg.errors import CheckpointError, TrainingError
from fgaseg.training import Signals, processes, signals
from fgaseg.training.processes import check_batch, join_processes, write_on_main

CPU = torch.device("cpu")


@pytest.fixture
def joined(monkeypatch):
    """Stands in for accelerate: the device that it chooses; what it is given; and what is left for the end."""
    found = SimpleNamespace(device=CPU, given=[], at_exit=[])

    def state(**given):
        found.given.append(given)
        return found

    monkeypatch.setattr("accelerate.PartialState", state)
    monkeypatch.setattr(atexit, "register", found.at_exit.append)
    monkeypatch.setattr(atexit, "unregister", lambda one: found.at_exit.remove(one) if found.at_exit else None)
    return found


def test_a_process_waits_ten_minutes_for_the_others_and_leaves_them_at_the_end(joined, monkeypatch):
    assert join_processes() == CPU and joined.given == [{"timeout": timedelta(minutes=10)}]
    assert not joined.at_exit  # alone
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    join_processes()
    join_processes()
    (leave,) = joined.at_exit
    leave()  # without a group there is nothing to leave
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    collected = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(dist.is_initialized()))
    leave()
    assert not dist.is_initialized() and collected == [False]  # models that hold the group, once it is closed


def test_on_a_gpu_products_are_tf32(joined, monkeypatch):
    monkeypatch.setattr(torch.backends, "cuda", SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False)))
    join_processes()
    assert not torch.backends.cuda.matmul.allow_tf32
    joined.device = torch.device("cuda")
    assert join_processes().type == "cuda" and torch.backends.cuda.matmul.allow_tf32


def test_a_batch_is_shared_evenly_and_else_what_to_give_is_said(data, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    for parts, batch in ((1, 2), (1, 6), (3, 6), (3, 12)):
        check_batch(configure(data, tmp_path, [f"train.batch={batch}", f"train.accumulate={parts}"]).train)
    for parts, batch, words in (
        (1, 3, "by 2 processes: give a multiple of 2"),
        (2, 6, "by 2 processes of 2 micro-batches (train.accumulate): give a multiple of 4"),
    ):
        with pytest.raises(TrainingError) as caught:
            check_batch(configure(data, tmp_path, [f"train.batch={batch}", f"train.accumulate={parts}"]).train)
        assert str(caught.value) == f"train.batch={batch} cannot be shared evenly {words}"


def test_the_first_process_writes_and_the_others_hear_of_an_error(monkeypatch):
    written = []
    write_on_main(lambda: written.append(1), CPU)
    assert written == [1]

    def full():
        raise CheckpointError("full")

    with pytest.raises(CheckpointError, match="^full$"):
        write_on_main(full, CPU)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    write_on_main(full, CPU)
    monkeypatch.setattr(processes, "any_process", lambda failed, _: not failed)
    with pytest.raises(CheckpointError, match="rank 0 could not write its files; its message says why"):
        write_on_main(full, CPU)


NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


@pytest.fixture
def handlers():
    """Handlers that count, in place of those of the test's process."""
    seen, before = [], {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:
        signal.signal(number, lambda number, frame: seen.append(number))
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_alone_a_second_signal_acts_as_usual(handlers):
    before = [signal.getsignal(number) for number in NUMBERS]
    with Signals() as noted:
        assert noted.number == 0 and signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)
        assert noted.number == signal.SIGTERM and handlers == []
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # workers may have got the signal too
        signal.raise_signal(signal.SIGINT)
        assert handlers == [signal.SIGINT] and noted.number == signal.SIGTERM
    assert before == [signal.getsignal(number) for number in NUMBERS]


def test_among_several_processes_every_signal_is_only_noted(handlers, monkeypatch):
    monkeypatch.setattr(signals, "world_size", lambda: 2)
    with Signals() as noted:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert noted.number == signal.SIGINT and handlers == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert handlers == [signal.SIGTERM]
