"""`fgaseg info`: what is installed, what was built, and which backend would run each op here, in which arithmetic."""

import argparse
from typing import Any

from .options import add_json
from .printing import say_json

HELP = """\
Show versions, the machine and its vector instructions, what was built, and which backend runs each op, in which
arithmetic, and why not the others. Include it in a bug report.

  fgaseg info
  fgaseg info --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    from ..environment import collect

    environment = collect()
    if options.json:
        say_json(environment, indent=2)
    else:
        _print_tables(environment)


def _print_tables(environment: dict[str, Any]) -> None:
    from rich.table import Table

    from .tables import console

    terminal = console()
    for title in ("versions", "machine", "built", "loaded"):
        table = Table(title=title, title_justify="left", show_header=False)
        for key, value in environment[title].items():
            table.add_row(key, str(value))
        terminal.print(table)
    columns = ("op", "device", "dtypes", "runs", "multiplies in", "why not the others")
    table = Table(*columns, title="backends", title_justify="left")
    for op, devices in environment["ops"].items():
        for device, choices in devices.items():
            for (runs, multiplies, why), dtypes in _by_backend(choices).items():
                table.add_row(op, device, ", ".join(dtypes), runs, multiplies, why or "(slower)")
    terminal.print(table)


def _by_backend(choices: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[str]]:
    """The dtypes that share a backend, its arithmetic and the reasons against the backends before it."""
    dtypes: dict[tuple[str, str, str], list[str]] = {}
    for choice in choices:
        why = "; ".join(f"{name}: {reason}" for name, reason in choice["why_not"].items())
        same = "the same" if choice["multiplies"] == choice["dtype"] else choice["multiplies"]
        dtypes.setdefault((choice["runs"], same, why), []).append(choice["dtype"])
    return dtypes
