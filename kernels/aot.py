"""Compiles every GPU kernel ahead of time, without a GPU, and checks the result against a committed budget.

    python -m fgaseg.kernels.aot [--arch sm_80 sm_90 sm_100] [--json] [--accept]

It prints one row per kernel, configuration and architecture: registers per thread, bytes of shared memory and of
spills, tensor-core instructions, budget (aot_budget.csv beside this file) and verdict. The exit status is 1 if any
verdict is not "ok". --accept writes what was measured as the new budget and keeps the notes, which say why a row may
spill.
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
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent  # resolved: in a checkout fgaseg/kernels may be a link to kernels/
BUDGET = HERE / "aot_budget.csv"
SOURCES = HERE.parent / "csrc"  # in a checkout; a wheel has none
ARCHES = ("sm_80", "sm_90", "sm_100")
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}  # the most bytes of a block
MATRIX = re.compile(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b")
KEY = ("kernel", "backend", "configuration", "arch")


@dataclass(frozen=True)
class Row:
    """What one kernel needs on one architecture; ``matrix`` is the number of its tensor-core instructions."""

    kernel: str
    backend: str
    configuration: str
    arch: str
    registers: int
    shared: int
    spilled: int
    matrix: int
    wants_matrix: bool
    budget: str = ""
    verdict: str = ""


def packages_with_triton() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/triton.py"))


def _configurations(package: str) -> list[Any]:
    return list(importlib.import_module(f"fgaseg.kernels.{package}.triton").configurations())


def _compile_triton(package: str, index: int, arch: str) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    one = _configurations(package)[index]
    kernel, signature = one.launch.kernel, one.launch.signature()
    position = {parameter.name: i for i, parameter in enumerate(kernel.params)}
    # pointers from PyTorch's allocator are aligned, and Triton specialises a launch on that
    aligned = {(position[n],): [["tt.divisibility", 16]] for n, kind in signature.items() if kind[0] == "*"}
    constants = {(position[name],): value for name, value in one.launch.constants().items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": one.launch.num_warps, "num_stages": one.launch.num_stages}
    built = triton.compile(source, target=GPUTarget("cuda", int(arch[3:]), 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Row(
        kernel.__name__,
        "triton",
        one.label,
        arch,
        registers=int(found[1]),
        shared=built.metadata.shared,
        spilled=int(found[2]),  # a Triton kernel has no stack of its own: all of it is spills
        matrix=len(re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", built.asm["ptx"])),
        wants_matrix=one.matrix,
    )


def _tool(name: str, *arguments: str) -> str:
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


def _compile_cuda(package: str, _: int, arch: str) -> list[Row]:
    source = SOURCES / package / "kernel.cu"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        command = [str(nvcc()), "-cubin", f"-arch={arch}", "-O3", "-std=c++17", "-Xptxas", "-v", f"-I{SOURCES}"]
        done = subprocess.run([*command, str(source), "-o", str(cubin)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source}: nvcc failed for {arch}:\n{done.stderr}")
        code = re.split(r"\n\s*Function : ", _tool("cuobjdump", "-sass", str(cubin)))[1:]
    matrix = {text.split(None, 1)[0]: len(MATRIX.findall(text)) for text in code}
    rows = []
    for block in re.split(r"Compiling entry function '", done.stderr)[1:]:
        name = block.split("'", 1)[0]
        patterns = (r"Used (\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes spill stores")
        registers, shared, spilled = (int(n[1]) if n else 0 for n in (re.search(p, block) for p in patterns))
        kernel, *parameters = _demangled(name).split("<", 1)
        tensor_cores = matrix.get(name, 0)
        configuration = "".join(parameters).rstrip(">")
        # wants_matrix: a kernel with tensor-core instructions in its budget is meant to have them
        rows.append(Row(kernel, "cuda", configuration, arch, registers, shared, spilled, tensor_cores, False))
    return rows


def _demangled(name: str) -> str:
    """The kernel's name with its template arguments, without namespaces and parameters."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    text = re.sub(r"\(anonymous namespace\)::|fgaseg::|^void ", "", text)
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return text[:position]
    return text


def _job(kind: str, package: str, index: int, arch: str) -> list[Row]:
    return [_compile_triton(package, index, arch)] if kind == "triton" else _compile_cuda(package, index, arch)


def measure(arches: list[str]) -> Iterator[Row]:
    """Compiles everything, with one process per core, and yields the rows with their verdicts."""
    jobs = [
        ("triton", package, index, arch)
        for package in packages_with_triton()
        for index in range(len(_configurations(package)))
        for arch in arches
    ]
    if not why_no_cuda():
        jobs += [("cuda", path.parent.name, 0, arch) for path in sorted(SOURCES.glob("*/kernel.cu")) for arch in arches]
    budgets = read_budget()
    with ProcessPoolExecutor() as pool:
        for rows in pool.map(_job, *zip(*jobs, strict=True)):
            yield from (judge(row, budgets) for row in rows)


def read_budget() -> dict[tuple[str, ...], dict[str, str]]:
    if not BUDGET.exists():
        return {}
    with open(BUDGET, newline="") as file:
        return {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}


def judge(row: Row, budgets: dict[tuple[str, ...], dict[str, str]]) -> Row:
    """The row with its budget and its verdict: "ok", or everything that is wrong with it."""
    budget = budgets.get((row.kernel, row.backend, row.configuration, row.arch))
    if budget is None:
        return replace(row, verdict="no budget (--accept writes one)")
    limits = {name: int(budget[name]) for name in ("registers", "shared", "spilled")}
    wrong = [f"{name} {getattr(row, name)} > {limit}" for name, limit in limits.items() if getattr(row, name) > limit]
    if row.shared > SHARED.get(row.arch, 0):
        wrong.append(f"shared memory above the {SHARED[row.arch]} bytes of {row.arch}")
    if row.spilled and not budget["note"]:
        wrong.append(f"spills {row.spilled} bytes and no note says why")
    if not row.matrix and (row.wants_matrix or int(budget["matrix"])):
        wrong.append("no tensor-core instructions")
    return replace(row, budget="/".join(map(str, limits.values())), verdict="; ".join(wrong) or "ok")


def accept(rows: list[Row]) -> None:
    """Writes the measured figures as the budget, registers rounded up to the 8 in which the GPU allocates them."""
    old = read_budget()
    partial = BUDGET.with_suffix(".tmp")
    with open(partial, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*KEY, "registers", "shared", "spilled", "matrix", "note"])
        for row in sorted(rows, key=lambda r: (r.backend, r.kernel, r.configuration, len(r.arch), r.arch)):
            key = (row.kernel, row.backend, row.configuration, row.arch)
            note = old.get(key, {}).get("note", "") if row.spilled else ""
            writer.writerow([*key, -(-row.registers // 8) * 8, row.shared, row.spilled, row.matrix, note])
    partial.replace(BUDGET)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fgaseg.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(ARCHES), choices=ARCHES)
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
    rows = list(track(measure(options.arch), "compiling", console=console, total=None))
    if options.accept:
        accept(rows)
        rows = [judge(row, read_budget()) for row in rows]
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()
    else:
        columns = ("kernel", "backend", "configuration", "arch", "registers", "shared", "spilled", "matrix", "budget")
        table = Table(*columns, "verdict")
        for row in rows:
            table.add_row(*(str(getattr(row, name)) for name in columns), row.verdict)
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0 if all(row.verdict == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
