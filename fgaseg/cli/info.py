"""`fgaseg info`: what is installed, what was built, and which backend would run each op here."""

import argparse
import json

from .options import add_json

HELP = "Versions, what was built, and which backend runs each op and why not the others."


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..environment import collect

    found = collect()
    if options.json:
        print(json.dumps(found, indent=2))
        return
    console = Console()
    for title in ("versions", "machine", "built", "loaded"):
        table = Table(title=title, title_justify="left", show_header=False)
        for key, value in found[title].items():
            table.add_row(key, str(value))
        console.print(table)
    table = Table("op", "device", "dtypes", "runs", "why not the others", title="backends", title_justify="left")
    for op, devices in found["ops"].items():
        for device, choices in devices.items():
            dtypes: dict[tuple[str, str], list[str]] = {}
            for choice in choices:
                why = "; ".join(f"{name}: {reason}" for name, reason in choice["why_not"].items())
                dtypes.setdefault((choice["runs"], why), []).append(choice["dtype"])
            for (runs, why), names in dtypes.items():
                table.add_row(op, device, ", ".join(names), runs, why or "(slower)")
    console.print(table)
