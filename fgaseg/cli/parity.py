"""`fgaseg parity`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_json
from .printing import say, say_json

if TYPE_CHECKING:
    from ..reproduce.parity import CaseResult

HELP = """\
Compare the released preset with recorded tensors of the released code: every stage, loss and gradient. An error is the
largest difference as a share of the recording's largest value. Exit status 1 if a case fails.

  fgaseg parity --root recordings                       everything, three minutes and 11 GB (training)
  fgaseg parity fast sliding --root recordings --json   cases whose names contain one of these words

The recordings are not part of fgaseg: --root is the folder that holds fill.py, *.npz and state_dict_keys_*.txt.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("cases", nargs="*", metavar="word", help="only cases whose names contain one of these")
    parser.add_argument("--root", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of our model")


def run(options: argparse.Namespace) -> int:
    from ..reproduce import run_parity
    from ..reproduce.parity import GRADIENT_LIMIT, MEDIAN_LIMIT, STAGE_LIMIT

    cases = []
    for case in run_parity(options.root, options.dtype, options.cases):
        cases.append(case)
        if not options.json:
            show(case)
    passed = all(case.passed for case in cases)
    if options.json:
        limits = {"worst": STAGE_LIMIT, "worst_gradient": GRADIENT_LIMIT, "median": MEDIAN_LIMIT}
        results = [case.dump() for case in cases]
        say_json({"passed": passed, "limits": limits, "dtype": options.dtype, "cases": results})
    else:
        say(f"{sum(case.passed for case in cases)} of {len(cases)} cases pass")
    return 0 if passed else 1


def show(case: CaseResult) -> None:
    """Print the errors of a case's stages and the verdict."""
    from rich.table import Table

    from ..reproduce.parity import verdict
    from .tables import console

    table = Table("stage", "error / largest value", "", title=case.name, title_justify="left")
    for stage in case.stages:
        error = "-" if stage.error is None else f"{stage.error:.1e}"
        table.add_row(stage.name, error, stage.note, style=None if stage.passed else "red")
    console().print(table)
    say(verdict(case))
