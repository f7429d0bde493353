"""Counts of an unfinished evaluation, saved so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ..distributed import rank
from ..errors import UnfinishedError
from ..weights import write_weights
from .provenance import differences
from .state import EvalState

SAVE_SECONDS = 30.0  # between two saves


class PartialCounts:
    """The counts of each process in <folder>/<name>.part<rank>.safetensors.

    record  JSON-able; parts with another record are refused, so that counts of two evaluations are never added
    A part lists its samples, so any number of processes can resume.
    """

    def __init__(self, folder: str | Path, name: str, record: dict[str, Any]) -> None:
        self.folder, self.name, self.record = Path(folder), name, record
        self._saved_at = time.monotonic()

    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}.part*.safetensors"), key=lambda file: (len(file.name), file.name))

    def restore(self, state: EvalState) -> None:
        """Add the parts of all processes of the interrupted run to this process's state, and save them as one part.

        Raises UnfinishedError. A part that is damaged, or of a version that kept less, is left out with a warning: its
        samples are scored again.
        """
        for file in self.files():
            try:
                record, tensors = _read_part(file)
            except Exception as error:  # safetensors, JSON and missing keys: each raises its own type
                warnings.warn(f"{file}: cannot be resumed from ({error}); its images are scored again", stacklevel=2)
                continue
            if changed := differences(record, self.record):
                raise UnfinishedError(
                    f"{file}: belongs to another evaluation ({'; '.join(changed)}): give another --out, or --restart "
                    "to drop it"
                )
            state.merge(tensors)
        if state.done:
            self.save(state)
            _remove(self.files()[1:])

    def save(self, state: EvalState) -> None:
        """Replace this process's part, atomically."""
        tensors = state.tensors()
        metadata = {"record": json.dumps(self.record), "sha256": _digest(tensors)}
        write_weights(self.folder / f"{self.name}.part{rank()}.safetensors", tensors, metadata)
        self._saved_at = time.monotonic()

    def save_when_due(self, state: EvalState) -> None:
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save(state)

    def remove(self) -> None:
        """Called once the result is written."""
        _remove(self.files())


def _read_part(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safetensors.safe_open(file, "pt") as part:
        record = json.loads(part.metadata()["record"])
        tensors = {key: part.get_tensor(key) for key in part.keys()}
        if part.metadata()["sha256"] != _digest(tensors):
            raise ValueError("it is damaged: its checksum does not match")
    if "stems" not in tensors:
        raise ValueError("it is of an earlier version, without counts for each image")
    return record, tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
