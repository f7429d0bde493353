"""Label maps: the names of the values or colours in label images, from a file, a preset or the configuration itself."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from .benchmark_sets import BENCHMARK_SETS
from .label_formats import COLOURS, UNPAINTED, colour, describe

PRESETS = Path(__file__).parent / "label_presets"
# names that mean "no class": pixels that are neither trained on nor scored
VOID_NAMES = {"void", "unlabeled", "unlabelled", "ignore", "ignored", "undefined", "no data", "nodata", "dontcare"}
_NAME_KEYS = ("readable", "name", "label", "title", "class", "class_name", "label_name")
_VALUE_KEYS = ("id", "value", "index", "idx", "label_id", "class_id", "pixel_value", "pixel", "grey", "gray")
_COLOUR_KEYS = ("color", "colour", "rgb", "color_rgb", "hex")
_LISTS = ("names", "labels", "classes", "categories", "id2label", "items", "label_map")  # that hold the map itself

Name = str | int | None  # of a class; its number in the names file; None: void


def is_void_name(name: str) -> bool:
    """Whether a name says that its pixels are not labelled."""
    return name.strip().lower().replace("_", " ") in VOID_NAMES


@dataclass(frozen=True)
class LabelMap:
    """The names of stored values.

    names   the name of each stored value: text; the number of a line of the names file; None or a word like "void":
            neither trained on nor scored
    origin  the file or preset, for error messages
    others  the name of all further values, a tuple of one; empty: further values are errors
    """

    origin: str
    names: dict[int, Name] = field(default_factory=dict)
    others: tuple[Name, ...] = ()

    @classmethod
    def read(cls, source: str | Path | Mapping[Any, Any]) -> LabelMap:
        """A map written in the configuration, the path of a file, or the name of a preset.

        Files: YAML or JSON, a label map of an annotation tool (``car:0,0,142::``), ``0 0 142 car`` or ``7: car`` line
        by line, or CSV with a header. See docs/guides/own_data.md. Raises DataError naming the source, and the line or
        the entry that cannot be read.
        """
        if isinstance(source, Mapping):
            return _from_data(source, "data.label_map")
        file = Path(source)
        if not file.exists() and str(source) in preset_names():
            return _preset(str(source))
        return _from_file(file)

    @property
    def has_values(self) -> bool:
        return any(stored < COLOURS for stored in self.names)

    @property
    def has_colours(self) -> bool:
        return any(COLOURS <= stored < UNPAINTED for stored in self.names)

    def class_names(self) -> list[str]:
        """The classes in the order in which the map names them, each once, without void."""
        named = [name for name in (*self.names.values(), *self.others) if isinstance(name, str)]
        return list(dict.fromkeys(name for name in named if not is_void_name(name)))


def preset_names() -> list[str]:
    """The names that ``LabelMap.read`` knows: benchmark sets as they are published, and other well-known sets."""
    return sorted({*BENCHMARK_SETS, *(file.stem for file in PRESETS.glob("*.yaml"))})


def _preset(name: str) -> LabelMap:
    if (file := PRESETS / f"{name}.yaml").exists():
        return LabelMap(f"the preset {name}", _from_file(file).names)
    benchmark = BENCHMARK_SETS[name]
    defined = {value: int(label) for value, label in enumerate(benchmark.table) if label >= 0}
    names = {value: None if label == benchmark.ignore else benchmark.classes[label] for value, label in defined.items()}
    ordered = sorted(names, key=lambda value: (names[value] is None, defined[value]))  # classes in the set's own order
    return LabelMap(f"the preset {name}", {value: names[value] for value in ordered})


# ---- files


def _from_file(file: Path) -> LabelMap:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text: save the label map as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read as a label map ({error.strerror}): give a YAML, JSON, CSV or labelmap.txt file, "
            f"or one of {', '.join(preset_names())}"
        ) from error
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _from_data(_load_yaml(text, file), str(file))
    if suffix == ".json" or text.lstrip()[:1] in ("{", "["):
        return _from_data(_load_json(text, file), str(file))
    if suffix == ".csv" or ((rows := text.lstrip().splitlines()) and _header(rows[0])):
        return _from_table(text, file)
    return _from_lines(text, file)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key may stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _load_yaml(text: str, file: Path) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise DataError(
            f"{file}: is not valid YAML ({where}{getattr(error, 'problem', None) or error}): write lines like 7: car"
        ) from None


def _load_json(text: str, file: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise DataError(f"{file}: {repeated[0]!r} stands twice: give each value once")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: is not valid JSON (line {error.lineno}: {error.msg})") from None


def _header(line: str) -> dict[str, int] | None:
    """The columns of a header of a table, by lower-case name; None if the line is no header."""
    cells = [cell.strip().lower().replace(" ", "_") for cell in re.split(r"[,;\t]", line.lstrip("#"))]
    columns = {cell: number for number, cell in enumerate(cells)}
    named = any(key in columns for key in _NAME_KEYS)
    meant = {*_VALUE_KEYS, *_COLOUR_KEYS, "r", "red"} & columns.keys()
    return columns if named and meant and len(cells) > 1 else None


def _from_table(text: str, file: Path) -> LabelMap:
    """CSV with a header: name, and id or value, or r, g and b, or colour."""
    lines = text.strip().splitlines()
    columns = _header(lines[0])
    if columns is None:
        raise DataError(
            f"{file}: the first line is {lines[0]!r}: a CSV label map begins with a header, name,id or name,r,g,b"
        )
    separator = next(mark for mark in ",;\t" if mark in lines[0])
    collect = _Collector(str(file))
    for number, cells in enumerate(csv.reader(lines[1:], delimiter=separator), 2):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"line {number}: {lines[number - 1]!r}"
        if len(cells) < len(columns):
            raise DataError(f"{file}: {where}: has {len(cells)} cells, the header {len(columns)}")
        row = {column: cells[index].strip() for column, index in columns.items()}
        short = {"r": "red", "g": "green", "b": "blue"}
        parts = [row.get(key, row.get(short[key], "")) for key in "rgb"]
        if all(part for part in parts):
            row["rgb"] = ",".join(parts)
        collect.add_record(row, where)
    return collect.finish()


_LINES = (
    re.compile(r"(?P<name>[^:]+):\s*(?P<colour>\d+\s*,\s*\d+\s*,\s*\d+)\s*(:.*)?"),  # car:0,0,142::
    re.compile(r"[(\[]?(?P<colour>\d+[\s,]+\d+[\s,]+\d+)[)\]]?[\s,:=]+(?P<name>\S.*)"),  # 0 0 142 car, (0, 0, 142): car
    re.compile(r"(?P<colour>#[0-9a-fA-F]{6})[\s,:=]+(?P<name>\S.*)"),  # #00008e car
    re.compile(r"(?P<value>-?\d+)\s*[:=,\t ]\s*(?P<name>\S.*)"),  # 7: car
    re.compile(r"(?P<name>\D.*?)\s*[:=,\t ]\s*[(\[]?(?P<colour>\d+[\s,]+\d+[\s,]+\d+)[)\]]?"),  # car 0 0 142
    re.compile(r"(?P<name>\D.*?)\s*[:=,\t ]\s*(?P<value>-?\d+)"),  # car: 7
)


def _from_lines(text: str, file: Path) -> LabelMap:
    """A value or a colour and a name on each line; lines that begin with # (and no colour) are comments."""
    collect = _Collector(str(file))
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or (line.startswith("#") and not _LINES[2].fullmatch(line)):
            continue
        match = next(filter(None, (pattern.fullmatch(line) for pattern in _LINES)), None)
        if match is None:
            raise DataError(
                f"{file}: line {number} is {line!r}: a label map has a value or a colour and a name on each line, such "
                "as 7: car or car:0,0,142:: (a plain list of names is data.names)"
            )
        found = match.groupdict()
        collect.add(found.get("colour") or found["value"], found["name"].strip().strip("'\""), f"line {number}")
    return collect.finish()


