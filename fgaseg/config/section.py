"""What all sections of a configuration share: strict keys, immutability, overrides, JSON."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo

from ..errors import ConfigError
from .messages import explain, shortened
from .reading import apply_overrides

SAVED = "saved"  # in the context of a validation: of what a program wrote, not a person


def is_saved(info: ValidationInfo) -> bool:
    """Whether what is validated comes from a saved model, which nobody has to trust."""
    return bool(info.context and info.context.get(SAVED))


class Section(BaseModel):
    """A section: unknown keys are errors, fields cannot be assigned, and numbers must be finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )

    def dump(self) -> dict[str, Any]:
        """Every key with its value, those that the preset decides included, as plain JSON/YAML types."""
        return self.model_dump(mode="json")

    def changes(self) -> dict[str, Any]:
        """The keys whose values differ from the paper's defaults, nested, as plain JSON/YAML types."""
        defaults, plain = type(self)(), self.dump()
        values = {name: getattr(self, name) for name in plain if getattr(self, name) != getattr(defaults, name)}
        return {name: value.changes() if isinstance(value, Section) else plain[name] for name, value in values.items()}

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal object."""
        return json.dumps(self.dump(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Read what `to_json` wrote, which nobody has to trust: every value has the type of its key (neither "3" nor
        true is a number), and none is a file that is read.

        source  the file that errors name
        Raises ConfigError.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source}: not valid JSON: {error}") from None
        found = cls.read(data, source, context={SAVED: True})
        if wrong := _other_types(data, found.dump()):
            raise ConfigError("\n".join(f"{source}: {line}" for line in wrong))
        return found

    def override(self, *words: str, **values: Any) -> Self:
        """A copy with some keys changed. Raises ConfigError.

        words   as on the command line: "train.steps=100", "model.fusion=add"; a key with dots, and its value in YAML
        values  the same as keyword arguments: `model.override(fusion="add")`, `config.override(**{"train.steps": 100})`

        A key that was never written down keeps following the preset: overriding the preset changes it.
        """
        data = self.model_dump(mode="json", exclude_unset=True)
        return self.read(data, type(self).__name__, apply_overrides(data, words, values))

    @classmethod
    def read(
        cls,
        data: Any,
        source: str,
        written: dict[tuple[str, ...], str] | None = None,
        context: dict[str, Any] | None = None,
    ) -> Self:
        """Validate nested plain data. Raises ConfigError with one line for each mistake.

        source   the file or object that the data came from
        written  the override that wrote a key, for the keys that did not come from there (see `apply_overrides`)
        context  for validators
        """
        try:
            return cls.model_validate(data, context=context)
        except ValidationError as error:
            raise ConfigError(explain(cls, error, source, written or {})) from None


def _other_types(given: Any, read: Any, key: str = "") -> list[str]:
    """A line for each value that was read as another than it was written as: "3" and true as numbers."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [
            line for name in given for line in _other_types(given[name], read.get(name), f"{key}.{name}".strip("."))
        ]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        return [line for pair in zip(given, read, strict=True) for line in _other_types(*pair, key)]
    numbers = type(given) is int and type(read) is float
    if given == read and (type(given) is type(read) or numbers):
        return []
    return [f"{key}: got {shortened(repr(given))} where {shortened(repr(read))} is meant"]
