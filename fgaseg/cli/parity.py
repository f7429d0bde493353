"""`fgaseg parity`."""

import argparse
from pathlib import Path

from .options import add_json

HELP = """\
Compare the released preset with recorded tensors of the released code: every stage, loss and gradient.
An error is the largest difference as a share of the recording's largest value. Exit status 1 if a case fails.

  fgaseg parity --root ../shared/parity                       everything, three minutes and 11 GB (training)
  fgaseg parity fast sliding --root ../shared/parity --json   cases whose names hold one of these words
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("cases", nargs="*", metavar="word", help="only cases whose names hold one of these")
    parser.add_argument("--root", type=Path, default=Path("../shared/parity"), help="folder of the recordings")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of our model")


def run(options: argparse.Namespace) -> int:
    from ..reproduce import run_parity

    return 0 if run_parity(options.root, options.dtype, options.cases, options.json) else 1
