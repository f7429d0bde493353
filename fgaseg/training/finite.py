"""A loss or gradient that is NaN or infinite ends the run before it reaches the weights."""

from __future__ import annotations

import json
import math

import torch

from ..config import Config
from ..distributed import gather_objects, gather_rows, rank
from ..errors import NotFiniteError
from ..weights import write_weights
from .batches import Batch


class FiniteCheck:
    """Checks the losses of every step, and keeps the batch of one that fails in <out>/nan_batch.safetensors."""

    def __init__(self, config: Config, scaler: torch.amp.GradScaler, device: torch.device):
        self.recipe, self.scaler, self.device = config.train, scaler, device

    def check(self, values: dict[str, float], batch: Batch, step: int, saved: str) -> dict[str, float]:
        """`values` (losses and gradient_norm) of a step (1-based), without a gradient_norm that loss scaling explains.

        saved  which checkpoint there is, for the message

        Under fp16 an infinite gradient is expected now and then: the scaler skips the step and scales less. Everything
        else that is not finite raises NotFiniteError, on all processes.
        """
        if all(map(math.isfinite, values.values())):
            return values
        if math.isfinite(values["loss"]) and self.scaler.is_enabled() and self.scaler.get_scale() > 1:
            return {name: value for name, value in values.items() if name != "gradient_norm"}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        stems = [stem for share in gather_objects(batch.stems) for stem in share]
        raise NotFiniteError(
            f"step {step}: loss or gradient is not finite ({shown}); "
            f"the batch was {', '.join(stems)} ({self._save(batch, stems, step)}); {saved}. "
            f"Try a smaller train.lr (now {self.recipe.lr}), train.warmup, or train.amp=no (now {self.recipe.amp})"
        )

    def _save(self, batch: Batch, stems: list[str], step: int) -> str:
        """Write the batch of all processes; returns what became of it, for the message."""
        pixels, labels = (gather_rows(tensor.to(self.device)) for tensor in (batch.pixels, batch.labels))
        path = self.recipe.out / "nan_batch.safetensors"
        about = {"stems": json.dumps(stems), "step": str(step)}
        try:
            if rank() == 0:
                write_weights(path, {"pixels": pixels, "labels": labels}, about)
        except OSError as error:
            return f"{path} could not be written: {error.strerror or error}"
        return f"kept in {path}"
