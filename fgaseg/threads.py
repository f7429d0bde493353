"""How many threads compute on a CPU: as many as there are cores that other programs leave free.

OpenMP's threads wait for one another after every operation, up to thousands of times a second. If another program uses
one of the cores, every operation takes as long as the thread that shares that core: two threads on two cores were 3
times as slow as before, and half as fast as one thread. What they do while they wait (OMP_WAIT_POLICY, GOMP_SPINCOUNT)
does not cure that; `benchmarks/streams.py` measures it.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator

from .notes import note_once

WINDOW_SECONDS = 0.5  # over which the load is averaged, at least: the counters advance by hundredths of a second
TOLERATED = 0.4  # of a core, used by others: below it, a thread more gains more than waiting for it costs
FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # variables with which a user chooses the number

_follower: _Follower | None = None


@contextlib.contextmanager
def follow_load() -> Iterator[None]:
    """Inside the block, `adjust_threads` leaves to other programs the cores that they use; see `why_fixed`."""
    global _follower
    if _follower is not None or why_fixed():
        yield
        return
    _follower = _Follower()
    try:
        yield
    finally:
        _follower.restore()
        _follower = None


@contextlib.contextmanager
def fixed_threads(number: int) -> Iterator[None]:
    """So many threads inside the block, whatever the load is."""
    global _follower
    import torch

    before, following = torch.get_num_threads(), _follower
    _follower = None
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _follower = following


def adjust_threads() -> None:
    """Between two pieces of work, such as photos: compute with the cores that are free, where `follow_load` says so."""
    if _follower is not None:
        _follower.adjust()


def why_fixed() -> str:
    """Why the number of threads does not follow the load, or ""."""
    if given := [name for name in FIXED_BY if os.environ.get(name)]:
        return f"{given[0]}={os.environ[given[0]]}"
    return "" if _seconds_used() else "this system does not say what its processors do (/proc/stat)"


class _Follower:
    def __init__(self) -> None:
        self.limit: int | None = None  # the number of threads before; reading it needs torch, which takes a second
        self.threads = 0
        self._lock = threading.Lock()
        self._before = self._now()

    def adjust(self) -> None:
        """Decide once in a while, and apply it in this thread: OpenMP keeps one number for every thread."""
        import torch

        if torch.are_deterministic_algorithms_enabled():  # sums depend on the number of threads
            return
        with self._lock:
            if self.limit is None:
                self.limit = self.threads = torch.get_num_threads()
            self._decide(self.limit)
            threads = self.threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def restore(self) -> None:
        import torch

        if self.limit is not None and torch.get_num_threads() != self.limit:
            torch.set_num_threads(self.limit)

    def _decide(self, limit: int) -> None:
        now = self._now()
        seconds, used, own = (now[i] - self._before[i] for i in range(3))
        if seconds < WINDOW_SECONDS or limit == 1:
            return
        self._before, cores = now, now[3]
        others = max(used - own, 0.0) / seconds
        self.threads = free_threads(limit, cores, others)
        if self.threads < limit:
            note_once(
                ("threads",),
                f"other programs use {others:.1f} of {cores} cores: {self.threads} of {limit} threads compute while "
                "they do, since a thread that shares its core holds up the others; OMP_NUM_THREADS fixes their number",
            )

    @staticmethod
    def _now() -> tuple[float, float, float, int]:
        """Seconds now, used by all programs, and by this one; and how many cores it may use."""
        used = _seconds_used()
        return time.monotonic(), sum(used), time.process_time(), len(used)


def free_threads(limit: int, cores: int, others: float) -> int:
    """How many of ``limit`` threads have a core to themselves on ``cores``, of which other programs use ``others``."""
    busy = max(math.ceil(others - TOLERATED), 0)
    return min(limit, max(cores - busy, 1))


def _seconds_used() -> list[float]:
    """For how many seconds programs have run on each core that this process may use; [] if that is not known."""
    try:
        allowed, tick = os.sched_getaffinity(0), os.sysconf("SC_CLK_TCK")
        with open("/proc/stat") as lines:
            rows = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
    except (OSError, AttributeError, ValueError):
        return []
    # user, nice, system, then idle and waiting for disks, then interrupts; what a hypervisor takes counts for nobody
    return [sum(map(int, (*row[1:4], *row[6:8]))) / tick for row in rows if int(row[0][3:]) in allowed]
