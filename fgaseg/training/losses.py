"""L = L_seg + λ_align L_align + λ_aux L_aux (eqs. 8, 11-13), one meaning for any number of processes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import LossConfig

if TYPE_CHECKING:
    from ..model import Output

Total = Callable[[Tensor], Tensor]
Count = Callable[..., Tensor]
PIECE = 32  # classes whose maps are at the labels' size at once


def segmentation_losses(
    out: "Output",
    labels: Tensor,
    config: LossConfig,
    ignore: int = 255,
    world: Total | None = None,
    whole: Tensor | None = None,
) -> dict[str, Tensor]:
    """The training losses of one batch: {"loss", "seg", "align", "aux"}, scalars; align and aux (the first
    head's) only if present.

    labels  [B, h, w] int64, `ignore` where there is no label
    world   sums a count over all processes; every mean divides its local sum by that count, so the losses (and the
            gradients) of the processes add up to those of one process with the whole batch
    whole   [n B, h, w], with gradient accumulation: the labels of all micro-batches, of which `labels` are one. Means
            then divide by their counts, so that the micro-batches add up as processes do

    seg    ce: cross-entropy over classes, mean over the labelled pixels of the batch (eq. 12); weighted by class if
           class_balance > 0.
           bce: binary cross-entropy with one-hot targets, mean over all B·h·w·T elements, unlabelled pixels all zero.
    aux    the same loss at the auxiliary heads; the first weighs lambda_aux, further ones 1 (released code).
    align  mse (eq. 8): O resized to the labels against one-hot masks, labelled pixels only; mean over their pixels ×
           classes, or with align_reduction="sum" summed over pixels and classes and divided by B.
           bce: the mask resized (nearest) to O, mean over all elements.
    Logits are resized bilinearly (align_corners False) to the labels.
    """

    everything = labels if whole is None else whole

    def count(n: Tensor | int, clamp: bool = True) -> Tensor:
        total = torch.as_tensor(n, dtype=torch.float32, device=labels.device)
        total = world(total) if world else total
        return total.clamp(min=1) if clamp else total

    losses = {"seg": _segmentation(out.logits, labels, everything, config, ignore, count)}
    total = losses["seg"]
    if out.align is not None and config.lambda_align:
        losses["align"] = _alignment(out.align, labels, everything, config, ignore, count)
        total = total + config.lambda_align * losses["align"]
    if out.aux:
        heads = [_segmentation(logits, labels, everything, config, ignore, count) for logits in out.aux]
        losses["aux"] = heads[0]
        total = total + config.lambda_aux * heads[0] + sum(heads[1:])
    return {"loss": total, **losses}


def _segmentation(
    logits: Tensor, labels: Tensor, everything: Tensor, config: LossConfig, ignore: int, count: Count
) -> Tensor:
    classes = logits.shape[1]
    if config.seg == "bce":

        def summed(part: Tensor, first: int) -> Tensor:
            return _bce(_resize(part, labels), labels, first, ignore)

        return _in_pieces(summed, logits) / count(everything.numel() * classes)
    logits = _resize(logits, labels)
    pixels = count(torch.bincount(everything[everything != ignore], minlength=classes), clamp=False)  # of each class
    weights = pixels.clamp(min=1) ** -config.class_balance
    if torch.are_deterministic_algorithms_enabled():  # CUDA's loss of maps has no such form; that of rows has
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    total = F.cross_entropy(logits, labels, weights, ignore_index=ignore, reduction="sum")
    return total / (weights * pixels).sum().clamp(min=torch.finfo(torch.float32).tiny)


def _alignment(
    maps: Tensor, labels: Tensor, everything: Tensor, config: LossConfig, ignore: int, count: Count
) -> Tensor:
    if config.align == "bce":
        small = F.interpolate(labels[:, None].float(), size=maps.shape[-2:], mode="nearest")[:, 0].long()
        pixels = maps[0].numel() * len(everything)
        return _in_pieces(lambda part, first: _bce(part, small, first, ignore), maps) / count(pixels)
    valid = (labels != ignore)[:, None]

    def squares(part: Tensor, first: int) -> Tensor:
        part = _resize(part, labels)
        return (part - _one_hot(labels, first, part, ignore)).square().masked_fill(~valid, 0.0).sum()

    images = config.align_reduction == "sum"
    divisor = count(len(everything) if images else (everything != ignore).sum() * maps.shape[1])
    return _in_pieces(squares, maps) / divisor


def _resize(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)


def _in_pieces(loss: Callable[[Tensor, int], Tensor], maps: Tensor) -> Tensor:
    """The sum of loss(maps of some classes [B, c, h, w], the first one's index) over all classes of `maps`.

    The backward pass computes every piece again: the maps of all classes at the labels' size never exist.
    """
    pieces = [(maps[:, first : first + PIECE], first) for first in range(0, maps.shape[1], PIECE)]
    sums = [checkpoint(loss, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.stack(sums).sum()


def _bce(logits: Tensor, labels: Tensor, first: int, ignore: int) -> Tensor:
    target = _one_hot(labels, first, logits, ignore)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")


def _one_hot(labels: Tensor, first: int, maps: Tensor, ignore: int) -> Tensor:
    """[B, c, h, w] for the classes from `first` on that `maps` [B, c, h, w] are of; all zero elsewhere."""
    own = (labels >= first) & (labels < first + maps.shape[1]) & (labels != ignore)
    out = torch.zeros_like(maps, dtype=torch.promote_types(maps.dtype, torch.float32))
    return out.scatter_(1, (labels - first).where(own, 0)[:, None], own[:, None].to(out.dtype))
