"""What the command line prints: every line, so that names in files cannot move the cursor or look like other lines."""

import json
import sys
from typing import Any

from ..visible import visible


def say(*lines: object, error: bool = False) -> None:
    """Print lines, at once, with control characters as their escapes; on stderr if it is an error or a note."""
    text = "\n".join(visible(str(line)) for line in lines)
    print(text, file=sys.stderr if error else sys.stdout, flush=True)  # looked up now: a progress bar may stand in


def say_json(data: Any, indent: int | None = None) -> None:
    """Print JSON on stdout, at once: what is done survives whatever comes. It is ASCII: nothing has to be escaped."""
    print(json.dumps(data, indent=indent), flush=True)
