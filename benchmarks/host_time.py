"""What a call of an op on its Triton backend costs the host, measured on a CPU, without a GPU; no kernel computes.

    python benchmarks/host_time.py [--csv FILE]

Checks, dispatch, PyTorch's dispatcher, the launcher and Triton's JIT up to the compiled kernel are the real ones. Left
out is what needs a GPU's driver: the call that enqueues the kernel. Tensors are small and on the CPU, where
operations of PyTorch between the launches also compute. Columns:

    launches    of Triton kernels
    operations  of PyTorch
    ours        microseconds per call with the launches left out
    call        microseconds per call with Triton's part of them
"""

import argparse
import csv
import importlib
import os
import sys
import timeit
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

os.environ["TRITON_INTERPRET"] = "1"  # while fgaseg.kernels is imported: its Triton backends then take CPU tensors
from small_calls import SMALL, calls, inputs_of

from fgaseg.kernels import _triton
from fgaseg.kernels.aot import packages_with_triton

del os.environ["TRITON_INTERPRET"]  # before the kernels themselves are imported: Triton's JIT then compiles them

ROUNDS, CALLS = 7, 200


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
        self.names: list[str] = []
        modules = [importlib.import_module(f"fgaseg.kernels.{name}.triton") for name in packages_with_triton()]
        self.launchers = {name: f for module in modules for name, f in vars(module).items() if callable(f)}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "aten" and not function.is_view and "empty" not in function._opname:
            self.names.append(function._opname)
        if function.namespace == "fgaseg":
            with self:
                return self.launchers[function._opname.removesuffix("_triton")](*args)
        return function(*args, **(kwargs or {}))


def microseconds(call: Callable[[], Any]) -> float:
    """The shortest of several rounds, per call."""
    return 1e6 * min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS


def measured(name: str, call: Callable[..., Any], sizes: list[tuple[int, ...]]) -> dict[str, Any]:
    inputs = [x.detach() for x in inputs_of(sizes, torch.bfloat16)]

    def run() -> Any:
        return call("triton", *inputs)

    launches: list[str] = []
    real = _triton.Launch.run

    def noted(one: _triton.Launch) -> None:
        launches.append(one.kernel.__name__)
        real(one)

    with mock.patch.object(_triton.Launch, "run", noted), Counted() as others:
        run()
    whole = microseconds(run)
    with mock.patch.object(_triton.Launch, "run", lambda self: None):
        ours = microseconds(run)
    return {"op": name, "launches": len(launches), "operations": len(others.names), "ours": ours, "call": whole}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", default="")
    options = parser.parse_args()
    driver.set_active(Driver())  # type: ignore[arg-type]
    rows = []
    with torch.inference_mode():
        for name, (_, call, sizes) in calls(SMALL).items():
            if name == "topk_classes batch" or "scatter" in name:  # reads sizes from the device
                continue
            rows.append(measured(name, call, sizes))
            print("{op:<28}{launches:>3}{operations:>3}{ours:9.1f}{call:9.1f}".format(**rows[-1]), flush=True)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
