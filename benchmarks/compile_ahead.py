"""Compiles the Triton kernels of the round into Triton's own cache, on all cores; a GPU is not needed.

    TRITON_CACHE_DIR=build/triton python benchmarks/compile_ahead.py [--arch 90] [--shapes S3,T=150] [--jobs N]

The ops run on tensors without memory, and every launch goes through Triton's launcher as far as the choice of what to
compile, so what is compiled is what the same call asks for on a GPU. Triton names an entry of the cache after the
kernel's source, its specialisation and options, the GPU's compute capability, the ptxas in use and its own files: the
cache serves another machine with the same build of Triton (also for the same version of Python), and is ignored by any
other. Up to Triton 3.6 every signature also has a launcher in C; it is compiled where libcuda.so.1 is.
"""

import argparse
import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

os.environ["FGASEG_META"] = "1"  # read by shapes.py
os.environ.pop("TRITON_INTERPRET", None)  # nothing can be compiled under it

import pytest
import torch
import triton
from shapes import ROOT, SHAPES
from small_calls import SMALL, calls, inputs_of, results
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

from fgaseg.kernels import _dispatch, _triton
from fgaseg.kernels.aot import packages_with_triton

LAUNCHES: list[_triton.Launch] = []  # one for each thing to compile
DTYPES = (torch.float32, torch.bfloat16)
ROWS = 16  # that topk_classes is taken to keep


class Driver:
    """Of a GPU that is not there, as far as Triton asks before it compiles."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class OnMeta(TorchDispatchMode):
    """Runs the Triton implementation of an op on tensors of the meta device, which PyTorch would give empty results."""

    def __init__(self) -> None:
        super().__init__()
        modules = [importlib.import_module(f"fgaseg.kernels.{name}.triton") for name in packages_with_triton()]
        self.launchers = {name: f for module in modules for name, f in vars(module).items() if callable(f)}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        namespace, name = func._schema.name.split("::")
        if namespace == "fgaseg":
            with self:  # for what the launcher calls
                return self.launchers[name.removesuffix("_triton")](*args)
        if name in ("item", "_local_scalar_dense") and args[0].device.type == "meta":
            return ROWS
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Collects in LAUNCHES the first launch of everything that Triton would compile."""
    seen = set()

    def new(*, key: Any, fn: Any, **_: Any) -> bool:
        seen.add((fn.name, str(key)))
        return True  # this ends the launch

    def run(*launch: Any) -> None:
        before, one = len(seen), _triton.Launch.of(*launch)
        compiled(one)
        if len(seen) > before:
            LAUNCHES.append(one)

    def why_not(name: str, args: tuple) -> str:
        return "" if name == "triton" else "only Triton is compiled"

    with (
        mock.patch.object(_triton, "run", run),
        mock.patch.object(_dispatch, "_why_not", why_not),
        mock.patch.object(knobs.runtime, "jit_cache_hook", new),
        OnMeta(),
    ):
        yield


def compiled(one: _triton.Launch) -> Any:
    options = {"num_warps": one.num_warps, "num_stages": one.num_stages}
    return one.kernel.warmup(*one.arguments.values(), grid=(one.programs,), **options)


def record(shapes: str) -> None:
    """The small calls, those on their largest shape, and the benchmarks of these shapes."""
    with recording():
        for shape in (SMALL, SHAPES["S3"]):
            for _, call, sizes in calls(shape).values():
                for dtype in DTYPES:
                    results(call, "triton", inputs_of(sizes, dtype))
        files = [str(ROOT / "benchmarks" / f"{name}.py") for name in packages_with_triton()]
        options = ["-q", "-p", "no:cacheprovider", "--benchmark-disable", "--dtype", "bfloat16", "--shapes", shapes]
        if pytest.main([*files, *options]):
            sys.exit("compile_ahead: a benchmark could not be run on the meta device; its traceback is above")


def compile_one(index: int) -> tuple[str, str]:
    """The kernel's name, and why it could not be compiled or ""."""
    one = LAUNCHES[index]
    try:
        kernel = compiled(one)
        if hasattr(nvidia, "make_launcher"):  # Triton <= 3.6
            with contextlib.suppress(AssertionError):  # no libcuda.so.1
                nvidia.CudaLauncher(kernel.src, kernel.metadata)
    except Exception as error:
        return one.kernel.__name__, f"{type(error).__name__}: {error}".splitlines()[0]
    return one.kernel.__name__, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability, such as 80, 90 or 100")
    parser.add_argument("--shapes", default="S3,T=150,T=150 shift=6")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    triton.runtime.driver.set_active(Driver(options.arch))
    began = time.perf_counter()
    record(options.shapes)
    recorded = time.perf_counter()
    with ProcessPoolExecutor(options.jobs, get_context("fork")) as pool:
        failed = [f"{name}: {why}" for name, why in pool.map(compile_one, range(len(LAUNCHES))) if why]
    print(*failed, sep="\n")
    print(
        f"{len(LAUNCHES)} specialisations for sm_{options.arch} by Triton {triton.__version__}, {len(failed)} failed: "
        f"{recorded - began:.0f} s to record, {time.perf_counter() - recorded:.0f} s to compile"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
