"""No call through torch.ops ends the process, or returns what its shape rule or the reference does not."""

import json
import subprocess
import sys

import numpy as np
import pytest
from accuracy import backends
from forked import faults
from paths import ROOT

from fgaseg.kernels.labels import host

PARTS = 3
EVERY = {"cpp": 1, "triton": 6, "cuda": 2}  # interpreted and emulated calls take long; by hand, all: hostile_calls.py


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("backend", backends("cpp", "triton", "cuda", slow=("triton", "cuda")))
def test_hostile_calls_are_errors(backend, part):
    command = [
        sys.executable,
        str(ROOT / "tests" / "hostile_calls.py"),
        backend,
        f"{part}/{PARTS}",
        str(EVERY[backend]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *found, count = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == []
    assert count > 100 / EVERY[backend]


@pytest.mark.skipif(host._host is None, reason=host.why_no_host)
def test_the_host_module_checks_its_arguments():
    runs = host._host.decode_runs
    assert runs(np.array([1, 2, 3]), 2, 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    counts = ([-1, 7], [7], [2**62, 2**62, 2**62, 2**62], [5], [], [6, -1, 1], [2**63 - 1, 2**63 - 1, 8])
    calls = [(np.array(one, np.int64), 2, 3) for one in counts]
    calls += [(np.zeros(0, np.int64), -1, 3), (np.array([6]), -2, -3), (np.zeros(1, np.int64), 2**32, 2**32)]
    calls += [(np.array([[6]]), 2, 3), (np.array(6), 2, 3), (np.array([1.5]), 2, 3)]

    def judge(number: int) -> str:
        try:
            return f"returned {runs(*calls[number]).shape}"
        except (ValueError, IndexError, TypeError):
            return ""

    assert dict(faults(len(calls), judge)) == {}
