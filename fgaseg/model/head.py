"""Everything after the encoders, in the paper's order: alignment, supplementation, propagation, decoding."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import PredictionError
from ..kernels import cosine_cost_volume
from .aggregation import AggregationLayer, ClassSums
from .alignment import P2Tformer, T2PProjector
from .class_selection import ClassSelector
from .decoder import Decoder, MapHead
from .encoders import ImageFeatures
from .packed_maps import DROPPED, ClassMaps, DecodedMaps, PackedMaps
from .prompts import merge_rows
from .propagation import ChooseClasses, Guidance, MapState, Phase, Propagation, Stage, StageInputs, SumOverClasses
from .supplement import Fusion, LocalSupplement, MapEmbedding

TEMPERATURE = 0.07  # CLIP's initial one (eq. 4), for logits that are cosines alone


class Output(NamedTuple):
    """Result of a forward pass. H×W is the patch grid, T the vocabulary (of the head: its prompts)."""

    logits: Tensor  # [B, T, 4H, 4W], before any sigmoid or softmax; dropped classes -100
    gcs: Tensor  # S_g [B, T, H, W], cosine in [-1, 1]
    lcs: Tensor | None  # S_l [B, T, H, W]; None without LCS; 0 for classes that the cap left out
    align: Tensor | None  # O of T2Ploss [B, T, 4H, 4W], in training
    aux: list[Tensor]  # logits of the auxiliary heads, fast mode in training
    kept: Tensor | None  # [B, T] bool: classes computed to the end; None: all of them

    def of_classes(self, counts: Sequence[int]) -> "Output":
        """Maps of S classes in place of those of T prompts, of which each class has `counts`: the largest ones."""
        lcs, align, kept = (None if x is None else merge_rows(x, counts) for x in (self.lcs, self.align, self.kept))
        logits, gcs, *aux = (merge_rows(x, counts) for x in (self.logits, self.gcs, *self.aux))
        return Output(logits, gcs, lcs, align, aux, kept)


class Head(nn.Module):
    """What follows the encoders (sections III-B to III-D).

    selector  decides which classes are capped and pruned (ClassSelector); may be replaced
    """

    def __init__(self, config: ModelConfig, channels: int, width: int):
        super().__init__()
        self.config, self.channels, self.width = config, channels, width
        self.selector = ClassSelector()
        self.p2t = P2Tformer(channels, config.p2t_layers, config.p2t_heads, config.gamma, config.gamma_trainable,
                             config.p2t_value_positions)  # fmt: skip
        if config.propagation:
            self._build_propagation(config, channels, width)

    def _build_propagation(self, config: ModelConfig, channels: int, width: int) -> None:
        hidden, guides = config.hidden, config.guidance_channels
        self.t2p = T2PProjector(channels, config.t2p_kernel_size or config.kernel_size) if config.t2p else None
        own = (config.kernel_size, config.kernel_norm, config.lcs_padding)
        self.lcs = LocalSupplement(channels, *own) if config.lcs else None
        self.embed_global = MapEmbedding(hidden)
        self.embed_local = MapEmbedding(hidden) if config.lcs else None
        self.fuse = Fusion(hidden, config.fusion) if config.lcs else None
        self.image_guidance = nn.Conv2d(channels, hidden, 3, padding=1)
        self.text_guidance = nn.Linear(channels, hidden)
        self.early_up = nn.ConvTranspose2d(width, guides[0], 2, stride=2)
        self.late_up = nn.ConvTranspose2d(width, guides[1], 4, stride=4)
        self.early_guidance = nn.Conv2d(guides[0], config.guidance_hidden[0], 3, padding=1)
        self.late_guidance = nn.Conv2d(guides[1], config.guidance_hidden[1], 3, padding=1)
        self.layers = nn.ModuleList(
            AggregationLayer(hidden, config.heads, config.window, config.pad_classes)
            for _ in range(config.aggregation_layers)
        )
        self.decoder = Decoder(hidden, config.decoder_channels, config.guidance_hidden, config.fusion, config.lcs)
        inputs = (hidden, hidden, config.decoder_channels[0])
        self.aux_heads = nn.ModuleList(MapHead(n) for n in inputs[: config.loss.aux_heads] if config.fast)

    def forward(self, features: ImageFeatures, texts: Tensor) -> Output:
        """features of B images, texts V_T [T, C] of unit length."""
        aligned, gcs = self.global_similarity(features.embedding, texts)
        if not self.config.propagation:
            return Output(cosine_logits(gcs), gcs, None, None, [], None)
        align = None
        if self.t2p is not None and self.training:
            read = aligned if self.config.t2p_text == "aligned" else texts.expand_as(aligned)
            align = self.t2p(features.embedding, read)
        maps = self.class_maps(features.embedding, aligned, gcs)
        lcs = None if maps.lcs is None else maps.packing.scatter(maps.lcs, 0.0)
        decoded = self.decode(features, maps)
        return Output(decoded.dense(), gcs, lcs, align, decoded.aux, decoded.kept())

    def stream(self, features: ImageFeatures, texts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """`forward` for inference with a vocabulary of any length: (classes [c], logits [B, c, 4H, 4W]), in parts.

        Classes ascend; those that no image has kept are left out. All come in one part while their maps fit
        `class_maps_budget`.
        """
        if not self.config.propagation:
            yield torch.arange(len(texts), device=texts.device), self(features, texts).logits
            return
        # the released union is over all views. Otherwise, on a CPU, one image at a time takes less memory and no more
        # time; and the budget is that of one image
        united = self.config.fast and self.config.topk_union == "batch"
        together = united or (features.embedding.is_cuda and self.config.class_maps_budget is None)
        images = [features] if together else [features.image(i) for i in range(len(features.embedding))]
        wide = [f.embedding.to(self.p2t.gamma.dtype) for f in images]  # once for all that decides between classes
        entered = [self.class_maps(x, *self.global_similarity(x, texts)) for x in wide]
        if self._over_budget(entered[0]) and entered[0].packing.selection is None:
            runs = [self._propagation(f, maps, []).parts() for f, maps in zip(images, entered, strict=True)]
            for parts in zip(*runs, strict=True):
                rows = parts[0][0]
                yield torch.arange(rows.start, rows.stop, device=texts.device), torch.stack([x for _, x in parts])
            return
        decoded = [self.decode(f, maps) for f, maps in zip(images, entered, strict=True)]
        present = [one.packing.present_classes(texts.device) for one in decoded]
        if len(decoded) == 1:
            yield present[0], decoded[0].expand_to(present[0])
            return
        classes = torch.cat(present).unique()
        yield classes, torch.cat([one.expand_to(classes) for one in decoded])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile of aggregation and decoder, where the time is; all chunks of maps run the same few graphs."""
        for layer in cast("Iterable[AggregationLayer]", self.layers):
            for name in ("spatial", "summarize", "across_classes"):
                setattr(layer, name, torch.compile(getattr(layer, name), *args, **kwargs))
        for name in ("fuse_stage1", "fuse_stage2"):
            setattr(self.decoder, name, torch.compile(getattr(self.decoder, name), *args, **kwargs))
        for stage in (self.decoder.stage1, self.decoder.stage2, self.decoder.head):
            stage.compile(*args, **kwargs)

    # --- before propagation

    def global_similarity(self, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """V_emb [B, T, C] (section III-B) and S_g [B, T, H, W] (eq. 9)."""
        aligned = self.p2t(pixels, texts)
        return aligned, cosine_cost_volume(pixels.to(aligned.dtype), aligned[:, :, None])[:, 0]

    def class_maps(self, pixels: Tensor, aligned: Tensor, gcs: Tensor) -> ClassMaps:
        """The cost maps under the class cap; S_l (eq. 10) is computed for these only."""
        packing, cap = PackedMaps.all(*aligned.shape[:2]), self.config.class_cap
        if cap is not None and packing.classes > cap:
            packing = packing._replace(counts=cap, selection=self.selector.cap(gcs, cap))
        return self.maps_of(packing, pixels, aligned, gcs)

    def maps_of(self, packing: PackedMaps, pixels: Tensor, aligned: Tensor, gcs: Tensor) -> ClassMaps:
        """The cost maps of some classes."""
        texts = packing.gather(F.normalize(aligned, dim=-1))
        lcs = None
        if self.lcs is not None:
            unit_pixels = F.normalize(pixels.to(aligned.dtype), dim=1)
            lcs = self.lcs(unit_pixels, texts.unflatten(0, (aligned.shape[0], -1))).flatten(0, 1)
        guidance = F.relu(self.text_guidance(texts.to(self.text_guidance.weight.dtype)))
        return ClassMaps(packing, packing.gather(gcs), lcs, guidance)

    def guidance(self, features: ImageFeatures) -> Guidance:
        """What all classes of an image share."""
        image = F.relu(self.image_guidance(features.embedding)).permute(0, 2, 3, 1)
        return Guidance(
            tuple(layer.prepare(image) for layer in cast("Iterable[AggregationLayer]", self.layers)),
            self.decoder.stage1.conv1.project(F.relu(self.early_guidance(self.early_up(features.early)))),
            self.decoder.stage2.conv1.project(F.relu(self.late_guidance(self.late_up(features.late)))),
        )

    # --- propagation and decoding

    def decode(self, features: ImageFeatures, maps: ClassMaps) -> DecodedMaps:
        """Propagation and decoding of all maps."""
        aux: list[Tensor] = []
        propagation = self._propagation(features, maps, aux)
        logits = propagation.run()
        packing, capped = propagation.maps.packing, maps.packing
        if self.config.released_fast_scores and not self.training:
            return DecodedMaps(logits.sigmoid(), packing, capped, 0.0, aux)
        return DecodedMaps(logits, packing, capped, DROPPED, aux)

    def _propagation(self, features: ImageFeatures, maps: ClassMaps, aux: list[Tensor]) -> Propagation:
        keep = not self._over_budget(maps)
        return Propagation(self.phases(aux), maps, self.guidance(features), keep, self.config.checkpointing)

    def _over_budget(self, maps: ClassMaps) -> bool:
        """Whether keeping all maps between two phases takes more memory than `class_maps_budget` allows."""
        budget = self.config.class_maps_budget
        if budget is None or torch.is_grad_enabled() or maps.packing.images > 1:
            return False
        kept = 1 if maps.lcs is None else 2  # with the embedded local map
        return kept * maps.gcs.numel() * self.config.hidden * maps.text_guidance.element_size() > budget * 1e6

    def phases(self, aux: list[Tensor]) -> list[Phase]:
        """The stages in the paper's order, cut where something is needed of all classes; aux takes auxiliary logits."""
        order: list[Stage | SumOverClasses | ChooseClasses] = [self._embed, *self._choice(0, aux)]
        for n in range(len(self.layers)):
            sums = SumOverClasses(partial(self._summarize, n), self._layer(n).classes.add_pads)
            order += [partial(self._spatial, n), sums, partial(self._across_classes, n)]
        order += [self._fuse_stage1, *self._choice(1, aux), self._decoder_stage1, *self._choice(2, aux)]
        order += [self._decoder_stage2]
        phases: list[Phase] = []
        stages: list[Stage] = []
        for step in order:
            if isinstance(step, SumOverClasses | ChooseClasses):
                phases.append(Phase(tuple(stages), step))
                stages = []
            else:
                stages.append(step)
        return [*phases, Phase(tuple(stages), None)]

    def _embed(self, state: MapState, inputs: StageInputs) -> MapState:
        """Embedding and fusion of S_g and S_l (section III-C2)."""
        x = self.embed_global(state.x)
        if self.embed_local is None or self.fuse is None or state.local is None:
            return MapState(x, None)
        local = self.embed_local(state.local)
        return MapState(self.fuse(x, local), local)

    def _spatial(self, n: int, state: MapState, inputs: StageInputs) -> MapState:
        """Spatial aggregation of layer n (section III-C3)."""
        return state._replace(x=self._layer(n).spatial(state.x, inputs.guidance.layers[n]))

    def _summarize(self, n: int, state: MapState, inputs: StageInputs) -> ClassSums:
        """What these maps contribute to the class attention of layer n."""
        kv = inputs.guidance.layers[n].kv
        return self._layer(n).summarize(state.x, kv, inputs.text_guidance, inputs.offsets, self._pooling)

    def _across_classes(self, n: int, state: MapState, inputs: StageInputs) -> MapState:
        """Class aggregation of layer n (section III-C3)."""
        read = (inputs.text_guidance, inputs.offsets, inputs.sums[n], self._pooling)
        return state._replace(x=self._layer(n).across_classes(state.x, *read))

    def _fuse_stage1(self, state: MapState, inputs: StageInputs) -> MapState:
        return state._replace(x=self.decoder.fuse_stage1(state.x, state.local))

    def _decoder_stage1(self, state: MapState, inputs: StageInputs) -> MapState:
        """To twice the size (section III-D), and the local map fused again."""
        x = self.decoder.stage1(state.x, inputs.guidance.early)
        return MapState(self.decoder.fuse_stage2(x, state.local), None)

    def _decoder_stage2(self, state: MapState, inputs: StageInputs) -> MapState:
        """To four times the size, and the logits [r, 4H, 4W]."""
        return MapState(self.decoder.head(self.decoder.stage2(state.x, inputs.guidance.late)), None)

    def _layer(self, n: int) -> AggregationLayer:
        return cast(AggregationLayer, self.layers[n])

    @property
    def _pooling(self) -> int:
        return self.config.class_pooling if self.training else self.config.class_pooling_eval

    # --- class selection in fast mode

    def _choice(self, index: int, aux: list[Tensor]) -> list[ChooseClasses]:
        """The choice by one auxiliary head; none where there is no such head, or nothing to choose."""
        if index >= len(self.aux_heads) or not (self.training or self.config.top_k):
            return []
        head = self.aux_heads[index]
        choose = partial(self._record, aux) if self.training else self._prune
        return [ChooseClasses(lambda state: head(state.x), choose)]

    def _record(self, aux: list[Tensor], scores: Tensor, maps: ClassMaps) -> None:
        """In training all classes go on, and the auxiliary logits go to the loss."""
        aux.append(maps.packing.scatter(scores, DROPPED))

    def _prune(self, scores: Tensor, maps: ClassMaps) -> tuple[ClassMaps, Tensor]:
        """At inference every pixel's best classes go on."""
        assert self.config.top_k is not None
        chosen = self.selector.prune(
            maps.packing.scatter(scores, float("-inf")), self.config.top_k, self.config.topk_union
        )
        if not len(chosen.rows):
            raise PredictionError("no class has a finite score: the image or the weights hold NaN")
        return maps.select(chosen)


def cosine_logits(gcs: Tensor) -> Tensor:
    return F.interpolate(gcs / TEMPERATURE, scale_factor=4, mode="bilinear", align_corners=False)
