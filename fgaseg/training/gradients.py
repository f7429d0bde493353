"""Forward and backward pass of one batch."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..distributed import detect_lost_processes, rank, sum_over_processes
from ..model import FGASeg
from ..vocabulary import check_names
from .batches import Batch
from .losses import class_weights, segmentation_losses
from .optimizer import Optimizer
from .precision import autocast
from .random_streams import torch_seed
from .step_vocabulary import StepVocabulary


def resized(pixels: Tensor, side: int | None) -> Tensor:
    """Crops [B, 3, h, w] at the side that the model trains on; as the released code: bilinear, no antialiasing."""
    return pixels if side is None else F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)


class GradientComputer:
    """Computes this process's gradients of the losses of a batch, micro-batch after micro-batch."""

    def __init__(
        self, model: FGASeg, vocabulary: StepVocabulary, optimizer: Optimizer, config: Config, device: torch.device
    ):
        self.model, self.vocabulary, self.optimizer = model, vocabulary, optimizer
        self.config, self.device = config, device
        weights = class_weights(config.model.loss, [one.name for one in check_names(vocabulary.names)])
        self.class_weights = None if weights is None else weights.to(device)

    def compute(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Add the gradients of a step (0-based), and return this process's part of the losses, float32 scalars.

        Summed over processes, gradients and losses are those of the whole batch.
        """
        recipe = self.config.train
        torch.manual_seed(torch_seed(recipe.seed, step, rank()))
        labels = batch.labels.to(self.device, non_blocking=True)
        pixels = resized(batch.pixels.to(self.device, non_blocking=True), recipe.image_size)
        labels, chosen = self.vocabulary.choose(labels, step)
        with detect_lost_processes():
            return self._backward(pixels, labels, chosen)

    def _backward(self, pixels: Tensor, labels: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        """The names are embedded once for all micro-batches. Means divide by counts over the whole batch; only
        BatchNorm (in the T2P branch) takes the statistics of one micro-batch, of all processes, at a time."""
        vocabulary = self.vocabulary.of(chosen)
        texts = vocabulary.embeddings
        leaf = texts.detach().requires_grad_(texts.requires_grad)
        vocabulary = replace(vocabulary, embeddings=leaf)
        weights = None if self.class_weights is None else self.class_weights[chosen.to(self.device)]
        totals: dict[str, Tensor] = {}
        micro_batches = (x.chunk(self.config.train.accumulate) for x in (pixels, labels))
        for some_pixels, some_labels in zip(*micro_batches, strict=True):
            with autocast(self.device, self.config.train.amp):
                out = self.model(some_pixels, vocabulary)
            losses = segmentation_losses(
                out, some_labels, self.config.model.loss, self.config.data.void, sum_over_processes, labels, weights
            )
            self.optimizer.backward(losses["loss"])
            for name, value in losses.items():
                value = value.detach()
                totals[name] = totals[name] + value if name in totals else value
        if leaf.grad is not None:
            texts.backward(leaf.grad)
        return totals
