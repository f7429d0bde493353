"""How long a step takes on a GPU: time on the device with a cold second-level cache, and the host's time to launch it.

Nothing inside a timed interval waits for the device. Many calls are captured as one CUDA graph, and whole replays that
follow each other lie between two events; a step that cannot be captured is timed as a burst of ordinary calls, which
the host may hold up, and the result says so. Every call has its own copy of the inputs and its own results.
"""

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Step = Callable[[], Sequence[Tensor]]
MOST_COPIES = 256
LONG = 2.0  # milliseconds of the device that one graph should hold
BURST = 16  # ordinary calls without a pause
REPLAYS = 7


class Times(NamedTuple):
    """Per call: milliseconds of the device, microseconds of the host; how they were measured, and on how many copies.

    cache  "cold" if the copies are larger than the second-level cache, else "warm"
    """

    device_ms: float
    host_us: float
    method: str
    copies: int
    cache: str


def copies_for(nbytes: int, cache: int, free: int) -> int:
    """The copies of nbytes bytes between two uses of which twice the cache is touched, in a quarter of free memory."""
    wanted = 1 + math.ceil(2 * cache / max(nbytes, 1))
    return max(1, min(wanted, MOST_COPIES, free // 4 // max(nbytes, 1)))


def calls_for(copies: int, step_ms: float) -> int:
    """Calls of one graph: every copy at least once, and LONG milliseconds, but no more than MOST_COPIES."""
    return max(copies, min(MOST_COPIES, math.ceil(LONG / max(step_ms, 1e-6))))


def bound_by(device_ms: float, host_us: float, bytes_ms: float, flops_ms: float) -> str:
    """What limits an ordinary call: "launch" if the host needs as long as the device, else the larger of the floors.

    bytes_ms, flops_ms  the shortest time in which the machine moves the bytes and does the operations
    """
    if host_us / 1e3 > 0.9 * device_ms:  # the time of a burst that the host holds up is a little longer than the host's
        return "launch"
    return "bytes" if bytes_ms >= flops_ms else "arithmetic"


def copied(inputs: Sequence[Tensor]) -> list[Tensor]:
    """New leaves with the same values, strides and offsets; what shared memory before shares it again."""
    storages: dict[int, Any] = {}
    out = []
    for x in inputs:
        old = x.untyped_storage()
        if old.data_ptr() not in storages:
            storages[old.data_ptr()] = old.clone()
        new = torch.empty(0, dtype=x.dtype, device=x.device)
        new.set_(storages[old.data_ptr()], x.storage_offset(), x.shape, x.stride())
        out.append(new.requires_grad_(x.requires_grad))
    return out


def size_of(tensors: Sequence[Tensor]) -> int:
    """The bytes of their storages, each counted once."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def measured(make: Callable[[], Step], nbytes: int, cuda: Any = torch.cuda) -> Times:
    """The times of the steps that ``make`` returns, each on its own inputs; nbytes: of the inputs and results of one.

    The kernels must have been compiled, by one call of such a step.
    """
    cache = cuda.get_device_properties().L2_cache_size
    copies = copies_for(nbytes, cache, cuda.mem_get_info()[0])
    steps = [make() for _ in range(copies)]
    _burst(steps[:1], 2, cuda)  # warm-up
    rounds = [_burst(steps, BURST, cuda) for _ in range(3)]
    burst_ms, host_us = (statistics.median(column) for column in zip(*rounds, strict=True))
    why = _why_no_graph(steps[0], cuda)
    device_ms, method = burst_ms, f"burst: {why}"
    if not why:
        calls = calls_for(copies, burst_ms)
        try:
            device_ms, method = _graph(steps, calls, cuda), f"graph of {calls}"
        except RuntimeError as error:
            method = f"burst: no capture, {_first_line(error)}"
    cold = "cold" if copies * nbytes >= cache else "warm"
    return Times(device_ms, host_us, method, copies, cold)


def _burst(steps: list[Step], calls: int, cuda: Any) -> tuple[float, float]:
    """Ordinary calls, one behind the other: milliseconds of the device per call, and microseconds of the host.

    The host's are those of its shortest call, as it has to wait in later ones if the queue of launches is full.
    """
    begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
    kept: deque[Any] = deque(maxlen=len(steps))
    cuda.synchronize()
    begin.record()
    marks = [time.perf_counter()]
    for index in range(calls):
        kept.append(steps[index % len(steps)]())
        marks.append(time.perf_counter())
    end.record()
    cuda.synchronize()
    return begin.elapsed_time(end) / calls, 1e6 * min(b - a for a, b in itertools.pairwise(marks))


def _graph(steps: list[Step], calls: int, cuda: Any) -> float:
    """Milliseconds per call, from replays of which each begins while the one before it runs."""
    graph = cuda.CUDAGraph()
    kept: deque[Any] = deque(maxlen=len(steps))  # results that are alive do not share memory
    with cuda.graph(graph):
        for index in range(calls):
            kept.append(steps[index % len(steps)]())
    marks = [cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
    for mark in marks:
        graph.replay()
        mark.record()
    cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) / calls


def _why_no_graph(step: Step, cuda: Any) -> str:
    """Why the step cannot be captured: PyTorch's message about the place where it waits for the device; or ""."""
    before = cuda.get_sync_debug_mode()
    cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return _first_line(error)
    finally:
        cuda.set_sync_debug_mode(before)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:80]
