"""YAML of others: plain data alone, every key once, and one kind of error for all that is wrong."""

from __future__ import annotations

from typing import Any

import yaml

LEAST = 10_000  # values that aliases may stand for in any case


class _UniqueKeys(yaml.SafeLoader):
    """A SafeLoader that refuses a key written twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_aliases(data: Any, most: int) -> None:
    """Refuse what repeats itself by aliases (*name): a few lines can describe more values than any machine holds."""
    sizes: dict[int, int] = {}  # of what was seen, with all that it holds; 0 while that is being counted

    def count(one: Any) -> int:
        if not isinstance(one, dict | list | tuple | set):
            return 1
        if id(one) not in sizes:
            sizes[id(one)] = 0
            sizes[id(one)] = 1 + sum(map(count, one.values() if isinstance(one, dict) else one))
        elif sizes[id(one)] == 0:
            raise yaml.YAMLError("an alias stands for what it is a part of")
        return sizes[id(one)]

    if (values := count(data)) > most:
        raise yaml.YAMLError(f"its aliases stand for {values:,} values")


def load_yaml(text: str) -> Any:
    """The data in a YAML text. Raises yaml.YAMLError, whose text `yaml_problem` shortens."""
    try:
        data = yaml.load(text, _UniqueKeys)
        _check_aliases(data, max(len(text), LEAST))  # without aliases a value has a character at least
        return data
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's own, for a value that its tag does not fit, such as !!int "", and for numbers of thousands of digits
        raise yaml.YAMLError(f"a value cannot be read ({type(error).__name__}: {error})") from None


def yaml_problem(error: yaml.YAMLError) -> str:
    """A YAML error, which spans several lines, in one."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return str(error).replace("\n", " ")
