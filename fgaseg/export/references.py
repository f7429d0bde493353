"""Inputs of the graphs, and what the model itself makes of them, op by op in PyTorch, in float32."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import BENCHMARK_SETS, SEEN
from ..data.scenes import scene
from ..inference import ScoreRule
from ..kernels import Selection, upsample_argmax
from ..model import FGASeg
from ..model.class_selection import ClassSelector
from ..model.encoders import ImageFeatures, Tokenizer
from ..model.packed_maps import DROPPED
from .graphs import text_tower

Outputs = tuple[Tensor, ...]


class Sample(NamedTuple):
    """What a graph is compared at.

    classes  T, of the text graph prompts; None: those that the graph has built in, or none
    batch    B
    size     height and width of the pixels; None: of the text graph
    """

    classes: int | None
    batch: int = 1
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Found:
    """How the outputs of a graph differ from the model's.

    error           the largest absolute difference by the largest absolute value; None: they are labels
    labels_changed  share of pixels; None: there are no labels
    classes_differ  how many classes only one of both chose
    gap             how far the worst class that the graph chose is below the worst that the model chose, of S_g
    wrong           why they cannot be compared; empty: they can
    """

    error: float | None = None
    labels_changed: float | None = None
    classes_differ: int = 0
    gap: float = 0.0
    wrong: str = ""


class Case(NamedTuple):
    """Inputs of a graph, and the comparison of its outputs with the model's."""

    inputs: Outputs
    compare: Callable[[Outputs], Found]


class Words(NamedTuple):
    """Text embeddings [T, C], the rows of each class that is built in (None: of free ones, one each), and the first
    class equal to each."""

    texts: Tensor
    counts: list[int] | None
    first: Tensor


class View(NamedTuple):
    """What the logits of one head are of."""

    features: ImageFeatures
    words: Words
    size: tuple[int, int]


class Chosen(ClassSelector):
    """The cap chooses these classes, bool [B, T]."""

    def __init__(self, chosen: Tensor) -> None:
        self.chosen = chosen

    def cap(self, scores: Tensor, count: int) -> Selection:
        rows = self.chosen.flatten().nonzero().flatten()
        return Selection(rows, self.chosen.sum(1), *self.chosen.shape)


