"""Running the benchmarks of a clone of the repository, and plotting what they measured.

The benchmarks themselves are `benchmarks/*.py` of the repository. They are not part of the wheel.
"""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import kernels
from ..errors import FGASegError, UsageError
from ..files import atomic_write

FOLDER = Path(__file__).parents[2] / "benchmarks"
NEEDED = {"pytest": "pytest", "pytest_benchmark": "pytest-benchmark", "matplotlib": "matplotlib"}
PROGRAMS = ("onnxruntime", "openvino")  # that `benchmark_against` knows

Rows = list[dict[str, str]]  # of the CSV file, by column name
Series = dict[str, list[tuple[int, float]]]  # legend entry → points


def benchmark_ops(
    ops: Sequence[str] = (), out: Path = Path("runs/bench"), shapes: str = "", dtype: str | None = None
) -> Rows:
    """Time every backend of the ops beside PyTorch and torch.compile; write <out>.csv and <out>.png.

    ops     names of fgaseg.kernels; none: all
    shapes  only these, separated by commas, such as "S1,K=11" (benchmarks/shapes.py); empty: all
    dtype   "float32", "bfloat16" or "float16"; None: bfloat16 on a GPU, else float32
    returns the rows of the CSV file

    Runs benchmarks/<op>.py under pytest-benchmark, whose progress goes to stderr. A provider whose output disagrees
    with the reference gets a row without a time that says so.

    Raises UsageError for an unknown op and outside a clone of the repository, FGASegError if pytest breaks off.
    """
    scripts = _scripts()
    known = sorted(scripts.keys() - {"model"})
    for op in ops:
        if op not in known:
            raise UsageError(f"no benchmark {op!r}; there are {', '.join(known)}, and model")
    table = out.with_suffix(".csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    files = [str(scripts[op]) for op in ops or known]
    command = [sys.executable, "-m", "pytest", *files, "--csv", str(table.absolute()), "--shapes", shapes]
    command += ["-q", "--benchmark-columns=median,rounds", "--benchmark-max-time=0.5", "--benchmark-disable-gc"]
    command += ["--dtype", dtype] if dtype else []
    # status 1: a provider disagreed and failed its test, which its row says
    status = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=FOLDER.parent, stdout=sys.stderr).returncode
    if status not in (0, 1) or not table.exists():
        raise FGASegError(f"the benchmarks did not run: pytest ended with status {status}; its output is above")
    rows = _read(table)
    plot_ops(rows, out.with_suffix(".png"))
    return rows


def benchmark_model(out: Path = Path("runs/bench"), options: Sequence[str] = ()) -> Rows:
    """Time the whole model stage by stage, in all its forms; write <out>.csv and <out>.png.

    options  of benchmarks/model.py, such as "--classes=20,150"
    returns  the rows of the CSV file
    Raises UsageError outside a clone of the repository, FGASegError if the script breaks off.
    """
    script, table = _scripts()["model"], out.with_suffix(".csv")
    if subprocess.run([sys.executable, str(script), "--csv", str(table), *options]).returncode:
        raise FGASegError(f"benchmarks/model.py broke off; the rows that it had measured are in {table}")
    rows = _read(table)
    plot_model(rows, out.with_suffix(".png"))
    return rows


def benchmark_against(programs: Sequence[str], out: Path = Path("runs/bench"), options: Sequence[str] = ()) -> Rows:
    """Time the model beside the same model in other programs, in every precision; write <out>.csv.

    programs  of PROGRAMS
    options   of benchmarks/against.py, such as "--classes=20,150"
    returns   the rows of the CSV file
    Raises UsageError for an unknown program, a missing one, and outside a clone of the repository, FGASegError if the
    script breaks off.
    """
    for program in programs:
        if program not in PROGRAMS:
            raise UsageError(f"--against {program}: is not one of {', '.join(PROGRAMS)}")
    _scripts()
    if missing := [one for one in (*programs, "onnx", "onnxscript") if importlib.util.find_spec(one) is None]:
        raise UsageError(f"--against needs {', '.join(missing)}: pip install 'fgaseg[against]'")
    script, table = FOLDER / "against.py", out.with_suffix(".csv")
    command = [sys.executable, str(script), "--csv", str(table), f"--against={','.join(programs)}", *options]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise FGASegError(f"benchmarks/against.py broke off; the rows that it had measured are in {table}")
    return _read(table)


def _scripts() -> dict[str, Path]:
    """Name → script of the benchmarks: one per op, and "model"."""
    if not (FOLDER / "shapes.py").is_file():  # a folder of that name may belong to another project
        raise UsageError(
            f"the benchmarks are not at {FOLDER}: an installed wheel does not contain them; clone the repository and "
            "install it with pip install -e '.[bench]'"
        )
    if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        raise UsageError(f"the benchmarks need {', '.join(missing)}: pip install 'fgaseg[bench]'")
    return {path.stem: path for path in FOLDER.glob("*.py") if path.stem in (*kernels.__all__, "model")}


def _read(table: Path) -> Rows:
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


def row_milliseconds(row: dict[str, str]) -> float | None:
    """Median time of a row of the ops: on the device if it was measured there; None if the outputs disagreed."""
    text = row.get("device_ms") or row.get("ms_p50")
    return float(text) if text else None


def plot_ops(rows: Rows, path: Path) -> None:
    """Draw forward time against T and against K, one panel per op and sweep; nothing is written without a sweep."""
    sweeps: dict[tuple[str, str], Series] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        variable, _, value = row["shape"].partition("=")
        ms = row_milliseconds(row)
        if value.isdigit() and ms is not None and row["pass"] == "forward":
            sweeps[row["op"], variable][row["provider"]].append((int(value), ms))
    if not sweeps:
        return
    columns = min(len(sweeps), 4)
    figure, axes = _figure(columns, -(-len(sweeps) // columns))
    for blank in axes.flat[len(sweeps) :]:
        blank.set_axis_off()
    for axis, ((op, variable), series) in zip(axes.flat, sweeps.items(), strict=False):
        _draw_series(axis, series, "x-small")
        axis.set(title=op, xlabel=variable, ylabel="ms, forward")
    figure.suptitle(f"{rows[0]['device']}, {rows[0]['dtype']}, torch {rows[0]['torch']}")
    _save(figure, path)


def plot_model(rows: Rows, path: Path) -> None:
    """Draw time and peak memory of inference with one image against the vocabulary size, one line per form."""
    figure, axes = _figure(2, 1)
    for axis, key, unit in zip(axes.flat, ("seconds", "peak_mb"), ("s", "MB"), strict=True):
        series: Series = defaultdict(list)
        for row in rows:
            if row["stage"] == "all" and row["pass"] == "inference" and row["batch"] == "1" and row[key]:
                series[row["form"]].append((int(row["classes"]), float(row[key])))
        _draw_series(axis, series, "small")
        axis.set(xlabel="classes", ylabel=unit, title="time" if unit == "s" else "peak memory beyond the model")
    figure.suptitle(f"{rows[0]['device']}, {rows[0]['threads']} threads, torch {rows[0]['torch']}")
    _save(figure, path)


def _draw_series(axis: Any, series: Series, fontsize: str) -> None:
    for name, points in series.items():
        axis.loglog(*zip(*sorted(points), strict=True), marker="o", label=name)
    axis.legend(fontsize=fontsize)


def _figure(columns: int, rows: int) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False)
    figure.set_layout_engine("constrained")
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=110))
    pyplot.close(figure)
