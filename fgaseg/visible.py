"""Text of others that is printed: what would move the cursor, change colours or reorder letters is shown instead."""

from __future__ import annotations

import re

# C0 and C1 controls, the separators of lines and paragraphs, what overrides the direction of writing, and surrogates,
# which stand for bytes of file names and cannot be encoded. Joiners and marks of direction (U+200C to U+200F) are part
# of how some languages are written.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, *, lines: bool = False) -> str:
    """The text with every control character as its escape, such as \\x1b.

    lines  line breaks are kept
    """
    return HIDDEN.sub(lambda found: found[0] if lines and found[0] == "\n" else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
