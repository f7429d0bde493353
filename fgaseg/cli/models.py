"""`fgaseg models`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import add_json
from .printing import say, say_json

if TYPE_CHECKING:
    from ..weights import NamedModel

HELP = """\
List the published models that have a name: size, licence, where their weights and their published figures are from, and
whether they are here. A name is enough wherever a model is asked for; its weights are fetched when they are first used.

  fgaseg models
  fgaseg models cat-seg-b16                  all that is known of one
  fgaseg models cat-seg-b16 clip-b16 --fetch     fetch now, to label without a network later

Weights are kept in the Hugging Face cache (HF_HOME). HF_ENDPOINT names a mirror, HF_TOKEN or `hf auth login` a user;
HF_HUB_OFFLINE=1 forbids asking.
"""

FIELDS = {
    "description": "what it is",
    "source": "weights",
    "size": "to fetch",
    "licence": "licence",
    "trained_on": "trained on",
    "published": "published mIoU",
    "published_in": "published in",
    "verified": "verified",
    "here": "here",
}


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, in full")
    parser.add_argument("--fetch", action="store_true", help="fetch the weights of these names now")


def run(options: argparse.Namespace) -> None:
    from ..errors import CheckpointError
    from ..model import fetch_named
    from ..weights import MODELS, find_named, name_hint

    if options.fetch and not options.names:
        raise UsageError("--fetch: name the models to fetch")
    models = [find_named(name) for name in options.names]
    for name, model in zip(options.names, models, strict=True):
        if model is None:
            raise CheckpointError(f"{name!r}: no model has this name; {name_hint(name)}")
    chosen = [model for model in models if model] or list(MODELS.values())
    for model in chosen if options.fetch else ():
        fetch_named(model)
    rows = [_row(model) for model in chosen]
    if options.json:
        say_json(rows)
    elif options.names:
        _print_fields(rows)
    else:
        _print_table(rows)


def _row(model: NamedModel) -> dict[str, Any]:
    from ..model import here

    folder = here(model)
    return {**model.dump(), "here": None if folder is None else str(folder)}


def _text(row: dict[str, Any], key: str) -> str:
    """A field for people."""
    from ..evaluation import COLUMNS
    from ..weights import megabytes

    value = row[key]
    if key == "size":
        return megabytes(value) if value else "not known before it is fetched"
    if key == "published":
        return ", ".join(f"{COLUMNS[name]} {figure}" for name, figure in value.items()) or "none known here"
    return "no" if value is None else str(value)


def _print_fields(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        say(row["name"])
        for key, title in FIELDS.items():
            if row[key] != "":
                say(f"  {title}: {_text(row, key)}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    """One line a model, with the published figures; then where these are from, and the licences."""
    from rich.table import Table

    from ..evaluation import COLUMNS
    from ..weights import megabytes
    from .tables import console

    terminal = console()
    table = Table("name", "to fetch", "here", *COLUMNS.values(), box=None)
    for row in rows:
        figures = [str(row["published"].get(name, "-")) for name in COLUMNS]
        size = megabytes(row["size"]) if row["size"] else "-"
        table.add_row(row["name"], size, "yes" if row["here"] else "no", *figures)
    terminal.print(table)
    lines = ["Published mIoU in %; not computed here. `fgaseg eval --model NAME --data a150` computes it."]
    for row in rows:
        lines += ["", f"{row['name']}: {row['description']}", f"  weights: {row['source']}; licence: {row['licence']}"]
        lines += [f"  figures: {row['published_in']}"] if row["published"] else []
    for line in lines:
        terminal.print(line, highlight=False, soft_wrap=True)
