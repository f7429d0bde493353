"""The `fgaseg` command, one file a command."""

from .entry import main

__all__ = ["main"]
