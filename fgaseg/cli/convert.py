"""`fgaseg convert`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from ..errors import UsageError
from .options import add_json, add_words, check_out, load_model, model_and_overrides
from .printing import say, say_json

HELP = """\
Convert a checkpoint of the released FGAseg code, of CAT-Seg, of Pi-Seg or of DeCLIP's CAT-Seg to a folder that
FGASeg.from_pretrained loads, or an fgaseg model to a checkpoint of the released code. Which code a checkpoint is of,
decoder mode, encoder, K and depths are inferred from its keys and shapes; the rest is assumed to be as in that code,
and listed.

  fgaseg convert model_final.pth --out models/released
  fgaseg convert model_final.pth --out models/released top_k=8      a switch that the keys do not show
  fgaseg convert cat-seg-b16 --out models/catseg                    a published model, as a folder
  fgaseg convert models/released --to-released --out model.pth
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "MODEL | key=value", "the model (or --model); overrides of its configuration, e.g. top_k=8")
    parser.add_argument("--model", help="the checkpoint's file; a name or hub id; with --to-released: any model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; with --to-released: .pth file")
    parser.add_argument("--to-released", action="store_true", help="the other direction: from an fgaseg model")
    parser.add_argument(
        "--allow-foreign", action="store_true", help="skip keys that its code does not have instead of refusing"
    )


def run(options: argparse.Namespace) -> None:
    from ..files import atomic_directory
    from ..model import FGASeg, shapes_of
    from ..weights import read_released

    source, overrides = model_and_overrides(options.model, options.words)
    check_out(options.out, file=options.to_released)
    if options.to_released:
        if overrides or options.allow_foreign:
            raise UsageError("--to-released takes the model as it is: leave key=value and --allow-foreign out")
        report = load_model(source, [], "cpu").save_released(options.out)
    elif not Path(source).expanduser().exists():
        _check_replaceable(options.out)
        _copy(source, overrides, options)
        return
    else:
        _check_replaceable(options.out)
        checkpoint = read_released(source, *overrides)
        checkpoint.check_shapes(shapes_of(checkpoint.config), options.allow_foreign)
        model = FGASeg(checkpoint.config)
        report = checkpoint.load_into(model, options.allow_foreign)
        with atomic_directory(options.out) as folder:
            model.save_pretrained(folder)
    if options.json:
        say_json({"checkpoint": source, "out": str(options.out), **asdict(report)})
    else:
        say(*report.lines(), f"written: {options.out}")


def _copy(source: str, overrides: list[str], options: argparse.Namespace) -> None:
    """Write a model that is not on this disk; it is converted already, so that there is no report."""
    from ..files import atomic_directory

    if options.allow_foreign:
        raise UsageError("--allow-foreign is for a checkpoint's file: leave it out")
    model = load_model(source, overrides, "cpu")
    with atomic_directory(options.out) as folder:
        model.save_pretrained(folder)
    if options.json:
        say_json({"checkpoint": source, "out": str(options.out)})
    else:
        say(f"written: {options.out}")


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds anything but a model: replacing it would lose the rest."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file; give a folder to write the model to")
    others = {file.name for file in folder.glob("*")} - {"config.json", "model.safetensors", "README.md", "tokenizer"}
    if others:
        raise UsageError(f"--out {folder}: holds other files ({', '.join(sorted(others)[:3])}); give a new folder")
