"""Predicts how long the ops take on a GPU that is not here, from what would be launched and its machine code.

    PYTHONPATH=tests python benchmarks/predicted.py [--csv FILE] [--gpu H100] [--measured gpu.csv]

A prediction is what the counts allow at best, not a measurement. For every launch of a call, on the multiprocessor that
gets the most blocks:

    max(bytes / memory bandwidth, matrix operations / rate, instructions that its warps issue / issue rate)

The sum over the launches, plus LAUNCH for each of them and for each of PyTorch's kernels between them, whose bytes
count too. Bytes are those of the tensors that a launch is given, each once. Instructions are those of the block in the
middle of the grid: its loops run as often as the launch's arguments say, everything outside of loops once, and what it
branches around is left out in proportion (kernels/_ptx.py, _sass.py). Left out are latency, the second-level cache's
bandwidth and bank conflicts: a real time is longer.

The floor has the bytes and operations that an op cannot avoid, and no launch. `measured_us` is filled from a table that
benchmarks/gpu.sh wrote.
"""

import argparse
import contextlib
import csv
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import shim  # of tests/
import torch

from fgaseg.kernels import aot
from fgaseg.kernels._ptx import Instruction, Program
from fgaseg.kernels._sass import Code
from fgaseg.kernels._triton import Configuration
from fgaseg.kernels.calls import Call, calls

TABLE = Path(__file__).parent / "results" / "predicted_h100.csv"
ARCH = "sm_90"
OF_DATA = 8  # iterations of a loop that depends on data: topk_classes lists the classes kept among 32 adjacent ones
LAUNCH = 2e-6  # seconds from the end of a kernel to the work of the next one in a stream; an assumption
ISSUED = 4  # warp instructions a multiprocessor issues in a clock: one by each scheduler (H100 white paper)
# Operations a multiprocessor does in a clock on 16-bit matrices: 989 TFLOP/s are 132 of them at 1.83 GHz (data sheet).
MATRIX = 4096
MMA_SYNC = 0.63  # of that rate for mma.sync on Hopper (Luo et al., arXiv:2402.13499)


@dataclass(frozen=True)
class GPU:
    """``clock`` in Hz: the boost clock of an H100 PCIe, below the most that an SXM allows. ``bandwidth`` in bytes/s."""

    processors: int = 132
    clock: float = 1.755e9
    bandwidth: float = 3.35e12

    @property
    def matrix_rate(self) -> float:
        return MATRIX * self.processors * self.clock


GPUS = {"H100": GPU(), "H200": GPU(bandwidth=4.8e12)}  # data sheets of the SXM boards: HBM3, HBM3e


