"""The benchmarks can run, measure what they say, and compare with baselines that compute the same.

Measuring is left to `fgaseg bench` and benchmarks/gpu.sh.
"""

import contextlib
import csv
import importlib
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import device_time
import pytest
import torch
from accuracy import needs, random
from paths import ROOT

from fgaseg import kernels
from fgaseg.kernels import _dispatch
from fgaseg.kernels.aot import packages_with_triton

COLLECT = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]


def test_every_benchmark_is_collected():
    done = subprocess.run([*COLLECT, "benchmarks"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    ops = ("class_attention", "cosine_cost_volume", "kernel_softmax", "lcs_conv", "topk_classes", "upsample_argmax")
    assert all(f"::test_{op}[" in done.stdout for op in ops)


class FakeCuda:
    """A device that works behind the host: both have a clock; waiting for the device costs the host a wake-up.

    Its queue holds eight launches; before the next the host has to wait.
    """

    def __init__(self, host: float, device: float, waits: bool = False, refuses: bool = False) -> None:
        self.host, self.device, self.waits, self.refuses = host, device, waits, refuses
        self.now = self.done = 0.0
        self.mode: Any = "default"
        self.captured: list[float] | None = None

    def run(self) -> list[torch.Tensor]:
        """One step: a launch, and where asked for a wait."""
        if self.waits and self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nmore")
        if self.captured is not None:
            self.now += self.host
            self.captured.append(self.device)
            return []
        self.now = max(self.now, self.done - 8 * self.device) + self.host
        self.done = max(self.done, self.now) + self.device
        if self.waits:
            self.synchronize()
        return []

    def synchronize(self) -> None:
        self.now = max(self.now, self.done) + 15e-6

    def Event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", max(self.done, self.now))
        event.elapsed_time = lambda later: 1e3 * (later.at - event.at)
        return event

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(nodes=[])

        def replay() -> None:
            self.now += 10e-6
            self.done = max(self.done, self.now) + sum(graph.nodes)

        graph.replay = replay
        return graph

    @contextlib.contextmanager
    def graph(self, graph: Any):
        self.captured = graph.nodes
        try:
            yield
        finally:
            self.captured = None
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")

    def get_device_properties(self) -> Any:
        return SimpleNamespace(L2_cache_size=60 << 20)

    def mem_get_info(self) -> tuple[int, int]:
        return 100 << 30, 140 << 30

    def get_sync_debug_mode(self) -> Any:
        return self.mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.mode = mode


def timed(monkeypatch, nbytes: int, **device: Any) -> tuple[device_time.Times, int]:
    """The times of steps on a fake device, and how many steps were made."""
    cuda, made = FakeCuda(**device), []
    monkeypatch.setattr(device_time, "time", SimpleNamespace(perf_counter=lambda: cuda.now))

    def make():
        made.append(1)
        return cuda.run

    times = device_time.measured(make, nbytes, cuda)
    assert cuda.mode == "default"
    return times, len(made)


@pytest.mark.parametrize("host, device", [(50e-6, 5e-6), (5e-6, 50e-6), (200e-6, 3e-3)])
def test_device_time_has_neither_launches_nor_waits_in_it(monkeypatch, host, device):
    times, made = timed(monkeypatch, 1 << 20, host=host, device=device)
    assert times.device_ms == pytest.approx(1e3 * device, rel=1e-6) and times.method.startswith("graph")
    assert times.host_us == pytest.approx(1e6 * host, rel=1e-6)
    assert made == times.copies == 121 and times.cache == "cold"
    expected = "launch" if host > device else "bytes"
    assert device_time.bound_by(times.device_ms, times.host_us, 1.0, 0.5) == expected


@pytest.mark.parametrize("trouble, words", [({"waits": True}, "synchronizing"), ({"refuses": True}, "no capture")])
def test_a_step_that_cannot_be_captured_is_timed_as_a_burst_and_says_so(monkeypatch, trouble, words):
    times, _ = timed(monkeypatch, 1 << 20, host=50e-6, device=5e-6, **trouble)
    assert times.method.startswith("burst: ") and words in times.method
    assert times.device_ms >= 0.05  # the host holds the device up
    assert device_time.bound_by(times.device_ms, times.host_us, 1.0, 2.0) == "launch"


@pytest.mark.parametrize(
    "nbytes, free, copies", [(1 << 30, 100 << 30, 2), (60, 100 << 30, 256), (1 << 20, 40 << 20, 10), (1 << 30, 1, 1)]
)
def test_copies(nbytes, free, copies):
    assert device_time.copies_for(nbytes, 60 << 20, free) == copies


def test_calls():
    assert device_time.calls_for(5, 0.01) == 200 and device_time.calls_for(5, 100.0) == 5
    assert device_time.calls_for(5, 1e-9) == device_time.MOST_COPIES
    assert device_time.bound_by(1.0, 10.0, 0.1, 0.2) == "arithmetic"


def test_copies_lie_as_their_inputs_do():
    """Slices of one tensor stay slices of one tensor: strides and offsets choose what Triton compiles."""
    packed = torch.randn(2, 3, 12)
    q, k = (part.requires_grad_() for part in packed.split(6, -1))
    copies = device_time.copied([q, k])
    for old, new in zip((q, k), copies, strict=True):
        assert torch.equal(old, new) and new.stride() == old.stride() and new.requires_grad and new.is_leaf
        assert new.storage_offset() == old.storage_offset() and new.data_ptr() != old.data_ptr()
    assert copies[0].untyped_storage().data_ptr() == copies[1].untyped_storage().data_ptr()
    assert device_time.size_of([q, k, copies[0]]) == 2 * packed.untyped_storage().nbytes()


def test_rows_are_written_as_they_come_and_say_what_failed(tmp_path):
    """Two providers, of which one is broken off: the table has both, in the order of --shapes."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import pytest, torch\n"
        "@pytest.mark.parametrize('shape', ['b', 'a', 'c'])\n"
        "@pytest.mark.parametrize('provider', ['torch.compile', 'fails', 'wrong', 'good'])\n"
        "def test_op(measure, shape, provider):\n"
        "    def run(x):\n"
        "        if provider == 'fails': raise RuntimeError('no such kernel\\nmore')\n"
        "        return x * (3 if provider == 'wrong' else 2)\n"
        "    measure('op', shape, provider, run, lambda x: x * 2, [torch.ones(2, 3)], False, 1.0, 1.0)\n"
    )
    command = [sys.executable, "-m", "pytest", str(script), "-q", "-p", "no:cacheprovider", "-p", "conftest"]
    command += ["-c", os.devnull, "--rootdir", str(tmp_path), "-o", "python_files=*.py", "--shapes", "a,b"]
    command += ["--csv", str(tmp_path / "rows.csv"), "--benchmark-max-time=0.001", "--benchmark-min-rounds=1"]
    path = os.pathsep.join(map(str, (ROOT / "benchmarks", ROOT, ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "FGASEG_DRY_RUN": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)  # under it, pytest-benchmark measures nothing
    subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["shape"] for row in rows] == ["a"] * 3 + ["b"] * 3 + ["a", "b"]
    assert [row["provider"] for row in rows] == ["fails", "wrong", "good"] * 2 + ["torch.compile"] * 2
    failed, wrong, good = rows[:3]
    assert failed["disagreement"] == "RuntimeError: no such kernel" and not failed["ms_p50"]
    assert "error" in wrong["disagreement"] and not wrong["ms_p50"]
    assert not good["disagreement"] and float(good["ms_p50"]) > 0


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("provider", ["loop of conv2d", "grouped conv2d", "torch.compile"])
def test_baselines_of_lcs_conv(provider):
    inputs = [random(3, 4, 5, 6), random(3, 7, 4 * 9), random(3, 7)]
    close(importlib.import_module("lcs_conv").form(provider, 3)(*inputs), kernels.lcs_conv(*inputs, 3))


@pytest.mark.parametrize("provider", ["linear, then lcs_conv", "linear, then loop of conv2d", "torch.compile"])
def test_baselines_of_lcs_conv_from_text(provider):
    inputs = [random(2, 5, 4), random(4 * 9 + 1, 4), random(4 * 9 + 1), random(2, 4, 5, 6)]
    expected = kernels.lcs_conv_from_text(*inputs, 3, backend="reference")
    close(importlib.import_module("lcs_conv_from_text").form(provider, 3)(*inputs), expected)


@pytest.mark.parametrize("height, width, shift", [(24, 24, 0), (24, 24, 6), (13, 12, 6), (20, 30, 0)])
@pytest.mark.parametrize("provider", ["torch.compile", "FlexAttention"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_baselines_of_window_attention(height, width, shift, provider):
    script = importlib.import_module("window_attention")
    maps, guidance = (1, 2, height, width, 128), (1, height, width, 128)
    inputs = [random(*size, seed=i).float() for i, size in enumerate([maps] * 3 + [guidance] * 2)]
    expected = script.form("reference", shift)(*inputs)
    close(script.form(provider, shift)(*inputs), expected)


def test_baselines_of_class_attention():
    script = importlib.import_module("class_attention")
    inputs = [random(1, 5, script.PIXELS, 128, seed=i) for i in range(3)]
    inputs += [random(1, 5, 128, seed=i) for i in (3, 4)]
    close(script.form("einsum")(*inputs), script.form("reference")(*inputs))


@pytest.mark.parametrize("provider", ["torch.topk", "argsort"])
def test_baselines_of_topk_classes(provider):
    scores = random(3, 20, 5, 6)
    assert torch.equal(
        importlib.import_module("topk_classes").rows(provider, 4)(scores), kernels.topk_classes(scores, 4).rows
    )


@pytest.mark.parametrize("provider", ["chunked", "full size"])
def test_baselines_of_upsample_argmax(provider, monkeypatch):
    script = importlib.import_module("upsample_argmax")
    monkeypatch.setattr(script, "SCORES", 3 * script.SIZE[0] * script.SIZE[1])
    maps = random(1, 7, 9, 8)
    close(script.form(provider)(maps), kernels.upsample_argmax(maps, script.SIZE, backend="reference")[1])


def test_small_calls_have_every_op_and_only_backends_that_exist(monkeypatch):
    """Every folder with a Triton kernel is called; a CUDA backend is asked for where it is registered, else not."""
    script, shapes = (importlib.import_module(name) for name in ("small_calls", "shapes"))
    monkeypatch.setattr(shapes, "GPU", True)
    called = script.calls(script.SMALL)
    assert {folder for folder, *_ in called.values()} == set(packages_with_triton())
    for op, registered in _dispatch.OPS.items():
        folder = next((f for f, *_ in called.values() if op.startswith(f)), None)
        if folder and "cuda" in {b.name for b in registered}:
            exists = (ROOT / "csrc" / folder / "cuda.cpp").exists()
            assert ("cuda" in shapes.backends(folder)) == exists


@needs["cuda"]
def test_small_calls_find_errors(monkeypatch, capsys):
    """In the emulator: the ops are right, and a wrong gradient is found."""
    script, shapes = (importlib.import_module(name) for name in ("small_calls", "shapes"))
    monkeypatch.setattr(shapes, "GPU", True)
    monkeypatch.setattr(sys, "argv", ["small_calls.py", "--check", "--backend", "cuda", "--dtype", "float32"])
    assert script.main() == 0, capsys.readouterr().out
    right = script.results

    def off(call, backend, inputs):
        first, *others = right(call, backend, inputs)
        return [first, *(x * 1.001 if backend == "cuda" and x.is_floating_point() else x for x in others)]

    monkeypatch.setattr(script, "results", off)
    assert script.main() == 1 and "error" in capsys.readouterr().out


def plan(**environment: str) -> list[tuple[int, str, int, list[str]]]:
    """Phase, name, limit and command of every step of benchmarks/gpu.sh."""
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--plan"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip
    lines = re.findall(r"^(\d+)\|([^|]*)\|(\d+)\|(.*(?:\n(?!\d+\|).*)*)", done.stdout, re.MULTILINE)
    assert lines, done.stderr
    return [(int(phase), name, int(limit), shlex.split(rest)) for phase, name, limit, rest in lines]


@pytest.mark.parametrize("dry", ["0", "1"])
def test_the_round_fits_into_nine_minutes_and_its_evidence_into_three(dry):
    steps = plan(FGASEG_DRY_RUN=dry)
    longest = {phase: max(limit for p, _, limit, _ in steps if p == phase) for phase, *_ in steps}
    assert list(longest) == sorted(longest) and sum(longest.values()) <= 540
    first = {name: phase for phase, name, *_ in steps if phase <= 5}
    assert list(first) == ["machine", "build", "compile_ahead", "check triton", "check cuda", "model check", "table"]
    assert sum(longest[phase] for phase in set(first.values())) <= 180
    names = [name for _, name, *_ in steps]
    assert all(
        f"{tool} {backend}" in names
        for tool in ("memcheck", "racecheck", "synccheck", "initcheck")
        for backend in ("triton", "cuda")
    )


def test_the_round_measures_every_op():
    """The shapes of both tables leave no op out, and small_calls and compile_ahead have all of them."""
    commands = {name: command for _, name, _, command in plan()}
    for step in ("table", "full table", "compiled baselines"):
        command = commands[step]
        files = [word for word in command if word.startswith("benchmarks/")]
        assert {word.split("/")[1].removesuffix(".py") for word in files} == set(packages_with_triton())
        shapes = command[command.index("--shapes") + 1]
        collected = subprocess.run(
            [*COLLECT, *files, "--shapes", shapes], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "FGASEG_META": "1"},
        ).stdout  # fmt: skip
        missing = [op for op in packages_with_triton() if f"{op}.py::" not in collected]
        assert not missing, (step, missing)
    assert commands["compile_ahead"][-1] == commands["table"][commands["table"].index("--shapes") + 1]


AHEAD = """
import compile_ahead as ahead
from fgaseg.kernels import _triton
ahead.triton.runtime.driver.set_active(ahead.Driver(90))
ahead.record("small")
names = {one.kernel.__name__ for one in ahead.LAUNCHES}
packages = {name.split(".")[2] for name in (one.kernel.fn.__module__ for one in ahead.LAUNCHES)}
assert packages == set(ahead.packages_with_triton()) - {"lcs_conv_from_text"}, packages  # it has lcs_conv's kernels
index = next(i for i, one in enumerate(ahead.LAUNCHES) if "gather" in one.kernel.__name__)
assert ahead.compile_one(index) == (ahead.LAUNCHES[index].kernel.__name__, "")
seen = []
ahead.knobs.compilation.listener = lambda **about: seen.append(about["cache_hit"])
ahead.LAUNCHES[index].kernel.device_caches.clear()  # as another process would have it
ahead.compile_one(index)
assert seen == [True], seen
"""


@pytest.mark.slow
@needs["triton"]
def test_compile_ahead_fills_tritons_own_cache(tmp_path):
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", AHEAD], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert list(tmp_path.glob("*/*.cubin"))
