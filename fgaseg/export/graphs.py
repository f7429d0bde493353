"""The model as graphs: pixels to features, tokens to embeddings, features and embeddings to logits, and all in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ExportError
from ..inference import ScoreRule
from ..kernels import Selection
from ..model import FGASeg
from ..model.encoders import ImageFeatures, OpenClipEncoder, TextTower, Tokenizer
from ..model.head import cosine_logits
from ..model.packed_maps import DROPPED, ClassMaps, PackedMaps
from ..model.precision import full_precision
from ..model.prompts import merge_rows
from ..model.propagation import ChooseClasses, MapState, StageInputs, SumOverClasses
from ..vocabulary import Vocabulary
from .forms import Forms

OutputKind = Literal["logits", "probabilities", "labels"]


class ImageGraph(nn.Module):
    """Pixels [B, 3, h, w], normalised, to embedding [B, C, H, W], early and late features [B, D, H, W].

    Sizes that the patch does not divide are padded, as in the model: H = ceil(h / patch).
    """

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        with Forms().used():
            return encode_image(self.model, pixels)


class TextGraph(nn.Module):
    """Tokens [N, L] int64, as the tokenizer pads them, to embeddings [N, C] of unit length."""

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        tower = text_tower(self.model)
        with Forms().used():
            return F.normalize(full_precision(tower.embed(tokens, tower.ends(tokens))), dim=-1)


class HeadGraph(nn.Module):
    """Features and text embeddings [T, C] of unit length to logits [B, T, 4H, 4W]."""

    def __init__(self, model: FGASeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, embedding: Tensor, early: Tensor, late: Tensor, texts: Tensor) -> Tensor:
        with Forms().used() as forms:
            return HeadRun(self.model, forms).logits((embedding, early, late), texts)


class WholeGraph(nn.Module):
    """An RGB image [B, 3, h, w], values in 0..1, and texts [T, C] or classes that are built in, to what is asked for.

    logits         [B, T, 4H, 4W]; of S classes that are built in [B, S, 4H, 4W]
    probabilities  [B, S, h, w], resized to the image's size
    labels         [B, h, w] int64, of the same resized maps
    """

    def __init__(self, model: FGASeg, vocabulary: Vocabulary | None, output: OutputKind) -> None:
        super().__init__()
        self.model, self.output, self.rule = model, output, ScoreRule.of(model.config)
        self.counts = None if vocabulary is None else vocabulary.counts
        self.register_buffer("built_in", None if vocabulary is None else vocabulary.embeddings.float())
        first = None if vocabulary is None else torch.tensor(model.first_of_equals(vocabulary))
        self.register_buffer("first", first)

    def forward(self, image: Tensor, texts: Tensor | None = None) -> Tensor:
        texts = cast(Tensor, self.built_in) if texts is None else texts
        mean, std = (x.to(image.dtype)[:, None, None] for x in (self.model.mean, self.model.std))
        with Forms().used() as forms:
            features = encode_image(self.model, (image - mean) / std)
            logits = HeadRun(self.model, forms).logits(features, texts)
        if self.counts is not None:
            logits = merge_rows(logits, self.counts)
        return logits if self.output == "logits" else self._resized(logits, *image.shape[2:])

    def _resized(self, logits: Tensor, height: int, width: int) -> Tensor:
        """Probabilities or labels at the image's size, which the grid of whole patches may exceed."""
        padded = [n // 4 * self.model.patch for n in logits.shape[2:]]
        maps = F.interpolate(self.rule.prepare(logits), padded, mode="bilinear", align_corners=False)
        maps = maps[:, :, :height, :width]
        if self.output == "labels":
            labels = maps.argmax(1)
            return labels if self.first is None else cast(Tensor, self.first)[labels]
        return maps.softmax(1) if self.rule.needs_total else self.rule.of_class(maps)


def text_tower(model: FGASeg) -> TextTower:
    """Raises ExportError for an encoder of one's own."""
    if not isinstance(model.encoder, OpenClipEncoder):
        raise ExportError(f"text: {model.encoder.name} is an encoder of your own, whose text tower is not known here")
    return model.encoder.text_tower


def encode_image(model: FGASeg, pixels: Tensor) -> tuple[Tensor, ...]:
    """The image tower in the model's dtype, and its features in that of the pixels."""
    return tuple(x.to(pixels.dtype) for x in model.image_encoder(pixels.to(model.dtype)))


class HeadRun:
    """One pass through the head, of all maps at once.

    The classes that fast mode drops are computed to the end, without a part in the class attention, and get the logit
    that they have where they are left out.
    """

    def __init__(self, model: FGASeg, forms: Forms) -> None:
        self.head, self.dtype, self.forms = model.head, model.dtype, forms

    def logits(self, features: tuple[Tensor, ...], texts: Tensor) -> Tensor:
        """Features and texts [T, C] to logits [B, T, 4H, 4W], in the dtype of the texts."""
        own = ImageFeatures(*(x.to(self.dtype) for x in features))
        aligned, gcs = self.head.global_similarity(own.embedding, texts)
        if not self.head.config.propagation:
            return cosine_logits(gcs).to(texts.dtype)
        packing = self._capped(gcs)
        logits = self._propagate(own, self.head.maps_of(packing, own.embedding, aligned, gcs))
        return packing.scatter(logits, DROPPED).to(texts.dtype)

    def _capped(self, gcs: Tensor) -> PackedMaps:
        """As `ClassSelector.cap`, and all classes where there are no more than the cap."""
        images, classes = gcs.shape[:2]
        packing, cap = PackedMaps.all(images, classes), self.head.config.class_cap
        if cap is None:
            return packing
        count = cast(int, torch.sym_min(cap, classes))
        scores = gcs.flatten(2).amax(-1)
        kept = largest(scores.masked_fill(scores.isnan(), float("inf")), count)  # NaN first, as a sort has it
        order = torch.where(kept, torch.arange(classes, device=kept.device), classes).sort(dim=1).values[:, :count]
        rows = (order + torch.arange(images, device=kept.device)[:, None] * classes).flatten()
        return packing._replace(counts=count, selection=Selection(rows, torch.full((images,), count), images, classes))

    def _propagate(self, features: ImageFeatures, maps: ClassMaps) -> Tensor:
        """The logits [R, 4H, 4W] of the maps."""
        head, packing, guidance = self.head, maps.packing, self.head.guidance(features)
        self.forms.present = None
        rows = cast(int, packing.counts)
        count: int | Tensor = rows  # of the classes that are present
        offsets = torch.arange(packing.images + 1, device=maps.gcs.device) * rows
        state, inputs = MapState(maps.gcs, maps.lcs), StageInputs(maps.text_guidance, guidance, offsets, [])
        for phase in head.phases([]):
            for stage in phase.stages:
                state = stage(state, inputs)
            if isinstance(phase.ending, SumOverClasses):
                inputs.sums.append(phase.ending.finish(phase.ending.summarize(state, inputs), count))
            elif isinstance(phase.ending, ChooseClasses):
                self.forms.present = self._chosen(phase.ending.score(state).unflatten(0, (packing.images, -1)), packing)
                count = self.forms.present.sum(1)
        logits, dropped = state.x, DROPPED
        if head.config.released_fast_scores:
            logits, dropped = logits.sigmoid(), 0.0
        if self.forms.present is not None:
            kept = self.forms.present | ~self.forms.present.any()  # none has a finite score: logits are NaN, and stay
            logits = torch.where(kept.flatten()[:, None, None], logits, dropped)
        return logits

    def _chosen(self, scores: Tensor, packing: PackedMaps) -> Tensor:
        """Which of the maps that are present [B, T] are among the best of any pixel; scores [B, T, h, w].

        As `ClassSelector.prune`: NaN is never among the best.
        """
        config, present = self.head.config, self.forms.present
        scores = scores.flatten(2).mT  # [B, h*w, T]
        selectable = scores > float("-inf")  # False for NaN too
        if present is not None:
            selectable = selectable & present[:, None]
        count = cast(int, torch.sym_min(cast(int, config.top_k), scores.shape[2]))
        best = largest(scores.masked_fill(~selectable, float("-inf")), count)
        chosen = (best & selectable).any(1)
        if config.topk_union == "batch":  # of classes: the maps of each image may be those of others
            classes = packing.scatter(chosen.flatten().to(scores.dtype), 0.0).amax(0, keepdim=True)
            united = packing.gather(classes.expand(packing.images, -1)).unflatten(0, (packing.images, -1)) > 0
            chosen = united if present is None else united & present
        return chosen


def largest(scores: Tensor, count: int) -> Tensor:
    """Which of the scores [..., T], without NaN, are the `count` largest of T; of equal ones the first.

    Runtimes differ in which of equal scores their TopK names, but not in the values.
    """
    least = scores.topk(count).values.amin(-1, keepdim=True)
    above, equal = scores > least, scores == least
    return above | (equal & (equal.long().cumsum(-1) <= count - above.long().sum(-1, keepdim=True)))


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. Axes that may have any size have a name, which may be a formula of others."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Part:
    """One graph: the module, tensors to trace it with, and what goes in and out."""

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


GRID = ("rows", "columns")  # ceil(height / patch), ceil(width / patch)
FINE = ("4*rows", "4*columns")


def image_part(model: FGASeg) -> Part:
    inputs = (Port("pixels", "float32", ("batch", 3, "height", "width")),)
    example = (torch.randn(2, 3, 14 * model.patch - 1, 15 * model.patch - 1),)
    return Part("image", ImageGraph(model), example, inputs, _features(model))


def _features(model: FGASeg) -> tuple[Port, ...]:
    channels = {"embedding": model.encoder.channels, "early": model.encoder.width, "late": model.encoder.width}
    return tuple(Port(name, "float32", ("batch", n, *GRID)) for name, n in channels.items())


def text_part(model: FGASeg) -> Part:
    tower = text_tower(model)
    tokenizer = cast(Tokenizer, tower.tokenizer)
    tokens = tokenizer(["a photo of a cat", "a photo of a dog on a sofa", "sky"])
    length: int | str = tokenizer.length
    if tower.causal and tower.pool in ("argmax", "eos"):  # what follows the end of a text changes nothing
        length, tokens = "length", tokens[:, : int(tower.ends(tokens).max()) + 1].clone()
    inputs = (Port("tokens", "int64", ("prompts", length)),)
    outputs = (Port("embeddings", "float32", ("prompts", tower.channels)),)
    example = (tokens,)
    return Part("text", TextGraph(model), example, inputs, outputs)


def head_part(model: FGASeg) -> Part:
    features, channels = _features(model), model.encoder.channels
    example = [torch.randn(2, cast(int, port.shape[1]), 14, 15) for port in features]
    texts = F.normalize(torch.randn(7, channels), dim=-1)
    inputs = (*features, Port("texts", "float32", ("classes", channels)))
    outputs = (Port("logits", "float32", ("batch", "classes", *FINE)),)
    return Part("head", HeadGraph(model), (*example, texts), inputs, outputs)


def whole_part(
    model: FGASeg, vocabulary: Vocabulary | None = None, output: OutputKind = "logits", tile: int | None = None
) -> Part:
    """tile: the side of square images, where all sizes but the batch are fixed."""
    channels = model.encoder.channels
    height, width = (14 * model.patch - 1, 15 * model.patch - 1) if tile is None else (tile, tile)
    size: tuple[int | str, ...] = ("height", "width") if tile is None else (tile, tile)
    fine: tuple[int | str, ...] = FINE if tile is None else (4 * -(-tile // model.patch),) * 2
    inputs: tuple[Port, ...] = (Port("image", "float32", ("batch", 3, *size)),)
    example: tuple[Tensor, ...] = (torch.rand(2, 3, height, width),)
    classes: int | str = "classes"
    if vocabulary is None:
        inputs += (Port("texts", "float32", ("classes", channels)),)
        example += (F.normalize(torch.randn(7, channels), dim=-1),)
    else:
        classes = len(vocabulary)
    shapes: dict[OutputKind, tuple[int | str, ...]] = {
        "logits": ("batch", classes, *fine),
        "probabilities": ("batch", classes, *size),
        "labels": ("batch", *size),
    }
    outputs = (Port(output, "int64" if output == "labels" else "float32", shapes[output]),)
    return Part("whole", WholeGraph(model, vocabulary, output), example, inputs, outputs)
