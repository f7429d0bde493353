"""What the local map S_l says that is not the same for all classes.

    python benchmarks/local_cost.py --texts clip_text/coco_single.npy --out random.csv   # random weights of full size
    python benchmarks/local_cost.py --run runs/demo/full-0 --out demo.csv                # a trained model, its photos

A run is a folder of a training (config.yaml and model/): its maps are those of the first `--images` photos of each of
its validation sets, once as trained (on scenes with the share of labels that change when S_l is replaced by zero) and
once for each other kernel norm and padding with the same weights, which were not trained for it. `KEY=VALUE` changes
the run's configuration (data.images=...). Random weights: P2Tformer and LCS as they are initialised, for C = 512 and a
grid of 24×24, with embeddings [T, 512] of real class names, on pixels that are either drawn from a map of eight classes
or random.

With S [T, P], the map of T classes over P pixels, and S_tp = mean + a_t + m_p + r_tp (a two-way analysis of variance:
the class's mean, the map that all classes share, the rest):

    ratio          between classes / between pixels: mean over p of Var_t S_tp, over mean over t of Var_p S_tp
    own            share of the variance over pixels that is not common to all classes: Var r / (Var m + Var r)
    border         share of the variance over pixels (mean over t) that membership in the border explains, the K//2
                   outermost pixels; own_border: the same of r
    r_pixels       correlation of S_l with S_g over the pixels of a class, mean over classes
    r_own          correlation of the two r
    right          share of pixels whose largest S_tp is that of their class
    mean, sd       of S over all classes and pixels, and over the pixels of a class (square root of the mean variance)
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fgaseg import FGASeg
from fgaseg.config import load_config
from fgaseg.data import data_sets
from fgaseg.inference import pseudo_masks
from fgaseg.model.alignment import P2Tformer
from fgaseg.model.supplement import LocalSupplement
from fgaseg.reproduce.demo import zero_influence

VARIANTS = [(norm, padding) for norm in ("taps", "channels", "none", "cosine") for padding in ("zeros", "replicate")]
GRID, OBJECTS, SEEDS = 24, 8, range(5)
TEXT, COMMON, NOISE = 0.3, 0.6, 0.74  # of a drawn pixel: its class's text, what all pixels share, and its own part


def centred(maps: Tensor) -> Tensor:
    """r of maps [T, P]: without the means over classes and over pixels."""
    return maps - maps.mean(0, keepdim=True) - maps.mean(1, keepdim=True) + maps.mean()


def correlation(x: Tensor, y: Tensor) -> float:
    """Over the last axis, mean over the others; rows without variance are left out."""
    x, y = (v - v.mean(-1, keepdim=True) for v in (x, y))
    scale = x.norm(dim=-1) * y.norm(dim=-1)
    return float(((x * y).sum(-1) / scale)[scale > 0].mean())


def explained(maps: Tensor, border: Tensor) -> float:
    """Share of the variance over pixels of maps [T, P] that a mean inside and one outside of `border` [P] explain."""
    if not border.any() or border.all():
        return 0.0
    inside, outside = maps[:, border].mean(1), maps[:, ~border].mean(1)
    share = border.double().mean()
    return float((share * (1 - share) * (inside - outside).square()).mean() / maps.var(1, correction=0).mean())


def figures(maps: Tensor, gcs: Tensor, border: int, truth: Tensor) -> dict[str, float]:
    """The figures above of one image; maps and gcs [T, H, W], truth [H, W] with -1 for pixels of no class."""
    edge = torch.ones(maps.shape[1:], dtype=torch.bool)
    edge[border : maps.shape[1] - border, border : maps.shape[2] - border] = False
    local, other = maps.double().flatten(1), gcs.double().flatten(1)
    own = centred(local)
    known = truth.flatten() >= 0
    values = {
        "ratio": float(local.var(0, correction=0).mean() / local.var(1, correction=0).mean()),
        "own": float(own.square().mean() / local.var(1, correction=0).mean()),
        "border": explained(local, edge.flatten()),
        "own_border": explained(own, edge.flatten()),
        "r_pixels": correlation(local, other),
        "r_own": correlation(own.flatten(), centred(other).flatten()),
        "mean": float(local.mean()),
        "sd": float(local.var(1, correction=0).mean().sqrt()),
    }
    right = {"right": float((local.argmax(0) == truth.flatten())[known].double().mean())} if known.any() else {}
    return values | right


def summary(about: dict[str, Any], rows: list[dict[str, float]]) -> dict[str, Any]:
    """Means of the figures and the standard deviation of `own`."""
    values = {key: mean(row[key] for row in rows) for key in rows[0]}
    spread = stdev(row["own"] for row in rows) if len(rows) > 1 else 0.0
    return about | {"images": len(rows)} | values | {"own_sd": spread}


def pixels_of(kind: str, texts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels [1, 512, 24, 24] of unit length and their classes [24, 24], -1 for random pixels."""
    noise = F.normalize(torch.randn(GRID * GRID, texts.shape[1], generator=generator), dim=1)
    if kind == "random":
        return noise.T.reshape(1, -1, GRID, GRID), torch.full((GRID, GRID), -1)
    seats = torch.rand(OBJECTS, 2, generator=generator) * GRID  # the nearest seat decides a pixel's class
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    places = torch.stack([rows, columns], -1).reshape(-1, 2).float()
    classes = torch.randperm(len(texts), generator=generator)[:OBJECTS][torch.cdist(places, seats).argmin(1)]
    common = F.normalize(torch.randn(texts.shape[1], generator=generator), dim=0)
    pixels = F.normalize(TEXT * texts[classes] + COMMON * common + NOISE * noise, dim=1)
    return pixels.T.reshape(1, -1, GRID, GRID), classes.reshape(GRID, GRID)


