"""What all sections of a configuration share: strict keys, immutability, overrides, JSON."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError
from .messages import explain
from .reading import apply_overrides


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
        """Read what `to_json` wrote. `source` (a file name) is what an error will name. Raises ConfigError."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{source}: not valid JSON: {error}") from None
        return cls.read(data, source)

    def override(self, *words: str, **values: Any) -> Self:
        """A copy with some keys changed. Raises ConfigError.

        words   as on the command line: "train.steps=100", "model.fusion=add"; a key with dots, and its value in YAML
        values  the same as keyword arguments: `model.override(fusion="add")`, `config.override(**{"train.steps": 100})`

        A key that was never written down keeps following the preset: overriding the preset changes it.
        """
        data = self.model_dump(mode="json", exclude_unset=True)
        return self.read(data, type(self).__name__, apply_overrides(data, words, values))

    @classmethod
    def read(cls, data: Any, source: str, written: dict[tuple[str, ...], str] | None = None) -> Self:
        """Validate nested plain data. Raises ConfigError with one line for each mistake.

        source   the file or object that the data came from
        written  the override that wrote a key, for the keys that did not come from there (see `apply_overrides`)
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(explain(cls, error, source, written or {})) from None
