"""`fgaseg demo`."""

import argparse
from pathlib import Path

from .options import add_json, add_words, only_overrides, whole_numbers

HELP = """\
Train a small FGAseg on procedurally drawn scenes, score it on colour-shape pairs it has never seen, and write a picture
with photos, labels and pseudo-masks. The encoders start from a small file in the package (configs/demo_encoder.yaml
says how it was made), the head from scratch. Needs no download and about three minutes on two CPU cores.

  fgaseg demo                       the demo; results in runs/demo
  fgaseg demo --seed 1 --json       another seed, figures as JSON
  fgaseg ablate II --steps 500      the same model with P2Tformer, T2Ploss and LCS switched off in turn
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for model, figures and picture")
    parser.add_argument("--seed", type=whole_numbers, default=[0], metavar="N[,N...]",
                      help="one run a seed; figures are averaged over them")  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="ignore earlier runs in --out and start over")
    add_words(parser, "key=value", "as for train, e.g. train.steps=100")


def run(options: argparse.Namespace) -> None:
    from ..reproduce import run_demo

    run_demo(options.out, options.seed, only_overrides(options.words), options.json, options.restart)
