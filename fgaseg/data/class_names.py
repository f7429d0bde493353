"""Photos and label pictures in folders, as training and validation items."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import DataError


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Class names in label order: UTF-8 text with one a line, or a JSON list of strings. Outer spaces are dropped."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text: save the names file as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read as a names file ({error.strerror}): give one class name a line"
        ) from error
    names = _json_names(file, text) if text.lstrip().startswith("[") else text.rstrip().split("\n")
    names = [name.strip() for name in names]
    if not any(names):
        raise DataError(f"{file}: holds no names: give one class name a line, label 0 first")
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if not name:
            raise DataError(f"{file}: name {number + 1} is empty: each line is a class, and its place is its label")
        if name in first:
            raise DataError(
                f"{file}: names {first[name] + 1} and {number + 1} are both {name!r}: each class is named once"
            )
        first[name] = number
    return names


def _json_names(file: Path, text: str) -> list[str]:
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}: is not valid JSON (line {error.lineno}: {error.msg}): give a list of strings"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{file}: is not a JSON list of strings: give ["first class", "second class", ...]')
    return names
