"""MkDocs hooks: reference pages made from the package, and a check that no page loads anything from another host."""

import argparse
import importlib.util
import inspect
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
LOADS = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\s(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files: Any, config: Any) -> Any:
    pages = {
        "reference/configuration.md": configuration_page(),
        "reference/command_line.md": command_line_page(),
        "reference/api.md": api_page(),
        "contributing.md": root_page("CONTRIBUTING.md"),
        "changelog.md": root_page("CHANGELOG.md"),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    if external := [tag for tag in LOADS.findall(output) if 'rel="canonical"' not in tag]:
        raise PluginError(f"{page.file.src_uri}: loads something from another host: {external[0]}")
    return output


def root_page(name: str) -> str:
    """A page of the repository's root, with its links as they are seen from docs/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def api_page() -> str:
    """What `fgaseg` itself exports, each name with the first line of its docstring and a link to its page."""
    import fgaseg

    rows = ["| name | |", "|---|---|"]
    for name in fgaseg.__all__:
        found = getattr(fgaseg, name)
        if name == "kernels":
            rows.append("| [`kernels`](../kernels/index.md) | the ops, usable without the model |")
        elif inspect.isclass(found) or inspect.isfunction(found):
            keys = _is_section(found) and name != "Config"
            link = "(configuration.md)" if keys else f"[{'.'.join(found.__module__.split('.')[:2])}.{name}]"
            paragraph = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())
            sentence = re.split(r"(?<=\.)\s", paragraph)[0]
            rows.append(f"| [`{name}`]{link} | {_docstrings().escape(sentence)} |")
    out = [
        "# Python API",
        "What `import fgaseg` offers. Everything is loaded when it is first used, so the import itself takes no time. "
        "The packages behind these names are documented on the pages that follow; what a package does not list in its "
        "`__init__.py` may change without notice.",
        "\n".join(rows),
    ]
    return "\n\n".join(out) + "\n"


def configuration_page() -> str:
    """Every key of `fgaseg.Config` with type, default and meaning, read from the types themselves."""
    from fgaseg.config import Config, ModelConfig

    paper, released = Config().dump(), {"model": ModelConfig(preset="released").dump()}
    out = [
        "# Configuration reference",
        "Generated from `fgaseg.config`. A YAML file holds these keys in nested sections. On the command line, "
        "`section.key=value` overrides one of them; the value is YAML. An unknown key or a value of the wrong type is "
        "an error that names the nearest valid key. The presets differ in defaults only: a key that you set wins.",
    ]
    return "\n\n".join([*out, *_section(Config, "", paper, released)]) + "\n"


def _section(section: type[BaseModel], prefix: str, paper: dict[str, Any], released: dict[str, Any]) -> list[str]:
    own = {name: field for name, field in section.model_fields.items() if not _is_section(field.annotation)}
    out = [f"## {prefix.rstrip('.')}", _prose(inspect.getdoc(section) or "")] if prefix else []
    if own:
        rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
        rows += [
            _row(prefix + name, field, paper[name], released.get(name, paper[name])) for name, field in own.items()
        ]
        out.append("\n".join(rows))
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            out += _section(field.annotation, f"{prefix}{name}.", paper[name], released.get(name, {}))  # type: ignore[arg-type]
    return out


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _row(key: str, field: FieldInfo, paper: Any, released: Any) -> str:
    default = f"`{_value(paper)}`" + (f"<br>released: `{_value(released)}`" if released != paper else "")
    meaning = _docstrings().escape(" ".join((field.description or "").split())).replace("|", "\\|")
    return f'| <span id="{key}"></span>`{key}` | {_type(field.annotation, field.metadata)} | {default} | {meaning} |'


def _value(value: Any) -> str:
    """As it would be written in YAML."""
    return str(value) if isinstance(value, Path | str) else json.dumps(value, default=str)


def _type(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], arguments[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one, metadata) for one in arguments)
    if origin is tuple:
        inner = [_type(one) for one in arguments if one is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    if annotation is type(None):
        return "null"
    plain = getattr(annotation, "__name__", str(annotation)).lower()
    name = {bool: "true or false", dict: "mapping", str: "string"}.get(origin or annotation, plain)
    signs = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}
    bounds = [f" {signs[type(m)][1]} {getattr(m, signs[type(m)][0])}" for m in metadata if type(m) in signs]
    return name + ",".join(bounds)


def command_line_page() -> str:
    """The help of every command, from the parser that reads the command line."""
    from fgaseg.cli.entry import build_parser

    parser = build_parser()
    out = [
        "# Command-line reference",
        "Generated from the parser; `fgaseg COMMAND --help` prints the same. Words of the form `key=value` override "
        "[keys of the configuration](configuration.md) and may stand anywhere among the other words. Commands that "
        "take a whole configuration (`train`, `demo`, `ablate`) need the section, `model.class_cap=256`; those that "
        "take a saved model (`segment`, `eval`, `convert`) take the keys of that section alone, `class_cap=256`.",
        _prose(parser.description or ""),
    ]
    return "\n\n".join([*out, *_commands(parser)]) + "\n"


def _commands(parser: argparse.ArgumentParser) -> list[str]:
    out: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                own = [f"## {command.prog}", _prose(command.description or "")]
                out += [*own, *_options(command), *_commands(command)]
    return out


def _options(command: argparse.ArgumentParser) -> list[str]:
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for action in command._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        words = ", ".join(action.option_strings)
        metavar = action.metavar or (action.dest if not words else action.dest.upper())
        if action.choices:
            metavar = " or ".join(map(str, action.choices))
        shown = f"{words} {metavar}" if words and action.nargs != 0 else words or str(metavar)
        text = action.help or ""
        silent = action.default in (None, False, "", [], argparse.SUPPRESS) or "default" in text
        default = "" if silent else f"`{_value(action.default)}`"
        needed = action.required and action.nargs not in ("*", "?")
        meaning = _docstrings().escape(text.replace("%%", "%")).replace("|", "\\|")
        rows.append(f"| `{shown}`{' (needed)' if needed else ''} | {default} | {meaning} |")
    return ["\n".join(rows)] if len(rows) > 2 else []


def _prose(text: str) -> str:
    """A help text or docstring as Markdown; lines that are indented by two or more are code."""
    lines = [re.sub(r"^  (?= *\S)", "    ", line) for line in text.splitlines()]
    return _docstrings().to_markdown("\n".join([lines[0].strip(), *lines[1:]]) if lines else "")


def _docstrings() -> Any:
    """The module beside this one; hooks are loaded by path."""
    spec = importlib.util.spec_from_file_location("fgaseg_docstrings", ROOT / "docs" / "docstrings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
