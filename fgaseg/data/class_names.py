"""Class names: reading them from a file, and what the values in label images mean."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Class names in label order, from UTF-8 text with one name per line or from a JSON list of strings.

    Surrounding spaces are removed. Raises DataError naming the file: unreadable, no names, an empty or a repeated one.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text: save the names file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read as a names file ({error.strerror}): give one name per line") from error
    names = _json_names(file, text) if text.lstrip().startswith("[") else text.rstrip().split("\n")
    names = [name.strip() for name in names]
    if not any(names):
        raise DataError(f"{file}: holds no names: give one class name per line, label 0 first")
    first: dict[str, int] = {}
    for position, name in enumerate(names, 1):
        if not name:
            raise DataError(f"{file}: name {position} is empty: the n-th line names the class of label n - 1")
        if name in first:
            raise DataError(f"{file}: names {first[name]} and {position} are both {name!r}: give each class once")
        first[name] = position
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


@dataclass(frozen=True)
class LabelSpace:
    """What the values in the label images of a data set mean.

    prompts   the T class names that the model is given
    classes   the S <= T classes that are scored; label value v is classes[v]
    ignore    the label value of pixels that are neither trained on nor scored
    class_of  the class of each prompt, T numbers in 0..S-1; None: prompt i is class i
    origin    where the classes come from, for error messages
    """

    prompts: list[str]
    classes: list[str]
    ignore: int
    class_of: list[int] | None
    origin: str

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], ignore: int) -> LabelSpace:
        """Every name of a names file is a prompt and a class. Raises DataError, also if ``ignore`` is a class."""
        names = read_names(file)
        if ignore < len(names):
            raise DataError(
                f"{file}: label {ignore} is {names[ignore]!r} and cannot be ignored too: "
                "set data.ignore to a value that no class has, such as 65535"
            )
        return cls(names, names, ignore, None, f"the names of {file}")

    def undefined(self, labels: np.ndarray) -> list[int]:
        """The values of ``labels`` (int64, any shape) that are neither a class nor ``ignore``, ascending."""
        outside = labels[(labels < 0) | (labels >= len(self.classes))]
        return np.unique(outside[outside != self.ignore]).tolist()
