"""One line for each validation error: where the value came from, which key, what is wrong, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Path = tuple[str, ...]  # a dotted key in parts
MOST = 20  # lines
SHOWN = 200  # characters of a value


def explain(cls: type[BaseModel], error: ValidationError, source: str, written: Mapping[Path, str]) -> str:
    """The lines of a ConfigError.

    cls      the section that was validated
    source   the file or object that the data came from
    written  the text of the override that wrote a key
    """
    # a default that depends on a mistaken field is not computed: the mistake is reported by itself
    found = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
    lines = list(dict.fromkeys(_line(cls, dict(item), source, written) for item in found[: 10 * MOST]))
    more = [f"{source}: and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return "\n".join(lines[:MOST] + more)


def _line(cls: type[BaseModel], item: dict[str, Any], source: str, written: Mapping[Path, str]) -> str:
    # pydantic adds type names and indices to the location of unions and tuples: keep the keys that the user can write
    path = _keys_of(cls, item["loc"])
    override = next((text for parts, text in written.items() if parts[: len(path)] == path[: len(parts)]), None)
    where = f"override {override!r}" if override else source
    name = shortened(".".join(path))
    key = name or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}; did you mean {_nearest(cls, path)!r}?"
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if item["type"] == "value_error":
        deeper = all(part.isidentifier() for part in message.split(":")[0].split("."))
        return f"{where}: {name}{name and '.'}{message}" if deeper else f"{where}: {key}: {message}"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}; got {shortened(repr(item['input']))}"


def shortened(text: str) -> str:
    """The beginning of a long text, and how long it is."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _keys_of(cls: type[BaseModel], location: tuple[int | str, ...]) -> Path:
    path: list[str] = []
    section: type[BaseModel] | None = cls
    for part in location:
        if section is None:
            break
        path.append(str(part))
        section = _sections(section).get(str(part))
    return tuple(path)


def _sections(cls: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found = {}
    for name, field in cls.model_fields.items():
        for kind in get_args(field.annotation) or (field.annotation,):  # those that may be null, too
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found


def _all_keys(cls: type[BaseModel], prefix: Path = ()) -> list[Path]:
    keys: list[Path] = []
    for name in cls.model_fields:
        keys.append((*prefix, name))
        if name in (sections := _sections(cls)):
            keys += _all_keys(sections[name], (*prefix, name))
    return keys


def _nearest(cls: type[BaseModel], path: Path) -> str:
    """The valid key nearest to an unknown one: a misspelt sibling, else the same or a similar name elsewhere."""
    keys = _all_keys(cls)
    siblings = {".".join(key): key[-1] for key in keys if key[:-1] == path[:-1]}
    others = {".".join(key): key[-1] for key in keys}
    wrong = path[-1].lower().replace("-", "_")
    for choices, cutoff in ((siblings, 0.7), (others, 0.7), (siblings, 0.0), (others, 0.0)):
        close = difflib.get_close_matches(wrong, choices.values(), n=1, cutoff=cutoff)
        if close:
            return next(dotted for dotted, name in choices.items() if name == close[0])
    return ".".join(keys[0])
