"""Which classes go on: the cap before propagation, and the pruning of fast mode (section III-D, Fig. 5)."""

import torch
from torch import Tensor

from ..kernels import Selection, topk_classes


class ClassSelector:
    """Decides which class maps are computed further. Replace `Head.selector` by another one to decide differently."""

    def cap(self, scores: Tensor, count: int) -> Selection:
        """Per image the `count` classes with the largest maximum over the map; ties go to the lowest index.

        scores  S_g [B, T, H, W], with T > count
        """
        batch, classes = scores.shape[:2]
        order = scores.flatten(2).amax(-1).sort(dim=1, descending=True, stable=True).indices
        kept = order[:, :count].sort(dim=1).values
        rows = (kept + torch.arange(batch, device=kept.device)[:, None] * classes).flatten()
        return Selection(rows, torch.full((batch,), count, device=rows.device), batch, classes)

    def prune(self, scores: Tensor, k: int, union: str) -> Selection:
        """The classes that are among the k best of at least one pixel, of each image or (`union="batch"`) of any.

        scores  logits of an auxiliary head [B, T, h, w]; -inf for classes that are already out
        """
        return topk_classes(scores, k, union)
