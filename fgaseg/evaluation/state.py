"""What an evaluation has counted so far."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed import gather_objects, sum_over_processes
from .scores import ClassScore, ConfusionMatrix, Scores


def sample_hash(sample: dict[str, Any]) -> Tensor:
    """Identifies a sample by its stem, size, pixels and labels, whatever files they came from: int64 [4]."""
    labels = sample["labels"].numpy()
    digest = hashlib.sha256(f"{sample['stem']} {labels.shape}".encode())
    digest.update(labels.astype("<u2").tobytes())
    digest.update(np.asarray(sample["image"]).tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64)


@dataclass
class EvalState:
    """Counts over samples in any order, so that those of several processes or runs can be added.

    samples_hash  int64 [4], the sum (modulo 2^64) of `sample_hash` over the samples
    per_image     by the index of the sample in the data set: its stem, and its counts as ConfusionMatrix.add gives them
    """

    confusion: ConfusionMatrix
    samples_hash: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.int64))
    per_image: dict[int, tuple[str, Tensor]] = field(default_factory=dict)

    @property
    def done(self) -> set[int]:
        """Indices of the samples that are counted."""
        return set(self.per_image)

    def add(self, index: int, stem: str, predicted: Tensor, labels: Tensor, hashed: Tensor) -> None:
        """Count one sample, whose `sample_hash` is `hashed`. Raises ValueError as ConfusionMatrix.add."""
        counts = self.confusion.add(predicted, labels)
        self.samples_hash += hashed
        self.per_image[index] = (stem, counts)

    def tensors(self) -> dict[str, Tensor]:
        """As saved. `lengths` and `stems` (JSON) belong to `done`, the rows of `counts` to the samples in turn."""
        done = sorted(self.per_image)
        each = [self.per_image[index] for index in done]
        return {
            "matrix": self.confusion.matrix.cpu(),
            "pictures": self.samples_hash,
            "done": torch.tensor(done, dtype=torch.int64),
            "lengths": torch.tensor([len(counts) for _, counts in each], dtype=torch.int64),
            "counts": torch.cat([torch.empty(0, 4, dtype=torch.int64), *(counts for _, counts in each)]),
            "stems": torch.tensor(list(json.dumps([stem for stem, _ in each]).encode()), dtype=torch.uint8),
        }

    def merge(self, tensors: dict[str, Tensor]) -> None:
        """Add what another process saved, unless it holds samples that are already counted here."""
        done = tensors["done"].tolist()
        if self.per_image.keys().isdisjoint(done):
            self.confusion.matrix += tensors["matrix"].to(self.confusion.matrix.device)
            self.samples_hash += tensors["pictures"]
            stems = json.loads(bytes(tensors["stems"].tolist()))
            counts = tensors["counts"].split(tensors["lengths"].tolist())
            self.per_image |= dict(zip(done, zip(stems, counts, strict=True), strict=True))

    def scores(self, classes: list[str]) -> Scores:
        """The scores of all processes together, which must call this together; `classes` [T] are the names."""
        total = ConfusionMatrix(self.confusion.classes, self.confusion.ignore)
        total.matrix = sum_over_processes(self.confusion.matrix)
        hashed = sum_over_processes(self.samples_hash.to(total.matrix.device)).cpu().numpy().tobytes().hex()
        found = {index: one for part in gather_objects(self.per_image) for index, one in part.items()}
        each: dict[str, Scores] = {}
        for index in sorted(found):
            stem, counts = found[index]
            rows = [ClassScore(classes[row[0]], *row[1:]) for row in counts.tolist()]
            each[f"{stem} ({index})" if stem in each else stem] = Scores(1, rows)
        return Scores(len(found), total.rows(classes), hashed, total.matrix.cpu(), each)
