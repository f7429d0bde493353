"""L = L_seg + λ_align L_align + λ_aux L_aux (eqs. 8, 11-13), with the same meaning on any number of processes."""

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import LossConfig
from ..errors import ConfigError
from ..model import Output

CLASSES_PER_CHUNK = 32  # classes whose maps are resized to the labels at a time


def segmentation_losses(
    out: Output,
    labels: Tensor,
    config: LossConfig,
    ignore: int = 255,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    batch_labels: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The training losses of one batch: {"loss", "seg", "align", "aux"}, scalars; align and aux (the first auxiliary
    head's) only if present.

    labels          [B, h, w] int64, `ignore` where there is no label
    sum_over_ranks  sums a tensor over all processes; every mean divides a local sum by such a global count, so the
                    losses (and gradients) of the processes add up to those of one process with the whole batch
    batch_labels    [n B, h, w], with gradient accumulation: the labels of all micro-batches, of which `labels` are one.
                    Means divide by counts over these, so that the micro-batches add up in the same way
    class_weights   [T] float32, `class_weights` of the classes that the logits have; needed where the config has some

    seg    ce: cross-entropy over classes, mean over the labelled pixels of the batch (eq. 12), weighted by class if
           class_balance > 0 or with class_weights: torch's cross_entropy(weight=...).
           bce: binary cross-entropy with one-hot targets, mean over all B·h·w·T elements, unlabelled pixels all zero;
           class_weights multiply the terms of positives: torch's pos_weight.
    aux    the same loss at the auxiliary heads; the first has weight lambda_aux, further ones 1 (released code).
    align  mse (eq. 8): O resized to the labels against one-hot masks, labelled pixels only; mean over their pixels ×
           classes, or with align_reduction="sum" summed over pixels and classes and divided by B.
           bce: the mask resized (nearest) to O, mean over all elements.
    Logits are resized bilinearly (align_corners False) to the labels.
    """
    if config.class_weights and class_weights is None:
        raise ValueError("class_weights: the configuration has some: give those of the logits' classes")
    targets = _Targets(labels, labels if batch_labels is None else batch_labels, ignore, sum_over_ranks, class_weights)
    losses = {"seg": _segmentation(out.logits, targets, config)}
    total = losses["seg"]
    if out.align is not None and config.lambda_align:
        losses["align"] = _alignment(out.align, targets, config)
        total = total + config.lambda_align * losses["align"]
    if out.aux:
        heads = [_segmentation(logits, targets, config) for logits in out.aux]
        losses["aux"] = heads[0]
        total = total + config.lambda_aux * heads[0] + sum(heads[1:])
    return {"loss": total, **losses}


def class_weights(config: LossConfig, names: Sequence[str]) -> Tensor | None:
    """The weights of classes in L_seg, [T] float32, 1 where none is given; None if no class has one.

    Raises ConfigError for the weight of a class that is not among the names, and where all are 0.
    """
    given = config.class_weights or {}
    if unknown := [name for name in given if name not in names]:
        near = difflib.get_close_matches(unknown[0], names, cutoff=0.0)
        raise ConfigError(
            f"model.loss.class_weights: {unknown[0]!r} is none of the {len(names)} classes; did you mean {near[0]!r}?"
        )
    weights = [given.get(name, 1.0) for name in names]
    if not any(weights):
        raise ConfigError("model.loss.class_weights: every class has weight 0: give a positive one")
    return torch.tensor(weights) if given else None


class _Targets(NamedTuple):
    labels: Tensor  # [B, h, w], of this process's (micro-)batch
    batch_labels: Tensor  # [n B, h, w], of all its micro-batches: what is counted
    ignore: int
    sum_over_ranks: Callable[[Tensor], Tensor] | None
    class_weights: Tensor | None  # [T]

    def global_count(self, n: Tensor | int) -> Tensor:
        """A count over `batch_labels` summed over all processes, int64."""
        total = torch.as_tensor(n, device=self.labels.device)
        return self.sum_over_ranks(total) if self.sum_over_ranks else total


def _segmentation(logits: Tensor, targets: _Targets, config: LossConfig) -> Tensor:
    labels, batch_labels, ignore, _, given = targets
    classes = logits.shape[1]
    if config.seg == "bce":

        def summed(chunk: Tensor, first: int) -> Tensor:
            positive = None if given is None else given[first : first + chunk.shape[1], None, None]
            return _bce(_resize(chunk, labels), labels, first, ignore, positive)

        return _sum_over_chunks(summed, logits) / targets.global_count(batch_labels.numel() * classes)
    logits = _resize(logits, labels)
    pixels_here = torch.bincount(batch_labels[batch_labels != ignore], minlength=classes)
    pixels = targets.global_count(pixels_here)  # [T]
    weights = pixels.clamp(min=1) ** -config.class_balance
    weights = weights if given is None else weights * given
    if torch.are_deterministic_algorithms_enabled():  # CUDA has a deterministic loss of rows, none of maps
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    total = F.cross_entropy(logits, labels, weights, ignore_index=ignore, reduction="sum")
    return total / (weights * pixels).sum().clamp(min=torch.finfo(torch.float32).tiny)


def _alignment(maps: Tensor, targets: _Targets, config: LossConfig) -> Tensor:
    labels, batch_labels, ignore, *_ = targets
    if config.align == "bce":
        small = F.interpolate(labels[:, None].float(), size=maps.shape[2:], mode="nearest")[:, 0].long()
        elements = targets.global_count(maps[0].numel() * len(batch_labels))
        return _sum_over_chunks(lambda chunk, first: _bce(chunk.float(), small, first, ignore), maps) / elements
    valid = (labels != ignore)[:, None]

    def squares(chunk: Tensor, first: int) -> Tensor:
        chunk = _resize(chunk, labels)
        return (chunk - _one_hot(labels, first, chunk, ignore)).square().masked_fill(~valid, 0.0).sum()

    per_image = config.align_reduction == "sum"
    divisor = targets.global_count(len(batch_labels) if per_image else (batch_labels != ignore).sum() * maps.shape[1])
    return _sum_over_chunks(squares, maps) / divisor.clamp(min=1)


def _resize(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)


def _sum_over_chunks(loss: Callable[[Tensor, int], Tensor], maps: Tensor) -> Tensor:
    """The sum of loss(chunk [B, c, h, w], index of its first class) over chunks of the classes of `maps` [B, T, h, w].

    The backward pass computes every chunk again, so the maps of all classes never exist at the labels' size.
    """
    chunks = [(maps[:, i : i + CLASSES_PER_CHUNK], i) for i in range(0, maps.shape[1], CLASSES_PER_CHUNK)]
    sums = [checkpoint(loss, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack(sums).sum()


def _bce(logits: Tensor, labels: Tensor, first: int, ignore: int, positive: Tensor | None = None) -> Tensor:
    """`positive` [c, 1, 1] multiplies the terms of positives."""
    target = _one_hot(labels, first, logits, ignore)
    return F.binary_cross_entropy_with_logits(logits, target, pos_weight=positive, reduction="sum")


def _one_hot(labels: Tensor, first: int, maps: Tensor, ignore: int) -> Tensor:
    """One-hot masks [B, c, h, w] of the classes `first` to `first` + c - 1, c as in `maps`; other pixels are zero."""
    inside = (labels >= first) & (labels < first + maps.shape[1]) & (labels != ignore)
    out = torch.zeros_like(maps)
    return out.scatter_(1, (labels - first).where(inside, 0)[:, None], inside[:, None].to(out.dtype))
