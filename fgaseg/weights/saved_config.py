"""config.json of a saved model, read without trusting it: a model is complete, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import CheckpointError
from .model_card import known_facts

LARGEST = 4 * 2**20  # bytes; the largest that was ever written has some kilobytes
OWN_FILES = "a saved model has all its weights in its own file"


def read_config(path: Path, source: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The configuration and the facts that `save_pretrained` wrote; errors name `source`.

    Raises CheckpointError for what is no saved model or would need more than the files of its own folder, and
    ConfigError, a line for each key, for what no model can have.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: is missing: give the folder of a saved model (of a training, <out>/model)")
    data = read_object(path)
    kind = data.pop("model_type", None)
    if kind != "fgaseg":
        found = "it says no model_type" if kind is None else f"its model_type is {str(kind)[:80]!r}"
        raise CheckpointError(
            f"{source}: not an fgaseg model ({found}); a model that save_pretrained wrote is needed. `fgaseg models` "
            "lists models to begin with; CLIP weights alone are for encoder.pretrained"
        )
    facts = known_facts(data.pop("facts", {}))
    config = ModelConfig.from_json(json.dumps(data), str(path))
    if config.encoder.pretrained not in (None, "auto"):
        raise CheckpointError(
            f"{path}: encoder.pretrained: {OWN_FILES}, and this one names others "
            f"({config.encoder.pretrained[:80]!r}); refused: null is what save_pretrained writes"
        )
    return config, facts


def read_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file. Raises CheckpointError for anything else, however long or deeply nested."""
    try:
        if not path.is_file():
            raise ValueError("is no file (a folder, a pipe or a device)")
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        data = json.loads(text, parse_constant=_no_number)
        if not isinstance(data, dict):
            raise ValueError(f"an object is expected; got {type(data).__name__}")
    except RecursionError:
        raise _unreadable(path, "it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from None
    return data


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds the configuration of a saved model, whatever else is wrong with it."""
    try:
        return read_object(folder / "config.json").get("model_type") == "fgaseg"
    except CheckpointError:
        return False


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON's")


def _unreadable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a configuration that save_pretrained wrote: {reason}")
