"""What a finished training knows about its model, for the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import Config
from ..evaluation import FIGURES, Scores, record_hash, state_hash
from ..model import FGASeg
from .state import TrainingState

# of the train section; the rest changes no weight, or is the business of one machine
RECIPE = ("objective", "steps", "batch", "lr", "encoder_lr_factor", "weight_decay", "clip_norm", "schedule", "warmup",
          "amp", "image_size", "seed", "classes_per_step")  # fmt: skip
AUGMENTATION = ("crop", "short_edge", "scale", "flip", "color_jitter")


def training_facts(config: Config, train_set: Any, processes: int, state: TrainingState) -> dict[str, Any]:
    """Data and recipe of a training that is as far as `state` says, as plain JSON types, without paths."""
    recipe, data = config.train.dump(), config.data.dump()
    chosen = {key: recipe[key] for key in RECIPE} | {key: data[key] for key in AUGMENTATION}
    chosen["finetune"] = config.model.encoder.finetune
    if config.train.init is not None:
        chosen["init"] = Path(config.train.init).name  # where it was is nobody else's business
    if state.changes:
        chosen["changed"] = state.changes
    kind = "drawn scenes" if config.data.scenes else f"{config.data.set or 'own photos'}"
    return {
        "data": f"{kind}, {len(train_set):,} images, {len(train_set.names)} classes",
        "steps": state.step,
        "batch": config.train.batch,
        "processes": processes,
        "recipe": chosen,
    }


def result_facts(
    model: FGASeg, scores: dict[str, Scores], val_sets: dict[str, Any], config: Config, weights: dict[str, Tensor]
) -> dict[str, Any]:
    """The last scores by validation set, with the hash of the record that `fgaseg eval` would make of them."""
    found = {}
    for name, one in scores.items():
        values = one.dump()
        found[name] = {"images": one.images, **{key: values[key] for key in FIGURES if values[key] is not None}}
        if not config.data.scenes:  # their names compete in a way of their own
            count = config.data.val_count
            found[name]["record"] = record_hash(model, val_sets[name], name, one, count, state_hash(weights))
    return found