@dataclass(frozen=True)
class Launched:
    """A kernel with its grid, its parameters as they lie in memory, and the bytes of its tensors."""

    binary: aot.Binary
    grid: tuple[int, int, int]
    threads: int
    parameters: list[bytes]
    memory: Callable[[int, int], int | None]
    moved: float

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    def issued(self) -> tuple[int, float]:
        """Of the block in the middle of the grid: instructions that its warps issue, and operations of matrices."""
        program, _ = _parsed(self.binary.entry, self.binary.ptx, self.binary.sass)
        special = {f"%ctaid.{axis}": n // 2 for axis, n in zip("xyz", self.grid, strict=True)}
        special |= {f"%nctaid.{axis}": n for axis, n in zip("xyz", self.grid, strict=True)}
        special |= {"%ntid.x": self.threads, "%ntid.y": 1, "%ntid.z": 1, "%tid.y": 0, "%tid.z": 0, "%laneid": 0}
        instructions, operations = 0, 0.0
        known: dict[tuple[int, ...], tuple[int, float]] = {}  # most warps execute the same
        for first in range(0, self.threads, 32):
            executed = program.executed(self.parameters, special | {"%tid.x": first}, self.memory, OF_DATA)
            if (key := tuple(executed)) not in known:
                known[key] = self._issued(executed)
            instructions += known[key][0]
            operations += known[key][1]
        return instructions, operations

    def _issued(self, executed: list[int]) -> tuple[int, float]:
        """Of a warp that executes the PTX so often."""
        program, code = _parsed(self.binary.entry, self.binary.ptx, self.binary.sass)
        instructions, kinds = code.issued(program, executed)
        done = [(one, n) for one, n in zip(program.instructions, executed, strict=True) if one.kind == "matrix"]
        expected = sum(n for _, n in done)
        if kinds["matrix"] < 0.98 * expected:  # it is more where the PTX branches around some
            raise ValueError(
                f"{self.binary.kernel}: machine code with {kinds['matrix']} matrix instructions, PTX {expected}"
            )
        return instructions, sum(n * _matrix_work(one) for one, n in done)


def of_triton(call: Call) -> tuple[list[Launched], list[tuple[float, float]]]:
    """The launches of the Triton backend, and the bytes and operations of PyTorch's kernels between them."""
    launches, others = call.triton()
    found = []
    for one in launches:
        binary = aot.triton_binary(Configuration("", one), ARCH)
        signature = one.compiled(int(ARCH[3:])).src.signature
        parameters, held = [], {}
        for name, kind in signature.items():
            value = one.arguments[name]
            if isinstance(value, torch.Tensor):
                address = (len(parameters) + 1) << 40
                parameters.append(address.to_bytes(8, "little"))
                if value.device.type == "cpu":
                    held[address] = value.contiguous().view(torch.uint8).numpy().tobytes()
            elif kind != "constexpr":
                # a float decides nothing
                parameters.append(b"" if isinstance(value, float) else value.to_bytes(8, "little", signed=True))
        moved = _bytes_of(one.arguments.values())
        memory = partial(_held, held)
        found.append(Launched(binary, (one.programs, 1, 1), binary.threads, parameters, memory, moved))
    return found, others


def _held(tensors: dict[int, bytes], address: int, width: int) -> int | None:
    for start, content in tensors.items():
        if start <= address < start + len(content):
            return int.from_bytes(content[address - start :][:width], "little")
    return None


def _bytes_of(tensors: Iterable[Any]) -> float:
    """An expanded dimension counts once, and so does a tensor that is given twice."""
    each = {id(x): x for x in tensors if isinstance(x, torch.Tensor)}.values()
    elements = (math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride) for x in each)
    return float(sum(n * x.element_size() for n, x in zip(elements, each, strict=True)))


def of_cuda(call: Call) -> tuple[list[Launched], list[tuple[float, float]]]:
    """The launches of the CUDA backend, which the emulator (csrc/common/shim_record.h) notes instead of running them.

    What they are given are addresses, so all bytes are the call's own, those that it cannot avoid.
    """
    with tempfile.NamedTemporaryFile(mode="r") as record:
        os.environ["FGASEG_SHIM_RECORD"] = record.name
        # topk_classes reads back a result that was not computed, and PyTorch prints what follows
        with contextlib.suppress(RuntimeError), _quiet():
            getattr(torch.ops.fgaseg, f"{call.op}_cuda")(*call.args)
        del os.environ["FGASEG_SHIM_RECORD"]
        lines = record.read().splitlines()
    found = []
    for line in lines:
        offset, x, y, z, threads, shared, *values = line.split()
        binary = _binaries(call.package)[aot.demangled(_symbols()[int(offset, 16)])]
        binary = replace(binary, shared=binary.shared + int(shared), threads=int(threads))
        parameters = [bytes.fromhex(value) for value in values]
        grid = (int(x), int(y), int(z))
        found.append(Launched(binary, grid, int(threads), parameters, lambda *_: None, call.nbytes / len(lines)))
    return found, []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries write to the standard error."""
    before = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@cache
def _binaries(package: str) -> dict[str, aot.Binary]:
    return {aot.demangled(one.entry): one for one in aot.cuda_binaries(package, ARCH)}


@cache
def _symbols() -> dict[int, str]:
    """The functions of the emulated library, by their offset."""
    nm = subprocess.run(["nm", "--defined-only", shim.FOLDER / "cuda.so"], capture_output=True, text=True, check=True)
    return {int(line.split()[0], 16): line.split()[2] for line in nm.stdout.splitlines()}


@cache
def _parsed(entry: str, ptx: str, sass: str) -> tuple[Program, Code]:
    return Program(ptx, entry), Code(sass)


def _matrix_work(one: Instruction) -> float:
    """A warp's part of the operations of a matrix instruction, more if it is slower than a 16-bit wgmma."""
    shared = 4 if one.op.startswith("wgmma") else 1  # by the warps of a group
    rate = (0.5 if "tf32" in one.op else 1.0) * (MMA_SYNC if one.op.startswith("mma.sync") else 1.0)
    return one.operations / shared / rate