# ---- data


def _from_data(data: Any, origin: str) -> LabelMap:
    """A mapping from values to names or from names to values, or a list of records; or a mapping that holds one."""
    collect = _Collector(origin)
    if isinstance(data, Mapping):
        inner = [key for key in _LISTS if isinstance(data.get(key), Mapping | list)]
        if inner and not any(_is_stored(key) for key in data):
            return _from_data(data[inner[0]], origin)
        for key, value in data.items():
            collect.add_entry(key, value)
    elif isinstance(data, list):
        for number, value in enumerate(data):
            if isinstance(value, Mapping):
                collect.add_record({str(key).lower(): part for key, part in value.items()}, f"entry {number + 1}")
            else:
                collect.add(number, value, f"entry {number + 1}")
    else:
        raise DataError(f"{origin}: holds {type(data).__name__}: give a mapping such as 7: car, or a list of records")
    return collect.finish()


def _is_stored(key: Any) -> bool:
    return str(key).strip().lower() in ("unpainted", "others") or _stored(key) is not None


def _stored(value: Any) -> int | None:
    """The stored value that a key or an entry means; None if it means none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    text = str(value).strip().strip("()[]").strip()
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", text):
        return colour(*(int(text[start : start + 2], 16) for start in (1, 3, 5)))
    if re.fullmatch(r"\d+([\s,]+\d+){2,3}", text):
        parts = [int(part) for part in re.split(r"[\s,]+", text)]
        return colour(parts[0], parts[1], parts[2]) if max(parts) < 256 else None
    return None


class _Collector:
    """Gathers the entries of a map; raises DataError where two of them contradict each other."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.names: dict[int, Name] = {}
        self.others: tuple[Name, ...] = ()

    def add(self, stored: Any, name: Any, where: str) -> None:
        """One value or colour, in any spelling, and its name."""
        number = UNPAINTED if str(stored).strip().lower() == "unpainted" else _stored(stored)
        if number is None:
            raise DataError(f"{self.origin}: {where}: {stored!r} is no value, and no colour such as 0,0,142 or #00008e")
        name = self._name(name, where)
        if number in self.names and self.names[number] != name:
            raise DataError(
                f"{self.origin}: {where}: {describe(number)} is {self._shown(self.names[number])} and "
                f"{self._shown(name)}: give it one name"
            )
        self.names[number] = name

    def add_entry(self, key: Any, value: Any) -> None:
        """One entry of a mapping: 7: car, car: 7, "0,0,142": car, car: [0, 0, 142], car: {id: 7, color: ...}."""
        where = f"entry {key!r}"
        if str(key).strip().lower() == "others":
            self.others = (self._name(value, where),)
        elif isinstance(value, Mapping):
            record = {str(name).lower(): part for name, part in value.items()}
            named = any(name in record for name in _NAME_KEYS)
            self.add_record(record | ({"id": key} if named and _is_stored(key) else {"name": key}), where)
        elif _is_stored(key):
            self.add(key, value, where)
        elif isinstance(value, list) and value and isinstance(value[0], list | str):
            for part in value:  # several colours of one class
                self.add(part, key, where)
        elif value == "unpainted" or _stored(value) is not None:
            self.add(value, key, where)
        else:
            raise DataError(
                f"{self.origin}: {where}: neither {key!r} nor {value!r} is a value or a colour: write 7: car, or "
                '"0,0,142": car, or car: [0, 0, 142]'
            )

    def add_record(self, record: Mapping[str, Any], where: str) -> None:
        """Fields of one class: its name, and its value or its colour or both."""
        name_key = next((key for key in _NAME_KEYS if key in record), None)
        if name_key is None:
            raise DataError(f"{self.origin}: {where}: has no name among {', '.join(map(str, record))}")
        stored = [record[key] for key in (*_VALUE_KEYS, *_COLOUR_KEYS) if record.get(key) not in (None, "")]
        if not stored:
            raise DataError(f"{self.origin}: {where}: {record[name_key]!r} has neither a value nor a colour")
        for one in stored:
            self.add(one, record[name_key], where)

    def finish(self) -> LabelMap:
        if not self.names and not self.others:
            raise DataError(f"{self.origin}: names no value and no colour: write lines such as 7: car")
        return LabelMap(self.origin, self.names, self.others)

    def _name(self, name: Any, where: str) -> Name:
        if name is None or (isinstance(name, int) and not isinstance(name, bool)):
            return name
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{self.origin}: {where}: {name!r} is no name: give text, or null for void")
        return name.strip()

    @staticmethod
    def _shown(name: Name) -> str:
        return "void" if name is None else repr(name)
