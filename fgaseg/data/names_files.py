"""Files of class names and label maps in every usual format, read by one reader."""

from __future__ import annotations

import codecs
import csv
import functools
import json
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError
from ..files import read_limited
from ..safe_yaml import load_yaml, yaml_problem
from ..vocabulary import LONGEST, ClassPrompts
from .class_tables import COLOUR_KEYS, NAME_KEYS, VALUE_KEYS, ClassTable, Collector
from .name_lines import is_numbered, read_lines
from .typed_names import MOST_TYPED, python_literal, split_names

log = logging.getLogger(__name__)

_YAML = re.compile(r"^(names|classes|labels|categories|id2label|label2id)\s*:\s*([\[{|>].*)?$", re.MULTILINE)
_NUMBERS_FIRST = re.compile(r"\s*[\[(][-\d\s,;]+[\])][ \t:=,]*\w")
_ASSIGNED = re.compile(r"^\s*\w+\s*=\s*(?=[\[({])")
_ITEM = re.compile(r"item\s*\{(?P<fields>(?:[^{}\"']|\"[^\"]*\"|'[^']*')*)\}")
_FIELD = re.compile(r"(\w+)\s*:\s*(\"[^\"]*\"|'[^']*'|[^\s,{}\"']+)")


def read_table(path: str | os.PathLike[str], label_map: bool = False, presets: str = "") -> ClassTable:
    """The classes of a file, with their values, colours and prompts where it has them.

    Read are: one name per line; ``7: road``, ``7 road``, ``road 7``, ``road:128,64,128::``, ``7 128 64 128 road`` and
    the like line by line; lists and mappings in JSON, YAML or Python's writing, of names, of values and names, of names
    and prompts, or of records such as COCO's categories, also inside a larger file (``names:``, ``categories``,
    ``id2label``); CSV with a header; TensorFlow's ``label_map.pbtxt``. UTF-8 or UTF-16 with a byte order mark.

    label_map  every class needs a value or a colour
    presets    what else may be given in place of a file, for the message

    Raises DataError naming the file, and quoting the line or the entry that cannot be read.
    """
    file = Path(path)
    kind = "label map" if label_map else "names file"
    text = _decode(file, kind, presets)
    if not text.strip() and not label_map:
        raise DataError(f"{file}: holds no names: give one class name per line, label 0 first")
    return _format(file, text, label_map)(text, str(file), label_map)


Reader = Callable[[str, str, bool], ClassTable]


def _format(file: Path, text: str, label_map: bool) -> Reader:
    suffix, start = file.suffix.lower(), _ASSIGNED.sub("", text).lstrip()[:1]
    if suffix in (".yaml", ".yml"):
        return _read_yaml
    if suffix == ".json":
        return _read_json
    if _NUMBERS_FIRST.match(text):  # (128, 64, 128): road
        return read_lines
    if start in ("{", "[") or (start == "(" and text.rstrip().endswith(")")):
        return _read_literal
    if _ITEM.search(text):
        return _read_items
    if suffix in (".xml", ".html") or start == "<":
        raise DataError(
            f"{file}: its first line is {text.strip().splitlines()[0]!r}: XML is not read; give names as text, JSON, "
            "YAML or CSV"
        )
    lines = text.strip().splitlines()
    if lines and _header(lines[0]):
        return _read_csv
    if _YAML.search(text) and not label_map:
        return _read_yaml
    if len(lines) == 1 and not label_map:
        return _read_one_line
    return read_lines


def _decode(file: Path, kind: str, presets: str) -> str:
    try:
        content = read_limited(file)
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
        return unicodedata.normalize("NFC", text)  # e and an accent are é, as in other files
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text: save the {kind} as UTF-8") from error
    except OSError as error:
        give = f"give a YAML, JSON, CSV or labelmap.txt file, or one of {presets}" if presets else (
            "give one name per line"
        )  # fmt: skip
        raise DataError(f"{file}: cannot be read as a {kind} ({error.strerror}): {give}") from error


