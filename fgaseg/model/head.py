"""FGASeg: photo and class names to per-class logits. Every stage of the paper in the order it is computed."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import ModelConfig
from ..kernels import cosine_cost_volume, topk_classes
from .aggregation import AggregationLayer, ClassSums
from .alignment import P2Tformer, T2PProjector
from .decoder import Decoder, MapHead
from .image_encoder import ImageFeatures
from .packed_maps import DROPPED, Decoded, Guides, Maps, Rows, each, offsets, strongest_classes, update
from .supplement import Fusion, LocalSupplement, MapEmbedding

TEMPERATURE = 0.07  # CLIP's initial one (eq. 4), for logits that are cosines alone


class Output(NamedTuple):
    """What a forward pass gives. H×W is the patch grid, T the vocabulary."""

    logits: Tensor  # [B, T, 4H, 4W], before any sigmoid or softmax; dropped classes -100
    gcs: Tensor  # S_g [B, T, H, W], cosine in [-1, 1]
    lcs: Tensor | None  # S_l [B, T, H, W]; None without LCS; 0 for classes that the cap left out
    align: Tensor | None  # O of T2Ploss [B, T, 4H, 4W], in training
    aux: list[Tensor]  # logits of the auxiliary heads, fast mode in training
    kept: Tensor | None  # [B, T] bool: classes computed to the end; None: all of them


class Head(nn.Module):
    """What follows the encoders: alignment, supplementation, propagation, decoding (sections III-B to III-D)."""

    def __init__(self, config: ModelConfig, channels: int, width: int):
        super().__init__()
        self.config = config
        self.p2t = P2Tformer(channels, config.p2t_layers, config.p2t_heads, config.gamma, config.gamma_trainable,
                             config.p2t_value_positions)  # fmt: skip
        if config.propagation:
            self._build_propagation(config, channels, width)

    def _build_propagation(self, config: ModelConfig, channels: int, width: int) -> None:
        hidden, guides = config.hidden, config.guidance_channels
        self.t2p = T2PProjector(channels, config.t2p_kernel_size or config.kernel_size) if config.t2p else None
        self.lcs = LocalSupplement(channels, config.kernel_size, config.kernel_norm) if config.lcs else None
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
        pixels = features.embedding
        aligned, gcs = self._global(pixels, texts)
        if not self.config.propagation:
            return Output(_cosine_logits(gcs), gcs, None, None, [], None)
        align = None
        if self.t2p is not None and self.training:
            align = self.t2p(pixels, aligned if self.config.t2p_text == "aligned" else texts.expand_as(aligned))
        maps = self._maps(pixels, aligned, gcs)
        lcs = None if maps.local is None else maps.rows.scatter(maps.local, 0.0)
        decoded = self._decode(features, maps)
        return Output(decoded.dense(), gcs, lcs, align, decoded.aux, decoded.kept())

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile of aggregation and decoder, where the time is; every piece of rows runs the same few graphs."""
        for layer in cast("Iterable[AggregationLayer]", self.layers):
            for name in ("spatial", "summarize", "across_classes"):
                setattr(layer, name, torch.compile(getattr(layer, name), *args, **kwargs))
        for name in ("enter1", "enter2"):
            setattr(self.decoder, name, torch.compile(getattr(self.decoder, name), *args, **kwargs))
        for stage in (self.decoder.stage1, self.decoder.stage2, self.decoder.head):
            stage.compile(*args, **kwargs)

    def stream(self, features: ImageFeatures, texts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What `forward` gives, for inference with a vocabulary of any length: (classes [c], logits [B, c, 4H, 4W]).

        Classes ascend, and those that no image has kept do not come. All come at once while their maps fit
        `class_maps_budget`; beyond it, part after part.
        """
        if not self.config.propagation:
            yield torch.arange(len(texts), device=texts.device), self(features, texts).logits
            return
        # the released union is over all views; otherwise image after image takes less memory
        together = self.config.fast and self.config.topk_union == "batch"
        images = [features] if together else [features.image(i) for i in range(len(features.embedding))]
        entered = [self._maps(f.embedding, *self._global(f.embedding, texts)) for f in images]
        if self._over_budget(entered[0]) and entered[0].rows.selection is None:
            for parts in zip(*(self._walk(f, maps) for f, maps in zip(images, entered, strict=True)), strict=True):
                classes = torch.arange(parts[0][0].start, parts[0][0].stop, device=texts.device)
                yield classes, torch.stack([logits for _, logits in parts])
            return
        decoded = [self._decode(f, maps) for f, maps in zip(images, entered, strict=True)]
        classes = torch.cat([one.rows.named().to(texts.device) for one in decoded]).unique()
        yield classes, torch.cat([one.over(classes) for one in decoded])

    def _global(self, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """V_emb [B, T, C] and S_g [B, T, H, W]."""
        aligned = self.p2t(pixels, texts)
        return aligned, cosine_cost_volume(pixels, aligned[:, :, None])[:, 0]

    def _maps(self, pixels: Tensor, aligned: Tensor, gcs: Tensor) -> "Maps":
        """The rows under the class cap; S_l is computed for these only."""
        rows = Rows(len(pixels), aligned.shape[1])
        cap = self.config.class_cap
        if cap is not None and rows.classes > cap:
            rows = rows._replace(selection=strongest_classes(gcs, cap))
        texts = rows.gather(F.normalize(aligned, dim=-1))
        local = None
        if self.lcs is not None:
            local = self.lcs(F.normalize(pixels, dim=1), texts.unflatten(0, (len(pixels), -1))).flatten(0, 1)
        return Maps(rows, rows.gather(gcs), local, F.relu(self.text_guidance(texts)))

    def _guides(self, features: ImageFeatures) -> "Guides":
        return Guides(
            F.relu(self.image_guidance(features.embedding)).permute(0, 2, 3, 1),
            F.relu(self.early_guidance(self.early_up(features.early))),
            F.relu(self.late_guidance(self.late_up(features.late))),
        )

    def _decode(self, features: ImageFeatures, maps: "Maps") -> "Decoded":
        """Aggregation and decoding of all rows."""
        if self._over_budget(maps):
            parts = [logits for _, logits in self._walk(features, maps)]
            return Decoded(torch.cat(parts), maps.rows, maps.rows, DROPPED, [])
        guides, entered = self._guides(features), maps.rows
        aux: list[Tensor] = []
        x = each(maps.pieces(), lambda _, r: self._embed(maps, r))
        maps, x = self._choose(0, maps, x, aux)
        sums: list[PerImage] = []
        for n in range(len(self.layers)):
            layer_sums = Summing(self, n, maps)

            def one(i: slice, r: slice, t: Tensor, n: int = n, maps: Maps = maps, add: Summing = layer_sums) -> Tensor:
                t = self._again(self._enter, n, t, maps, i, r, sums, guides)
                add(i, r, t)
                return t

            x = update(x, maps.pieces(), one)
            sums.append(layer_sums.padded())

        def leave(i: slice, r: slice) -> Tensor:
            return self._again(self._enter, len(self.layers), x[r], maps, i, r, sums, guides)

        if not self.aux_heads:  # nothing is chosen on the way: no stage's output needs to exist for all rows at once
            logits = each(maps.pieces(), lambda i, r: self._again(self._upsample, leave(i, r), maps, i, r, guides))
            return Decoded(logits, maps.rows, entered, DROPPED, aux)
        x = each(maps.pieces(), lambda i, r: self.decoder.enter1(leave(i, r), self._local(maps, r)))
        maps, x = self._choose(1, maps, x, aux)
        x = each(maps.pieces(), lambda i, r: self._again(self._upsample1, x[r], maps, i, r, guides))
        maps, x = self._choose(2, maps, x, aux)
        logits = each(maps.pieces(), lambda i, r: self._again(self._upsample2, x[r], i, guides))
        if self.config.released_fast_scores and not self.training:
            return Decoded(logits.sigmoid(), maps.rows, entered, 0.0, aux)
        return Decoded(logits, maps.rows, entered, DROPPED, aux)

    def _walk(self, features: ImageFeatures, maps: "Maps") -> Iterator[tuple[slice, Tensor]]:
        """(rows, logits) of one image, part after part; of the class maps only one part exists at a time.

        The class attention's sums are over all classes, so every layer walks them once before the last walk decodes,
        and each walk computes again what the one before it has forgotten.
        """
        guides, sums = self._guides(features), list["PerImage"]()
        for n in range(len(self.layers)):
            add = Summing(self, n, maps)
            for i, r in maps.pieces():
                add(i, r, self._replay(n, maps, i, r, sums, guides))
            sums.append(add.padded())
        for i, r in maps.pieces():
            yield r, self._upsample(self._replay(len(self.layers), maps, i, r, sums, guides), maps, i, r, guides)

    def _over_budget(self, maps: "Maps") -> bool:
        budget = self.config.class_maps_budget
        if budget is None or torch.is_grad_enabled() or maps.rows.batch > 1:
            return False
        return maps.gcs.numel() * self.config.hidden * maps.gcs.element_size() > budget * 1e6

    def _replay(self, n: int, maps: "Maps", i: slice, r: slice, sums: list["PerImage"], guides: "Guides") -> Tensor:
        x = self._embed(maps, r)
        for m in range(n + 1):
            x = self._enter(m, x, maps, i, r, sums, guides)
        return x

    def _enter(
        self, n: int, x: Tensor, maps: "Maps", i: slice, r: slice, sums: list["PerImage"], guides: "Guides"
    ) -> Tensor:
        """Some rows from the class attention of layer n - 1 to that of layer n; past the last layer, to the decoder."""
        if n:
            before = self._layer(n - 1)
            x = before.across_classes(x, maps.texts[r], offsets(i, r, x), sums[n - 1][i.start], self.pooling)
        return self._layer(n).spatial(x, guides.image[i]) if n < len(self.layers) else x

    def _layer(self, n: int) -> AggregationLayer:
        return cast(AggregationLayer, self.layers[n])

    @property
    def pooling(self) -> int:
        return self.config.class_pooling if self.training else self.config.class_pooling_eval

    def _upsample(self, x: Tensor, maps: "Maps", i: slice, r: slice, guides: "Guides") -> Tensor:
        """Some rows through the whole decoder: [r, H, W, hidden] to [r, 4H, 4W]."""
        x = self.decoder.enter1(x, self._local(maps, r))
        return self._upsample2(self._upsample1(x, maps, i, r, guides), i, guides)

    def _upsample1(self, x: Tensor, maps: "Maps", i: slice, r: slice, guides: "Guides") -> Tensor:
        return self.decoder.enter2(self.decoder.stage1(x, guides.early[i]), self._local(maps, r))

    def _upsample2(self, x: Tensor, i: slice, guides: "Guides") -> Tensor:
        return self.decoder.head(self.decoder.stage2(x, guides.late[i]))

    def _again(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """function(*args), in training with `checkpointing` computed again for the backward pass."""
        if self.config.checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)

    def _embed(self, maps: "Maps", r: slice) -> Tensor:
        """The embedded and fused pseudo-masks of some rows, [r, H, W, hidden]."""
        x = self.embed_global(maps.gcs[r])
        return x if self.fuse is None else self.fuse(x, self._local(maps, r))

    def _local(self, maps: "Maps", r: slice) -> Tensor | None:
        return None if self.embed_local is None or maps.local is None else self.embed_local(maps.local[r])

    def _choose(self, index: int, maps: "Maps", x: Tensor, aux: list[Tensor]) -> tuple["Maps", Tensor]:
        """Fast mode: in training record the auxiliary logits, at inference keep every pixel's best classes only."""
        if index >= len(self.aux_heads):
            return maps, x
        if self.training:
            aux.append(maps.rows.scatter(self.aux_heads[index](x), DROPPED))
            return maps, x
        if self.config.top_k is None:
            return maps, x
        scores = each(maps.pieces(), lambda _, r: self.aux_heads[index](x[r]))
        chosen = topk_classes(maps.rows.scatter(scores, float("-inf")), self.config.top_k, self.config.topk_union)
        if not len(chosen.rows):
            raise FloatingPointError("no class has a finite score: the image or the weights hold NaN")
        maps, positions = maps.narrow(chosen)
        return maps, x[positions]


PerImage = dict[int, ClassSums]  # by the first image of the pieces that they are the sums of


class Summing:
    """Adds up what the pieces of the rows offer to the class attention of layer n."""

    def __init__(self, head: Head, n: int, maps: Maps):
        self.layer, self.pooling, self.maps = head._layer(n), head.pooling, maps
        self.sums: PerImage = {}

    def __call__(self, i: slice, r: slice, x: Tensor) -> None:
        new = self.layer.summarize(x, self.maps.texts[r], offsets(i, r, x), self.pooling)
        old = self.sums.get(i.start)
        self.sums[i.start] = new if old is None else ClassSums(*(a + b for a, b in zip(old, new, strict=True)))

    def padded(self) -> PerImage:
        counts = torch.tensor(self.maps.rows.counts(), device=self.maps.gcs.device)
        return {
            start: self.layer.classes.pad(sums, counts[start : start + len(sums.total)])
            for start, sums in self.sums.items()
        }


def _cosine_logits(gcs: Tensor) -> Tensor:
    return F.interpolate(gcs / TEMPERATURE, scale_factor=4, mode="bilinear", align_corners=False)
