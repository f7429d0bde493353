"""`fgaseg train`."""

import argparse
import json
from pathlib import Path

from .options import add_json, add_words, only_overrides
from .printing import say, say_json

HELP = """\
Train FGAseg. A data set is a folder of photos, a folder of label PNGs and a names file (one name per line).

  fgaseg train configs/vitb16.yaml data.images=photos data.labels=labels data.names=names.txt --out runs/mine
  torchrun --nproc-per-node 8 -m fgaseg train configs/vitb16.yaml ...      many GPUs; the batch is shared among them

encoder=NAME chooses another encoder (encoder=ViT-B-16-SigLIP2-384), one of open_clip's ViTs or one of your own: a
module with five attributes that an installed package registers (docs/guides/own_encoder.md).

Every key of the YAML file can be overridden as section.key=value. Interrupted (Ctrl-C, SIGTERM, a crash), the same
command resumes from the last checkpoint and ends with the same weights. The model is left in <out>/model.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("config", help="YAML file (see configs/)")
    add_words(parser, "key=value", "e.g. train.lr=1e-4 model.kernel_size=5")
    parser.add_argument("--out", type=Path, help="folder for checkpoints, figures and the model, instead of train.out")
    parser.add_argument("--restart", action="store_true", help="ignore a checkpoint in --out and start over")


def run(options: argparse.Namespace) -> None:
    from ..config import load_config
    from ..distributed import rank
    from ..training import train
    from .tables import console, scores_table

    overrides = only_overrides(options.words)
    overrides += [f"train.out={json.dumps(str(options.out))}"] if options.out else []
    summary = train(load_config(options.config, *overrides), resume=not options.restart)
    if rank() == 0:
        if options.json:
            say_json(summary.dump())
        else:
            for name, scores in summary.scores.items():
                console().print(scores_table(scores, name))
            say(f"model: {summary.model}")
            if best := summary.best:
                say(f"best: {best['model']} ({best['metric']} {best['score']:.4f} at step {best['step']})")
