"""What an evaluation has counted so far."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed import sum_over_processes
from .scores import ConfusionMatrix


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
    done          indices of the samples in the data set
    """

    confusion: ConfusionMatrix
    samples_hash: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.int64))
    done: set[int] = field(default_factory=set)

    def add(self, index: int, predicted: Tensor, labels: Tensor, hashed: Tensor) -> None:
        """Count one sample, whose `sample_hash` is `hashed`. Raises ValueError as ConfusionMatrix.add."""
        self.confusion.add(predicted, labels)
        self.samples_hash += hashed
        self.done.add(index)

    def tensors(self) -> dict[str, Tensor]:
        """As saved; the keys are those of all part files, old ones too."""
        done = torch.tensor(sorted(self.done), dtype=torch.int64)
        return {"matrix": self.confusion.matrix.cpu(), "pictures": self.samples_hash, "done": done}

    def merge(self, tensors: dict[str, Tensor]) -> None:
        """Add what another process saved, unless it holds samples that are already counted here."""
        done = set(tensors["done"].tolist())
        if done.isdisjoint(self.done):
            self.confusion.matrix += tensors["matrix"].to(self.confusion.matrix.device)
            self.samples_hash += tensors["pictures"]
            self.done |= done

    def summed(self) -> tuple[ConfusionMatrix, int, str]:
        """Confusion matrix, number of samples and hash of all processes, which must call this together."""
        total = ConfusionMatrix(self.confusion.classes, self.confusion.ignore)
        total.matrix = sum_over_processes(self.confusion.matrix)
        small = torch.cat([self.samples_hash, torch.tensor([len(self.done)])])
        small = sum_over_processes(small.to(total.matrix.device)).cpu()
        return total, int(small[4]), small[:4].numpy().tobytes().hex()
