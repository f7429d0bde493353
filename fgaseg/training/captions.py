"""Training of the encoders alone, as CLIP was trained: whole pictures and captions, in a symmetric contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data import CaptionWriter, classes_in
from ..distributed import world_size
from ..errors import TrainingError
from ..model import FGASeg
from ..notes import note_once
from ..vocabulary import ClassPrompts, check_names
from .batches import Batch
from .gradients import resized
from .optimizer import Optimizer
from .precision import autocast
from .random_streams import CAPTIONS, generator, torch_seed

WRONG = 3  # captions with a mistake for each picture
LARGEST_SCALE = 100.0  # CLIP's limit of the inverse temperature


def train_temperature(model: FGASeg) -> None:
    """Let CLIP's temperature train, which only the contrastive loss reads. Raises TrainingError for other encoders."""
    if world_size() > 1:
        raise TrainingError("train.objective=captions: compares the pictures of one batch; run it in one process")
    if not hasattr(model.encoder, "image_tower"):
        raise TrainingError(f"train.objective=captions: {model.encoder.name} has no embedding of whole pictures")
    model.clip.logit_scale.requires_grad_(True)


class CaptionGradients:
    """Computes the gradients of the contrastive loss of a batch of pictures and their captions.

    Captions name classes of a picture's label map, which is all that the labels are used for. Each picture also has
    WRONG captions with one mistake (`CaptionWriter.wrong`), which compete with the right ones of the batch.

    names      classes of the labels
    backdrops  those that things lie on
    """

    def __init__(
        self,
        model: FGASeg,
        names: Sequence[str | ClassPrompts],
        backdrops: Sequence[str],
        optimizer: Optimizer,
        config: Config,
        device: torch.device,
    ):
        self.model, self.optimizer, self.config, self.device = model, optimizer, config, device
        self.writer = CaptionWriter([one.name for one in check_names(names)], backdrops)

    def compute(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Add the gradients of a step (0-based), and return "loss" and "matched", float32 scalars.

        matched  share of the pictures whose own caption is the nearest of the batch
        """
        recipe = self.config.train
        torch.manual_seed(torch_seed(recipe.seed, step, 0))
        shown, right, wrong = self.captions(batch.labels, step)
        model: Any = self.model
        with autocast(self.device, recipe.amp):
            pixels = resized(batch.pixels[shown].to(self.device), recipe.image_size)
            images = model.encoder.image_tower.pooled(pixels)
            texts = model.encoder.text(right + wrong)
        self._note_cuts(right)
        scale = model.clip.logit_scale.exp().clamp(max=LARGEST_SCALE)
        loss, matched = contrastive_loss(images, texts, scale)
        self.optimizer.backward(loss)
        return {"loss": loss.detach(), "matched": matched}

    def captions(self, labels: Tensor, step: int) -> tuple[list[int], list[str], list[str]]:
        """Which of the label maps [B, h, w] show any class, and the right and the wrong captions of these at a step."""
        rng = generator(self.config.train.seed, CAPTIONS, step)
        names, write = self.writer.names, self.writer.caption
        present = [[names[index] for index in classes_in(one.numpy(), len(names))] for one in labels]
        shown = [index for index, some in enumerate(present) if some]
        if len(shown) < 2:
            raise TrainingError(
                f"train.objective=captions: {len(shown)} of the {len(present)} pictures of step {step + 1} show any "
                "class, and it takes two to compare; give a larger train.batch, or see what `fgaseg data check` says"
            )
        right = [write(present[index], rng) for index in shown]
        wrong = [write(self.writer.wrong(present[index], rng), rng) for index in shown for _ in range(WRONG)]
        return shown, right, wrong

    def _note_cuts(self, captions: Sequence[str]) -> None:
        encoder: Any = self.model.encoder
        tokenizer = encoder.text_tower.tokenizer
        if cut := next(((text, rest) for text in captions if (rest := tokenizer.cut(text))), None):
            note_once(
                "captions cut",
                f"captions are cut after {tokenizer.length} tokens, such as {cut[0]!r} before {cut[1]!r}: a larger "
                "context_length in model.encoder.architecture.text_cfg reads them whole",
            )


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's loss (eqs. 3-4), and the share of pictures whose own text is the nearest; both float32 scalars.

    images  [B, C], not normalised
    texts   [N, C], N >= B: the text of picture i is row i; further rows belong to no picture
    scale   the inverse temperature

    The mean of two cross-entropies over cosines times `scale`: a picture among all texts, and a text of a picture among
    the pictures.
    """
    cosines = F.normalize(images.float()) @ F.normalize(texts.float()).T
    logits, own = scale.float() * cosines, torch.arange(len(images), device=images.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(own)].T, own)) / 2
    return loss, (logits.detach().argmax(1) == own).float().mean()
