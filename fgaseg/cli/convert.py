"""`fgaseg convert`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ..errors import UsageError
from .options import add_json

HELP = """\
Turn a checkpoint of the released FGAseg code or of CAT-Seg into a folder that FGASeg.from_pretrained loads, or back.
What its keys tell (decoder mode, encoder, K, depths) is read off; the rest is as in the released preset, and listed.

  fgaseg convert model_final.pth --out models/released
  fgaseg convert model_final.pth --out models/released top_k=8      a switch that the keys do not tell
  fgaseg convert models/released --to-released --out model.pth
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("checkpoint", help=".pth or .safetensors file; with --to-released: a model's folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; with --to-released: .pth file")
    parser.add_argument("--to-released", action="store_true", help="the other way: our model to the released keys")
    parser.add_argument(
        "--allow-foreign", action="store_true", help="leave keys that belong to no FGAseg aside instead of refusing"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="switches of the model, e.g. top_k=8")


def run(options: argparse.Namespace) -> None:
    from ..files import atomic_directory
    from ..model import FGASeg
    from ..weights import load, save

    if options.to_released:
        if options.overrides or options.allow_foreign:
            raise UsageError("--to-released takes the model as it is: leave key=value and --allow-foreign out")
        report = save(FGASeg.from_pretrained(options.checkpoint), options.out)
    else:
        _check_replaceable(options.out)
        model, report = load(FGASeg, options.checkpoint, options.overrides, options.allow_foreign)
        with atomic_directory(options.out) as folder:
            model.save_pretrained(folder)
    if options.json:
        print(json.dumps({"checkpoint": options.checkpoint, "out": str(options.out), **asdict(report)}))
    else:
        print("\n".join([*report.lines(), f"written: {options.out}"]))


def _check_replaceable(folder: Path) -> None:
    """Only a model may be replaced: whatever else is in a folder would be lost."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: a file; give a folder to write the model to")
    others = {file.name for file in folder.glob("*")} - {"config.json", "model.safetensors"}
    if others:
        raise UsageError(f"--out {folder}: holds other files ({', '.join(sorted(others)[:3])}); give a new folder")
