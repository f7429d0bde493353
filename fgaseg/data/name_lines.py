"""Lines of class names as tools and people write them: with numbers, colours, quotes, bullets and comments."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError
from ..vocabulary import LONGEST
from .class_tables import ClassTable, Collector

log = logging.getLogger(__name__)

_NUMBERS_BEFORE = re.compile(r"(?:-?\d+(?:(?:\s*[:=,;|)])+\s*|\.\s+|\s+-\s+|\s+))+")
# of a line that is written backwards: a search for the first of such numbers would try every place of a long line
_NUMBERS_AFTER = re.compile(r"(?:\d+-?(?:\s*(?:[:=,;|]\s*)+|\s+-\s+|\s+))+")
_NUMBER = re.compile(r"-?\d+")
_HEX = re.compile(r"(?<![\w&])#([0-9a-fA-F]{6})(?![\w])")
_BRACKETS = re.compile(r"[(\[]\s*(-?\d+(?:(?:\s*[,;]\s*|\s+)\d+){0,3})\s*[)\]]")  # (0, 0, 142)
_PARTS = re.compile(r"([^:]+:\s*\d+\s*,\s*\d+\s*,\s*\d+\s*):(.*)")  # car:0,0,142:parts:actions
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
_BULLET = re.compile(r"[-*•–]\s+")
_HEADERS = {"name", "names", "class", "classes", "label", "labels", "class_name", "class name", "category"}
_WORDNET = re.compile(r"n\d{8}\s+")
_SYNTAX = re.compile(r"[{}\[\]<>=;\\\x00-\x1f]|:|^[-*/%|(]|\"|^'")


@dataclass(frozen=True)
class Line:
    """A line that says something.

    before, after  the numbers at its two ends; name  what is between them
    loose          nothing but spaces separates the numbers from the name
    quoted         the name is in quotes, and means what it says
    """

    number: int
    text: str
    before: tuple[int, ...]
    name: str
    after: tuple[int, ...]
    loose: bool
    quoted: bool

    @property
    def where(self) -> str:
        return f"line {self.number}"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.before), len(self.after)


def read_lines(text: str, origin: str, label_map: bool) -> ClassTable:
    """A class on each line, alone or with its value or its colour or both.

    label_map  every line needs a value or a colour, and lines may be of different forms; else all are of one form

    Lines that begin with # (and no colour) or // are comments. Raises DataError quoting the line that is no name, no
    value and no colour, or that is unlike the others.
    """
    for number, whole in enumerate(text.splitlines(), 1):
        if len(whole) > LONGEST:
            raise DataError(
                f"{origin}: line {number} has {len(whole):,} characters; a class name has at most {LONGEST:,}: give "
                "one name per line"
            )
    lines, comments = _lines(text)
    if len(lines) > 1 and not label_map and lines[0].text.strip("\"'").lower() in _HEADERS:
        log.info("%s: line %d is %r, read as a heading", origin, lines[0].number, lines[0].text)
        lines = lines[1:]
    collect = Collector(origin, label_map)
    if label_map:
        for line in lines:
            _add_stored(collect, line)
        return collect.finish()
    shape = _common_shape(lines, origin)
    if shape == (0, 0):
        _add_plain(collect, lines, text, comments)
    else:
        if shape in ((1, 0), (0, 1)):
            _refuse_repeated(lines, origin)
        identified = _leading_ids(lines, shape)
        for line in lines:
            _add_stored(collect, line, identified)
    return collect.finish()


def strip_quotes(text: str) -> tuple[str, bool]:
    """Text without the quotes around all of it, and whether there were any."""
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
        return text[1:-1].strip(), True
    return text, False


def numbered(items: Sequence[str]) -> list[str] | None:
    """Names that are written with their numbers, "1. cat", "2. dog" or "0: road", in that order; None: they are not."""
    lines = [_line(number, item) for number, item in enumerate(items, 1)]
    if any(line.shape != (1, 0) or not line.name for line in lines) or len(lines) < 2:
        return None
    ids = [line.before[0] for line in lines]
    tight = not any(line.loose for line in lines)
    return [line.name for line in lines] if tight or ids in (_counting(ids, 0), _counting(ids, 1)) else None


def is_numbered(text: str) -> bool:
    """Whether one line is a name with its value or its colour."""
    line = _line(1, text)
    return line.shape != (0, 0) and bool(line.name) and not re.search("[,;]", line.name)


def looks_like_syntax(name: str) -> bool:
    return bool(_SYNTAX.search(name))


def _lines(text: str) -> tuple[list[Line], list[int]]:
    """The lines that say something, and the numbers of the comment lines among them."""
    stripped = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    comments = [number for number, line in stripped if _is_comment(line)]
    said = [(number, line) for number, line in stripped if not _is_comment(line)]
    said = [(number, line if _HEX.search(line) else re.sub(r"(?<!\s)\s+(#|//)\s.*", "", line)) for number, line in said]
    for end in (",", ";", "."):  # of every line, but perhaps not of the last
        if len(said) > 1 and all(line.endswith(end) for _, line in said[:-1]):
            said = [(number, line.removesuffix(end).rstrip()) for number, line in said]
    if said and all(_BULLET.match(line) for _, line in said):
        said = [(number, _BULLET.sub("", line, count=1)) for number, line in said]
    if len(said) > 1 and said[0][1].lower() == "__ignore__":  # labelme's first line is that of value -1
        said = said[1:]
    said = [(number, re.sub(r" +", " ", line)) for number, line in said]
    said = [(number, re.sub(r"^_+(\w+?)_+$", r"\1", line)) for number, line in said]  # _background_
    if said and all(_WORDNET.match(line) for _, line in said):  # n01440764 tench, Tinca tinca
        said = [(number, _WORDNET.sub("", line, count=1)) for number, line in said]
    return [_line(number, line) for number, line in said], comments


def _is_comment(line: str) -> bool:
    return line.startswith(("//", "#")) and not _HEX.match(line)


def _line(number: int, text: str) -> Line:
    whole, quoted = strip_quotes(text)
    if quoted:
        return Line(number, text, (), whole, (), False, True)
    rest = _HEX.sub(lambda hit: ",".join(str(int(hit[1][i : i + 2], 16)) for i in (0, 2, 4)), text)
    rest = _BRACKETS.sub(lambda hit: f" : {hit[1]} " if hit.start() else f"{hit[1]}: ", rest).strip()
    if parts := _PARTS.fullmatch(rest):
        rest = parts[1].strip()
    before, rest, after = _ends(rest)
    name, quoted = strip_quotes(rest.removesuffix(",").strip())
    if not before and re.fullmatch(r"-?\d+", name):  # nothing but numbers
        before, name = f"{name} ", ""
    numbers = [tuple(int(one) for one in _NUMBER.findall(part)) for part in (before, after)]
    return Line(number, text, numbers[0], name, numbers[1], _is_loose(before + after), quoted)


def _ends(text: str) -> tuple[str, str, str]:
    """A line in three: numbers, name, numbers. Those that can only be a part of the name are ("7: 2 wheeler", "7: class
    12")."""
    before = hit[0] if (hit := _NUMBERS_BEFORE.match(text)) else ""
    if len(_NUMBER.findall(before)) == 2:
        before = before[: before.index(_NUMBER.findall(before)[1], 1)]
    rest = text[len(before) :].strip()
    after = hit[0][::-1] if (hit := _NUMBERS_AFTER.match(rest[::-1])) else ""
    if before and len(_NUMBER.findall(after)) < 3 and _is_loose(after):
        after = ""
    return before, rest.removesuffix(after).strip(), after


def _is_loose(text: str) -> bool:
    return not text.strip("-0123456789 ")


def _common_shape(lines: Sequence[Line], origin: str) -> tuple[int, int]:
    """How many numbers the lines have before and after the name; (0, 0) also where a number is a part of the name."""
    shapes = [line.shape for line in lines]
    if not lines or set(shapes) == {(0, 0)}:
        return (0, 0)
    usual = max(dict.fromkeys(shapes), key=shapes.count)
    odd = [line for line in lines if line.shape != usual]
    if not odd:
        if usual == (0, 1) and all(line.loose for line in lines) and not _are_ids(lines):
            return (0, 0)  # boeing 737
        return usual
    # "2 wheeler" among names without numbers
    if usual == (0, 0) and all(line.loose and line.shape in ((1, 0), (0, 1)) and line.name for line in odd):
        return (0, 0)
    raise DataError(
        f"{origin}: line {odd[0].number} is {odd[0].text!r}, but others are like {_example(lines, usual)!r}: write all "
        "lines in one way, and a name that has numbers or signs of its own in quotes"
    )


def _example(lines: Sequence[Line], shape: tuple[int, int]) -> str:
    return next(line.text for line in lines if line.shape == shape)


def _counting(ids: Sequence[int], start: int) -> list[int]:
    return list(range(start, start + len(ids)))


def _are_ids(lines: Sequence[Line]) -> bool:
    """Whether numbers after names, with nothing but a space between, count them ("car 0", "road 1")."""
    ids, names = sorted(line.after[0] for line in lines), {line.name for line in lines}
    return len(names) == len(lines) and ids in (_counting(ids, 0), _counting(ids, 1))


def _refuse_repeated(lines: Sequence[Line], origin: str) -> None:
    """ "2 wheeler", "4 wheeler": the numbers belong to the names."""
    first: dict[str, Line] = {}
    for line in lines:
        before = first.setdefault(line.name, line)
        if before is not line and line.loose and line.name:
            raise DataError(
                f"{origin}: lines {before.number} and {line.number}, {before.text!r} and {line.text!r}, read as two "
                f"values of {line.name!r}: write {before.text!r} in quotes if the number is a part of the name, and "
                f"{line.before[0] if line.before else line.after[0]}: {line.name} if not"
            )


def _leading_ids(lines: Sequence[Line], shape: tuple[int, int]) -> bool:
    """Whether the first of four numbers before a name is a value, not red with alpha last."""
    ids = [line.before[0] for line in lines] if shape == (4, 0) else []
    if ids in (_counting(ids, 0), _counting(ids, 1)):
        return True
    alpha = {line.before[3] for line in lines} if ids else set()
    return len(set(ids)) == len(ids) and alpha != {255}


def _add_stored(collect: Collector, line: Line, identified: bool = True) -> None:
    """A line with numbers: value and name, colour and name, or value, colour and name, in any order."""
    before, after, name = line.before, line.after, line.name
    if line.shape == (0, 0):
        raise DataError(
            f"{collect.origin}: line {line.number} is {line.text!r}: a label map has a value or a colour and a name on "
            "each line, such as 7: car or car:0,0,142:: (a plain list of names is data.names)"
        )
    stored: list[object] = []
    if line.shape in ((1, 0), (0, 1)):
        stored = [(before or after)[0]]
    elif line.shape in ((3, 0), (0, 3)):
        stored = [list(before or after)]
    elif line.shape in ((1, 3), (1, 4)):  # 3 road 128 64 128 255
        stored = [before[0], list(after[:3])]
    elif line.shape == (0, 4):
        stored = [list(after[:3])]
    elif line.shape == (3, 1):
        stored = [after[0], list(before)]
    elif line.shape == (4, 0):
        stored = [before[0], list(before[1:])] if identified else [list(before[:3])]
    elif line.shape in ((5, 0), (7, 0)):  # value, colour, alpha; ITK-SNAP's has two more
        stored = [before[0], list(before[1:4])]
    if not stored or not name:
        why = "its numbers are neither a value nor a colour nor both" if name else "it holds no name"
        raise DataError(
            f"{collect.origin}: line {line.number} is {line.text!r}: {why}; write lines such as 7: car or car:0,0,142::"
        )
    _check(collect.origin, line)
    for one in stored:
        shown = ",".join(map(str, one)) if isinstance(one, list) else one
        collect.add(shown, name, line.where)


def _add_plain(collect: Collector, lines: Sequence[Line], text: str, comments: Sequence[int]) -> None:
    """Names alone; the n-th line names the class of label n - 1."""
    if not lines:
        return
    first, last = lines[0].number, lines[-1].number
    for number, blank in enumerate(text.splitlines(), 1):
        if not blank.strip() and number < last:
            position = sum(1 for one in lines if one.number < number) + 1
            raise DataError(f"{collect.origin}: name {position} is empty: the n-th line names the class of label n - 1")
    if [number for number in comments if first < number < last]:
        log.info("%s: comment lines between names are not counted: %d lines name labels 0 to %d", collect.origin,
                 len(lines), len(lines) - 1)  # fmt: skip
    for position, line in enumerate(lines, 1):
        name = line.name if line.quoted else line.text.strip()
        if not line.quoted:
            _check(collect.origin, line, name)
        collect.add_name(name, f"name {position}")


def _check(origin: str, line: Line, name: str | None = None) -> None:
    """Refuse a name that is a number, or holds signs of a file format that is none of those read here."""
    if not line.quoted and re.fullmatch(r"[-\d\s.,]+", line.name if name is None else name):
        raise DataError(f"{origin}: line {line.number} is {line.text!r}, numbers and no name: write lines like 7: car")
    if not line.quoted and looks_like_syntax(line.name if name is None else name):
        raise DataError(
            f"{origin}: line {line.number} is {line.text!r}, which looks like more than a name: give a name per line, "
            "or 7: car, car:0,0,142::, CSV with a header, YAML or JSON; a name that is meant so, in quotes"
        )
