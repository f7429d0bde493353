"""What a folder of labelled photos needs beside them to be a data set: a configuration and a description."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..vocabulary import ClassPrompts

DATA = """\
# For `fgaseg train <this file>` and `fgaseg data check <this file>`; the paths are beside it.
data:
  images: ./images
  labels: ./labels
  names: ./{names}
"""

README = """\
# Labelled photos

Made by `fgaseg segment --save dataset`: the labels are predictions of a model, and nobody has checked them.

| file | content |
|---|---|
| `images/` | the photos, upright |
| `labels/` | a PNG for each, 8-bit (16-bit beyond 255 classes): value n is the n-th class, from 0 on |
| `names.txt` | the classes, one a line |
| `annotations.json` | the same as COCO annotations, one a class and photo; category n + 1 is value n |
| `data.yaml` | for `fgaseg train` and `fgaseg data check` |

| value | class |
|---|---|
{labels}

How the photos were labelled:

| setting | value |
|---|---|
{about}
"""


def data_set_texts(
    names: Sequence[str], classes: Sequence[ClassPrompts], about: Mapping[str, Any]
) -> dict[str, Iterable[str]]:
    """The parts of data.yaml and README.md by file name and, where classes have several prompts, of prompts.json.

    names    of all labels, in the order of their values
    classes  those that a model was given, with their prompts
    about    what is told of the model and its settings, JSON-able
    """
    prompts = {one.name: list(one.prompts) for one in classes}
    several = any(words != [name] for name, words in prompts.items())
    labels = "\n".join(f"| {value} | {_cell(name)} |" for value, name in enumerate(names))
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in about.items() if value not in (None, {}, []))
    texts: dict[str, Iterable[str]] = {
        "data.yaml": [DATA.format(names="prompts.json" if several else "names.txt")],
        "README.md": [README.format(labels=labels, about=rows)],
    }
    if several:
        prompts |= {name: [name] for name in names if name not in prompts}
        texts["prompts.json"] = [json.dumps(prompts, indent=1, ensure_ascii=False) + "\n"]
    return texts


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
