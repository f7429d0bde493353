"""FGASeg: photo and class names to per-class logits. Every stage of the paper in the order it is computed."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .aggregation import AggregationLayer, ClassSums
from .alignment import P2Tformer, T2PProjector
from .checkpoint import CheckpointError, atomic_write, load_weights, read_weights, write_weights
from .config import ModelConfig
from .decoder import Decoder, MapHead
from .encoder import EncoderError, ImageEncoder, ImageFeatures, build_clip, guidance_blocks
from .images import CLIP_MEAN, CLIP_STD, ImageSource, read_image
from .kernels import Selection, cosine_cost_volume, gather_classes, scatter_classes, topk_classes
from .released import load as load_released
from .segment import Result, predict
from .supplement import Fusion, LocalSupplement, MapEmbedding
from .text import TextEncoder, Vocabulary, VocabularyError

# Class-map pixels computed at once. On a CPU, 8 maps of 24×24 and what is made of them stay in the caches, and the
# allocator has the memory at hand: 64 take 1.4 times as long. On a GPU nothing was measured.
PIXELS_PER_STEP = {"cpu": 8 * 24 * 24, "cuda": 256 * 24 * 24}
TEMPERATURE = 0.07  # CLIP's initial one (eq. 4), for logits that are cosines alone
DROPPED = -100.0  # logit of a class that the cap or the pruning left out


class Output(NamedTuple):
    """What a forward pass gives. H×W is the patch grid, T the vocabulary."""

    logits: Tensor  # [B, T, 4H, 4W], before any sigmoid or softmax; dropped classes -100
    gcs: Tensor  # S_g [B, T, H, W], cosine in [-1, 1]
    lcs: Tensor | None  # S_l [B, T, H, W]; None without LCS; 0 for classes that the cap left out
    align: Tensor | None  # O of T2Ploss [B, T, 4H, 4W], in training
    aux: list[Tensor]  # logits of the auxiliary heads, fast mode in training
    kept: Tensor | None  # [B, T] bool: classes computed to the end; None: all of them


class Rows(NamedTuple):
    """Which (image, class) maps are being computed, as packed rows; `selection` None means all."""

    batch: int
    classes: int
    selection: Selection | None = None

    def counts(self) -> list[int]:
        return [self.classes] * self.batch if self.selection is None else self.selection.counts.tolist()

    def gather(self, x: Tensor) -> Tensor:
        """[B, T, ...] → [R, ...]."""
        return x.flatten(0, 1) if self.selection is None else gather_classes(x, self.selection)

    def scatter(self, x: Tensor, fill: float) -> Tensor:
        """[R, ...] → [B, T, ...]."""
        if self.selection is None:
            return x.unflatten(0, (self.batch, self.classes))
        return scatter_classes(x, self.selection, fill)

    def narrow(self, selection: Selection) -> tuple["Rows", Tensor]:
        """The rows of `selection`, a subset of these, and their positions among these."""
        if self.selection is None:
            return self._replace(selection=selection), selection.rows
        # a union over the batch also names classes that an image has already dropped
        inner = selection.rows[torch.isin(selection.rows, self.selection.rows)]
        counts = torch.bincount(inner // self.classes, minlength=self.batch)
        selection = Selection(inner, counts, self.batch, self.classes)
        return self._replace(selection=selection), torch.searchsorted(self.selection.rows, inner)

    def pieces(self, area: int, step: int) -> list[tuple[slice, slice]]:
        """(images, rows) to compute at once, at most about `step` pixels: all rows if they fit, else of one image."""
        counts = self.counts()
        total = sum(counts)
        if len(set(counts)) == 1 and total * area <= step:
            return [(slice(0, self.batch), slice(0, total))]
        rows = max(step // area, 1)
        pieces, start = [], 0
        for image, count in enumerate(counts):
            for a in range(start, start + count, rows):
                pieces.append((slice(image, image + 1), slice(a, min(a + rows, start + count))))
            start += count
        return pieces

    def positions(self, classes: Tensor) -> Tensor:
        """Where the rows lie in [B, c, ...], flattened over both, if c are `classes` [c], ascending."""
        if self.selection is None:
            rows = torch.arange(self.batch * self.classes, device=classes.device)
        else:
            rows = self.selection.rows
        return rows // self.classes * len(classes) + torch.searchsorted(classes, rows % self.classes)

    def named(self) -> Tensor:
        """The classes that any image has, ascending."""
        if self.selection is None:
            return torch.arange(self.classes)
        return (self.selection.rows % self.classes).unique()


def strongest_classes(scores: Tensor, count: int) -> Selection:
    """Per image the `count` classes with the largest maximum over the map; ties go to the lowest index."""
    batch, classes = scores.shape[:2]
    order = scores.flatten(2).amax(-1).sort(dim=1, descending=True, stable=True).indices
    kept = order[:, :count].sort(dim=1).values
    rows = (kept + torch.arange(batch, device=kept.device)[:, None] * classes).flatten()
    return Selection(rows, torch.full((batch,), count, device=rows.device), batch, classes)


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


class Maps(NamedTuple):
    """The pseudo-masks being propagated, one packed row per (image, class)."""

    rows: Rows
    gcs: Tensor  # [R, H, W]
    local: Tensor | None  # [R, H, W]; None without LCS
    texts: Tensor  # text guidance [R, hidden]

    def pieces(self) -> list[tuple[slice, slice]]:
        """The rows to compute at once."""
        step = PIXELS_PER_STEP.get(self.gcs.device.type, PIXELS_PER_STEP["cuda"])
        return self.rows.pieces(self.gcs.shape[1] * self.gcs.shape[2], step)

    def narrow(self, selection: Selection) -> tuple["Maps", Tensor]:
        rows, at = self.rows.narrow(selection)
        return Maps(rows, self.gcs[at], None if self.local is None else self.local[at], self.texts[at]), at


class Guides(NamedTuple):
    """What the classes of an image share."""

    image: Tensor  # [B, H, W, hidden]
    early: Tensor  # [B, G1, 2H, 2W]
    late: Tensor  # [B, G2, 4H, 4W]


class Decoded(NamedTuple):
    """The logits that were computed, and which those are."""

    logits: Tensor  # [R, 4H, 4W]; scores, after a sigmoid, with released_fast_scores
    rows: Rows
    entered: Rows  # the rows under the class cap, of which `rows` are left
    pruned: float  # value of a class that pruning has left out; beyond the cap it is DROPPED
    aux: list[Tensor]

    def dense(self) -> Tensor:
        """[B, T, 4H, 4W]"""
        if self.pruned == DROPPED or self.entered.selection is None:
            return self.rows.scatter(self.logits, self.pruned)
        return self.over(torch.arange(self.rows.classes, device=self.logits.device))

    def over(self, classes: Tensor) -> Tensor:
        """[B, c, 4H, 4W] over `classes` [c], ascending, which name those of every row."""
        size = (self.rows.batch * len(classes), *self.logits.shape[1:])
        if self.rows.selection is None:
            return self.logits.unflatten(0, (self.rows.batch, -1))
        out = self.logits.new_full(size, DROPPED)
        if self.pruned != DROPPED:
            out[self._entered_among(classes)] = self.pruned
        out[self.rows.positions(classes)] = self.logits
        return out.unflatten(0, (self.rows.batch, -1))

    def _entered_among(self, classes: Tensor) -> Tensor:
        present = self.entered.scatter(self.logits.new_ones(sum(self.entered.counts())), 0.0)[:, classes]
        return present.flatten().nonzero()[:, 0]

    def kept(self) -> Tensor | None:
        if self.rows.selection is None:
            return None
        return self.rows.scatter(torch.ones_like(self.logits[:, 0, 0]), 0.0) > 0


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


def offsets(images: slice, rows: slice, x: Tensor) -> Tensor:
    """Where the rows of each image begin, among those of a piece, whose images have equally many."""
    count = images.stop - images.start
    return torch.arange(count + 1, device=x.device) * ((rows.stop - rows.start) // count)


def _cosine_logits(gcs: Tensor) -> Tensor:
    return F.interpolate(gcs / TEMPERATURE, scale_factor=4, mode="bilinear", align_corners=False)


def each(pieces: list[tuple[slice, slice]], compute: Callable[[slice, slice], Tensor]) -> Tensor:
    """compute(images, rows) of every piece, concatenated over rows."""
    parts = [compute(i, r) for i, r in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def update(x: Tensor, pieces: list[tuple[slice, slice]], compute: Callable[..., Tensor]) -> Tensor:
    """compute(images, rows, x[rows]) in place of x[rows]; written into x itself when there are several pieces."""
    if len(pieces) == 1:
        return compute(*pieces[0], x)
    if torch.is_grad_enabled():
        return torch.cat([compute(i, r, x[r]) for i, r in pieces])
    for i, r in pieces:
        x[r] = compute(i, r, x[r])
    return x


class FGASeg(nn.Module):
    """Open-vocabulary segmentation: pixels and a vocabulary to one logit map per class.

        model = FGASeg.from_pretrained("path-or-hub-id")
        result = model.segment("photo.jpg", ["cat", "sofa", "wooden floor"])
        result.overlay().save("out.png")

    Underneath, `model(pixels, model.encode(names)).logits` is [B, T, 4H, 4W] before any sigmoid or softmax.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig | None = None):
        super().__init__()
        config = config or ModelConfig()
        self.clip, architecture = build_clip(config.encoder)
        visual = self.clip.visual
        blocks = guidance_blocks(config.encoder, len(visual.transformer.resblocks))
        self.config = config
        self.architecture = architecture
        self.image_encoder = ImageEncoder(visual, blocks)
        self.text_encoder = TextEncoder(self.clip, config.template, config.first_synonym)
        channels, width = visual.proj.shape[1], visual.proj.shape[0]
        if channels % config.p2t_heads and config.p2t_layers:
            raise EncoderError(f"p2t_heads: {config.p2t_heads} does not divide the encoder's {channels} channels")
        self.head = Head(config, channels, width)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD), persistent=False)

    @property
    def patch(self) -> int:
        return self.image_encoder.patch

    def encode(self, names: Sequence[str]) -> Vocabulary:
        """Class names to a reusable vocabulary, cached until the text tower's weights change.

        In training mode, where the text tower trains, it is computed anew with its graph and not cached.
        """
        return self.text_encoder.encode(names, graph=self.training)

    def forward(self, pixels: Tensor, vocabulary: Vocabulary) -> Output:
        """pixels [B, 3, h, w], CLIP-normalised; where the patch does not divide, padded: H = ceil(h / patch)."""
        texts = self._check(pixels, vocabulary)
        return self.head(self.image_encoder(pixels), texts)

    def stream(self, pixels: Tensor, vocabulary: Vocabulary) -> Iterator[tuple[Tensor, Tensor]]:
        """`forward` for a vocabulary of any length: (classes [c], logits [B, c, 4H, 4W]), part after part.

        For inference. Classes ascend; those that no image has kept do not come. All come at once while their maps fit
        `class_maps_budget`.
        """
        texts = self._check(pixels, vocabulary)
        # one by one: on a CPU, a batch takes more memory and no less time
        encoded = [self.image_encoder(image) for image in pixels.split(1)]
        yield from self.head.stream(ImageFeatures(*(torch.cat(x) for x in zip(*encoded, strict=True))), texts)

    def _check(self, pixels: Tensor, vocabulary: Vocabulary) -> Tensor:
        """The vocabulary's embeddings where and as the pixels are; an error if the two do not fit this model."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point() or 0 in pixels.shape:
            raise ValueError(
                f"pixels: got {pixels.dtype} {list(pixels.shape)}; expected a floating [B, 3, h, w], normalised with "
                "CLIP's mean and standard deviation (model.segment takes photos as they are)"
            )
        texts = vocabulary.embeddings
        if texts.shape[-1] != self.clip.visual.proj.shape[1]:
            raise VocabularyError(
                f"vocabulary: its embeddings have {texts.shape[-1]} channels and this model's images "
                f"{self.clip.visual.proj.shape[1]}; encode the names with this model"
            )
        return texts.to(pixels.device, pixels.dtype)

    @overload
    def segment(self, image: list[Any] | tuple[Any, ...], names: Sequence[str] | Vocabulary) -> list[Result]: ...

    @overload
    def segment(self, image: ImageSource, names: Sequence[str] | Vocabulary) -> Result: ...

    @torch.inference_mode()
    def segment(self, image: Any, names: Sequence[str] | Vocabulary) -> Result | list[Result]:
        """Label every pixel of a photo (PIL image, path, array or tensor), or of each photo in a list.

        names  class names, or a vocabulary made by `encode`; labels are indices into it
        """
        vocabulary = names if isinstance(names, Vocabulary) else self.encode(names)
        if isinstance(image, list | tuple):
            return [predict(self, read_image(one), vocabulary) for one in image]
        return predict(self, read_image(image), vocabulary)

    @torch.inference_mode()
    def predict_labels(self, image: Any, vocabulary: Vocabulary) -> Tensor:
        """Labels [H, W] int64 at the photo's own size, on the model's device."""
        return torch.from_numpy(predict(self, read_image(image), vocabulary).labels).to(self.mean.device)

    def parameter_groups(self, lr: float, encoder_lr_factor: float, weight_decay: float) -> list[dict[str, Any]]:
        """AdamW groups: CLIP at lr · factor; no weight decay on norms and embeddings."""
        undecayed = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d | nn.Embedding
        plain = {id(p) for m in self.modules() if isinstance(m, undecayed)
                 for p in m.parameters(recurse=False)}  # fmt: skip
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                decays = id(parameter) not in plain and not name.endswith(("positional_embedding", "class_embedding"))
                groups.setdefault((name.startswith("clip."), decays), []).append(parameter)
        return [
            {
                "params": p,
                "lr": lr * (encoder_lr_factor if clip else 1),
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (clip, decays), p in sorted(groups.items(), key=lambda item: item[0])
        ]

    def save_encoder(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write CLIP's two towers alone, for `encoder.pretrained` of another model."""
        write_weights(path, {k: v.to(dtype) for k, v in self.clip.state_dict().items()})

    def save_pretrained(self, directory: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write config.json and model.safetensors; each file appears whole or not at all.

        state_dict  in place of the model's own, where that is sharded over processes
        """
        directory = Path(directory)
        config = self.config.dump()
        config["encoder"].update(architecture=self.architecture, pretrained=None)
        write_weights(directory / "model.safetensors", self.state_dict() if state_dict is None else state_dict)
        text = json.dumps({"model_type": "fgaseg", **config}, indent=2) + "\n"
        atomic_write(directory / "config.json", lambda file: file.write(text.encode()))

    @classmethod
    def from_pretrained(cls, source: str | Path, **switches: Any) -> "FGASeg":
        """Load what `save_pretrained` wrote, from a folder or a hub id, in evaluation mode.

        switches  of ModelConfig, over what was saved, such as inference="windows" or class_maps_budget=500
        """
        directory = Path(source)
        if not directory.is_dir():
            directory = _download(str(source))
        path = directory / "config.json"
        if not path.exists():
            raise CheckpointError(f"{path}: is missing: give the folder of a saved model (of a training, <out>/model)")
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a configuration that save_pretrained wrote: {error}") from None
        if not isinstance(data, dict) or data.pop("model_type", None) != "fgaseg":
            raise CheckpointError(f"{path}: not an fgaseg model (its model_type is missing or another)")
        model = cls(ModelConfig.from_json(json.dumps(data), str(path)).override(_as_overrides(switches)))
        model.load_weights(directory / "model.safetensors")
        return model.eval()

    @classmethod
    def from_released(cls, source: str | Path | Mapping[str, Any], **switches: Any) -> "FGASeg":
        """Load a checkpoint of the released FGAseg code or of CAT-Seg, in evaluation mode.

        source    a file (.pth, .safetensors), or the state dict that it holds
        switches  of ModelConfig, over what keys and shapes tell and, for the rest, the `released` preset

        Raises CheckpointError naming every key that does not fit. `fgaseg convert` also reports what was assumed.
        """
        return load_released(cls, source, _as_overrides(switches))[0]

    def load_weights(self, path: str | Path) -> None:
        """Fill every weight from a safetensors (or weights-only torch) file; keys that do not fit are an error."""
        load_weights(self, read_weights(path), path)


def _as_overrides(switches: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in switches.items()]


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:
        raise CheckpointError(
            f"{source!r} is neither a folder here nor a model that could be fetched from the hub ({error})"
        ) from error
