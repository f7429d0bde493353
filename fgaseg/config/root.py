"""The whole configuration, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import model_validator

from ..files import atomic_write
from .data import DataConfig
from .model import ModelConfig
from .reading import apply_overrides, read_yaml
from .section import Section
from .train import TrainConfig


class Config(Section):
    """The whole configuration of a training run."""

    model: ModelConfig = ModelConfig()
    """What the network computes."""
    data: DataConfig = DataConfig()
    """What it is trained and scored on."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        head = {"propagation": self.model.propagation, "p2t_layers": self.model.p2t_layers}
        if self.train.objective == "captions" and any(head.values()):
            given = ", ".join(f"model.{key}={json.dumps(value)}" for key, value in head.items() if value)
            raise ValueError(
                f"train.objective: captions trains the encoders alone; set model.propagation, lcs, t2p to false and "
                f"p2t_layers to 0 (now {given})"
            )
        return self

    def override(self, *words: str, **values: Any) -> Self:
        """As of any section; `encoder` is short for `model.encoder`. Raises ConfigError."""
        return super().override(*map(_in_full, words), **{_in_full(key): value for key, value in values.items()})

    def save(self, path: str | Path) -> None:
        """Write every key as YAML, atomically. `load_config(path)` gives an equal object."""
        text = yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)
        atomic_write(Path(path), lambda file: file.write(text.encode()))


def load_config(path: str | Path | None = None, *words: str, **values: Any) -> Config:
    """Read a YAML file (None: the defaults alone) and override keys as `Config.override` does.

        load_config("configs/vitb16.yaml", "model.kernel_size=5", "data.scale=[0.5, 2.0]", **{"train.out": folder})

    `encoder` is short for `model.encoder`, and its name alone for the section: "encoder=ViT-B-16-SigLIP2-384".
    Paths are relative to the working directory; those of the file's `data` section that begin with ./ or ../, to the
    file.

    Raises ConfigError naming the file or the override, the key, and for an unknown key the nearest valid one.
    """
    data = {} if path is None else _beside(Path(path), read_yaml(Path(path)))
    words, values = tuple(map(_in_full, words)), {_in_full(key): value for key, value in values.items()}
    return Config.read(data, "defaults" if path is None else str(path), apply_overrides(data, words, values))


def _beside(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """The content of a file, the paths in its `data` section that begin with a dot being relative to the file."""
    section = data.get("data")
    if not isinstance(section, dict):
        return data
    found = {key: str(path.parent / value) if isinstance(value, str) and value.startswith(("./", "../")) else value
             for key, value in section.items()}  # fmt: skip
    return data | {"data": found}


def _in_full(key: str) -> str:
    """A key, or key=value, with the section of `encoder`."""
    return f"model.{key.strip()}" if key.partition("=")[0].split(".")[0].strip() == "encoder" else key
