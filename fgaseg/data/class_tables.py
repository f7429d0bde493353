"""What files of class names and label maps say, gathered entry by entry: names, their values or colours, prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from ..vocabulary import ClassPrompts, one_line, split_synonyms, why_no_name
from .label_formats import COLOURS, UNPAINTED, colour, describe

# names that mean "no class": pixels that are neither trained on nor scored
VOID_NAMES = {"void", "unlabeled", "unlabelled", "ignore", "ignored", "undefined", "no data", "nodata", "dontcare"}
NAME_KEYS = ("readable", "display_name", "name", "label", "title", "class", "class_name", "label_name", "category")
VALUE_KEYS = (
    "id",
    "idx",
    "value",
    "index",
    "label_id",
    "class_id",
    "category_id",
    "pixel_value",
    "pixel",
    "grey",
    "gray",
)
COLOUR_KEYS = ("color", "colour", "rgb", "color_rgb", "hex")
_RGB_KEYS = (("r", "g", "b"), ("red", "green", "blue"))
_PROMPT_KEYS = ("prompts", "prompt", "synonyms", "aliases")
_FIELDS = {*VALUE_KEYS, *COLOUR_KEYS, *_RGB_KEYS[0], *_RGB_KEYS[1], *_PROMPT_KEYS}
# that hold the entries themselves; the first ones hold nothing else
_LISTS = ("names", "categories", "id2label", "label2id", "class_names")
_PERHAPS_LISTS = ("labels", "classes", "items", "label_map", "tags")
_WORDNET = re.compile(r"n\d{8}")
_LARGEST = 65535  # value of a label image

Name = str | int | None  # of a class; its number in the names file; None: void


def is_void_name(name: str) -> bool:
    """Whether a name says that its pixels are not labelled."""
    return name.strip().lower().replace("_", " ") in VOID_NAMES


@dataclass(frozen=True)
class ClassTable:
    """The classes of a file, of a mapping or of a list.

    origin   for messages
    names    the name of each stored value (see ``label_formats``) in the order of the file: text; the number of a line
             of the names file; None or a word like "void": neither trained on nor scored
    unstored the classes of a plain list, which has no values: the n-th is class n - 1
    prompts  the prompts of each class that has others than its name
    others   the name of all further values, a tuple of one; empty: further values are errors
    """

    origin: str
    names: dict[int, Name] = field(default_factory=dict)
    unstored: tuple[str, ...] = ()
    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    others: tuple[Name, ...] = ()

    @property
    def has_values(self) -> bool:
        return any(stored < COLOURS for stored in self.names)

    @property
    def has_colours(self) -> bool:
        return any(COLOURS <= stored < UNPAINTED for stored in self.names)

    def class_names(self, by_value: bool = False) -> list[str]:
        """The classes, each once, in the order of the file or of their values; of a table of values, without void."""
        if self.unstored:
            return list(self.unstored)
        stored = sorted(self.names, key=lambda one: min(one, COLOURS)) if by_value else self.names
        named = [name for name in (*(self.names[one] for one in stored), *self.others) if isinstance(name, str)]
        return list(dict.fromkeys(name for name in named if not is_void_name(name)))

    def void_names(self) -> list[str]:
        """Words like "void" among the names of a table of values."""
        return [name for name in dict.fromkeys(self.names.values()) if isinstance(name, str) and is_void_name(name)]

    def with_prompts(self, names: list[str]) -> list[str | ClassPrompts]:
        """Names as a model is given them: text, or with the prompts of the class."""
        return [ClassPrompts(name, self.prompts[name]) if name in self.prompts else name for name in names]


def stored_value(value: Any) -> int | None:
    """The stored value that a key or an entry means: a number, a colour as text or as a list; None if it means none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return min(value, COLOURS - 1)  # a number is no colour, however large
    text = str(value).strip().strip("()[]").strip()
    if re.fullmatch(r"-?\d{1,20}", text):
        return min(int(text), COLOURS - 1)
    if re.fullmatch(r"#[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", text):
        return colour(*(int(text[start : start + 2], 16) for start in (1, 3, 5)))
    if re.fullmatch(r"\d{1,9}([\s,;]+\d{1,9}){2,3}", text):
        parts = [int(part) for part in re.split(r"[\s,;]+", text)]
        return colour(parts[0], parts[1], parts[2]) if max(parts) < 256 else None
    return None


def is_stored(key: Any) -> bool:
    """Whether a key of a mapping is a value, a colour, or one of the words that stand for some."""
    return str(key).strip().lower() in ("unpainted", "others") or stored_value(key) is not None


