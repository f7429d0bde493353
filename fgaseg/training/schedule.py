"""What depends on the step number: learning rate, saving, evaluation."""

import math

from ..config import TrainConfig


def learning_rate_factor(step: int, recipe: TrainConfig) -> float:
    """The factor of every learning rate at a step (0-based): linear warm-up, then cosine to 0 at the last step."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup)))


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether to act after `step` steps: every so many (0: never), and after the last of all `steps`."""
    return step == steps or (every > 0 and step > 0 and step % every == 0)
