"""Griffe extension: the docstrings of this package as Markdown."""

import ast
import re
from typing import Any

import griffe

TERM = re.compile(r"(?P<term>\S(?:.{0,38}?\S)??) {2,}(?P<text>\S.*)")  # "pixels  [B, C, H, W] float32; any strides"
CODE_SPAN = re.compile(r"(``.+?``|`.+?`)")


def to_markdown(docstring: str) -> str:
    """Indented blocks become fenced code, aligned "name  meaning" lines a definition list, the rest paragraphs."""
    lines, out = docstring.expandtabs().splitlines(), []
    i = 0
    while i < len(lines):
        if lines[i].startswith("    "):
            start = i
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
            out += ["", *_fenced([line[4:] for line in lines[start:i]]), ""]
        elif re.match(r"\w+\.py {2,}", lines[i]):  # a table of files, in two columns or more
            start = i
            while i < len(lines) and lines[i].strip():
                i += 1
            out += ["", *_fenced(lines[start:i]), ""]
        elif found := TERM.fullmatch(lines[i]):
            text, i = [found["text"]], i + 1
            while i < len(lines) and lines[i].startswith("  ") and lines[i].strip():
                text, i = [*text, lines[i].strip()], i + 1
            term = found["term"] if "`" in found["term"] else f"`{found['term']}`"
            out += ["", term, f":   {escape(' '.join(text))}", ""]
        else:
            if out and out[-1] == "" and lines[i].strip() and len(out) > 1 and out[-2].startswith(":   "):
                out.append("<!-- -->\n")  # ends the definition list
            out.append(escape(lines[i]))
            i += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def is_example(code: str) -> bool:
    """Whether an indented block shows how the package is used; others are formulas, layouts and command lines."""
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return bool(re.search(r"fgaseg|FGASeg|load_config", code))


def _fenced(lines: list[str]) -> list[str]:
    text = "\n".join(lines).rstrip()
    return [f"```{'python' if is_example(text) else 'text'}", text, "```"]


def escape(text: str) -> str:
    """Text outside code spans, with no character left that Markdown or HTML would take for markup."""
    parts = CODE_SPAN.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*\[\]_])", r"\\\1", parts[i].replace("&", "&amp;").replace("<", "&lt;"))
    return "".join(parts)


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        self._convert(pkg)

    def _convert(self, obj: griffe.Object) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
        for member in obj.members.values():
            if not member.is_alias:
                self._convert(member)
