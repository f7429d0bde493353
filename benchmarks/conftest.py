"""pytest benchmarks/ --csv FILE writes one row per op, shape, pass and provider, with the machine and the commit.

pytest-benchmark does the timing; `fgaseg bench` runs it and prints one table. A provider whose results disagree with
float64 gets the disagreement instead of a time. On a machine that is busy with other work, measure the processor time
of one thread: OMP_NUM_THREADS=1 and --benchmark-timer=time.process_time.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from machine import copy_rate, machine, matmul_rate, peak
from shapes import DEVICE
from torch import Tensor

ROWS: list[dict[str, Any]] = []


def pytest_addoption(parser):
    parser.addoption("--csv", type=Path, help="write the measurements to this file")
    parser.addoption("--dtype", default="bfloat16" if DEVICE == "cuda" else "float32", help="of the inputs")
    parser.addoption("--shapes", default="", help="only these shapes, such as S1,S3,K=11")


def pytest_collection_modifyitems(config, items):
    if wanted := config.getoption("--shapes"):
        items[:] = [item for item in items if item.callspec.params["shape"] in wanted.split(",")]


@pytest.fixture
def new(request):
    """new(*sizes): a random tensor of the measured dtype, on the measured device."""
    dtype = getattr(torch, request.config.getoption("--dtype"))
    generator = torch.Generator(DEVICE).manual_seed(0)
    return lambda *sizes: torch.randn(sizes, generator=generator, device=DEVICE).to(dtype)


@pytest.fixture
def measure(benchmark):
    """measure(op, shape, provider, run, reference, inputs, gradient, flops, nbytes) adds a row.

    run, reference   functions of the inputs that return a tensor
    flops, nbytes    of the forward pass; backward counts as twice that
    """

    def timed(
        op: str,
        shape: str,
        provider: str,
        run: Callable[..., Tensor],
        reference: Callable[..., Tensor],
        inputs: list[Tensor],
        gradient: bool,
        flops: float,
        nbytes: float,
    ) -> None:
        if provider == "torch.compile":
            torch._dynamo.reset()
            run = torch.compile(run, dynamic=False)
        inputs = [x.detach().requires_grad_(gradient) for x in inputs]
        step = _step(run, inputs, gradient)
        error, torch_error, why = _disagreement(step(), reference, inputs, gradient)
        passes = 3 if gradient else 1
        row: dict[str, Any] = {
            "op": op,
            "shape": shape,
            "sizes": " ".join(str(tuple(x.shape)) for x in inputs),
            "dtype": str(inputs[0].dtype).removeprefix("torch."),
            "pass": "forward+backward" if gradient else "forward",
            "provider": provider,
        }
        if not why:
            row |= _timing(benchmark, step) | {"peak_mb": round(peak(step) / 1e6, 2)}
            seconds = row["device_ms" if DEVICE == "cuda" else "ms_p50"] / 1e3
            row |= {
                "gb_s": round(nbytes * passes / seconds / 1e9, 2),
                "copy_percent": float(f"{100 * nbytes * passes / seconds / copy_rate():.3g}"),
                "gflop_s": round(flops * passes / seconds / 1e9, 1),
                "matmul_percent": round(100 * flops * passes / seconds / matmul_rate(inputs[0].dtype), 1),
            }
        row |= {"bytes": nbytes * passes, "flops": flops * passes}
        row |= {"error": f"{error:.1e}", "torch_error": f"{torch_error:.1e}", "disagreement": why, **machine()}
        ROWS.append(row)
        benchmark.group = f"{op} {shape} {row['pass']}"
        assert not why, why

    return timed


def _step(run: Callable[..., Tensor], inputs: list[Tensor], gradient: bool) -> Callable[[], list[Tensor]]:
    """A function that computes the output and, for a random gradient of it, the gradient of every input."""
    torch.manual_seed(1)
    grad = torch.randn_like(run(*inputs)) if gradient else None

    def step() -> list[Tensor]:
        y = run(*inputs)
        results = [y.detach(), *torch.autograd.grad(y, inputs, grad)] if gradient else [y]
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return results

    return step


def _disagreement(got, reference, inputs, gradient) -> tuple[float, float, str]:
    """The largest errors relative to the largest value, ours and PyTorch's in the same dtype; what is wrong, or "".

    They are measured against float64 on the first image only, as the others are computed alike. Gradients that are sums
    over images are skipped.
    """
    images = inputs[0].shape[0]

    def first(x: Tensor) -> Tensor:
        return x[:1] if x.shape[:1] == (images,) else x

    if not got[0].is_floating_point():
        same = torch.equal(got[0], reference(*inputs))
        return 0.0, 0.0, "" if same else "the classes differ from the reference's"
    torch.manual_seed(1)
    grad = torch.randn_like(got[0])[:1] if gradient else None
    alone = [first(x.detach()) for x in inputs]

    def of(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_(gradient) for x in alone]
        y = reference(*leaves)
        return [y, *torch.autograd.grad(y, leaves, grad.to(dtype))] if grad is not None else [y]

    worst, torch_worst, wrong = 0.0, 0.0, ""
    dtype = inputs[0].dtype
    for mine, same, exact in zip(got, of(dtype), of(torch.float64), strict=True):
        if images > 1 and exact.shape[0] != 1:
            continue
        scale = exact.abs().max().item() or 1.0
        error = (first(mine).double() - exact).abs().max().item() / scale
        torch_error = (same.double() - exact).abs().max().item() / scale
        worst, torch_worst = max(worst, error), max(torch_worst, torch_error)
        if not error <= 2 * torch_error + 4 * torch.finfo(dtype).eps:
            wrong = f"error {error:.1e} of the largest value, PyTorch's {torch_error:.1e}"
    return worst, torch_worst, wrong


def _timing(benchmark, step: Callable) -> dict[str, Any]:
    benchmark(step)
    times = sorted(benchmark.stats.stats.data)
    row: dict[str, Any] = {f"ms_p{p}": round(1e3 * times[len(times) * p // 100], 4) for p in (20, 50, 80)}
    row["rounds"] = len(times)
    row["clock"] = "process" if "process_time" in str(benchmark._timer) else "wall"
    row["device_ms"] = round(_device_ms(step), 4) if DEVICE == "cuda" else ""
    return row


def _device_ms(step: Callable, repeats: int = 20) -> float:
    """Median milliseconds on the GPU with a cold L2 cache; launches that overlap with earlier work are not included."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(repeats):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def pytest_sessionfinish(session):
    target = session.config.getoption("--csv")
    if not target or not ROWS:
        return
    groups = defaultdict(list)
    for row in ROWS:
        groups[row["op"], row["shape"], row["dtype"], row["pass"]].append(row)
    clock = "device_ms" if DEVICE == "cuda" else "ms_p50"
    for rows in groups.values():
        for row in rows:
            others = [other[clock] for other in rows if other is not row and clock in other]
            row["speedup"] = round(min(others) / row[clock], 2) if others and clock in row else ""
    partial = target.with_suffix(".tmp")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in ROWS for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(ROWS)
    partial.replace(target)