def _from_data(data: Any, origin: str, label_map: bool) -> ClassTable:
    collect = Collector(origin, label_map)
    collect.add_data(data)
    return collect.finish()


def _read_yaml(text: str, origin: str, label_map: bool) -> ClassTable:
    try:
        data = load_yaml(text)
    except yaml.YAMLError as error:
        raise DataError(f"{origin}: is not valid YAML ({yaml_problem(error)}): write lines like 7: car") from None
    if isinstance(data, str) and not label_map:  # lines of names without any sign of YAML
        return read_lines(text, origin, label_map)
    return _from_data(data, origin, label_map)


def _too_deep(origin: str) -> DataError:
    return DataError(f"{origin}: is nested too deeply: give a list of names, or a mapping such as 7: car")


def _unique(origin: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    if repeated := [key for key, count in counts.items() if count > 1]:
        raise DataError(f"{origin}: {repeated[0]!r} stands twice: give each value once")
    return dict(pairs)


def _read_json(text: str, origin: str, label_map: bool) -> ClassTable:
    unique = functools.partial(_unique, origin)
    try:
        data = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise _too_deep(origin) from None
    except json.JSONDecodeError as error:
        try:  # an object on each line
            lines = [json.loads(line, object_pairs_hook=unique) for line in text.splitlines() if line.strip()]
        except DataError:
            raise
        except (ValueError, RecursionError):
            lines = []
        if len(lines) < 2 and (literal := python_literal(text.strip())) is not None:  # ["a", "b",]
            return _from_data(literal, origin, label_map)
        if len(lines) < 2:
            line = (text.splitlines()[error.lineno - 1 : error.lineno] or [""])[0].strip()[:40]
            raise DataError(f"{origin}: is not valid JSON (line {error.lineno}, {line!r}: {error.msg})") from None
        data = lines
    except DataError:
        raise
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{origin}: is not JSON of names ({error})") from None
    if not isinstance(data, dict | list):
        raise DataError(f'{origin}: is not a JSON list of strings: give ["first class", "second class", ...]')
    return _from_data(data, origin, label_map)


def _read_literal(text: str, origin: str, label_map: bool) -> ClassTable:
    """A list or a mapping in JSON or in Python's writing, perhaps as `CLASSES = [...]`."""
    data = python_literal(_ASSIGNED.sub("", text).strip().rstrip(";"))
    if data is None or _is_json(text):
        return _read_json(text, origin, label_map)
    return _from_data(data, origin, label_map)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_items(text: str, origin: str, label_map: bool) -> ClassTable:
    """item { id: 1 name: "car" }, as in TensorFlow's label_map.pbtxt."""
    if rest := _ITEM.sub("", re.sub(r"(?m)^\s*#.*$", "", text)).split():
        raise DataError(f"{origin}: holds {' '.join(rest)[:60]!r} outside of item {{ id: 1 name: 'car' }}")
    collect = Collector(origin, label_map)
    for number, item in enumerate(_ITEM.finditer(text), 1):
        fields = {key.lower(): value.strip("\"'") for key, value in _FIELD.findall(item["fields"])}
        collect.add_record(fields, f"item {number}")
    return collect.finish()


def _header(line: str) -> dict[str, int] | None:
    """The columns of a header of a table, by lower-case name; None if the line is no header."""
    cells = [_column(cell) for cell in re.split(r"[,;\t]", line.lstrip("#"))]
    columns = {cell: number for number, cell in enumerate(cells)}
    named = any(key in columns for key in NAME_KEYS)
    meant = {*VALUE_KEYS, *COLOUR_KEYS, "r", "red", "supercategory", "prompts", "synonyms"} & columns.keys()
    several_names = sum(key in columns for key in NAME_KEYS) > 1  # label,name
    return columns if named and (meant or several_names) and len(cells) > 1 else None


def _column(cell: str) -> str:
    """Class ID is id, and so is label_id; class alone is a name."""
    return re.sub(r"^(?:class|label|category|pixel)_(?=.)", "", cell.strip().strip('"').lower().replace(" ", "_"))


def _read_csv(text: str, origin: str, label_map: bool) -> ClassTable:
    """CSV with a header: name, and id or value, or r, g and b, or colour."""
    lines = text.strip().splitlines()
    columns = _header(lines[0]) or {}
    separator = next(mark for mark in ",;\t" if mark in lines[0])
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, cells in _csv_rows(lines, separator, origin):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"line {number}: {lines[number - 1]!r}"
        if len(cells) < len(columns):
            raise DataError(f"{origin}: {where}: has {len(cells)} cells, the header {len(columns)}")
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise DataError(
                f"{origin}: {where}: has {len(cells)} cells, the header {len(columns)}: put quotes around a name that "
                "holds the separator"
            )
        row = {column: cells[index].strip() for column, index in columns.items()}
        if separator != ";":  # building;edifice
            row |= {key: row[key].replace(";", " | ") for key in NAME_KEYS if key in row}
        rows.append((where, row))
    for key in [key for key in NAME_KEYS if key in columns]:  # label,name: a column of numbers is no column of names
        if rows and all(re.fullmatch(r"-?\d+", row[key]) for _, row in rows):
            kept = "" if {*VALUE_KEYS} & columns.keys() else "value"
            rows = [(where, {kept if one == key else one: cell for one, cell in row.items()}) for where, row in rows]
    collect = Collector(origin, label_map)
    for where, row in rows:
        if not label_map and not any(row.get(key) for key in NAME_KEYS):
            raise DataError(f"{origin}: {where}: holds no name")
        collect.add_record(row, where)
    return collect.finish()


def _csv_rows(lines: list[str], separator: str, origin: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of every line below the header."""
    reader = csv.reader(lines[1:], delimiter=separator, skipinitialspace=True)
    try:
        for number, cells in enumerate(reader, 2):
            if reader.line_num != number - 1:
                raise DataError(f"{origin}: line {number}: a quote is not closed on its line: close it, or remove it")
            yield number, cells
    except csv.Error as error:
        raise DataError(f"{origin}: line {reader.line_num + 1}: is not CSV ({error})") from None


def _read_one_line(text: str, origin: str, label_map: bool) -> ClassTable:
    """One line: a name, or all of them with separators between."""
    long = len(text) > MOST_TYPED or any(len(one) > LONGEST for one in re.split("[,;]", text))
    names = [] if long or is_numbered(text.strip()) else split_names(text.strip(), origin)
    if len(names) < 2:
        return read_lines(text, origin, label_map)
    log.info("%s: its only line is read as %d names", origin, len(names))
    return _from_data(names, origin, label_map)


def names_text(classes: Sequence[str | ClassPrompts]) -> str:
    """A names file of classes, in label order, that ``read_table`` reads back.

    One per line where that says it all, else one per line in quotes, else in JSON. Raises DataError for a name that
    stands twice or that no names file can hold.
    """
    prompts = {one: (one,) if isinstance(one, str) else one.prompts for one in classes}
    names = [one if isinstance(one, str) else one.name for one in classes]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise DataError(f"class names: {twice!r} stands twice, which a file of names cannot say: give it once")
    in_json = dict(zip(names, map(list, prompts.values()), strict=True))
    for text in (
        "".join(f"{' | '.join(words)}\n" for words in prompts.values()),
        "".join(f"{_quoted(name)}\n" for name in names),
        json.dumps(in_json, indent=1, ensure_ascii=False) + "\n",
    ):
        try:
            table = _format(Path("names"), text, False)(text, "names", False)
        except DataError:
            continue
        if not table.names and table.with_prompts(table.class_names()) == list(classes):
            return text
    raise DataError(f"class names: a file cannot hold {', '.join(map(repr, names[:5]))}: give names without signs")


def _quoted(name: str) -> str:
    return next((f"{sign}{name}{sign}" for sign in "\"'`" if sign not in name), name)
