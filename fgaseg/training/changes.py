"""What may differ between the run that wrote a checkpoint and the one that resumes it, and what a difference means."""

from __future__ import annotations

from typing import Any

from ..config import Config, TrainConfig
from .schedule import learning_rate_factor

# keys that change no weight, or only from here on
FREE = {
    "train.out", "train.init", "train.eval_every", "train.save_every", "train.log_every", "train.tensorboard",
    "train.accumulate", "train.fsdp", "train.skip_unreadable", "train.pictures", "train.keep_best", "train.patience",
    "train.trackers", "train.project",
    "data.workers", "data.val_list", "data.val_images", "data.val_labels", "data.val_count",
    "data.images", "data.labels", "data.names", "data.train_list", "data.root", "data.val_set",
    "data.image_suffix", "data.label_suffix", "data.label_map",
}  # fmt: skip
# keys that change the learning rate of the steps to come, which is said
ANNOUNCED = ("train.steps", "train.lr")
WHOLE = ("architecture", "label_map", "class_weights")  # mappings that are values, not sections


def differences(before: dict[str, Any], config: Config, step: int) -> tuple[list[str], str]:
    """What differs between the configuration of a checkpoint, as plain types, and that of the run that resumes it.

    step     finished steps of the checkpoint
    returns  the differences that make it another run, "key was x, now y"; and the announcement of the others, or ""
    """
    now = dotted(config.dump())
    defaults = Config.model_validate({"model": {"preset": before.get("model", {}).get("preset", "paper")}})
    then = dotted(defaults.dump()) | dotted(before)  # the defaults of keys that were not there yet
    changed = [key for key in now if key not in FREE and then.get(key) != now[key]]
    refused = [f"{key} was {then.get(key)!r}, now {now[key]!r}" for key in changed if key not in ANNOUNCED]
    if config.train.steps < step:
        refused.append(f"train.steps is {config.train.steps}, but {step} are done")
    announced = {key: then.get(key) for key in changed if key in ANNOUNCED}
    return refused, _announcement(announced, config.train, step) if announced else ""


def _announcement(before: dict[str, Any], recipe: TrainConfig, step: int) -> str:
    changes = {key: getattr(recipe, key.partition(".")[2]) for key in before}
    said = " and ".join(f"{key} was {before[key]!r}, now {now!r}" for key, now in changes.items())
    if step == recipe.steps:
        return f"{said}: no step is left to take"
    schedule = f"the {recipe.schedule} schedule"
    if recipe.schedule == "cosine":
        schedule += f" of {recipe.steps} steps from the first to the last"
    line = f"{said}: weights and optimizer state go on; from step {step + 1} on the learning rate is that of {schedule}"
    if step == 0:
        return line
    old = recipe.model_copy(update={key.partition(".")[2]: value for key, value in before.items()})
    ended, goes_on = (one.lr * learning_rate_factor(at, one) for one, at in ((old, step - 1), (recipe, step)))
    return f"{line}: step {step} had {ended:.3g}, step {step + 1} has {goes_on:.3g}"


def dotted(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The nested sections of a configuration as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and key not in WHOLE:
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
