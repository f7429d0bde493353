"""Saving a model with its card, and uploading both to the Hugging Face Hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from ..files import atomic_write
from ..weights import model_card, read_results, upload_folder, write_weights
from ..weights.model_card import ON_DISK, is_ours, plain_tag
from .encoders import Encoder

CARD = "README.md"


class Saveable(Protocol):
    """What saving needs of a model; FGASeg has it."""

    config: ModelConfig
    architecture: dict[str, Any] | None
    encoder: Encoder
    facts: dict[str, Any]

    def state_dict(self) -> dict[str, Any]: ...


def save_model(
    model: Saveable,
    directory: Path,
    state_dict: Mapping[str, Tensor] | None = None,
    results: str | Path | None = None,
    load_from: str = ON_DISK,
) -> None:
    """What `FGASeg.save_pretrained` says; `load_from` is what the card's example loads."""
    config = model.config.dump()
    encoder = model.encoder
    config["encoder"].update(
        architecture=model.architecture, pretrained=None, mean=encoder.mean, std=encoder.std, dense=encoder.dense
    )
    encoder.save_tokenizer(directory / "tokenizer")
    write_weights(directory / "model.safetensors", model.state_dict() if state_dict is None else state_dict)
    if results is not None:
        model.facts = {**model.facts, "results": read_results(results, directory / "model.safetensors")}
    facts = {"facts": model.facts} if model.facts else {}
    _write(directory / "config.json", json.dumps({"model_type": "fgaseg", **config, **facts}, indent=2) + "\n")
    card = directory / CARD
    if not card.exists() or is_ours(card.read_text(errors="replace")):
        _write(card, model_card(model.config, model.facts, load_from))


def push_model(
    model: Saveable,
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    revision: str | None,
    commit_message: str | None,
    create_pr: bool,
    results: str | Path | None,
) -> str:
    """What `FGASeg.push_to_hub` says."""
    with tempfile.TemporaryDirectory(prefix="fgaseg-") as folder:
        try:
            save_model(model, Path(folder), results=results, load_from=f"{repo_id}@{revision}" if revision else repo_id)
        except OSError as error:
            raise CheckpointError(f"{folder}: {error.strerror or error}; set TMPDIR to a folder with room") from error
        return upload_folder(
            Path(folder),
            repo_id,
            private=private,
            token=token,
            revision=revision,
            message=commit_message or "Upload of a model with fgaseg",
            create_pr=create_pr,
            keeps=lambda text: CARD if text and not is_ours(text) else None,
        )


def _write(path: Path, text: str) -> None:
    atomic_write(path, lambda file: file.write(text.encode()))


def encoder_facts(encoder: Encoder) -> dict[str, Any]:
    """Which published weights the encoder starts from, if it is known."""
    tag = plain_tag(encoder.weights)
    return {"encoder": {"name": encoder.name, "pretrained": tag}} if tag else {}
