"""The `fgaseg` command, one file per command."""

from .entry import main

__all__ = ["main"]
