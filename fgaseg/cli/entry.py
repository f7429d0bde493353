"""The `fgaseg` command: its parser, and what becomes of errors and warnings."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EncoderError,
    ImageError,
    Interrupted,
    ResultError,
    TrainingError,
    UnfinishedError,
    UsageError,
    VocabularyError,
)
from . import ablate, bench, convert, data, demo, eval, info, parity, segment, train
from .options import add_command

DESCRIPTION = "FGAseg: open-vocabulary semantic segmentation. Give it photos and any list of class names."

# each a module with HELP, configure(parser) and run(options), which imports what it needs when it is called
COMMANDS = {
    "demo": demo,
    "data": data,
    "train": train,
    "eval": eval,
    "ablate": ablate,
    "segment": segment,
    "convert": convert,
    "parity": parity,
    "bench": bench,
    "info": info,
}

# options that a user may look for under another program's or an earlier version's name
RENAMED = {"--set": "overrides are plain words: key=value", "--weights": "the model is --model"}

# errors that explain themselves: a traceback would only hide the message
EXPECTED = (
    UsageError,
    CheckpointError,
    ConfigError,
    DataError,
    EncoderError,
    ImageError,
    ResultError,
    TrainingError,
    UnfinishedError,
    VocabularyError,
    OSError,
    FloatingPointError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, 1 for a user's mistake (one line on stderr), 128 + signal when interrupted."""
    options = parse(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int | None = COMMANDS[options.command].run(options)
            return status or 0
    except KeyboardInterrupt:
        return 130
    except Interrupted as error:
        if _is_main():
            print(error, file=sys.stderr)
        return 128 + error.signal
    except EXPECTED as error:
        print(f"fgaseg {options.command}: {error}", file=sys.stderr)
        return 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options and words in any order, which argparse alone does not allow."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(options, "words")]
    if unknown:
        hint = next((f" ({hint})" for word in unknown for old, hint in RENAMED.items() if word.startswith(old)), "")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if rest:
        options.words = [*options.words, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fgaseg", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        command.configure(add_command(commands, name, command.HELP))
    return parser


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None,
                  line: str | None = None) -> None:  # fmt: skip
    if _is_main():
        print(f"note: {message}", file=sys.stderr)


def _is_main() -> bool:
    """Of several processes under torchrun, whether or not they have met."""
    return os.environ.get("RANK", "0") == "0"
