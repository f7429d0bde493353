"""`fgaseg profile`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .options import MODEL_HELP, add_json, add_model_options, add_words, class_values, only_overrides
from .printing import say_json

if TYPE_CHECKING:
    from ..reproduce import ViewProfile
    from ..reproduce.profiling import StageUse
    from ..vocabulary import ClassPrompts

HELP = """\
Measure one view stage by stage: seconds, operations a second, their share of what this machine reaches in its own best
product, and memory. The view is noise of the size that the model sees; how long a view takes does not depend on what it
shows, except in a model that prunes (fast=true).

  fgaseg profile                                   a model of the paper's size with random weights, 150 classes
  fgaseg profile --classes 847 --precision bfloat16 --ops
  fgaseg profile --model runs/mine/model --names names.txt --json

Operations are those of products and convolutions, a multiplication and an addition being two, without what the model
leaves out (pad tokens, repeated guidance, maps that only the losses read). The time of other work, such as norms and
copies, counts against the share.
"""

CLASSES = "150"


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("--model", help=f"{MODEL_HELP} (default: ViT-B/16, released preset, random weights)")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--classes", default=CLASSES,
                       help=f"how many, or names with commas between them (default: {CLASSES})")  # fmt: skip
    names.add_argument("--names", type=Path, help="file of names, as of segment")
    add_model_options(parser)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="views; the median counts (default: 3)")
    parser.add_argument("--ops", action="store_true", help="also list the slowest ops of PyTorch")
    add_words(parser, "key=value", "overrides of the model's configuration, e.g. image_size=640")


def run(options: argparse.Namespace) -> None:
    from ..model import set_precision
    from ..reproduce import profile_view, random_model
    from .options import load_model

    overrides = only_overrides(options.words)
    if options.rounds < 1:
        raise UsageError(f"--rounds {options.rounds}: give at least 1")
    if overrides and not options.model:
        raise UsageError(f"{overrides[0]}: overrides the configuration of a model: give one as --model")
    names = _names(options)
    if options.model:
        model = load_model(options.model, overrides, options.device, options.precision)
    else:
        model = random_model(options.device)
        set_precision(model, options.precision)
    found = profile_view(model, names, rounds=options.rounds, ops=options.ops)
    if options.json:
        say_json(found.dump(), indent=1)
    else:
        show(found, options.model or "ViT-B/16 with random weights, released preset")


def _names(options: argparse.Namespace) -> tuple[ClassPrompts, ...] | list[str]:
    """The classes; a number stands for so many made-up names."""
    if options.names or not options.classes.isdigit():
        return class_values(options)
    if not int(options.classes):
        raise UsageError("--classes 0: give at least one class")
    return [f"thing number {index}" for index in range(int(options.classes))]


def show(found: ViewProfile, model: str) -> None:
    """One line a stage, the whole view below them, then the names and the ops."""
    from rich.table import Table

    from .tables import console

    terminal, machine = console(100), found.machine
    for line in (
        f"{model}, {found.classes} classes, one view of {found.pixels[2]}x{found.pixels[3]}, {machine['precision']}",
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
        f"roof: {machine['roof_gflop_per_second']:.0f} GFLOP/s ({machine['roof_product']} in {machine['precision']}), "
        f"copy {machine['copy_gb_per_second']:.0f} GB/s",
    ):
        terminal.print(line, highlight=False, soft_wrap=True)
    table = Table()
    table.add_column("stage", no_wrap=True)
    for heading in ("s", "% of time", "GFLOP", "GFLOP/s", "% of roof", "peak MB"):
        table.add_column(heading, justify="right")
    for stage in found.stages:
        table.add_row(*_cells(stage, found.whole.seconds))
    table.add_section()
    table.add_row(*_cells(found.whole, found.whole.seconds))
    table.add_row(*_cells(found.text, None))
    terminal.print(table)
    terminal.print("The text tower embeds the names once for all views.", highlight=False)
    if found.ops:
        slowest = Table()
        for heading in ("op", "calls", "s", "% of time"):
            slowest.add_column(heading, justify="left" if heading == "op" else "right", no_wrap=True)
        for op in found.ops:
            slowest.add_row(op.op, str(op.calls), f"{op.seconds:.3f}", f"{100 * op.seconds / found.whole.seconds:.1f}")
        terminal.print(slowest)


def _cells(stage: StageUse, view: float | None) -> list[str]:
    percent = "" if view is None else f"{100 * stage.seconds / view:.1f}"
    counted = not math.isnan(stage.gflop) and stage.gflop > 0
    rates = [f"{stage.gflop:.1f}", f"{stage.gflop_per_second:.0f}", f"{100 * stage.share:.0f}"] if counted else [""] * 3
    memory = "" if math.isnan(stage.peak_mb) else f"{stage.peak_mb:.0f}"
    return [stage.stage, f"{stage.seconds:.3f}", percent, *rates, memory]
