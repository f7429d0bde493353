"""What a finished run leaves behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..evaluation import Scores
from ..files import atomic_write
from ..model import FGASeg


@dataclass
class Summary:
    """The result of a finished run; `dump` is written to <out>/summary.json."""

    out: str
    """Folder of the run."""
    model: str
    """Folder of the model, for FGASeg.from_pretrained."""
    steps: int
    """Number of optimizer steps."""
    seconds: float
    """Time spent on training, evaluation and saving, over all interrupted parts of the run."""
    images_per_second: float
    """Photos trained on, divided by `seconds`."""
    processes: int
    """Number of training processes in the last part of the run."""
    device: str
    """Device of the main process."""
    parameters: int
    """Number of parameters."""
    trained_parameters: int
    """Number of parameters that train."""
    losses: dict[str, float]
    """Losses and gradient norm, means over the last log_every steps."""
    scores: dict[str, Scores]
    """Scores of the final model by validation set: "val", the name of a benchmark set, or "seen" and "unseen"."""
    history: list[dict[str, Any]]
    """{"step", "<set>": {"miou_gt", ...}} of every evaluation."""
    best: dict[str, Any] | None
    """The model of the best evaluation, {"model", "step", "metric", "score"} (train.keep_best), or None."""
    stopped_early: str
    """Why the run ended before train.steps (train.patience); "" if it did not."""
    changes: list[str]
    """What was changed where the run was resumed with more steps or another learning rate."""
    skipped: list[str]
    """Photos that could not be read and were replaced (train.skip_unreadable), and why."""

    def dump(self) -> dict[str, Any]:
        """As plain JSON types."""
        plain = {name: value for name, value in vars(self).items() if name != "scores"}
        return plain | {"scores": {name: scores.dump() for name, scores in self.scores.items()}}


def write_results(summary: Summary, model: FGASeg, weights: dict[str, Tensor], checkpoint: Path) -> None:
    """Write <out>/model and <out>/summary.json. Raises CheckpointError.

    weights     the model's whole state dict
    checkpoint  the folder to resume from when writing fails, for the message
    """
    try:
        model.save_pretrained(summary.model, weights)
        text = json.dumps(summary.dump(), indent=2) + "\n"
        atomic_write(Path(summary.out) / "summary.json", lambda file: file.write(text.encode()))
    except OSError as error:
        raise CheckpointError(
            f"{summary.model}: could not be written: {error.strerror or error}; {checkpoint} holds the finished "
            "training. Make room and run the same command again"
        ) from error
