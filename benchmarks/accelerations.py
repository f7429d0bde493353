"""Every exact acceleration by itself: one part of the model with and without the work that is saved, on equal inputs.

    python benchmarks/accelerations.py --csv FILE [--classes 20,150,847]

ViT-B/16 in the released preset with random weights, one 384×384 image, float32. `seconds` is the best of several rounds
taken in turns, `peak_mb` the memory that one call needs, `error` the largest difference relative to the largest value.
docs/accelerations.md explains the rows and names the test that compares each with float64.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine, peak
from model import PHOTO, SIZE, Bench
from rich.progress import track
from torch import Tensor

import fgaseg
from fgaseg.inference import prediction as segment
from fgaseg.kernels import Norm, attention, linear, mlp, upsample_argmax, window_attention
from fgaseg.kernels.linear.reference import linear_reference, mlp_reference
from fgaseg.kernels.map_conv.reference import embed_maps_reference, score_maps_reference
from fgaseg.kernels.window_attention.reference import window_attention_reference
from fgaseg.model import ClassSelector, Output
from fgaseg.model import reference as plain
from fgaseg.model.aggregation import ClassAttention
from fgaseg.model.decoder import UpStage
from fgaseg.model.encoders.clip_vit import activation_of
from fgaseg.model.packed_maps import PIXELS_PER_CHUNK, PackedMaps
from fgaseg.training.losses import segmentation_losses

Row = tuple[str, Callable[[], Any], Callable[[], Any]]  # name, with the work, without it
ROUNDS, SECONDS = 7, 6


class Cases:
    """The parts of one model, with inputs for a vocabulary of T classes."""

    def __init__(self, bench: Bench, classes: int):
        torch.manual_seed(0)
        self.model, self.head, self.classes = bench.model, bench.model.head, classes
        self.names = [f"thing number {i}" for i in range(classes)]
        self.pixels, self.vocabulary = bench.inputs(classes, 1)
        self.rows = min(classes, 256)
        self.grid = SIZE // 16
        self.features = self.model.image_encoder(self.pixels)
        self.aligned, self.gcs = self.head.global_similarity(self.features.embedding, self.vocabulary.embeddings)
        self.x = torch.randn(self.rows, self.grid, self.grid, self.head.config.hidden)

    def all(self) -> Iterator[Row]:
        yield self.text()
        yield from self.unused()
        if self.classes > self.rows:
            yield self.cap()
        if self.classes < 256:
            yield self.pads()
        yield from (*self.products(), self.guidance(), self.windows(), self.joined(), self.decoder())
        yield from (*self.channels(), self.tail(), self.pieces())
        if self.classes == 20:
            yield self.tokens()
            yield self.views()

    def text(self) -> Row:
        encoder = self.model.text_encoder
        prompts = [encoder.templates[0].format(name) for name in self.names]
        name = "text tower cut at the longest end-of-text"
        return name, lambda: plain.text_tower(encoder, prompts), lambda: encoder._prompts(prompts)

    def unused(self) -> Iterator[Row]:
        t2p, pixels = self.head.t2p, self.features.embedding
        yield "T2P projector left out at inference", lambda: t2p(pixels, self.aligned), lambda: None
        maps, generated = t2p.project(pixels), t2p.text(self.aligned)[0]
        kernels, biases = generated[:, :-1].reshape(-1, maps.shape[1], 3, 3), generated[:, -1]

        def loop() -> Tensor:
            one_by_one = zip(kernels, biases, strict=True)
            return torch.cat([F.conv2d(maps, k[None], b[None], padding=1) for k, b in one_by_one], dim=1)

        yield "T2P: one convolution for all classes", loop, lambda: F.conv2d(maps, kernels, biases, padding=1)

    def cap(self) -> Row:
        unit, texts = F.normalize(self.features.embedding, dim=1), F.normalize(self.aligned, dim=-1)
        kept = PackedMaps(1, self.classes, 256, ClassSelector().cap(self.gcs, 256))
        lcs = self.head.lcs
        return (
            "class cap before the local maps",
            lambda: kept.gather(lcs(unit, texts)),
            lambda: lcs(unit, kept.gather(texts)[None])[0],
        )

    def pads(self) -> Row:
        layer = self.head.layers[0].classes
        bare = copy(layer)
        bare.pad_classes = 0
        x, guidance = self.x.flatten(1, 2), torch.randn(self.rows, 128)
        missing = 256 - self.rows

        def attention(layer: ClassAttention, x: Tensor, guidance: Tensor) -> Tensor:
            offsets = torch.tensor([0, len(x)])
            sums = layer.summarize(x, layer.packed_kv(), guidance, offsets)
            return layer.attend(x, guidance, offsets, layer.add_pads(sums, len(x)))

        def tokens() -> Tensor:
            longer = torch.cat([x, layer.pad_token.expand(missing, x.shape[1], -1)])
            guided = torch.cat([guidance, layer.pad_guidance.expand(missing, -1)])
            return attention(bare, longer, guided)[: self.rows]

        return "pad tokens in closed form", tokens, lambda: attention(layer, x, guidance)

    def products(self) -> Iterator[Row]:
        block = self.head.layers[0].block1
        tower = self.model.clip.visual.transformer.resblocks[0]
        tokens = torch.randn(1, 1 + self.grid**2, tower.ln_2.normalized_shape[0])
        yield self.mlp("MLP of the image tower in one pass", tokens, tower.ln_2, tower.mlp, activation_of(tower.mlp[1]))
        yield self.mlp("MLP of the class maps in one pass", self.x, block.norm2, block.mlp, "gelu")
        weights = block.attention.prepare(self.x[:1]).qkv
        norm = Norm.of(block.norm1)
        yield (
            "queries, keys and values of the class maps in one pass",
            lambda: linear_reference(self.x, *weights, *norm, "none", None),
            lambda: linear(self.x, *weights, norm=norm),
        )

    @staticmethod
    def mlp(name: str, x: Tensor, norm: Any, layers: Any, activation: str) -> Row:
        arguments = (layers[0].weight, layers[0].bias, layers[2].weight, layers[2].bias, activation)
        norms = Norm.of(norm)
        return name, lambda: mlp_reference(x, *norms, *arguments), lambda: mlp(x, norms, *arguments)

    def guidance(self) -> Row:
        part = self.head.layers[0].block1.attention.q
        shared = torch.randn(1, self.grid, self.grid, 128)

        def copies() -> Tensor:
            return linear(torch.cat([self.x, shared.expand_as(self.x)], dim=-1), part.linear.weight, part.linear.bias)

        return "guidance projected once (one linear)", copies, lambda: part(self.x) + part.project(shared)

    def windows(self) -> Row:
        tensors = [torch.randn_like(self.x) for _ in range(3)]
        guides = [torch.randn(1, self.grid, self.grid, 128) for _ in range(2)]
        arguments = (*tensors, *guides, 4, 12, 6)
        name = "window attention without rolled copies and masks"
        return name, lambda: window_attention_reference(*arguments), lambda: window_attention(*arguments)

    def joined(self) -> Row:
        local, fuse = torch.randn_like(self.x), self.head.fuse
        name = "fusion without joining its two inputs"
        return name, lambda: plain.fuse(fuse, self.x, local), lambda: fuse(self.x, local)

    def decoder(self) -> Row:
        stage: UpStage = self.head.decoder.stage1
        guidance = torch.randn(1, stage.conv1.conv.in_channels - stage.conv1.inputs, 2 * self.grid, 2 * self.grid)
        name = "decoder stage in one op, guidance convolved once"
        return (
            name,
            lambda: plain.up_stage(stage, self.x, guidance),
            lambda: stage(self.x, stage.conv1.project(guidance)),
        )

    def channels(self) -> Iterator[Row]:
        maps = torch.randn(self.rows, self.grid, self.grid)
        embed, head = self.head.embed_global, self.head.decoder.head
        arguments = (maps, embed.conv.weight, embed.conv.bias)
        yield "embedding of class maps", lambda: embed_maps_reference(*arguments), lambda: embed(maps)
        x = torch.randn(self.rows, 4 * self.grid, 4 * self.grid, head.conv.in_channels)
        scored = (x, head.conv.weight, head.conv.bias)
        yield "scores of class maps", lambda: score_maps_reference(*scored), lambda: head(x)

    def tail(self) -> Row:
        logits = torch.randn(1, self.rows, 4 * self.grid, 4 * self.grid)
        name = "labels without full-size maps"
        return name, lambda: plain.labels(logits, PHOTO), lambda: upsample_argmax(logits, PHOTO)[0][0]

    def pieces(self) -> Row:
        def scores() -> Tensor:
            return segment.label(self.model, self.pixels, self.vocabulary, PHOTO)[1]

        def at_once() -> Tensor:
            usual = dict(PIXELS_PER_CHUNK)
            try:
                PIXELS_PER_CHUNK.update(dict.fromkeys(usual, 1 << 40))
                return scores()
            finally:
                PIXELS_PER_CHUNK.update(usual)

        return "rows in pieces that stay in the caches (whole model)", at_once, scores

    def tokens(self) -> Row:
        projected = torch.randn(3, 1, self.grid**2 + 1, 768)
        q, k, v = (x.unflatten(-1, (12, 64)).transpose(1, 2) for x in projected)

        def by_pytorch() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

        name = "attention of the image tower, blocks of queries in the cache"
        return name, by_pytorch, lambda: attention(q, k, v).transpose(1, 2).flatten(2)

    def views(self) -> Row:
        five, encoder = self.pixels.repeat(5, 1, 1, 1), self.model.image_encoder

        def apart() -> Tensor:
            return torch.cat([encoder(view[None]).embedding for view in five])

        return "five views encoded one after the other", lambda: encoder(five).embedding, apart


def training(bench: Bench) -> Iterator[Row]:
    """Forward and backward of parts that keep less for backward; what they save is memory."""
    block = bench.model.head.layers[0].block1
    x, shared = torch.randn(16, 24, 24, 128), torch.randn(1, 24, 24, 128)

    def gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        run(x).square().mean().backward()
        return x.grad

    def four_times(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: run(run(run(run(x))))

    def kept(x: Tensor) -> Tensor:
        x = block.attention(x, Norm.of(block.norm1), block.attention.prepare(shared), 12, 0, x)
        hidden = linear(x, block.mlp[0].weight, block.mlp[0].bias, norm=Norm.of(block.norm2))
        return linear(F.gelu(hidden), block.mlp[2].weight, block.mlp[2].bias, residual=x)

    def again(x: Tensor) -> Tensor:
        return block(x, block.attention.prepare(shared))

    name = "GELU computed again in training (4 blocks, 16 maps)"
    yield name, lambda: gradient(four_times(kept), x), lambda: gradient(four_times(again), x)
    logits, labels = torch.randn(1, 171, 96, 96), torch.randint(0, 171, (1, SIZE, SIZE))

    def loss(piece: int) -> Tensor:
        usual, fgaseg.training.losses.CLASSES_PER_CHUNK = fgaseg.training.losses.CLASSES_PER_CHUNK, piece
        try:
            return gradient(one_loss, logits)
        finally:
            fgaseg.training.losses.CLASSES_PER_CHUNK = usual

    def one_loss(x: Tensor) -> Tensor:
        out = Output(x, x, None, None, [], None)
        return segmentation_losses(out, labels, bench.model.config.loss)["loss"].sqrt()

    chunk = fgaseg.training.losses.CLASSES_PER_CHUNK
    yield "losses in pieces of the classes", lambda: loss(1 << 30), lambda: loss(chunk)


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest value; for labels the share that differs."""
    if got.is_floating_point():
        return float((got - expected).abs().max() / expected.abs().max())
    return float((got != expected).float().mean())


def measure(name: str, classes: int, literal: Callable[[], Any], ours: Callable[[], Any]) -> list[dict[str, Any]]:
    memory = [peak(run) for run in (literal, ours)]
    expected, got = literal(), ours()
    error = "" if got is None else f"{difference(got, expected):.1e}"
    best, began = [float("inf")] * 2, time.perf_counter()
    for n in range(ROUNDS):
        if n and time.perf_counter() - began > SECONDS:
            break
        for i, run in enumerate((literal, ours)):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
    what = {"acceleration": name, "classes": classes}
    return [
        {**what, "form": form, "seconds": f"{seconds:.5f}", "peak_mb": round(held / 1e6), "error": error, **machine()}
        for form, seconds, held in zip(("with the work", "without"), best, memory, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--classes", type=lambda text: [int(n) for n in text.split(",")], default=[20, 150, 847])
    options = parser.parse_args()
    bench, rows = Bench(), []
    with torch.no_grad():
        for classes in options.classes:
            for name, literal, ours in track(list(Cases(bench, classes).all()), f"T = {classes}", transient=True):
                rows += measure(name, classes, literal, ours)
    for name, literal, ours in training(bench):
        rows += measure(name, 171, literal, ours)
    with open(options.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
