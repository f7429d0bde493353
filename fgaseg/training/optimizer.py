"""AdamW with learning-rate schedule, loss scaling, gradients summed over processes, and clipping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..distributed import sum_gradients
from ..model import FGASeg
from .schedule import learning_rate_factor
from .sharding import clip_gradients, load_optimizer_state, optimizer_state, split_groups, unsharded


class Optimizer:
    """The optimizer of a model, to be made after its encoders are sharded (their parameters are replaced then).

    parameters  those that train
    scaler      the loss scaler, disabled unless train.amp is fp16
    """

    def __init__(self, model: FGASeg, recipe: TrainConfig, device: torch.device):
        self.model, self.recipe = model, recipe
        groups = model.parameter_groups(recipe.lr, recipe.encoder_lr_factor, recipe.weight_decay)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # fused: one pass over the weights, on the CPU too
        self.adamw = torch.optim.AdamW(split_groups(groups), fused=True)
        self.base_rates = [group["lr"] for group in self.adamw.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")

    @property
    def learning_rate(self) -> float:
        """The largest learning rate: CLIP has a smaller one of its own."""
        return max(group["lr"] for group in self.adamw.param_groups)

    def set_learning_rate(self, step: int) -> None:
        """Set the learning rates for a step (0-based)."""
        for group, rate in zip(self.adamw.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(step, self.recipe)

    def backward(self, loss: Tensor) -> None:
        """Add this process's gradients of a loss."""
        self.scaler.scale(loss).backward()

    def reduce_gradients(self) -> Tensor:
        """Sum the gradients over all processes and clip them; returns their norm before clipping, a scalar."""
        sum_gradients(unsharded(self.parameters))
        self.scaler.unscale_(self.adamw)
        return clip_gradients(self.parameters, math.inf if self.recipe.clip_norm is None else self.recipe.clip_norm)

    def step(self) -> None:
        """Change the weights (unless the loss scaler found an infinite gradient) and forget the gradients."""
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad()

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, with whole tensors: a collective call where the encoders are sharded."""
        return {"optimizer": optimizer_state(self.model, self.adamw), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, on any number of processes. Raises ValueError for that of another model."""
        load_optimizer_state(self.model, self.adamw, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
