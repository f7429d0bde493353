"""Training checkpoints: written whole with checksums, the previous one kept, damage detected."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import atomic_directory, atomic_write, complete_directory, previous_directory
from .model_files import load_weights, read_torch, read_weights, write_weights

CHECKPOINT_FILES = ("model.safetensors", "state.pt")


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files and folders that a killed training left in `folder`; no others."""
    folder = Path(folder)
    own = ("checkpoint", "best", "config.yaml", "log.jsonl", "nan_batch.safetensors", "summary.json",
           "model/model.safetensors", "model/config.json", "model/README.md", "model/tokenizer")  # fmt: skip
    patterns = [Path(name).with_name(f".{Path(name).name}.*.tmp") for name in own]
    for leftover in (found for pattern in patterns for found in folder.glob(str(pattern))):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def save_training(
    folder: Path, weights: Mapping[str, Tensor], state: dict[str, Any], keep_previous: bool = True
) -> None:
    """Write a training checkpoint to `folder`: model.safetensors, everything else in state.pt, and SHA256SUMS of both.

    The previous one is kept as `<folder>.old` (unless `keep_previous` is False), to fall back on if this is damaged.
    Raises CheckpointError on a full disk or any other OSError; the previous checkpoint is then still intact.
    """
    buffer = io.BytesIO()  # torch.save on a file turns a full disk into an internal error, or worse
    torch.save(state, buffer)
    try:
        with atomic_directory(folder, keep_previous) as temporary:
            write_weights(temporary / "model.safetensors", weights)
            atomic_write(temporary / "state.pt", lambda file: file.write(buffer.getbuffer()))
            write_sums(temporary)
    except OSError as error:
        previous = complete_directory(folder)
        kept = f"the previous checkpoint {previous} is intact" if previous else "there is no previous checkpoint"
        raise CheckpointError(
            f"{folder}: could not be written: {error.strerror or error}; {kept}. "
            "Free some space (or give another train.out) and run the same command again to resume"
        ) from error


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of a training checkpoint's two files, in the format that `sha256sum -c` checks."""
    lines = "".join(f"{_sha256(folder / name)}  {name}\n" for name in CHECKPOINT_FILES)
    atomic_write(folder / "SHA256SUMS", lambda file: file.write(lines.encode()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_training(folder: Path) -> None:
    """Verify a training checkpoint against its SHA256SUMS. Raises CheckpointError naming a file that does not match."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        wrong = [name for name in CHECKPOINT_FILES if _sha256(folder / name) != sums.get(name)]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: damaged: {error}") from None
    if wrong:
        raise CheckpointError(f"{folder / wrong[0]}: damaged: its SHA-256 does not match SHA256SUMS")


def set_damaged_aside(folder: Path) -> str:
    """If the latest training checkpoint is damaged and the previous one is intact, put that in its place.

    The damaged one is kept as `<folder>.damaged`. Returns what was done, for the user, or "" if nothing had to be.
    Raises CheckpointError, naming the damage, when no intact checkpoint is left.
    """
    found = complete_directory(folder)
    if found is None:
        return ""
    try:
        check_training(found)
        return ""
    except CheckpointError as error:
        damage = str(error)
    old, aside = previous_directory(folder), folder.with_name(folder.name + ".damaged")
    try:
        if found == old or not old.is_dir():
            raise CheckpointError("there is no previous checkpoint")
        check_training(old)
    except CheckpointError as error:
        raise CheckpointError(
            f"{damage}; and the previous one cannot be used either ({error}). Restore the folder from a "
            "backup, or start over with --restart"
        ) from None
    try:
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)  # from here on complete_directory finds the previous one
        os.replace(old, folder)
    except OSError as error:
        raise CheckpointError(f"{damage}; it cannot be moved aside: {error.strerror or error}") from error
    return f"{damage}. Resuming from the previous checkpoint; the damaged one is kept in {aside}"


def load_training(folder: Path, model: nn.Module) -> dict[str, Any] | None:
    """Load a checkpoint's weights into the model and return the rest of its state; None if there is no checkpoint.

    Raises CheckpointError naming the file that is damaged or does not fit. Flipped bits are not looked for here:
    `set_damaged_aside` comes first.
    """
    found = complete_directory(folder)
    if found is None:
        return None
    state = read_torch(found / "state.pt")
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{found / 'state.pt'}: not a training state written by fgaseg train")
    load_weights(model, read_weights(found / "model.safetensors"), found / "model.safetensors")
    return state
