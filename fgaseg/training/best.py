"""The best model of a run, <train.out>/best, by a figure of its evaluations; and how long there was no better one."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..distributed import gather_objects, rank
from ..errors import CheckpointError, TrainingError
from ..evaluation import Scores
from ..files import atomic_directory, atomic_write, complete_directory, previous_directory
from ..model import FGASeg
from .processes import write_on_main
from .validation import figures

log = logging.getLogger(__name__)


class BestModel:
    """Keeps the model whose figure is the largest so far: `model` and score.json in one folder, replaced as a whole.

    record  the content of score.json: {"step", "metric", "score", "scores" {set: figures}, "samples" {set: hash}};
            None while nothing of this run is kept

    The folder, not the checkpoint, says what is kept, so the two cannot contradict each other, whenever a process is
    killed: an evaluation that is repeated after a resume finds its own model there.
    """

    def __init__(self, recipe: TrainConfig, val_sets: dict[str, Any], device: torch.device):
        if recipe.keep_best and not val_sets:
            raise TrainingError(
                f"train.keep_best={recipe.keep_best}: nothing is scored: give data.val_set, or photos and labels for "
                "validation, or train.keep_best=null and train.patience=null"
            )
        self.metric, self.device = recipe.keep_best, device
        self.folder = recipe.out / "best"
        self.record: dict[str, Any] | None = None

    def start(self, resumed: bool) -> None:
        """Find what the parts of this run before have kept; what lies there when a run begins is another one's."""
        found = _read(self.folder) if resumed and rank() == 0 else None
        self.record = gather_objects(found)[0]

    def discard_other(self) -> None:
        """Remove the model of a run that this one replaces."""
        if self.record is None and rank() == 0:
            for folder in (self.folder, previous_directory(self.folder)):
                shutil.rmtree(folder, ignore_errors=True)

    def is_beaten_by(self, scores: dict[str, Scores]) -> bool:
        """Whether these scores are better; also when other photos were scored, for the two cannot be compared."""
        if self.metric is None:
            return False
        score = figure(figures(scores), self.metric)
        if self.record is None or math.isnan(score):
            return not math.isnan(score)
        return self.record["samples"] != _samples(scores) or score > figure(self.record["scores"], self.metric)

    def write(self, model: FGASeg, weights: dict[str, Tensor], step: int, scores: dict[str, Scores]) -> None:
        """Replace the folder, on the main process. Raises CheckpointError on every process."""
        assert self.metric is not None
        found = figures(scores)
        self.record = {"step": step, "metric": self.metric, "score": figure(found, self.metric), "scores": found,
                       "samples": _samples(scores)}  # fmt: skip
        text = json.dumps(_plain(self.record), indent=2) + "\n"
        write_on_main(lambda: _write(self.folder, model, weights, text), self.device)
        if rank() == 0:
            log.info(
                "best so far: %s %.4f at step %d, in %s", self.metric, self.record["score"], step, self.model_folder
            )

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    def summary(self) -> dict[str, Any] | None:
        """What is kept: {"model", "step", "metric", "score"}."""
        if self.record is None:
            return None
        return {"model": str(self.model_folder)} | {key: self.record[key] for key in ("step", "metric", "score")}


def figure(scores: dict[str, dict[str, Any]], metric: str) -> float:
    """The mean of a figure over the validation sets, {set: figures}; NaN where one set has none."""
    values = [math.nan if one[metric] is None else one[metric] for one in scores.values()]
    return sum(values) / len(values)


def evaluations_without_rise(history: list[dict[str, Any]], metric: str) -> tuple[int, dict[str, Any]]:
    """How many evaluations came after the one with the largest figure, and {"step", "score"} of that one.

    history  {"step", "<set>": figures} of every evaluation, at least one; only those on the sets of the last one count
    """
    sets = [{name: one for name, one in entry.items() if name != "step"} for entry in history]
    steps = [entry["step"] for entry, one in zip(history, sets, strict=True) if one.keys() == sets[-1].keys()]
    values = [figure(one, metric) for one in sets if one.keys() == sets[-1].keys()]
    values = [-math.inf if math.isnan(value) else value for value in values]
    first = values.index(max(values))
    return len(values) - 1 - first, {"step": steps[first], "score": values[first]}


def _samples(scores: dict[str, Scores]) -> dict[str, str]:
    return {name: one.samples_hash for name, one in scores.items()}


def _plain(value: Any) -> Any:
    """With null in place of NaN, as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _read(folder: Path) -> dict[str, Any] | None:
    """The record in a folder, which is put right first where a process was killed while it replaced it."""
    previous = previous_directory(folder)
    try:
        found = complete_directory(folder)
        if found == previous:
            os.replace(previous, folder)
        shutil.rmtree(previous, ignore_errors=True)
        if found is None:
            return None
        record: dict[str, Any] = json.loads((folder / "score.json").read_text())
        figure(record["scores"], record["metric"])
        return {key: record[key] for key in ("step", "metric", "score", "scores", "samples")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: cannot be read (%s); the next evaluation replaces it", folder, error)
        return None


def _write(folder: Path, model: FGASeg, weights: dict[str, Tensor], record: str) -> None:
    try:
        with atomic_directory(folder) as temporary:
            model.save_pretrained(temporary / "model", weights)
            atomic_write(temporary / "score.json", lambda file: file.write(record.encode()))
    except OSError as error:
        raise CheckpointError(
            f"{folder}: could not be written: {error.strerror or error}; the model of before is intact. Make room and "
            "run the same command again to resume"
        ) from error