def predicted(call: Call, backend: str, gpu: GPU) -> dict[str, Any]:
    """The seconds of a call by what limits them, and the columns that are counted."""
    launches, others = {"triton": of_triton, "cuda": of_cuda}[backend](call)
    limits: dict[str, float] = defaultdict(float)
    for nbytes, flops in others:
        memory, matrix = nbytes / gpu.bandwidth, flops / gpu.matrix_rate
        limits["memory" if memory > matrix else "matrix"] += max(memory, matrix)
    limits["launches"] = LAUNCH * (len(launches) + len(others))
    longest, total, row = 0.0, 0, None
    for one in launches:
        instructions, operations = one.issued()
        most = math.ceil(one.blocks / gpu.processors)  # blocks of the busiest multiprocessor
        times = {
            "memory": one.moved / gpu.bandwidth,
            "matrix": most * operations / MATRIX / gpu.clock,
            "instructions": most * instructions / ISSUED / gpu.clock,
        }
        bound = max(times, key=times.__getitem__)
        limits[bound] += times[bound]
        total += one.blocks * instructions
        if times[bound] > longest:
            longest, row = times[bound], one.binary.row(one.blocks)
    assert row is not None, call
    counted = {"launches": len(launches) + len(others), "blocks": row.blocks, "waves": row.waves}
    return {"limits": limits, **counted, "warp_instructions": total}


def table(
    gpu: GPU, dtype: torch.dtype, measured: dict[tuple[str, ...], float], ops: Iterable[str]
) -> list[dict[str, Any]]:
    """One row for each shape, pass and backend of these ops, named as the benchmarks name them."""
    rows = []
    for backend, device in (("triton", "meta"), ("cuda", "cpu")):
        for (op, shape), group in groupby(calls(dtype, device), key=lambda call: call.row):
            if op not in ops:
                continue
            parts = list(group)
            done = {
                call.op: predicted(call, backend, gpu) for call in parts if backend == "triton" or _has_cuda(call.op)
            }
            forward = [call for call in parts if not call.backward]
            for name, some in (("forward", forward), ("forward+backward", parts)):
                if all(call.op in done for call in some) and (some is forward or len(forward) < len(parts)):
                    key = {"op": op, "shape": shape, "pass": name, "dtype": str(dtype)[6:], "backend": backend}
                    row = _row(some, [done[call.op] for call in some], gpu)
                    rows.append(key | row | {"measured_us": measured.get(tuple(key.values()), "")})
    return rows


def _has_cuda(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fgaseg::{op}_cuda", "CPU")  # emulated


def _row(some: list[Call], done: list[dict[str, Any]], gpu: GPU) -> dict[str, Any]:
    floor = sum(max(call.nbytes / gpu.bandwidth, call.flops / gpu.matrix_rate) for call in some)
    limits = sum((Counter(one["limits"]) for one in done), Counter())
    time = limits.total()
    return {
        "launches": sum(one["launches"] for one in done),
        "resident_blocks": done[-1]["blocks"],
        "waves": done[-1]["waves"],
        "warp_instructions": sum(one["warp_instructions"] for one in done),
        "floor_us": f"{floor * 1e6:.3g}",
        "predicted_us": f"{time * 1e6:.3g}",
        "bound_by": max(limits, key=limits.__getitem__),
        "share_of_floor": f"{floor / time:.2f}",
    }


def read_measured(path: Path | None) -> dict[tuple[str, ...], float]:
    """Microseconds by op, shape, pass, dtype and backend, from the table of benchmarks/gpu.sh."""
    if path is None:
        return {}
    names = ("op", "shape", "pass", "dtype", "provider")
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("device_ms")]
    return {tuple(row[name] for name in names): round(1e3 * float(row["device_ms"]), 2) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=TABLE)
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    parser.add_argument("--measured", type=Path, help="a table of benchmarks/gpu.sh")
    known = sorted({call.row[0] for call in calls(torch.bfloat16)})
    parser.add_argument("--ops", nargs="+", choices=known, default=known, metavar="OP", help="these alone; needs --csv")
    options = parser.parse_args()
    if set(options.ops) != set(known) and options.csv == TABLE:
        parser.error(f"--ops: give --csv too, as {TABLE.name} has the rows of all")
    if why := shim.emulate_cuda():
        parser.error(why)
    rows = table(GPUS[options.gpu], torch.bfloat16, read_measured(options.measured), options.ops)
    with open(options.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} predictions in {options.csv}: none of them was measured", file=sys.stderr)


if __name__ == "__main__":
    main()
