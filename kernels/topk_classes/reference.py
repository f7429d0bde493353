"""The definitions of topk_classes, gather_classes and scatter_classes, in plain PyTorch."""

import torch
from torch import Tensor


def topk_classes_reference(scores: Tensor, k: int, union: str) -> tuple[Tensor, Tensor]:
    """The rows b*T + t of the classes that are among the k best of some pixel, and their number per image."""
    scores = scores.flatten(2)
    selectable = scores > -torch.inf  # False for NaN too
    order = scores.masked_fill(~selectable, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    best = torch.zeros_like(selectable).scatter(1, order[:, :k], True)
    kept = (best & selectable).any(2)
    if union == "batch":
        kept = kept.any(0, keepdim=True).expand_as(kept)
    return kept.flatten().nonzero().squeeze(1), kept.sum(1)


def gather_classes_reference(x: Tensor, rows: Tensor) -> Tensor:
    """The selected rows of x [B, T, ...]: [R, ...]."""
    return x.flatten(0, 1).index_select(0, rows)


def scatter_classes_reference(y: Tensor, rows: Tensor, batch: int, classes: int, fill: float) -> Tensor:
    """The rows of y [R, ...] where they belong in [B, T, ...], ``fill`` elsewhere."""
    full = y.new_full((batch * classes, *y.shape[1:]), fill)
    return full.index_copy(0, rows, y).view(batch, classes, *y.shape[1:])
