"""pytest benchmarks/ --csv FILE: one row per op, shape, pass and provider, with the machine named.

pytest-benchmark does the timing; a provider whose numbers disagree with the reference fails instead of getting a time.
On a machine that does other work too, measure one thread's processor time: OMP_NUM_THREADS=1 and
--benchmark-timer=time.process_time.
"""

import csv
import os
from pathlib import Path

import pytest
import torch

from fgaseg.info import processor

ROWS: list[dict[str, object]] = []


def pytest_addoption(parser):
    parser.addoption("--csv", type=Path, help="write the measurements to this file")


@pytest.fixture
def measure(benchmark):
    """measure(op, shape, provider, inputs, run, expect): times run(*inputs); with gradients if an input wants them."""

    def timed(op, shape, provider, inputs, run, expect):
        leaves = [x for x in inputs if x.requires_grad]
        grad = torch.randn_like(expect(*inputs)) if leaves else None

        def step(function=run):
            y = function(*inputs)
            if not leaves:
                return [y]
            return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

        for got, expected in zip(step(), step(expect), strict=True):
            tolerance = 1e-4 * expected.abs().max().item() if expected.is_floating_point() else 0
            torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
        benchmark.group = f"{op} {shape} {'forward+backward' if leaves else 'forward'}"
        benchmark(step)
        times = sorted(benchmark.stats.stats.data)
        row = {
            "op": op,
            "shape": shape,
            "dtype": str(inputs[0].dtype).removeprefix("torch."),
            "pass": "forward+backward" if leaves else "forward",
            "provider": provider,
            **{f"ms_p{p}": round(1e3 * times[len(times) * p // 100], 3) for p in (0, 20, 50, 80)},
            "rounds": len(times),
            "clock": "process" if "process_time" in str(benchmark._timer) else "wall",
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        ROWS.append(row)

    return timed


def pytest_sessionfinish(session):
    target = session.config.getoption("--csv")
    if target and ROWS:
        partial = target.with_suffix(".tmp")
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
        partial.replace(target)
