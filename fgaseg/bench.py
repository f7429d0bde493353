"""`fgaseg bench`: every backend of every op beside PyTorch and torch.compile; one table, one file, one plot."""

import csv
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .checkpoint import atomic_write
from .kernels._dispatch import OPS

FOLDER = Path(__file__).parents[1] / "benchmarks"
COLUMNS = ("ms", "speedup", "copy_percent", "matmul_percent", "peak_mb", "error", "torch_error")


def run(ops: Sequence[str], out: Path, shapes: str, dtype: str | None, as_json: bool) -> list[dict[str, str]]:
    """Runs benchmarks/<op>.py under pytest-benchmark; writes <out>.csv and <out>.png; prints the table or JSON.

    Raises FileNotFoundError for an unknown op, or where the benchmarks are not installed (they are in the repository).
    """
    known = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem in OPS)
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
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    plot(rows, out.with_suffix(".png"))
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows, Console(width=None if sys.stdout.isatty() else 160))
    return rows


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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        axis, _, value = row["shape"].partition("=")
        ms = clock(row)
        if value and ms is not None and row["pass"] == "forward":
            lines[row["op"], axis][row["provider"]].append((int(value), ms))
    if not lines:
        return
    columns = min(len(lines), 4)
    size = (columns, -(-len(lines) // columns))
    figure, axes = pyplot.subplots(size[1], size[0], figsize=(4 * size[0], 3.2 * size[1]), squeeze=False)
    figure.set_layout_engine("constrained")
    for blank in axes.flat[len(lines) :]:
        blank.set_axis_off()
    for one, ((op, axis), providers) in zip(axes.flat, lines.items(), strict=False):
        for provider, points in providers.items():
            one.loglog(*zip(*sorted(points), strict=True), marker="o", label=provider)
        one.set(title=op, xlabel=axis, ylabel="ms, forward")
        one.legend(fontsize="x-small")
    figure.suptitle(f"{rows[0]['device']}, {rows[0]['dtype']}, torch {rows[0]['torch']}")

    def save(file: Any) -> None:
        figure.savefig(file, format="png", dpi=110)

    atomic_write(path, save)
    pyplot.close(figure)
