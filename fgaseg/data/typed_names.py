"""Class names as people type them: separators, quotes, lists, numbers."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from ..errors import DataError
from ..vocabulary import LONGEST, ClassNames
from .name_lines import looks_like_syntax, numbered, strip_quotes

log = logging.getLogger(__name__)

MOST_TYPED = 100_000  # characters: the time to take a text apart grows with its square
_OPENING = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}
_SEPARATORS = ",;\n\t，；、"
# "St. Bernard" is one name
_SHORT = r"(?<!\b(?:St|Mt|Ft|Dr|Mr|Jr|Sr|No|vs|Rd))(?<!\b(?:Mrs|etc|Ave|Inc))(?<!\b[A-Z])"
_FULL_STOP = re.compile(_SHORT + r"\.(?:\s+|$)")
_BULLET = re.compile(r"[-*•–]\s+")


def python_literal(text: str) -> Any:
    """A list, tuple or mapping in JSON or in Python's writing; None if the text is none."""
    if not text.startswith(("[", "(", "{")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            data = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # TypeError: of {[1]: 2}
            continue
        if isinstance(data, set):
            return sorted(data, key=str)
        return data if isinstance(data, list | tuple | dict) else None
    return None


def read_typed(text: str) -> ClassNames:
    """Class names as typed after --classes, for `model.encode`.

        cat, sofa, wooden floor           commas, semicolons or lines between the names, whichever of them
        cat. sofa. wooden floor.          full stops, if there is no other separator
        "sofa, couch", cat                quotes around a name that holds a separator
        car | automobile | van, sky       synonyms of one class
        ["cat", "sofa"], {"car": ["car", "van"]}      JSON or Python

    What is read otherwise than with commas alone is logged. Raises DataError for a text without names.
    """
    text = text.strip()
    if len(text) > MOST_TYPED:
        raise DataError(f"class names: have {len(text):,} characters, more than {MOST_TYPED:,}: give a file of names")
    data = python_literal(text)
    if isinstance(data, dict | list):
        return _from_data(data)
    if data is not None:  # ("cat", "dog")
        return list(data)
    if len(text) > 1 and text[0] + text[-1] in ("[]", "()", "{}"):  # [cat, dog], which a shell has stripped of quotes
        text = text[1:-1]
    names = split_names(text, "class names")
    if not names:
        raise DataError(f"class names: {text[:80]!r} holds no name; give names with commas between them")
    return names


def _from_data(data: Any) -> ClassNames:
    from .class_tables import Collector

    collect = Collector("class names", label_map=False)
    collect.add_data(data)
    table = collect.finish()
    return table.with_prompts(table.class_names(by_value=True))


def split_names(text: str, origin: str) -> list[str]:
    """Names with separators between them; see ``read_typed``."""
    pieces, marks = _split(text)
    if long := next((piece for piece in pieces if len(piece) > LONGEST), None):
        raise DataError(
            f"{origin}: {long[:40]!r} and so on has {len(long):,} characters; a class name has at most {LONGEST:,}: "
            "give names with commas between them"
        )
    used = [mark for mark in dict.fromkeys(marks) if mark != ","]
    if not marks and (parts := _at_full_stops(text)):
        pieces, used = parts, ["."]
    if plain := numbered(pieces):
        log.info("%s: numbers are not a part of the names: %s", origin, shown(plain))
        pieces = plain
    names = [_name(piece, origin) for piece in pieces]
    if len(names) > 2 and (hit := re.match(r"(?:and|or|und|et|y)\s+(?=\S)", pieces[-1])):
        names[-1] = names[-1][hit.end() :]  # cat, dog, and sofa
    names = [name for name in names if name.strip(" .")]
    if used and len(names) > 1:
        log.info("%s: read as %d classes: %s", origin, len(names), shown(names))
    elif len(names) == 1 and "|" in names[0]:
        log.warning(
            "%s: %r is one class with %d synonyms, which gets all pixels; several classes need commas between them",
            origin, names[0], names[0].count("|") + 1,
        )  # fmt: skip
    return names


def shown(names: Sequence[str], most: int = 8) -> str:
    """Names for a message."""
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _split(text: str) -> tuple[list[str], list[str]]:
    """The pieces between separators that stand outside of quotes, and these separators, without one at the end."""
    pieces, marks, start, i = list[str](), list[str](), 0, 0
    while i < len(text):
        closing = _OPENING.get(text[i]) if _opens(text[start:i]) else None
        if closing and (end := _closing(text, i, closing)):
            i = end + 1
            if text[i:].lstrip(" ")[:1] in [*_OPENING]:  # "cat" "dog"
                pieces.append(text[start:i])
                marks.append(" ")
                start = i
        elif text[i] in _SEPARATORS and not _in_number(text, i):
            pieces.append(text[start:i])
            marks.append(text[i])
            start = i = i + 1
        else:
            i += 1
    pieces.append(text[start:])
    at_end = not pieces[-1].strip()
    return [piece.strip() for piece in pieces if piece.strip()], marks[: len(marks) - at_end]


def _opens(before: str) -> bool:
    """Whether a quote after this part of a piece begins a quoted name, and is no apostrophe."""
    return not before.strip() or before.rstrip().endswith("|")


def _closing(text: str, start: int, quote: str) -> int | None:
    """Where a quoted name ends: at a quote before a separator, another quote or the end; None if it does not."""
    end, after = start, _SEPARATORS + "|" + "".join(_OPENING)
    while (end := text.find(quote, end + 1)) > 0:
        if not text[end + 1 :].strip(" .") or text[end + 1 :].lstrip(" ")[:1] in after:
            return end
    return None


def _in_number(text: str, i: int) -> bool:
    """A comma between digits, as in 1,000, is none between names."""
    return text[i] == "," and text[i - 1 : i].isdigit() and re.match(r"\d{3}\b(?!,\d)", text[i + 1 :]) is not None


def _at_full_stops(text: str) -> list[str]:
    """Names that end with full stops, "a. b. c.", or begin with numbers, "1. a 2. b"; none if it is one name."""
    if re.match(r"\d+[.)]\s", text) and (hits := re.split(r"\s+(?=\d+[.)]\s)", text))[1:]:
        return hits
    parts = [part.strip() for part in _FULL_STOP.split(text) if part.strip()]
    return parts if len(parts) > 1 and not parts[0].isdigit() else []


def _name(piece: str, origin: str) -> str:
    """A name, or synonyms, without quotes, the bullet before and the full stop after it."""
    parts = []
    for part in re.split(r"\|(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", piece):
        text, quoted = strip_quotes(part.strip())
        if not quoted:
            text = re.sub(_SHORT + r"\.$", "", _BULLET.sub("", text, count=1)).strip()
            if looks_like_syntax(text):
                raise DataError(
                    f"{origin}: {text[:80]!r} looks like more than a name: give names with commas between them, and a "
                    "name that is meant so in quotes"
                )
            if _FULL_STOP.search(text):
                log.warning("%s: %r is read as one name; put commas between all names", origin, text)
        parts.append(text)
    return " | ".join(filter(None, parts))
