"""YAML files and overrides as plain nested data, not yet validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key written twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, expected: str = "sections (model:, data:, train:)") -> dict[str, Any]:
    """The mapping in a YAML file, of what is `expected`; an empty file has none. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a UTF-8 text file: {error}") from None
    try:
        data = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_problem(error)}") from None
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
            _set(data, path, yaml.load(value, _UniqueKeyLoader))
        except yaml.YAMLError as error:
            raise ConfigError(f"override {word!r}: the value is not valid YAML: {_problem(error)}") from None
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


def _problem(error: yaml.YAMLError) -> str:
    """A YAML error, which spans several lines, in one."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return str(error).replace("\n", " ")
