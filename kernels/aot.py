"""Compiles every GPU kernel ahead of time, without a GPU, and checks the result against a committed budget.

    python -m fgaseg.kernels.aot [--arch sm_80 sm_90 sm_100] [--all] [--json] [--accept]

Triton compiles what it would launch for the calls of calls.py in bfloat16; with --all also for float32, float16 and
strides that need 64 bits (the ``configurations`` of the ops). The CUDA C++ kernels are compiled as setup.py does.

It prints one row per kernel, configuration and architecture. Limits from above: registers per thread, bytes of shared
memory and of spills, and ``loop``, the machine instructions of the longest loop for one iteration of the source's. From
below: matrix instructions, loads and copies of 128 bits (``wide``), asynchronous copies, and the blocks that fit on a
multiprocessor at once. ``waves`` says how many times the grid fills a GPU of ``PROCESSORS`` multiprocessors. The exit
status is 1 if any verdict is not "ok". --accept writes what was measured as the new budget (aot_budget.csv beside this
file), beside the rows that were not measured, and keeps the notes, which say why a row may spill.
"""

import argparse
import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ._ptx import Program
from ._sass import Code
from ._triton import FLOATS, Configuration
from .calls import calls

HERE = Path(__file__).resolve().parent  # resolved: in a checkout fgaseg/kernels may be a link to kernels/
BUDGET = HERE / "aot_budget.csv"
BUDGET_TRITON = "3.8"  # the version that the budget was written with
SOURCES = HERE.parent / "csrc"  # in a checkout; a wheel has none
ARCHES = ("sm_80", "sm_90", "sm_100")
# The most bytes of shared memory of a block; sm_86 and sm_89, which run code for sm_80, allow less than sm_80 does.
SHARED = {"sm_80": 101_376, "sm_90": 232_448, "sm_100": 232_448}
# Of a multiprocessor: bytes of shared memory, of which a block takes 1 KB more than it asks for. 64 warps, 32 blocks
# and 65,536 registers are common to these three (CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability").
PROCESSOR_SHARED = {"sm_80": 167_936, "sm_90": 233_472, "sm_100": 233_472}
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}  # A100, H100 SXM, B200
WIDE = r"^(LDG|LDGSTS|STG)\b.*\.128"
COPIES = r"^(LDGSTS|UTMALDG|UBLKCP)\b"
MATRIX = r"^([HIQ]G?MMA|UTC\w*MMA)\b"
AT_MOST, AT_LEAST = ("registers", "shared", "spilled", "loop"), ("matrix", "wide", "copies", "blocks")
KEY = ("kernel", "backend", "configuration", "arch")


@dataclass(frozen=True)
class Row:
    """What one kernel needs on one architecture; the module's docstring says what the columns are.

    loop   0 if the machine code has no loop, or for sm_100, whose loops are not recognised
    waves  0 if the grid is not known
    """

    kernel: str
    backend: str
    configuration: str
    arch: str
    registers: int
    shared: int
    spilled: int
    loop: int
    matrix: int
    wide: int
    copies: int
    blocks: int
    waves: float = 0.0
    wants_matrix: bool = False
    verdict: str = ""


def packages_with_triton() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/triton.py"))


@cache
def launched(everything: bool) -> list[Configuration]:
    """What is compiled: the launches of all calls in bfloat16, and with ``everything`` those of ``configurations``."""
    found: dict[tuple[str, str, int], Configuration] = {}
    for call in calls(torch.bfloat16):
        for one in call.triton()[0]:
            label = f"{FLOATS[torch.bfloat16]} {call.row[1]}{' backward' if call.backward else ''}"
            key = one.kernel.__name__, label, one.programs
            number = len([k for k in found if k[:2] == key[:2]])
            numbered = f"{label} #{number + 1}" if number and key not in found else label
            found.setdefault(key, Configuration(numbered, one))
    rest = (importlib.import_module(f"{__package__}.{name}.triton").configurations() for name in packages_with_triton())
    return [*found.values(), *(one for several in rest if everything for one in several)]


@dataclass(frozen=True)
class Binary:
    """A compiled kernel; ``entry`` is its name in the PTX, ``shared`` is without what a launch adds."""

    kernel: str
    backend: str
    configuration: str
    arch: str
    entry: str
    ptx: str
    sass: str
    registers: int
    shared: int
    spilled: int
    threads: int

    def row(self, programs: int = 0, wants_matrix: bool = False) -> Row:
        blocks = blocks_per_processor(self.registers, self.shared, self.threads, self.arch)
        waves = round(programs / (blocks * PROCESSORS[self.arch]), 2)
        loop, matrix, wide, copies = _contents(self.entry, self.ptx, self.sass, self.arch)
        return Row(
            self.kernel, self.backend, self.configuration, self.arch, self.registers, self.shared, self.spilled,
            loop, matrix, wide, copies, blocks, waves, wants_matrix,
        )  # fmt: skip


