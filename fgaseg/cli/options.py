"""What several commands share: options, the model, the device, and where output may go."""

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from ..errors import UsageError


def add_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A parser for one command. `text` is shown by its --help; its first sentence is listed by the parser above."""
    summary = re.split(r"\.\s", text)[0].replace("\n", " ")
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a saved model is run."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32",
                        help="of autocast: lower is faster and changes some labels")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="key=value",
                        help="a switch of the model, e.g. inference=windows or class_maps_budget=500")  # fmt: skip


def whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def load_model(source: str, options: argparse.Namespace) -> Any:
    import torch
    import yaml

    from ..model import FGASeg

    chosen = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {chosen}: cannot be used here: {str(error).splitlines()[0]}") from None
    for switch in options.set:
        if "=" not in switch:
            raise UsageError(f"--set {switch}: write key=value, such as --set inference=windows")
    switches = (switch.split("=", 1) for switch in options.set)
    return FGASeg.from_pretrained(source, **{key: yaml.safe_load(value) for key, value in switches}).to(chosen)


def autocast(options: argparse.Namespace) -> Any:
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    lower = options.precision != "float32"
    return torch.autocast(device.partition(":")[0], getattr(torch, options.precision) if lower else None, enabled=lower)


def check_out(out: Path | None) -> None:
    """Say before hours are spent that nothing can be written to a folder, which need not exist yet."""
    if out is None:
        return
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})" if nearest.is_dir() else f"{nearest} is a file"
        raise UsageError(f"--out {out}: {reason}; give another folder") from None