class References:
    """The cases of every part; what the model makes of them is computed once for all programs.

    folder  of the export, for its vocabulary
    """

    def __init__(self, model: FGASeg, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.rule = ScoreRule.of(model.config)
        self.dropped = 0.0 if model.config.released_fast_scores else DROPPED
        self._cases: dict[tuple[str, Sample], Case] = {}
        self._features: dict[Sample, ImageFeatures] = {}

    def case(self, part: str, output: str, sample: Sample) -> Case:
        """output: the name of a graph's first output, of the whole graph what it gives."""
        if (part, sample) not in self._cases:
            if part == "image":
                made = Case((self.pixels(sample),), partial(compare, tuple(self.features(sample))))
            elif part == "text":
                made = self._text(cast(int, sample.classes))
            elif part == "head":
                made = self._head(sample)
            else:
                made = self._whole(output, sample)
            self._cases[part, sample] = made
        return self._cases[part, sample]

    # --- inputs

    @cached_property
    def names(self) -> list[str]:
        return BENCHMARK_SETS["a847"].names

    @cached_property
    def all_words(self) -> Words:
        """Of all names. Equal ones have equal embeddings but for rounding: their pixels are the first's."""
        subjects = [self.model.text_encoder.subject(name) for name in self.names]
        first = torch.tensor([subjects.index(subject) for subject in subjects])
        return Words(self.model.embed_prompts(self.names), None, first)

    def words(self, classes: int | None) -> Words:
        if classes is not None:
            return Words(self.all_words.texts[:classes], None, self.all_words.first)
        described = json.loads((self.folder / "vocabulary.json").read_text())
        values = np.fromfile(self.folder / "vocabulary.f32", "<f4").reshape(-1, described["channels"])
        texts = torch.from_numpy(values.astype(np.float32))
        return Words(texts, described["counts"], torch.tensor(described["first"]))

    def image(self, sample: Sample) -> Tensor:
        """Drawn scenes [B, 3, h, w], values in 0..1."""
        size = cast("tuple[int, int]", sample.size)
        drawn = [torch.from_numpy(scene([*size, i], size, SEEN)[0]) for i in range(sample.batch)]
        return torch.stack(drawn).permute(0, 3, 1, 2).contiguous() / 255

    def pixels(self, sample: Sample) -> Tensor:
        return (self.image(sample) - self.model.mean[:, None, None]) / self.model.std[:, None, None]

    # --- what the model makes of them

    def features(self, sample: Sample) -> ImageFeatures:
        sample = sample._replace(classes=None)
        if sample not in self._features:
            self._features[sample] = self.model.image_encoder(self.pixels(sample))
        return self._features[sample]

    def logits(self, view: View, selector: ClassSelector | None = None) -> Tensor:
        """[B, S, 4H, 4W]"""
        head = self.model.head
        usual, head.selector = head.selector, selector or head.selector
        try:
            found = head(view.features, view.words.texts)
        finally:
            head.selector = usual
        return cast(Tensor, (found if view.words.counts is None else found.of_classes(view.words.counts)).logits)

    def labels(self, logits: Tensor, view: View) -> Tensor:
        """At the size of the image: it is resized as the grid is, which may exceed it by a part of a patch."""
        padded = self.padded(logits)
        labels = upsample_argmax(self.rule.prepare(logits), padded, total=self.rule.needs_total)[0]
        return view.words.first[labels[:, : view.size[0], : view.size[1]]]

    def probabilities(self, logits: Tensor, view: View) -> Tensor:
        maps = F.interpolate(self.rule.prepare(logits), self.padded(logits), mode="bilinear", align_corners=False)
        maps = maps[:, :, : view.size[0], : view.size[1]]
        return maps.softmax(1) if self.rule.needs_total else self.rule.of_class(maps)

    def padded(self, logits: Tensor) -> tuple[int, int]:
        height, width = (n // 4 * self.model.patch for n in logits.shape[2:])
        return height, width

    # --- cases

    def _text(self, count: int) -> Case:
        """Prompts of one word to many, and where there are several, one that is longer than the context."""
        tower, encoder = text_tower(self.model), self.model.text_encoder
        prompts = [encoder.templates[0].format(encoder.subject(name)) for name in self.names[:count]]
        if count > 1:
            prompts[-1] = " ".join(self.names[:100])
        tokens = cast(Tokenizer, tower.tokenizer)(prompts)
        return Case((tokens,), partial(compare, (F.normalize(tower(prompts), dim=-1),)))

    def _head(self, sample: Sample) -> Case:
        view = View(self.features(sample), self.words(sample.classes), cast("tuple[int, int]", sample.size))
        inputs = (*view.features, view.words.texts)
        return Case(inputs, partial(self.compare_logits, view, self.logits(view)))

    def _whole(self, output: str, sample: Sample) -> Case:
        view = View(self.features(sample), self.words(sample.classes), cast("tuple[int, int]", sample.size))
        inputs = (self.image(sample), *(() if sample.classes is None else (view.words.texts,)))
        exact = self.logits(view)
        if output == "logits":
            return Case(inputs, partial(self.compare_logits, view, exact))
        if output == "probabilities":
            return Case(inputs, partial(self.compare_probabilities, view, exact))
        return Case(inputs, partial(compare_labels, self.labels(exact, view)))

    # --- comparisons

    def compare_logits(self, view: View, exact: Tensor, outputs: Outputs) -> Found:
        (logits,) = outputs
        if logits.shape != exact.shape:
            return Found(wrong=other_shape(logits, exact))
        chosen, own = (self.chosen(x) for x in (logits, exact))
        differ, gap = int((chosen != own).sum()), 0.0
        changed = share_changed(self.labels(logits, view), self.labels(exact, view))
        if differ and self.capped(view) and bool((chosen.sum(1) == own.sum(1)).all()):
            scores = self.model.head.global_similarity(view.features.embedding, view.words.texts)[1].flatten(2).amax(-1)
            worst = [scores.masked_fill(~x, math.inf).amin(1) for x in (own, chosen)]
            gap = float((worst[0] - worst[1]).max())
            exact = self.logits(view, Chosen(chosen))
            own = chosen
        return Found(largest_error(logits[chosen & own], exact[chosen & own]), changed, differ, gap)

    def compare_probabilities(self, view: View, exact: Tensor, outputs: Outputs) -> Found:
        found, labels = compare((self.probabilities(exact, view),), outputs), self.labels(exact, view)
        if found.wrong:
            return found
        return Found(found.error, share_changed(view.words.first[outputs[0].argmax(1)], labels))

    def chosen(self, logits: Tensor) -> Tensor:
        """The classes [B, S] that were computed to the end: neither capped nor, in fast mode, dropped on the way."""
        return ((logits != self.dropped) & (logits != DROPPED)).flatten(2).any(-1)

    def capped(self, view: View) -> bool:
        """Whether the cap alone decides which classes are computed to the end."""
        config = self.model.config
        chooses = config.class_cap is not None and len(view.words.texts) > config.class_cap
        return chooses and not config.fast and view.words.counts is None


def compare(exact: Outputs, outputs: Outputs) -> Found:
    if len(exact) != len(outputs):
        return Found(wrong=f"it gives {len(outputs)} outputs where the model gives {len(exact)}")
    if different := [other_shape(x, y) for x, y in zip(outputs, exact, strict=True) if x.shape != y.shape]:
        return Found(wrong=different[0])
    return Found(max(largest_error(x, y) for x, y in zip(outputs, exact, strict=True)))


def compare_labels(exact: Tensor, outputs: Outputs) -> Found:
    (labels,) = outputs
    if labels.shape != exact.shape:
        return Found(wrong=other_shape(labels, exact))
    return Found(None, share_changed(labels, exact))


def other_shape(x: Tensor, exact: Tensor) -> str:
    return f"an output is {list(x.shape)} where the model's is {list(exact.shape)}"


def share_changed(labels: Tensor, exact: Tensor) -> float:
    return float((labels != exact).double().mean())


def largest_error(x: Tensor, exact: Tensor) -> float:
    """NaN and infinite values give NaN or infinity; no values in common, infinity."""
    if not x.numel():
        return math.inf
    return float((x.double() - exact.double()).abs().max() / exact.double().abs().max())
