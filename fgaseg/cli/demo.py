"""`fgaseg demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_json, add_words, check_out, only_overrides, whole_numbers
from .printing import say_json

HELP = """\
Train a small FGAseg on procedurally drawn scenes, score it on colour-shape pairs that it has never seen, and draw
photos, labels and pseudo-masks. The encoders start from a small file in the package (configs/demo_encoder.yaml is the
recipe that trained it), the head from scratch. Needs no download and about three minutes on two CPU cores.

  fgaseg demo                       the demo; results in runs/demo
  fgaseg demo --seed 1 --json       another seed, figures as JSON
  fgaseg ablate II --steps 500      the same model with P2Tformer, T2Ploss and LCS switched off in turn

Interrupted, the same command resumes; a complete run is not repeated.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for model, figures and picture")
    parser.add_argument("--seed", type=whole_numbers, default=[0], metavar="N[,N...]",
                        help="one run per seed; figures are averaged over them")  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="ignore earlier runs in --out and start over")
    add_words(parser, "key=value", "as for train, e.g. train.steps=100")


def run(options: argparse.Namespace) -> None:
    from ..reproduce import run_demo

    check_out(options.out)
    results = run_demo(options.out, options.seed, only_overrides(options.words), options.restart)
    if options.json:
        say_json(results)
    else:
        show(results)


def show(results: dict[str, Any]) -> None:
    """Print the figures of `run_demo`."""
    from rich.table import Table

    from .tables import console

    terminal = console()
    seeds = len(results["seeds"])
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    table = Table(title=f"mIoU on drawn scenes, every pair and ground in the vocabulary{mean}")
    for column in ("", "seen classes, before", "after", "unseen pairs, before", "after"):
        table.add_column(column, justify="right" if column else "left")
    order = [(when, split) for split in ("seen", "unseen") for when in ("before", "after")]
    table.add_row("FGAseg", *(f"{results['mean'][when][split]:.3f}" for when, split in order))
    terminal.print(table)
    first = results["runs"][0]
    changed = ", ".join(f"{name} {share:.1%}" for name, share in first["changed_by_zero"].items())
    terminal.print(f"labels that change when a part is replaced by zero: {changed}")
    terminal.print(f"{first['parameters']:,} parameters, {first['training_seconds']:.0f} s of training per run")
    terminal.print(f"picture: {results['picture']}    model: {first['model']}", soft_wrap=True)
