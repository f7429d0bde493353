"""FGASeg: photo and class names to per-class logits. Every stage of the paper in the order it is computed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aggregation import AggregationLayer
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

PIXELS_PER_STEP = 64 * 24 * 24  # class-map pixels computed at once when no gradient is recorded
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

    def by_image(self) -> list[tuple[slice, slice]]:
        """(images, rows) for what couples the classes of an image: all at once where every image has as many."""
        counts = self.counts()
        if len(set(counts)) == 1:
            return [(slice(0, self.batch), slice(0, sum(counts)))]
        ends = [sum(counts[: i + 1]) for i in range(self.batch)]
        return [
            (slice(i, i + 1), slice(end - n, end)) for i, (n, end) in enumerate(zip(counts, ends, strict=True)) if n
        ]

    def pieces(self, area: int) -> list[tuple[slice, slice]]:
        """(images, rows) to compute at once: all if it fits or a gradient is recorded, else parts of one image."""
        counts = self.counts()
        total = sum(counts)
        if len(set(counts)) == 1 and (torch.is_grad_enabled() or total * area <= PIXELS_PER_STEP):
            return [(slice(0, self.batch), slice(0, total))]
        step = max(PIXELS_PER_STEP // area, 1)
        pieces, start = [], 0
        for image, count in enumerate(counts):
            for a in range(start, start + count, step):
                pieces.append((slice(image, image + 1), slice(a, min(a + step, start + count))))
            start += count
        return pieces


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
        aligned = self.p2t(pixels, texts)
        gcs = cosine_cost_volume(pixels, aligned[:, :, None])[:, 0]
        if not self.config.propagation:
            logits = F.interpolate(gcs / TEMPERATURE, scale_factor=4, mode="bilinear", align_corners=False)
            return Output(logits, gcs, None, None, [], None)
        rows = Rows(len(pixels), len(texts))
        cap = self.config.class_cap
        if cap is not None and len(texts) > cap:
            rows = rows._replace(selection=strongest_classes(gcs, cap))
        unit_texts = rows.gather(F.normalize(aligned, dim=-1))
        local, lcs = None, None
        if self.lcs is not None:
            local = self.lcs(F.normalize(pixels, dim=1), unit_texts.unflatten(0, (len(pixels), -1))).flatten(0, 1)
            lcs = rows.scatter(local, 0.0)
        align = None
        if self.t2p is not None and self.training:
            align = self.t2p(pixels, aligned if self.config.t2p_text == "aligned" else texts.expand_as(aligned))
        maps = Maps(rows, rows.gather(gcs), local, F.relu(self.text_guidance(unit_texts)))
        logits, maps, aux = self._propagate(features, maps)
        kept = None if maps.rows.selection is None else maps.rows.scatter(torch.ones_like(logits[:, 0, 0]), 0.0) > 0
        if self.config.released_fast_scores and not self.training:
            return Output(maps.rows.scatter(logits.sigmoid(), 0.0), gcs, lcs, align, aux, kept)
        return Output(maps.rows.scatter(logits, DROPPED), gcs, lcs, align, aux, kept)

    def _propagate(self, features: ImageFeatures, maps: "Maps") -> tuple[Tensor, "Maps", list[Tensor]]:
        """Aggregation and decoding: logits [R, 4H, 4W] of the rows that survive, those rows, auxiliary logits."""
        image = F.relu(self.image_guidance(features.embedding)).permute(0, 2, 3, 1)
        early = F.relu(self.early_guidance(self.early_up(features.early)))
        late = F.relu(self.late_guidance(self.late_up(features.late)))
        area = features.embedding.shape[2] * features.embedding.shape[3]
        pooling = self.config.class_pooling if self.training else self.config.class_pooling_eval
        decoder = self.decoder
        aux: list[Tensor] = []

        x = each(maps.rows.pieces(area), lambda _, r: self._embed(maps, r))
        maps, x = self._choose(0, maps, x, aux)
        for layer in self.layers:
            x = update(x, maps.rows.pieces(area), lambda i, _, t, layer=layer: layer.spatial(t, image[i]))
            x = update(x, maps.rows.by_image(), lambda i, r, t, layer=layer, texts=maps.texts: layer.across_classes(
                t, texts[r].unflatten(0, (i.stop - i.start, -1)), pooling))  # fmt: skip

        def enter1(t: Tensor, local: Tensor | None) -> Tensor:
            return decoder.enter1(t, local)

        def enter2(t: Tensor, local: Tensor | None, i: slice) -> Tensor:
            return decoder.enter2(decoder.stage1(t, early[i]), local)

        def logits(t: Tensor, i: slice) -> Tensor:
            return decoder.head(decoder.stage2(t, late[i]))

        def straight(i: slice, r: slice) -> Tensor:
            local = self._local(maps, r)
            return logits(enter2(enter1(x[r], local), local, i), i)

        if not self.aux_heads:  # nothing is chosen on the way: no stage's output needs to exist for all rows at once
            return each(maps.rows.pieces(area), straight), maps, aux
        x = each(maps.rows.pieces(area), lambda _, r: enter1(x[r], self._local(maps, r)))
        maps, x = self._choose(1, maps, x, aux)
        x = each(maps.rows.pieces(area), lambda i, r: enter2(x[r], self._local(maps, r), i))
        maps, x = self._choose(2, maps, x, aux)
        return each(maps.rows.pieces(area), lambda i, r: logits(x[r], i)), maps, aux

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
        scores = each(maps.rows.pieces(x.shape[1] * x.shape[2]), lambda _, r: self.aux_heads[index](x[r]))
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

    def narrow(self, selection: Selection) -> tuple["Maps", Tensor]:
        rows, at = self.rows.narrow(selection)
        return Maps(rows, self.gcs[at], None if self.local is None else self.local[at], self.texts[at]), at


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
        return self.head(self.image_encoder(pixels), texts.to(pixels.device, pixels.dtype))

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
        """AdamW groups: CLIP at lr · factor; no weight decay on norms, embeddings and learned tokens."""
        undecayed = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d | nn.Embedding
        plain = {id(p) for m in self.modules() if isinstance(m, undecayed)
                 for p in m.parameters(recurse=False)}  # fmt: skip
        tokens = ("positional_embedding", "class_embedding", "prompt_tokens", "pad_token", "pad_guidance", "gamma")
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                decays = id(parameter) not in plain and not name.endswith(tokens)
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

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors; each file appears whole or not at all."""
        directory = Path(directory)
        config = self.config.dump()
        config["encoder"].update(architecture=self.architecture, pretrained=None)
        write_weights(directory / "model.safetensors", self.state_dict())
        text = json.dumps({"model_type": "fgaseg", **config}, indent=2) + "\n"
        atomic_write(directory / "config.json", lambda file: file.write(text.encode()))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "FGASeg":
        """Load what `save_pretrained` wrote, from a folder or a hub id, in evaluation mode."""
        directory = Path(source)
        if not directory.is_dir():
            directory = _download(str(source))
        path = directory / "config.json"
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a configuration that save_pretrained wrote: {error}") from None
        if not isinstance(data, dict) or data.pop("model_type", None) != "fgaseg":
            raise CheckpointError(f"{path}: not an fgaseg model (its model_type is missing or another)")
        model = cls(ModelConfig.from_json(json.dumps(data), str(path)))
        model.load_weights(directory / "model.safetensors")
        return model.eval()

    @classmethod
    def from_released(cls, source: str | Path | Mapping[str, Any], **switches: Any) -> "FGASeg":
        """Load a checkpoint of the released FGAseg code or of CAT-Seg, in evaluation mode.

        source    a file (.pth, .safetensors), or the state dict that it holds
        switches  of ModelConfig, over what keys and shapes tell and, for the rest, the `released` preset

        Raises CheckpointError naming every key that does not fit. `fgaseg convert` also reports what was assumed.
        """
        return load_released(cls, source, [f"{key}={json.dumps(value)}" for key, value in switches.items()])[0]

    def load_weights(self, path: str | Path) -> None:
        """Fill every weight from a safetensors (or weights-only torch) file; keys that do not fit are an error."""
        load_weights(self, read_weights(path), path)


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:
        raise CheckpointError(
            f"{source!r} is neither a folder here nor a model that could be fetched from the hub ({error})"
        ) from error