@cache
def _contents(entry: str, ptx: str, sass: str, arch: str) -> tuple[int, int, int, int]:
    """The columns `loop`, `matrix`, `wide` and `copies`, counted in a kernel's machine code."""
    code, loop = Code(sass), 0
    if arch != "sm_100":  # its waits for tensor cores look like loops
        program = Program(ptx, entry)
        runs = code.matched(program, [1] * len(program.instructions))
        loop = max((-(-len(run.loop.own) // run.unrolled) for run in runs), default=0)
    return loop, code.count(MATRIX), code.count(WIDE), code.count(COPIES)


def blocks_per_processor(registers: int, shared: int, threads: int, arch: str) -> int:
    """How many blocks are on a multiprocessor at once; a warp gets its registers in units of 256."""
    warps = -(-threads // 32)
    of_registers = 65_536 // (-(-max(registers, 1) // 8) * 256) // 4 * 4  # warps, the same on each of four schedulers
    return min(of_registers // warps, 64 // warps, 32, PROCESSOR_SHARED[arch] // (shared + 1024))


def triton_binary(one: Configuration, arch: str) -> Binary:
    compiled = one.launch.compiled(int(arch[3:]))
    return replace(_triton_binary(compiled, arch), configuration=one.label)


@cache
def _triton_binary(compiled: Any, arch: str) -> Binary:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass, usage = tool("nvdisasm", "-c", file.name), tool("cuobjdump", "--dump-resource-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    name, data = compiled.metadata.name, compiled.metadata
    # a Triton kernel has no stack of its own: all of it is spills
    counted = {"registers": int(found[1]), "shared": data.shared, "spilled": int(found[2])}
    return Binary(name, "triton", "", arch, name, compiled.asm["ptx"], sass, **counted, threads=32 * data.num_warps)


def tool(name: str, *arguments: str) -> str:
    """Runs a CUDA binary tool: Triton ships those that a toolkit may lack."""
    import triton

    shipped = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    command = [str(shipped) if shipped.exists() else name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def why_no_cuda() -> str:
    """Why the CUDA C++ kernels cannot be compiled here, or ""."""
    if not sorted(SOURCES.glob("*/kernel.cu")):
        return "no csrc/*/kernel.cu (they are in a checkout, not in a wheel)"
    return "" if nvcc() else "no nvcc (set CUDA_HOME)"


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    homes = [home] if home else sorted(map(str, Path("/usr/local").glob("cuda*")), reverse=True)
    found = (Path(h, "bin", "nvcc") for h in homes if Path(h, "include", "cuda_runtime.h").exists())
    return next((str(path) for path in found if path.exists()), shutil.which("nvcc"))


def cuda_binaries(package: str, arch: str) -> Iterator[Binary]:
    """All CUDA kernels of an op."""
    source = SOURCES / package / "kernel.cu"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        command = [str(nvcc()), "-cubin", f"-arch={arch}", "-O3", "-std=c++17", "-Xptxas", "-v", f"-I{SOURCES}"]
        command += ["--keep", "--keep-dir", folder, str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source}: nvcc failed for {arch}:\n{done.stderr}")
        sections = re.split(r"\n//-+ \.text\.", tool("nvdisasm", "-c", str(cubin)))[1:]
        ptx = Path(folder, "kernel.ptx").read_text()
    sass = {text.split(None, 1)[0]: text for text in sections}
    for block in re.split(r"Compiling entry function '", done.stderr)[1:]:
        name = block.split("'", 1)[0]
        patterns = (r"Used (\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes spill stores")
        registers, shared, spilled = (int(n[1]) if n else 0 for n in (re.search(p, block) for p in patterns))
        threads = re.search(rf"\.entry {re.escape(name)}\([^)]*\)\s*\.maxntid (\d+)", ptx)
        kernel, *parameters = demangled(name).split("<", 1)
        label = "".join(parameters).rstrip(">")
        most = int(threads[1]) if threads else 1024
        yield Binary(kernel, "cuda", label, arch, name, ptx, sass[name], registers, shared, spilled, most)


def demangled(name: str) -> str:
    """The kernel's name with its template arguments, without namespaces and parameters."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    text = re.sub(r"\(anonymous namespace\)::|fgaseg::|^void ", "", text)
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return text[:position]
    return text


def _job(backend: str, name: str, everything: bool, arch: str) -> list[Row]:
    """The rows of a Triton kernel, or of an op's CUDA kernels."""
    if backend == "cuda":
        return [binary.row() for binary in cuda_binaries(name, arch)]
    mine = [one for one in launched(everything) if one.launch.kernel.__name__ == name]
    return [triton_binary(one, arch).row(one.launch.programs, one.matrix) for one in mine]


def measure(arches: list[str], everything: bool) -> Iterator[Row]:
    """Compiles, with one process per core, and yields the rows with their verdicts."""
    kernels = sorted({one.launch.kernel.__name__ for one in launched(everything)})
    jobs = [("triton", name, everything, arch) for name in kernels for arch in arches]
    if not why_no_cuda():
        ops = [path.parent.name for path in sorted(SOURCES.glob("*/kernel.cu"))]
        jobs += [("cuda", name, everything, arch) for name in ops for arch in arches]
    budgets = read_budget()
    with ProcessPoolExecutor() as pool:
        for rows in pool.map(_job, *zip(*jobs, strict=True)):
            yield from (judge(row, budgets) for row in rows)


def why_not_comparable() -> str:
    """Why Triton kernels may be above the budget although nobody changed them, or ""."""
    import triton

    if triton.__version__.split(".")[:2] == BUDGET_TRITON.split("."):
        return ""
    return (
        f"the budget was written with Triton {BUDGET_TRITON}, and this is Triton {triton.__version__}, which compiles "
        "the same kernels to other machine code: a Triton kernel above the budget here need not have become worse"
    )


def read_budget() -> dict[tuple[str, ...], dict[str, str]]:
    if not BUDGET.exists():
        return {}
    with open(BUDGET, newline="") as file:
        return {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}


def judge(row: Row, budgets: dict[tuple[str, ...], dict[str, str]]) -> Row:
    """The row with its verdict: "ok", or everything that is wrong with it."""
    budget = budgets.get((row.kernel, row.backend, row.configuration, row.arch))
    if budget is None:
        return replace(row, verdict="no budget (--accept writes one)")
    limits = {name: int(budget[name]) for name in (*AT_MOST, *AT_LEAST)}
    wrong = [f"{name} {getattr(row, name)} > {limits[name]}" for name in AT_MOST if getattr(row, name) > limits[name]]
    wrong += [f"{name} {getattr(row, name)} < {limits[name]}" for name in AT_LEAST if getattr(row, name) < limits[name]]
    if row.shared > SHARED.get(row.arch, 0):
        wrong.append(f"shared memory above the {SHARED[row.arch]} bytes of {row.arch}")
    if row.spilled and not budget["note"]:
        wrong.append(f"spills {row.spilled} bytes and no note says why")
    if row.wants_matrix and not row.matrix:
        wrong.append("no matrix instructions")
    return replace(row, verdict="; ".join(wrong) or "ok")


def accept(rows: list[Row]) -> None:
    """Writes the measured figures as the budget: registers rounded up to the 8 in which the GPU allocates them, loops
    with 5 % more, which another version of the compiler may take; the others as they are. Other rows stay."""
    budgets = read_budget()
    for row in rows:
        key = (row.kernel, row.backend, row.configuration, row.arch)
        note = budgets.get(key, {}).get("note", "") if row.spilled else ""
        limits = {name: str(getattr(row, name)) for name in (*AT_MOST, *AT_LEAST)}
        limits |= {"registers": str(-(-row.registers // 8) * 8), "loop": str(row.loop * 105 // 100)}
        budgets[key] = dict(zip(KEY, key, strict=True)) | limits | {"note": note}
    partial = BUDGET.with_suffix(".tmp")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, [*KEY, *AT_MOST, *AT_LEAST, "note"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(budgets[k] for k in sorted(budgets, key=lambda k: (k[1], k[0], k[2], len(k[3]), k[3])))
    partial.replace(BUDGET)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fgaseg.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(ARCHES), choices=ARCHES)
    parser.add_argument("--all", action="store_true", help="every dtype, and strides that need 64 bits")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--accept", action="store_true", help="write the measured figures as the new budget")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled; unset it")
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console(stderr=True)
    if why := why_no_cuda():
        console.print(f"the CUDA C++ kernels are left out: {why}")
    if why := why_not_comparable():
        console.print(why)
    rows = list(track(measure(options.arch, options.all), "compiling", console=console, total=None))
    if options.accept:
        accept(rows)
        rows = [judge(row, read_budget()) for row in rows]
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()
    else:
        columns = (*KEY, *AT_MOST, *AT_LEAST, "waves")
        table = Table(*columns, "verdict")
        for row in rows:
            table.add_row(*(str(getattr(row, name)) for name in columns), row.verdict)
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0 if all(row.verdict == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
