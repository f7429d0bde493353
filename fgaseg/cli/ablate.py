"""`fgaseg ablate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import UsageError
from .options import add_json, add_words, check_out, split_words, whole_numbers
from .printing import say, say_json

HELP = """\
Train and score the configurations of the paper's Tables II to VII and print the tables in the paper's form, each with
the paper's claims and whether they hold here; a table more, LCS, has local costs that the paper does not have. A row
that several tables share is trained once, a finished row is not trained again, and an interrupted one resumes. Several
processes may share one --out.

  fgaseg ablate                                  all tables on drawn scenes, 38 trainings of about two minutes
  fgaseg ablate II IV --seed 0,1,2 --steps 500
  fgaseg ablate VII --on configs/vitb16.yaml data.images=photos data.labels=labels data.names=names.txt

If the configuration has no pretrained encoders (configs/msrc.yaml), they are trained first, alone and by its own
schedule.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "TABLE | key=value", "II to VII, LCS (default: all); overrides")
    parser.add_argument("--on", default="scenes", metavar="scenes | CONFIG.yaml", help="the data set (default: scenes)")
    parser.add_argument("--steps", type=int, default=250, help="of every row (default: 250)")
    parser.add_argument("--seed", type=whole_numbers, default=[0], metavar="N[,N...]", help="one run per seed and row")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablate"), help="folder for rows, results.json, tables.md"
    )


def run(options: argparse.Namespace) -> None:
    from rich.markdown import Markdown

    from ..reproduce import run_ablations
    from ..reproduce.ablations import markdown
    from .tables import console

    if options.steps < 1:
        raise UsageError(f"--steps {options.steps}: give 1 or more")
    check_out(options.out)
    tables, overrides = split_words(options.words)
    results = run_ablations(tables, options.on, options.steps, options.seed, options.out, overrides)
    if options.json:
        say_json(results)
    elif sys.stdout.isatty():
        console().print(Markdown(markdown(results)))
    else:
        say(*markdown(results).rstrip("\n").split("\n"))