class Collector:
    """Gathers the entries of a table; raises DataError where two contradict each other, or one says nothing.

    origin     for messages
    label_map  every entry needs a value or a colour, and a name may be a number; else names may stand alone
    """

    def __init__(self, origin: str, label_map: bool) -> None:
        self.origin, self.label_map = origin, label_map
        self.names: dict[int, Name] = {}
        self.unstored: dict[str, str] = {}  # class to where it stands
        self.prompts: dict[str, tuple[str, ...]] = {}
        self.others: tuple[Name, ...] = ()

    def add(self, stored: Any, name: Any, where: str) -> None:
        """One value or colour, in any spelling, and its name."""
        number = UNPAINTED if str(stored).strip().lower() == "unpainted" else stored_value(stored)
        if number is None:
            raise DataError(f"{self.origin}: {where}: {stored!r} is no value, and no colour such as 0,0,142 or #00008e")
        if _LARGEST < number < COLOURS:
            raise DataError(f"{self.origin}: {where}: label images have values up to {_LARGEST}, not {stored}")
        name = self._name(name, where)
        if number in self.names and self.names[number] != name:
            raise DataError(
                f"{self.origin}: {where}: {describe(number)} is {self._shown(self.names[number])} and "
                f"{self._shown(name)}: give it one name"
            )
        self.names[number] = name

    def add_name(self, name: Any, where: str, prompts: tuple[str, ...] = ()) -> None:
        """A class without a value, the next of a list."""
        text = self._name(name, where)
        if not isinstance(text, str):
            raise DataError(f"{self.origin}: {where}: {name!r} is no name: give text")
        if text in self.unstored:
            raise DataError(f"{self.origin}: {self.unstored[text]} and {where} are both {text!r}: give each class once")
        self.unstored[text] = where
        self._add_prompts(text, prompts, where)

    def add_data(self, data: Any) -> None:
        """Values to names, names to values, names to prompts, or records, as a mapping or a list; or what holds one."""
        if isinstance(data, Mapping):
            if (inner := _inner(data)) is not None:
                self.add_data(inner)
                return
            for key, value in data.items():
                self.add_entry(key, value)
        elif isinstance(data, list | tuple):
            for number, value in enumerate(data):
                self._add_item(number, value)
        else:
            like = "a mapping such as 7: car, or a list of records" if self.label_map else "a list of class names"
            raise DataError(f"{self.origin}: holds {type(data).__name__}: give {like}")

    def _add_item(self, number: int, value: Any) -> None:
        where = f"entry {number + 1}" if self.label_map else f"name {number + 1}"
        if isinstance(value, Mapping) and len(value) == 1 and is_stored(next(iter(value))):  # - 7: car
            self.add_entry(*next(iter(value.items())))
        elif isinstance(value, Mapping):
            self.add_record({str(key).lower(): part for key, part in value.items()}, where)
        elif self.label_map:
            self.add(number, value, where)
        elif isinstance(value, list | tuple) and value and all(isinstance(part, str) for part in value):
            self.add_name(value[0], where, tuple(value))
        else:
            if isinstance(value, str) and not value.strip():
                raise DataError(f"{self.origin}: {where} is empty: the n-th line names the class of label n - 1")
            self.add_name(value, where)

    def add_entry(self, key: Any, value: Any) -> None:
        """One entry of a mapping: 7: car, car: 7, "0,0,142": car, car: [0, 0, 142], car: {id: 7, prompts: [...]}, car:
        [car, van]."""
        where = f"entry {key!r}"
        words = isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)
        if str(key).strip().lower() == "others":
            self.others = (self._name(value, where),)
        elif isinstance(value, Mapping):
            record = {str(name).lower(): part for name, part in value.items()}
            named = any(name in record for name in NAME_KEYS)
            if not named and not _FIELDS & record.keys() and not self.label_map:
                raise DataError(
                    f"{self.origin}: {where}: {', '.join(map(str, value))[:60]} says neither its name nor its value, "
                    "colour or prompts: give a flat mapping such as 7: car"
                )
            self.add_record(record | ({"id": key} if named and is_stored(key) else {"name": key}), where)
        elif is_stored(key):
            if words and not self.label_map:  # 0: [n01440764, tench]
                value = [part for part in value if not _WORDNET.fullmatch(part)] or value
                self._add_prompts(value[0].strip(), tuple(value), where)
                value = value[0]
            self.add(key, value, where)
        elif isinstance(value, list) and value and (isinstance(value[0], list) or (is_stored(value[0]) and words)):
            for part in value:  # several colours of one class
                self.add(part, key, where)
        elif value == "unpainted" or stored_value(value) is not None:
            self.add(value, key, where)
        elif self.label_map or not (words or value is None or isinstance(value, str)):
            raise DataError(
                f"{self.origin}: {where}: neither {key!r} nor {value!r} is a value or a colour: write 7: car, or "
                '"0,0,142": car, or car: [0, 0, 142]'
            )
        else:
            self.add_name(str(key), where, self._words(value))

    def add_record(self, record: Mapping[str, Any], where: str) -> None:
        """Fields of one class: its name, and its value or its colour or both, and prompts."""
        name_key = next((key for key in NAME_KEYS if key in record), None)
        if name_key is None:
            raise DataError(f"{self.origin}: {where}: has no name among {', '.join(map(str, record))}")
        name = record[name_key]
        stored = [record[key] for key in (*VALUE_KEYS, *COLOUR_KEYS) if record.get(key) not in (None, "")]
        for keys in _RGB_KEYS:
            if all(str(record.get(key, "")).strip() for key in keys):
                stored.append(",".join(str(record[key]) for key in keys))
        words = self._words(record.get("prompts")) or self._words(record.get("prompt"))
        if not words and (also := self._words(record.get("synonyms")) or self._words(record.get("aliases"))):
            words = (str(name), *also)
        if not stored and self.label_map:
            raise DataError(f"{self.origin}: {where}: {name!r} has neither a value nor a colour")
        if not stored:
            self.add_name(name, where, words)
            return
        for one in stored:
            self.add(one, name, where)
        if isinstance(name, str):
            self._add_prompts(name.strip(), words, where)

    def finish(self) -> ClassTable:
        if self.names and self.unstored:
            name, where = next(iter(self.unstored.items()))
            raise DataError(
                f"{self.origin}: {where}: {name!r} has neither a value nor a colour, and others have: give it one"
            )
        if not (self.names or self.unstored or self.others):
            needs = "names no value and no colour: write lines such as 7: car"
            raise DataError(
                f"{self.origin}: {needs if self.label_map else 'holds no names: give one class name per line'}"
            )
        return ClassTable(self.origin, self.names, tuple(self.unstored), self.prompts, self.others)

    def _words(self, value: Any) -> tuple[str, ...]:
        """Prompts as they are written: a list, or text with | (or, in want of one, commas) between them."""
        if isinstance(value, str):
            return split_synonyms(value) if "|" in value else tuple(filter(None, map(str.strip, value.split(","))))
        return tuple(value) if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value) else ()

    def _add_prompts(self, name: str, prompts: tuple[str, ...], where: str) -> None:
        if prompts and prompts != (name,) and self.prompts.setdefault(name, prompts) != prompts:
            raise DataError(f"{self.origin}: {where}: {name!r} has other prompts above: give each class once")

    def _name(self, name: Any, where: str) -> Name:
        number = isinstance(name, int) and not isinstance(name, bool)
        if name is None or (number and self.label_map):
            return name  # type: ignore[no-any-return]
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{self.origin}: {where}: {name!r} is no name: give text, or null for void")
        name = one_line(name)
        if (why := why_no_name(name)) is not None:
            raise DataError(f"{self.origin}: {where}: {name[:80]!r} {why}")
        if "|" not in name:
            return name.strip()
        prompts = split_synonyms(name)
        if not prompts:
            raise DataError(f"{self.origin}: {where}: {name!r} is no name: give text between the |")
        self._add_prompts(prompts[0], prompts, where)
        return prompts[0]

    @staticmethod
    def _shown(name: Name) -> str:
        return "void" if name is None else repr(name)


def _inner(data: Mapping[Any, Any]) -> Any:
    """The list or mapping of classes that a larger one holds, such as ``names`` of YOLO's; None: it is one itself."""
    if any(is_stored(key) for key in data):
        return None
    keys = {str(key).lower(): key for key in data}
    parts = [keys[key] for key in (*_LISTS, *_PERHAPS_LISTS) if isinstance(data.get(keys.get(key)), Mapping | list)]
    if not parts:
        return None
    others = [value for key, value in data.items() if key != parts[0]]
    words = any(isinstance(one, list) and one and isinstance(one[0], str) for one in others)
    return None if words and str(parts[0]).lower() in _PERHAPS_LISTS else data[parts[0]]
