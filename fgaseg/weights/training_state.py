"""Files that are whole or absent: atomic writing, weights from strangers, and the state of a training run."""

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
from ..files import _old, atomic_directory, atomic_write, complete_directory
from .model_files import load_weights, read_torch, read_weights, write_weights

CHECKPOINT_FILES = ("model.safetensors", "state.pt")


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files and folders that a killed training left in `folder`, its own names only."""
    folder = Path(folder)
    own = ("checkpoint", "config.yaml", "log.jsonl", "nan_batch.safetensors", "summary.json",
           "model/model.safetensors", "model/config.json")  # fmt: skip
    patterns = [Path(name).with_name(f".{Path(name).name}.*.tmp") for name in own]
    for leftover in (found for pattern in patterns for found in folder.glob(str(pattern))):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def save_training(
    folder: Path, weights: Mapping[str, Tensor], state: dict[str, Any], keep_previous: bool = True
) -> None:
    """Make a new training checkpoint `folder`: model.safetensors, the rest in state.pt, and SHA256SUMS of both.

    The one before stays as `<folder>.old` (`keep_previous` False: goes), to fall back on if this one is damaged.
    Raises CheckpointError on a full disk or any other OSError; the previous checkpoint is then still there, whole.
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
            "Make room (or give another train.out) and run the same command again to resume"
        ) from error


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of a training checkpoint's two files, in the format of `sha256sum -c`."""
    lines = "".join(f"{_sha256(folder / name)}  {name}\n" for name in CHECKPOINT_FILES)
    atomic_write(folder / "SHA256SUMS", lambda file: file.write(lines.encode()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_training(folder: Path) -> None:
    """Compare a training checkpoint's files with its SHA256SUMS; CheckpointError names one that is not as written."""
    try:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        wrong = [name for name in CHECKPOINT_FILES if _sha256(folder / name) != sums.get(name)]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: damaged: {error}") from None
    if wrong:
        raise CheckpointError(f"{folder / wrong[0]}: damaged: its SHA-256 is not the one in SHA256SUMS")


def set_damaged_aside(folder: Path) -> str:
    """Where the last training checkpoint is damaged and the one before is whole, put that in its place.

    The damaged one is kept as `<folder>.damaged`. Returns what was done, for the user; "" where nothing had to be.
    Raises CheckpointError, naming the damage, when no whole checkpoint is left.
    """
    found = complete_directory(folder)
    if found is None:
        return ""
    try:
        check_training(found)
        return ""
    except CheckpointError as error:
        damage = str(error)
    old, aside = _old(folder), folder.with_name(folder.name + ".damaged")
    try:
        if found == old or not old.is_dir():
            raise CheckpointError("there is no checkpoint before it")
        check_training(old)
    except CheckpointError as error:
        raise CheckpointError(
            f"{damage}; nor can an earlier one be used ({error}). Copy the folder back from a place where it is whole, "
            "or start over with --restart"
        ) from None
    try:
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)  # from here on complete_directory finds the one before
        os.replace(old, folder)
    except OSError as error:
        raise CheckpointError(f"{damage}; it cannot be set aside: {error.strerror or error}") from error
    return f"{damage}. Going on from the checkpoint before it; the damaged one is kept in {aside}"


def load_training(folder: Path, model: nn.Module) -> dict[str, Any] | None:
    """Put a checkpoint's weights into the model and return its state; None if there is no checkpoint.

    Raises CheckpointError naming the file that is damaged or does not fit (`set_damaged_aside` has looked for bits that
    flipped).
    """
    found = complete_directory(folder)
    if found is None:
        return None
    state = read_torch(found / "state.pt")
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{found / 'state.pt'}: not a training state written by fgaseg train")
    load_weights(model, read_weights(found / "model.safetensors"), found / "model.safetensors")
    return state
