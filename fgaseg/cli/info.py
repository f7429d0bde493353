"""What is installed, what was built, and which backend would run each op here: ``fgaseg info``."""

import json as json_format

from rich.console import Console
from rich.table import Table

from ..environment import collect


def main(json: bool = False) -> int:
    """Prints ``collect()`` as tables, or as JSON; returns the exit status 0."""
    found = collect()
    if json:
        print(json_format.dumps(found, indent=2))
        return 0
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
    return 0
