"""YAML files and overrides as plain nested data, not yet validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..files import read_limited
from ..safe_yaml import load_yaml, yaml_problem


def read_yaml(path: Path, expected: str = "sections (model:, data:, train:)") -> dict[str, Any]:
    """The mapping in a YAML file, of what is `expected`; an empty file has none. Raises ConfigError."""
    try:
        text = read_limited(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a UTF-8 text file: {error}") from None
    try:
        data = load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {yaml_problem(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected {expected}, got {type(data).__name__}")
    return data


def apply_overrides(
    data: dict[str, Any], words: Sequence[str], values: Mapping[str, Any]
) -> dict[tuple[str, ...], str]:
    """Set keys of nested data in place: first each "a.b=c" of `words`, then each dotted key of `values`.

    Returns the text of the override that wrote each key, for error messages. Raises ConfigError.
    """
    written: dict[tuple[str, ...], str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            raise ConfigError(f"override {word!r}: expected key=value with a dotted key, e.g. train.steps=100")
        try:
            _set(data, path, load_yaml(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"override {word!r}: the value is not valid YAML: {yaml_problem(error)}") from None
        written[path] = word
    for key, value in values.items():
        path = tuple(key.split("."))
        _set(data, path, value)
        written[path] = f"{key}={value}"
    return written


SHORT = {"encoder": "name"}  # a section that may be written as the value of one of its keys


def _set(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(data.get(part), dict):
            data[part] = {SHORT[part]: data[part]} if part in SHORT and isinstance(data.get(part), str) else {}
        data = data[part]
    data[path[-1]] = value
