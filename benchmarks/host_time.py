"""What a call of an op on its Triton backend costs the host, measured on a CPU, without a GPU; no kernel computes.

    python benchmarks/host_time.py [--csv FILE]

Checks, dispatch, PyTorch's dispatcher, the launcher and Triton's JIT up to the compiled kernel are the real ones. Left
out is what needs a GPU's driver: the call that enqueues the kernel. Tensors are small and on the CPU, where
operations of PyTorch between the launches also compute. Columns:

    launches    of Triton kernels
    operations  of PyTorch
    theirs      microseconds of these operations alone
    ours        microseconds per call with the launches left out, "theirs" included
    call        microseconds per call with Triton's part of them

The last row is an op that does nothing and has kernel_softmax's schema: what PyTorch's dispatcher costs.
"""

import argparse
import csv
import importlib
import os
import sys
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

os.environ["TRITON_INTERPRET"] = "1"  # while fgaseg.kernels is imported: its Triton backends then take CPU tensors
from small_calls import SMALL, calls, inputs_of

from fgaseg.kernels import _triton
from fgaseg.kernels.aot import packages_with_triton

del os.environ["TRITON_INTERPRET"]  # before the kernels themselves are imported: Triton's JIT then compiles them

ROUNDS, CALLS = 400, 10  # rounds shorter than a time slice, of which some are not interrupted
TOTAL = 3  # rows that topk_classes reads; no kernel has written how many there are


class Driver:
    """Of an H100 that takes every launch and does nothing."""

    utils = SimpleNamespace(
        load_binary=lambda *_: (object(), 0, 32, 0, 1024),
        unload_module=lambda _: None,
        get_device_properties=lambda _: {"max_shared_mem": 232448, "max_num_regs": 65536, "warpSize": 32},
    )

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *_: None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Counted(TorchDispatchMode):
    """PyTorch's operations that would be launches of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []
        modules = [importlib.import_module(f"fgaseg.kernels.{name}.triton") for name in packages_with_triton()]
        self.launchers = {name: f for module in modules for name, f in vars(module).items() if callable(f)}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "aten" and not function.is_view and "empty" not in function._opname:
            self.calls.append(partial(function, *args, **(kwargs or {})))
        if function.namespace == "fgaseg":
            with self:
                return self.launchers[function._opname.removesuffix("_triton")](*args)
        return function(*args, **(kwargs or {}))


def microseconds(call: Callable[[], Any]) -> float:
    """The shortest of several rounds, per call."""
    for _ in range(CALLS):
        call()
    return 1e6 * min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS


def measured(name: str, call: Callable[..., Any], sizes: list[tuple[int, ...]]) -> dict[str, Any]:
    inputs = [x.detach() for x in inputs_of(sizes, torch.bfloat16)]

    def run() -> Any:
        return call("triton", *inputs)

    with mock.patch.object(_triton, "run", side_effect=_triton.run) as launches, Counted() as others:
        run()
    found = {"op": name, "launches": launches.call_count, "operations": len(others.calls)}
    found["theirs"] = sum(microseconds(one) for one in others.calls)
    with mock.patch.object(_triton, "run", lambda *_: None):
        found["ours"] = microseconds(run)
    return {**found, "call": microseconds(run)}


def empty_op() -> dict[str, Any]:
    """A row for an op that returns a tensor that is already there."""
    library, x, y = torch.library.Library("host_time", "DEF"), torch.zeros(2, 5, 333), torch.zeros(3)
    library.define("empty(Tensor kernel_logits, int kernel_size, str norm) -> Tensor")
    library.impl("empty", lambda *_: y, "CPU")
    time = microseconds(lambda: torch.ops.host_time.empty.default(x, 3, "taps"))
    return {"op": "an empty op", "launches": 0, "operations": 0, "theirs": 0.0, "ours": time, "call": time}


def table() -> Iterator[dict[str, Any]]:
    read = Tensor.item

    def item(x: Tensor) -> int:
        read(x)
        return TOTAL

    with torch.inference_mode(), mock.patch.object(Tensor, "item", item):
        for name, (_, call, sizes) in calls(SMALL).items():
            if name == "topk_classes batch" or "scatter" in name:  # reads sizes from the device
                continue
            yield measured(name, call, sizes)
        yield empty_op()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default="")
    options = parser.parse_args()
    driver.set_active(Driver())  # type: ignore[arg-type]
    rows = []
    for row in table():
        rows.append(row)
        print("{op:<28}{launches:>3}{operations:>3}{theirs:9.1f}{ours:9.1f}{call:9.1f}".format(**row), flush=True)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
