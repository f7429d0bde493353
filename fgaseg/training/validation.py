"""Scores of the model in training on all validation sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import Config
from ..evaluation import FIGURES, Scores, evaluate
from ..model import FGASeg
from .metrics import peak_memory_mb


class Validation:
    """The validation sets by name: "val", the name of a benchmark set, or "seen" and "unseen"."""

    def __init__(self, model: FGASeg, val_sets: dict[str, Any], config: Config):
        self.model, self.val_sets, self.config = model, val_sets, config

    def run(self, stop: Callable[[], bool]) -> dict[str, Scores]:
        """The scores of every set, of which `stop` leaves the rest out; all processes share the photos."""
        count = self.config.data.val_count
        scores = {name: evaluate(self.model, one, count=count, stop=stop) for name, one in self.val_sets.items()}
        if self.config.data.scenes:  # all names compete for a pixel, whichever are scored
            scores = {name: scores[name].subset(self.val_sets[name].scored) for name in scores}
        return scores


def figures(scores: dict[str, Scores]) -> dict[str, dict[str, Any]]:
    """The figures of a history: {"<set>": {"miou_gt", ...}}."""
    return {name: {key: getattr(one, key) for key in FIGURES} for name, one in scores.items()}


def rows(scores: dict[str, Scores], seconds: float) -> dict[str, dict[str, Any]]:
    """What is reported of an evaluation that took `seconds`: the figures of each set, speed and memory."""
    images = sum(one.images for one in scores.values())
    speed = {"images_per_second": images / seconds, "peak_memory_mb": peak_memory_mb()}
    return {name: row | speed for name, row in figures(scores).items()}
