"""Tables that several commands print."""

import math
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.table import Table

from ..evaluation import FIGURES, Scores
from ..visible import visible


class VisibleConsole(Console):
    """Shows the control characters of what it prints as their escapes, and reads no markup in it: names are others'."""

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, lines=True))


def console(width: int | None = None) -> Console:
    """Where commands print tables; as wide as the terminal, or `width` if stdout is none."""
    return VisibleConsole(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)


def scores_table(scores: Scores, title: str) -> Table:
    """The classes that occur, most frequent in the ground truth first, and the figures below them, in percent."""
    present = f"{scores.present} of {len(scores.rows)} classes occur in the ground truth"
    table = Table(title=title, caption=f"{scores.images} images; {present}", caption_justify="left")
    for heading in ("class", "IoU", "accuracy", "share of pixels"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    occurring = [row for row in scores.rows if row.labelled or row.predicted]
    for row in sorted(occurring, key=lambda row: -row.labelled):
        share = row.labelled / scores.pixels if scores.pixels else math.nan
        table.add_row(row.name, *(percent(value) for value in (row.iou, row.accuracy, share)))
    table.add_section()
    for name, label in FIGURES.items():
        table.add_row(label, percent(getattr(scores, name)), "", "")
    return table


def percent(value: float) -> str:
    """A share such as 0.123 as "12.3"; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
