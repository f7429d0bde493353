"""`fgaseg ablate`."""

import argparse
from pathlib import Path

from ..errors import UsageError
from .options import add_json, add_words, split_words, whole_numbers

HELP = """\
Train and score the configurations of the paper's Tables II to VII and print the tables in the paper's form, each with
what the paper says and whether it is so here. A row that several tables share is trained once; one that is finished is
never trained again, and an interrupted one goes on. Several processes may share one --out.

  fgaseg ablate                                  all tables on drawn scenes, 33 trainings of about two minutes
  fgaseg ablate II IV --seed 0,1,2 --steps 500
  fgaseg ablate VII --on configs/vitb16.yaml data.images=photos data.labels=labels data.names=names.txt

A configuration without pretrained encoders (configs/msrc.yaml) trains them first, alone and by its own schedule.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "TABLE | key=value", "II to VII (default: all); overrides")
    parser.add_argument("--on", default="scenes", metavar="scenes | CONFIG.yaml", help="the data set (default: scenes)")
    parser.add_argument("--steps", type=int, default=250, help="of every row (default: 250)")
    parser.add_argument("--seed", type=whole_numbers, default=[0], metavar="N[,N...]", help="one run a seed and row")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablate"), help="folder for rows, results.json, tables.md"
    )


def run(options: argparse.Namespace) -> None:
    from ..reproduce import run_ablations

    if options.steps < 1:
        raise UsageError(f"--steps {options.steps}: give 1 or more")
    tables, overrides = split_words(options.words)
    run_ablations(tables, options.on, options.steps, options.seed, options.out, overrides, options.json)
