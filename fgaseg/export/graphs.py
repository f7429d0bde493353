"""The model as graphs: pixels to features, tokens to embeddings, features and embeddings to logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import Selection
from ..model import FGASeg
from ..model.encoders import ImageFeatures
from ..model.head import cosine_logits
from ..model.packed_maps import DROPPED, ClassMaps, PackedMaps
from ..model.propagation import ChooseClasses, MapState, StageInputs, SumOverClasses
from .forms import Forms


class ImageGraph(nn.Module):
    """Pixels [B, 3, h, w], normalised, h and w multiples of the patch, to embedding [B, C, H, W], early and late
    features [B, D, H, W]."""

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.image_encoder(pixels))


class TextGraph(nn.Module):
    """Tokens [N, L] int64, as the tokenizer pads them, to embeddings [N, C] of unit length."""

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.model, self.tower = model, model.encoder.text_tower

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.tower.embed(tokens, self.tower.ends(tokens)), dim=-1)


class HeadGraph(nn.Module):
    """Features and text embeddings [T, C] of unit length to logits [B, T, 4H, 4W].

    All maps go through at once. The class cap takes the best by TopK. The classes that fast mode drops are computed to
    the end, without a part in the class attention, and get the logit that they have where they are left out.
    """

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.head = model.head
        self.forms = Forms()

    def forward(self, embedding: Tensor, early: Tensor, late: Tensor, texts: Tensor) -> Tensor:
        head, config, features = self.head, self.head.config, ImageFeatures(embedding, early, late)
        with self.forms.used():
            aligned, gcs = head.global_similarity(embedding, texts)
            if not config.propagation:
                return cosine_logits(gcs)
            packing = self._capped(gcs)
            logits = self._propagate(features, head.maps_of(packing, embedding, aligned, gcs))
            return packing.scatter(logits, DROPPED)

    def _capped(self, gcs: Tensor) -> PackedMaps:
        """As `ClassSelector.cap`, and all classes where there are no more than the cap."""
        images, classes = gcs.shape[:2]
        packing, cap = PackedMaps.all(images, classes), self.head.config.class_cap
        if cap is None:
            return packing
        count = torch.sym_min(cap, classes)
        kept = gcs.flatten(2).amax(-1).topk(count).indices.sort(dim=1).values
        rows = (kept + torch.arange(images, device=kept.device)[:, None] * classes).flatten()
        return packing._replace(counts=count, selection=Selection(rows, torch.full((images,), count), images, classes))

    def _propagate(self, features: ImageFeatures, maps: ClassMaps) -> Tensor:
        """The logits [R, 4H, 4W] of the maps."""
        head, packing, guidance = self.head, maps.packing, self.head.guidance(features)
        self.forms.present = None
        count: int | Tensor = packing.counts
        offsets = torch.arange(packing.images + 1, device=maps.gcs.device) * packing.counts
        state, inputs = MapState(maps.gcs, maps.lcs), StageInputs(maps.text_guidance, guidance, offsets, [])
        for phase in head.phases([]):
            for stage in phase.stages:
                state = stage(state, inputs)
            if isinstance(phase.ending, SumOverClasses):
                inputs.sums.append(phase.ending.finish(phase.ending.summarize(state, inputs), count))
            elif isinstance(phase.ending, ChooseClasses):
                self._choose(phase.ending.score(state).unflatten(0, (packing.images, -1)))
                count = self.forms.present.sum(1)
        logits, dropped = state.x, DROPPED
        if head.config.released_fast_scores:
            logits, dropped = logits.sigmoid(), 0.0
        if self.forms.present is not None:
            logits = torch.where(self.forms.present.flatten()[:, None, None], logits, dropped)
        return logits

    def _choose(self, scores: Tensor) -> None:
        """The classes that are among the best of any pixel stay present; scores [B, T, h, w]."""
        config, present = self.head.config, self.forms.present
        if present is not None:
            scores = scores.masked_fill(~present[:, :, None, None], float("-inf"))
        best = scores.flatten(2).topk(torch.sym_min(config.top_k, scores.shape[1]), dim=1).indices.flatten(1)
        kept = torch.zeros_like(scores[:, :, 0, 0]).scatter(1, best, 1.0) > 0
        kept = kept if present is None else kept & present
        self.forms.present = kept.any(0, keepdim=True).expand_as(kept) if config.topk_union == "batch" else kept
