"""`fgaseg bench`."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .options import add_json
from .printing import say_json

if TYPE_CHECKING:
    from rich.console import Console

    Rows = list[dict[str, str]]

HELP = """\
Time every backend of every op of fgaseg.kernels against plain PyTorch, torch.compile and the naive form:
forward and forward+backward, with memory, share of the machine's measured copy and matmul rates, and error against
float64. Needs a clone of the repository, which holds the benchmarks: pip install -e ".[bench]" there.

  fgaseg bench                         everything (tens of minutes on a CPU), to runs/bench.csv and runs/bench.png
  fgaseg bench lcs_conv --shapes S1,K=11 --json
  fgaseg bench model --out runs/model --classes 20,150         the whole model, stage by stage: the reference
                                                               ("plain"), accelerated, in bfloat16, compiled, pruned
  fgaseg bench model --against onnxruntime,openvino            beside exported graphs in other programs, in float32,
                                                               bfloat16 and int8: minutes, in up to 12 GB; needs
                                                               pip install -e ".[bench,against]"
"""

MODEL_OPTIONS = {
    "classes": ("N,...", "vocabulary sizes"),
    "batch": ("N,...", "images at once"),
    "forms": ("NAME,...", "plain,accelerated,..."),
    "passes": ("NAME,...", "inference,text,training"),
}
COLUMNS = ("ms", "speedup", "copy_percent", "matmul_percent", "peak_mb", "error", "torch_error")


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("ops", nargs="*", metavar="op", help="only these (default: all), or model")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="writes <out>.csv and <out>.png")
    parser.add_argument("--shapes", default="", help="only these, such as S1,S3,K=11 (benchmarks/shapes.py)")
    for key, (metavar, text) in MODEL_OPTIONS.items():
        parser.add_argument(f"--{key}", metavar=metavar, help=f"of bench model: {text}")
    parser.add_argument("--against", metavar="NAME,...", help="of bench model: beside these, onnxruntime and openvino")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")


def run(options: argparse.Namespace) -> None:
    from ..reproduce import benchmark_against, benchmark_model, benchmark_ops
    from .tables import console

    show = show_model if options.ops == ["model"] else show_ops
    if options.against:
        rows, show = _against(options, benchmark_against), show_against
    elif options.ops == ["model"]:
        given = {key: getattr(options, key) for key in MODEL_OPTIONS}
        rows = benchmark_model(options.out, [f"--{key}={value}" for key, value in given.items() if value])
    else:
        rows = benchmark_ops(options.ops, options.out, options.shapes, options.dtype)
    if options.json:
        say_json(rows, indent=1)
        return
    terminal = console(180)
    first = rows[0]
    terminal.print(f"{first['device']}, {first['threads']} threads, torch {first['torch']}, commit {first['commit']}")
    show(rows, terminal)


def _against(options: argparse.Namespace, measure: Callable[..., Rows]) -> Rows:
    if options.ops != ["model"]:
        raise UsageError("--against: compares the whole model: fgaseg bench model --against ...")
    if other := [key for key in ("batch", "forms", "passes") if getattr(options, key)]:
        raise UsageError(f"--{other[0]}: is not for --against, which measures one view in every precision")
    classes = [f"--classes={options.classes}"] if options.classes else []
    return measure(options.against.split(","), options.out, classes)


def show_ops(rows: Rows, console: Console) -> None:
    """One line per op, shape, pass and provider."""
    from rich.table import Table

    from ..reproduce import row_milliseconds

    table = Table("op", "shape", "pass", "provider", *COLUMNS)
    for row in rows:
        ms = row_milliseconds(row)
        values = [row["disagreement"]] if ms is None else [f"{ms:.3g}", *(row[name] for name in COLUMNS[1:])]
        table.add_row(row["op"], row["shape"], row["pass"], row["provider"], *values)
    console.print(table)


def show_model(rows: Rows, console: Console) -> None:
    """One line per run: seconds and memory, both also relative to the reference, and the seconds of every stage."""
    from rich.table import Table

    runs: dict[tuple[str, ...], dict[str, dict[str, str]]] = defaultdict(dict)  # run → stage → row
    for row in rows:
        runs[row["pass"], row["classes"], row["batch"], row["form"]][row["stage"]] = row
    stages = list(dict.fromkeys(stage for run in runs.values() for stage in run if stage != "all"))
    table = Table("pass", "T", "B", "form", "s", "x plain", "peak MB", "of plain", "labels changed", *stages)
    for (passed, classes, batch, form), by_stage in runs.items():
        whole = by_stage["all"]
        plain = runs.get((passed, classes, batch, "plain"), {}).get("all", {})
        seconds = f"needs {whole['needed_gb']} GB" if whole["needed_gb"] else whole["seconds"]
        speedup = _ratio(plain.get("seconds"), whole["seconds"])
        memory = [whole["peak_mb"], _ratio(whole["peak_mb"], plain.get("peak_mb"))]
        parts = [by_stage[stage]["seconds"] if stage in by_stage else "" for stage in stages]
        table.add_row(passed, classes, batch, form, seconds, speedup, *memory, whole["labels_changed"], *parts)
    console.print(table)


def show_against(rows: Rows, console: Console) -> None:
    """One line per part, program and precision: times and accuracy; then what cannot run, and our stages."""
    from rich.table import Table

    roofs = [f"{row['precision']} {row['gflop_per_second']} ({row['stage']})" for row in rows if row["part"] == "roof"]
    console.print(f"roof in GFLOP/s: {', '.join(roofs)}", highlight=False)
    parts = [row for row in rows if row["part"] != "roof" and not row["stage"]]
    ours = {(row["part"], row["classes"], row["precision"]): row["seconds"] for row in parts
            if row["program"] == "fgaseg"}  # fmt: skip
    table = Table("part", "T", "program", "precision", "s", "x fgaseg", "GFLOP/s", "% of roof", "error",
                  "labels agree", "peak MB")  # fmt: skip
    for row in (row for row in parts if not row["reason"]):
        slower = _ratio(row["seconds"], ours.get((row["part"], row["classes"], row["precision"])))
        share = f"{100 * float(row['share_of_roof']):.0f}" if row["share_of_roof"] else ""
        table.add_row(row["part"], row["classes"], row["program"], row["precision"], row["seconds"], slower,
                      row["gflop_per_second"], share, row["error"], row["labels_agree"], row["peak_mb"])  # fmt: skip
    console.print(table)
    reasons = {f"{row['program']} {row['precision']}, {row['part']}: {row['reason']}" for row in parts if row["reason"]}
    for reason in sorted(reasons):
        console.print(f"not there: {reason}", highlight=False, soft_wrap=True)
    stages = Table("our stages", "T", "precision", "s", "GFLOP", "% of roof")
    for row in (row for row in rows if row["stage"] and row["part"] != "roof"):
        share = f"{100 * float(row['share_of_roof'] or 0):.0f}"
        stages.add_row(row["stage"], row["classes"], row["precision"], row["seconds"], row["gflop"], share)
    console.print(stages)


def _ratio(above: str | None, below: str | None) -> str:
    return f"{float(above) / float(below):.2f}" if above and below and float(below) else ""
