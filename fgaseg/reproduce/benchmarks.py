"""`fgaseg bench`: every backend of every op beside PyTorch and torch.compile; one table, one file, one plot."""

import csv
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import kernels
from ..files import atomic_write

FOLDER = Path(__file__).parents[2] / "benchmarks"
COLUMNS = ("ms", "speedup", "copy_percent", "matmul_percent", "peak_mb", "error", "torch_error")


def benchmark_ops(ops: Sequence[str], out: Path, shapes: str, dtype: str | None, as_json: bool) -> list[dict[str, str]]:
    """Runs benchmarks/<op>.py under pytest-benchmark; writes <out>.csv and <out>.png; prints the table or JSON.

    Raises FileNotFoundError for an unknown op, or where the benchmarks are not installed (they are in the repository).
    """
    known = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem in kernels.__all__)
    if not known:
        raise FileNotFoundError(f"no benchmarks in {FOLDER}: they are in the repository, not in a wheel; clone it")
    for op in ops:
        if op not in known:
            raise FileNotFoundError(f"no benchmark '{op}'; there are {', '.join(known)}")
    table = out.with_suffix(".csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    files = [str(FOLDER / f"{op}.py") for op in ops or known]
    command = [sys.executable, "-m", "pytest", *files, "--csv", str(table), "--shapes", shapes]
    command += ["-q", "--benchmark-columns=median,rounds", "--benchmark-max-time=0.5", "--benchmark-disable-gc"]
    command += ["--dtype", dtype] if dtype else []
    # a provider that disagrees fails its test and has a row that says so: no reason to stop
    status = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=FOLDER.parent, stdout=sys.stderr).returncode
    if status not in (0, 1) or not table.exists():
        raise RuntimeError(f"the benchmarks did not run: pytest ended with status {status}")
    return _report(out, plot, show, as_json)


def benchmark_model(out: Path, options: Sequence[str], as_json: bool) -> None:
    """Runs benchmarks/model.py; writes <out>.csv and <out>.png; prints one table or JSON."""
    script = FOLDER / "model.py"
    if not script.exists():
        raise FileNotFoundError(f"no {script}: the benchmarks are in the repository, not in a wheel; clone it")
    table = out.with_suffix(".csv")
    if subprocess.run([sys.executable, str(script), "--csv", str(table), *options]).returncode:
        raise RuntimeError(f"the benchmark of the model did not run to its end; what it measured is in {table}")
    _report(out, plot_model, show_model, as_json)


def _report(out: Path, draw: Callable, tell: Callable, as_json: bool) -> list[dict[str, str]]:
    """The rows of <out>.csv, drawn to <out>.png and printed."""
    with open(out.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    draw(rows, out.with_suffix(".png"))
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        tell(rows, Console(width=None if sys.stdout.isatty() else 180))
    return rows


def show_model(rows: list[dict[str, str]], console: Console) -> None:
    """One line a run: seconds, memory and ratios to the plain form, and the seconds of every stage."""
    first = rows[0]
    console.print(f"{first['device']}, {first['threads']} threads, torch {first['torch']}, commit {first['commit']}")
    runs = _runs(rows)
    stages = list(dict.fromkeys(stage for run in runs.values() for stage in run if stage != "all"))
    table = Table("pass", "T", "B", "form", "s", "x plain", "peak MB", "of plain", "labels changed", *stages)
    for (passed, classes, batch, form), run in runs.items():
        whole = run["all"]
        plain = runs.get((passed, classes, batch, "plain"), {}).get("all", {})
        if whole["needed_gb"]:
            seconds = f"needs {whole['needed_gb']} GB"
        else:
            seconds = whole["seconds"]
        ratios = [_ratio(plain.get("seconds"), whole["seconds"]), _ratio(whole["peak_mb"], plain.get("peak_mb"))]
        parts = [run[stage]["seconds"] if stage in run else "" for stage in stages]
        memory = [whole["peak_mb"], ratios[1], whole["labels_changed"]]
        table.add_row(passed, classes, batch, form, seconds, ratios[0], *memory, *parts)
    console.print(table)


def _runs(rows: list[dict[str, str]]) -> dict[tuple[str, ...], dict[str, dict[str, str]]]:
    """{(pass, classes, batch, form): {stage: row}}"""
    runs: dict[tuple[str, ...], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        runs[row["pass"], row["classes"], row["batch"], row["form"]][row["stage"]] = row
    return runs


def _ratio(above: str | None, below: str | None) -> str:
    return f"{float(above) / float(below):.2f}" if above and below and float(below) else ""


def plot_model(rows: list[dict[str, str]], path: Path) -> None:
    """Seconds and peak memory of inference against vocabulary size, a line a form, B = 1."""
    figure, axes = _figure(2, 1)
    for axis, key, unit in zip(axes.flat, ("seconds", "peak_mb"), ("s", "MB"), strict=True):
        lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row in rows:
            if row["stage"] == "all" and row["pass"] == "inference" and row["batch"] == "1" and row[key]:
                lines[row["form"]].append((int(row["classes"]), float(row[key])))
        for form, points in lines.items():
            axis.loglog(*zip(*sorted(points), strict=True), marker="o", label=form)
        axis.set(xlabel="classes", ylabel=unit, title="time" if unit == "s" else "peak memory beyond the model")
        axis.legend(fontsize="small")
    figure.suptitle(f"{rows[0]['device']}, {rows[0]['threads']} threads, torch {rows[0]['torch']}")
    _save(figure, path)


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


def clock(row: dict[str, str]) -> float | None:
    """Milliseconds of a row: on the device where it was measured there; None where the numbers disagreed."""
    text = row.get("device_ms") or row.get("ms_p50")
    return float(text) if text else None


def show(rows: list[dict[str, str]], console: Console) -> None:
    first = rows[0]
    console.print(f"{first['device']}, {first['threads']} threads, torch {first['torch']}, commit {first['commit']}")
    table = Table("op", "shape", "pass", "provider", *COLUMNS)
    for row in rows:
        ms = clock(row)
        values = [row["disagreement"]] if ms is None else [f"{ms:.3g}", *(row[name] for name in COLUMNS[1:])]
        table.add_row(row["op"], row["shape"], row["pass"], row["provider"], *values)
    console.print(table)


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Time against T and against K, one line a provider, for every op of the sweeps."""
    lines: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        axis, _, value = row["shape"].partition("=")
        ms = clock(row)
        if value.isdigit() and ms is not None and row["pass"] == "forward":
            lines[row["op"], axis][row["provider"]].append((int(value), ms))
    if not lines:
        return
    columns = min(len(lines), 4)
    figure, axes = _figure(columns, -(-len(lines) // columns))
    for blank in axes.flat[len(lines) :]:
        blank.set_axis_off()
    for one, ((op, axis), providers) in zip(axes.flat, lines.items(), strict=False):
        for provider, points in providers.items():
            one.loglog(*zip(*sorted(points), strict=True), marker="o", label=provider)
        one.set(title=op, xlabel=axis, ylabel="ms, forward")
        one.legend(fontsize="x-small")
    figure.suptitle(f"{rows[0]['device']}, {rows[0]['dtype']}, torch {rows[0]['torch']}")
    _save(figure, path)