def of_random_weights(file: Path, kernel_size: int, temperatures: list[float]) -> Iterator[dict[str, Any]]:
    given = F.normalize(torch.from_numpy(np.load(file)).float(), dim=1)
    channels = given.shape[1]
    for kind in ("classes", "random"):
        for texts in ("V_T", "V_emb"):
            rows: dict[tuple[Any, ...], list[dict[str, float]]] = {}
            for seed in SEEDS:
                torch.manual_seed(seed)
                p2t = P2Tformer(channels, int(texts == "V_emb"), 8, 0.1, True, True)
                text = LocalSupplement(channels, kernel_size, "taps").text
                pixels, truth = pixels_of(kind, given, torch.Generator().manual_seed(seed))
                unit = F.normalize(p2t(pixels, given), dim=-1)
                gcs = torch.einsum("chw,tc->thw", pixels[0], unit[0])
                rows.setdefault(("S_g", "", 1.0), []).append(figures(gcs, gcs, kernel_size // 2, truth))
                for norm, padding in VARIANTS:
                    for temperature in temperatures if norm == "taps" else [1.0]:
                        lcs = LocalSupplement(channels, kernel_size, norm, padding)
                        lcs.load_state_dict({f"text.{k}": v for k, v in scaled(text, temperature).items()})
                        maps = lcs(pixels, unit)[0]
                        row = figures(maps, gcs, kernel_size // 2, truth)
                        rows.setdefault((norm, padding, temperature), []).append(row)
            for (norm, padding, temperature), of_seeds in rows.items():
                about = {"model": "random", "pixels": kind, "texts": texts, "K": kernel_size, "norm": norm}
                yield summary(about | {"padding": padding, "temperature": temperature}, of_seeds)


def scaled(text: torch.nn.Linear, temperature: float) -> dict[str, Tensor]:
    """The layer with its kernel logits divided by `temperature`."""
    factor = torch.full((len(text.bias), 1), 1 / temperature)
    factor[-1] = 1.0  # the class's bias is no logit
    return {"weight": text.weight.detach() * factor, "bias": text.bias.detach() * factor[:, 0]}


def of_run(run: Path, images: int, overrides: list[str]) -> Iterator[dict[str, Any]]:
    config = load_config(run / "config.yaml", "model.encoder.pretrained=null", *overrides)
    model = FGASeg.from_pretrained(run / "model")
    lcs = model.head.lcs
    if lcs is None:
        raise SystemExit(f"{run}: its model has no local cost supplement (model.lcs=false)")
    trained = (lcs.kernel_norm, lcs.padding)
    zeroed = zero_influence(model, config) if config.data.scenes else {}
    changed = {f"{key}=0 changes": value for key, value in zeroed.items()}
    for name, data in data_sets(config)[1].items():
        vocabulary = model.encode(data.names)
        items = [data[index] for index in range(min(images, len(data)))]
        for norm, padding in [("S_g", ""), trained, *(one for one in VARIANTS if one != trained)]:
            if norm != "S_g":
                lcs.kernel_norm, lcs.padding = norm, padding
            rows = [of_photo(model, vocabulary, item, norm == "S_g") for item in items]
            about = {"model": run.name, "pixels": name, "texts": "V_emb", "K": lcs.kernel_size, "norm": norm}
            row = summary(about | {"padding": padding, "temperature": 1.0}, rows)
            if (norm, padding) == trained:
                row |= {"trained": True} | changed
            yield row
        lcs.kernel_norm, lcs.padding = trained


def of_photo(model: FGASeg, vocabulary: Any, item: dict[str, Any], of_gcs: bool) -> dict[str, float]:
    """The figures of one photo, resized as for `segment`."""
    masks = pseudo_masks(model, Image.fromarray(item["image"].numpy()), vocabulary)
    assert masks.lcs is not None and model.head.lcs is not None
    gcs, maps = torch.from_numpy(masks.gcs), torch.from_numpy(masks.gcs if of_gcs else masks.lcs)
    labels = item["labels"].long()
    labels = torch.where(labels < len(gcs), labels, -1)
    truth = F.interpolate(labels[None, None].double(), gcs.shape[1:], mode="nearest-exact")[0, 0].long()
    return figures(maps, gcs, model.head.lcs.kernel_size // 2, truth)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="unit text embeddings [T, 512] of class names (.npy)")
    parser.add_argument("--kernel-size", type=int, default=3)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.1, 0.01], help="of norm taps")
    parser.add_argument("--run", type=Path, action="append", default=[], help="folder of a training; may be repeated")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--out", type=Path, help="CSV file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    found = [] if args.texts is None else list(of_random_weights(args.texts, args.kernel_size, args.temperatures))
    found += [row for run in args.run for row in of_run(run, args.images, args.overrides)]
    columns = list(dict.fromkeys(key for row in found for key in row))
    for row in found:
        print(*(f"{key}={value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in found)


if __name__ == "__main__":
    main()
