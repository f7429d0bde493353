"""The number of threads that compute: cores that other programs use are left to them, and taken back afterwards."""

import types

import pytest
import tiny
import torch

from fgaseg import threads
from fgaseg.cli import entry, main
from fgaseg.threads import FIXED_BY, adjust_threads, fixed_threads, follow_load, free_threads, why_fixed


class Load:
    """Stands in for the clock and the counters: every second, other programs use ``others`` of ``cores`` cores."""

    def __init__(self, cores: int = 4) -> None:
        self.cores, self.others, self.seconds, self.used, self.own = cores, 0.0, 0.0, 0.0, 0.0

    def passes(self, seconds: float, own: float = 1.0) -> None:
        self.seconds += seconds
        self.own += own * seconds
        self.used += (own + self.others) * seconds


@pytest.fixture
def load(monkeypatch):
    load, before = Load(), torch.get_num_threads()
    for name in FIXED_BY:
        monkeypatch.delenv(name, raising=False)
    clock = types.SimpleNamespace(monotonic=lambda: load.seconds, process_time=lambda: load.own)
    monkeypatch.setattr(threads, "time", clock)
    monkeypatch.setattr(threads, "_seconds_used", lambda: [load.used / load.cores] * load.cores)
    torch.set_num_threads(4)
    yield load
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("limit", "cores", "others", "free"),
    [(2, 2, 0.0, 2), (2, 2, 0.39, 2), (2, 2, 0.7, 1), (2, 2, 2.0, 1), (8, 8, 1.3, 7), (8, 8, 1.5, 6), (8, 16, 5.0, 8),
     (1, 2, 1.0, 1), (4, 2, 0.0, 2)],
)  # fmt: skip
def test_free_threads(limit, cores, others, free):
    """Half-used cores count; cores without a thread of ours do not matter; one thread always computes."""
    assert free_threads(limit, cores, others) == free


def test_threads_follow_the_load(load, caplog):
    with follow_load():
        load.passes(1, own=4)
        adjust_threads()
        assert torch.get_num_threads() == 4  # what this process uses is no load
        load.others = 1.9
        load.passes(0.4)
        adjust_threads()
        assert torch.get_num_threads() == 4  # too short to say
        load.passes(0.2)
        adjust_threads()
        assert torch.get_num_threads() == 2
        load.others = 0.1
        load.passes(1)
        adjust_threads()
        assert torch.get_num_threads() == 4
        load.others = 9
        load.passes(1)
        adjust_threads()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    assert caplog.messages in ([], ["other programs use 1.9 of 4 cores: 2 of 4 threads compute while they do, since a "
                                    "thread that shares its core holds up the others; OMP_NUM_THREADS fixes their "
                                    "number"])  # fmt: skip  # told once in all tests


def test_work_begins_with_the_free_cores(load):
    model, pixels = tiny.tiny_model().eval(), torch.randn(1, 3, 32, 32)
    vocabulary = model.encode(["cat", "sofa"])
    for work in (lambda: model(pixels, vocabulary), lambda: list(model.stream(pixels, vocabulary)),
                 lambda: model.embed_prompts(["sky"])):  # fmt: skip
        with follow_load():
            load.others = 3
            load.passes(1)
            work()
            assert torch.get_num_threads() == 1
        load.others = 0


def test_commands_follow_the_load_and_leave_the_number_as_it_was(load, monkeypatch):
    def run(options):
        load.others = 2
        load.passes(1)
        adjust_threads()
        assert torch.get_num_threads() == 2

    monkeypatch.setattr(entry.COMMANDS["info"], "run", run)
    assert main(["info"]) == 0
    assert torch.get_num_threads() == 4


def test_nothing_changes_where_the_number_is_chosen(load, monkeypatch):
    load.others = 3
    for name in FIXED_BY:
        with monkeypatch.context() as given:
            given.setenv(name, "4")
            assert why_fixed() == f"{name}=4"
            with follow_load():
                load.passes(1)
                adjust_threads()
                assert torch.get_num_threads() == 4
    with follow_load():
        with fixed_threads(3):
            load.passes(1)
            adjust_threads()
            assert torch.get_num_threads() == 3
        torch.use_deterministic_algorithms(True)
        try:
            adjust_threads()
        finally:
            torch.use_deterministic_algorithms(False)
        assert torch.get_num_threads() == 4
        adjust_threads()
        assert torch.get_num_threads() == 1
    load.passes(1)
    adjust_threads()  # outside
    assert torch.get_num_threads() == 4


def test_a_system_that_does_not_tell_its_load(monkeypatch):
    for name in FIXED_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_seconds_used", lambda: [])
    assert "/proc/stat" in why_fixed()
    with follow_load():
        assert threads._follower is None


def test_seconds_are_those_of_the_cores_that_may_be_used(monkeypatch):
    used = threads._seconds_used()
    assert len(used) == len(threads.os.sched_getaffinity(0)) and all(seconds > 0 for seconds in used)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0})
    assert len(threads._seconds_used()) == 1
