"""pytest benchmarks/ --csv FILE writes one row per op, shape, pass and provider, with the machine and the commit.

pytest-benchmark does the timing on a CPU, device_time.py on a GPU; `fgaseg bench` runs it and prints one table. Rows
are written as they are measured. A provider whose results disagree with float64, or that fails, gets the reason instead
of a time. On a machine that is busy with other work, measure the processor time of one thread: OMP_NUM_THREADS=1 and
--benchmark-timer=time.process_time.
"""

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from device_time import bound_by, copied, measured, size_of
from machine import copy_rate, machine, matmul_rate, peak
from shapes import DEVICE, DRY, META
from torch import Tensor

from fgaseg.kernels._dispatch import CannotRun

ROWS: list[dict[str, Any]] = []
COMPILED = ("torch.compile", "FlexAttention")  # they take seconds to compile, so they come last
CLOCK = "device_ms" if DEVICE == "cuda" else "ms_p50"


def pytest_addoption(parser):
    parser.addoption("--csv", type=Path, help="write the measurements to this file")
    parser.addoption("--dtype", default="bfloat16" if DEVICE == "cuda" else "float32", help="of the inputs")
    parser.addoption("--shapes", default="", help="only these shapes, in this order, such as S1,S3,K=11")


def pytest_collection_modifyitems(config, items):
    """--shapes is also an order of importance: all ops on the first shape, then on the second; compilers come last."""
    if not config.getoption("--shapes"):
        return
    wanted = config.getoption("--shapes").split(",")
    chosen = [item for item in items if item.callspec.params["shape"] in wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    chosen.sort(key=lambda item: wanted.index(item.callspec.params["shape"]))
    items[:] = sorted(chosen, key=lambda item: item.callspec.params["provider"] in COMPILED)


@pytest.fixture
def new(request):
    """new(*sizes): a random tensor of the measured dtype, on the measured device."""
    dtype = getattr(torch, request.config.getoption("--dtype"))
    if META:
        return lambda *sizes: torch.empty(sizes, device="meta", dtype=dtype)
    generator = torch.Generator(DEVICE).manual_seed(0)
    return lambda *sizes: torch.randn(sizes, generator=generator, device=DEVICE).to(dtype)


@pytest.fixture
def measure(benchmark, request):
    """measure(op, shape, provider, run, reference, inputs, gradient, flops, nbytes) adds a row.

    run, reference   functions of the inputs that return a tensor
    flops, nbytes    of the forward pass; backward counts as twice that
    """
    target = request.config.getoption("--csv")

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
        if META:
            _step(run, [x.detach().requires_grad_(gradient) for x in inputs], gradient)()
            return
        passes = 3 if gradient else 1
        row: dict[str, Any] = {
            "op": op,
            "shape": shape,
            "sizes": " ".join(str(tuple(x.shape)) for x in inputs),
            "dtype": str(inputs[0].dtype).removeprefix("torch."),
            "pass": "forward+backward" if gradient else "forward",
            "provider": provider,
        }
        benchmark.group = f"{op} {shape} {row['pass']}"
        try:
            row |= _measured(benchmark, provider, run, reference, inputs, gradient, flops * passes, nbytes * passes)
        except CannotRun as error:
            row["disagreement"] = f"left out: {error}".splitlines()[0][:200]
            pytest.skip(row["disagreement"])
        except Exception as error:
            row["disagreement"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise
        finally:
            ROWS.append(row | {"bytes": nbytes * passes, "flops": flops * passes, **machine()})
            if target:
                _save(target)
        assert not row["disagreement"], row["disagreement"]

    return timed


def _measured(benchmark, provider, run, reference, inputs, gradient, flops: float, nbytes: float) -> dict[str, Any]:
    """What was measured; without times if the results disagree with the reference's."""
    if provider == "torch.compile":
        torch._dynamo.reset()
        run = torch.compile(run, dynamic=False, backend="aot_eager" if DRY else "inductor")
    inputs = [x.detach().requires_grad_(gradient) for x in inputs]
    step = _step(run, inputs, gradient)
    results = step()
    error, torch_error, why = _disagreement(results, reference, inputs, gradient)
    row: dict[str, Any] = {}
    if not why:
        size = size_of([*inputs, *results])
        del results
        row = _timing(benchmark, step) | {"peak_mb": round(peak(step) / 1e6, 2)}
        floors = 1e3 * nbytes / copy_rate(), 1e3 * flops / matmul_rate(inputs[0].dtype)
        if DEVICE == "cuda":
            times = measured(lambda: _step(run, copied(inputs), gradient), size)
            row |= {
                "device_ms": round(times.device_ms, 5),
                "host_us": round(times.host_us, 1),
                "bound": bound_by(times.device_ms, times.host_us, *floors),
                "method": times.method,
                "copies": f"{times.copies} {times.cache}",
            }
        seconds = row[CLOCK] / 1e3
        row |= {
            "gb_s": round(nbytes / seconds / 1e9, 2),
            "copy_percent": float(f"{0.1 * floors[0] / seconds:.3g}"),
            "gflop_s": round(flops / seconds / 1e9, 1),
            "matmul_percent": round(0.1 * floors[1] / seconds, 1),
        }
    return row | {"error": f"{error:.1e}", "torch_error": f"{torch_error:.1e}", "disagreement": why}


def _step(run: Callable[..., Tensor], inputs: list[Tensor], gradient: bool) -> Callable[[], list[Tensor]]:
    """A function that computes the output and, for a random gradient of it, the gradient of every input."""
    grad = _gradient_of(run(*inputs)) if gradient else None

    def step() -> list[Tensor]:
        y = run(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, grad)] if gradient else [y]

    return step


def _gradient_of(y: Tensor) -> Tensor:
    """The same random numbers each time, from a generator that no capture of a graph can leave unusable."""
    if META:
        return torch.empty_like(y)
    generator = torch.Generator(y.device).manual_seed(1)
    return torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)


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
    grad = _gradient_of(got[0])[:1] if gradient else None
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
    """Wall or processor times of whole steps, on a GPU until the device is done."""

    def done() -> None:
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(done)
    times = sorted(benchmark.stats.stats.data)
    row: dict[str, Any] = {f"ms_p{p}": round(1e3 * times[len(times) * p // 100], 4) for p in (20, 50, 80)}
    row["rounds"] = len(times)
    row["clock"] = "process" if "process_time" in str(benchmark._timer) else "wall"
    return row | dict.fromkeys(("device_ms", "host_us", "bound", "method", "copies"), "")


def _save(target: Path) -> None:
    """Writes all rows, each with its time beside the fastest other provider's."""
    groups = defaultdict(list)
    for row in ROWS:
        groups[row["op"], row["shape"], row["dtype"], row["pass"]].append(row)
    for rows in groups.values():
        for row in rows:
            others = [other[CLOCK] for other in rows if other is not row and CLOCK in other]
            row["speedup"] = round(min(others) / row[CLOCK], 2) if others and CLOCK in row else ""
    partial = target.with_suffix(".tmp")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in ROWS for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(ROWS)
    partial.replace(target)
