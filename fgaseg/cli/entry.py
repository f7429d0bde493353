"""The `fgaseg` command: its parser, where messages, warnings and errors go, and the exit status."""

import argparse
import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import FGASegError, Interrupted
from ..threads import follow_load
from . import (
    ablate,
    app,
    bench,
    convert,
    data,
    demo,
    eval,
    export,
    info,
    models,
    parity,
    profile,
    raster,
    segment,
    train,
    video,
)
from .options import add_command
from .printing import say

DESCRIPTION = "FGAseg: open-vocabulary semantic segmentation. Give it photos and any list of class names."

# each a module with HELP, configure(parser) and run(options); torch is imported by run, so that --help is fast
COMMANDS = {
    "demo": demo,
    "data": data,
    "train": train,
    "eval": eval,
    "ablate": ablate,
    "segment": segment,
    "raster": raster,
    "video": video,
    "app": app,
    "models": models,
    "convert": convert,
    "export": export,
    "parity": parity,
    "bench": bench,
    "profile": profile,
    "info": info,
}

TIMED = ("bench", "profile")  # the number of threads is part of what they measure

# options that a user may look for under another program's or an earlier version's name
RENAMED = {"--set": "overrides are plain words: key=value", "--weights": "the model is --model"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: success; 1: an expected error (one line on stderr) or a failed check; 128 + signal: interrupted. Options that
    argparse refuses end the process with status 2. Other exceptions are bugs, and pass with their traceback.
    """
    options = parse(arguments)
    try:
        follow = options.command not in TIMED
        with _messages_to_stderr(), follow_load() if follow else contextlib.nullcontext():
            status: int | None = COMMANDS[options.command].run(options)
            return status or 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Interrupted as error:
        if _is_main():
            say(*str(error).split("\n"), error=True)
        return 128 + error.signal
    except (FGASegError, OSError, FloatingPointError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:  # without "[Errno 13]"
            text = f"{error.filename}: {error.strerror}"
        say(*f"fgaseg {options.command}: {text}".split("\n"), error=True)
        return 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse options and words in any order, which argparse alone does not allow."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if (word.startswith("-") and word != "-") or not hasattr(options, "words")]
    if unknown:
        hint = next((f" ({hint})" for word in unknown for old, hint in RENAMED.items() if word.startswith(old)), "")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if rest:
        options.words = [*options.words, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; the reference in the documentation is made from it."""
    parser = argparse.ArgumentParser(prog="fgaseg", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        command.configure(add_command(commands, name, command.HELP))
    return parser


@contextlib.contextmanager
def _messages_to_stderr() -> Iterator[None]:
    """Print what the library logs, from INFO on, and its warnings as plain lines on stderr, from rank 0 alone."""
    logger, handler = logging.getLogger("fgaseg"), _LineHandler() if _is_main() else logging.NullHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _LineHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(*self.format(record).split("\n"), error=True)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None,
                  line: str | None = None) -> None:  # fmt: skip
    if _is_main():
        say(*f"note: {message}".split("\n"), error=True)


def _is_main() -> bool:
    """Rank 0, under torchrun even before the process group exists."""
    return os.environ.get("RANK", "0") == "0"
