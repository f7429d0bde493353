"""`fgaseg bench`."""

import argparse
from pathlib import Path

from .options import add_json

HELP = """\
Time every backend of every op of fgaseg.kernels beside plain PyTorch, torch.compile and the straightforward form:
forward and forward+backward, with memory, share of the machine's measured copy and matmul rates, and error against
float64.

  fgaseg bench                         everything (tens of minutes on a CPU), to runs/bench.csv and runs/bench.png
  fgaseg bench lcs_conv --shapes S1,K=11 --json
  fgaseg bench model --out runs/model --classes 20,150         the whole model, stage by stage: its plain form,
                                                               accelerated, in bfloat16, compiled, pruned
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("ops", nargs="*", metavar="op", help="only these (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="writes <out>.csv and <out>.png")
    parser.add_argument("--shapes", default="", help="only these, such as S1,S3,K=11 (benchmarks/shapes.py)")
    for key, text in (("classes", "vocabulary sizes"), ("batch", "images at once"), ("forms", "plain,accelerated,..."),
                      ("passes", "inference,text,training")):  # fmt: skip
        parser.add_argument(f"--{key}", metavar="N,..." if key in ("classes", "batch") else "NAME,...",
                           help=f"of bench model: {text}")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")


def run(options: argparse.Namespace) -> None:
    from ..reproduce import benchmark_model, benchmark_ops

    if options.ops == ["model"]:
        chosen = {key: getattr(options, key) for key in ("classes", "batch", "forms", "passes")}
        benchmark_model(options.out, [f"--{key}={value}" for key, value in chosen.items() if value], options.json)
    else:
        benchmark_ops(options.ops, options.out, options.shapes, options.dtype, options.json)
