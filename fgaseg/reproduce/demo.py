"""`fgaseg demo`: the whole system in miniature, trained on drawn scenes and scored on pairs it never saw."""

import json
import sys
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..config import Config, load_config
from ..data import SCENES_SCORED, SEEN, UNSEEN, SceneDataset, data_sets
from ..errors import ConfigError
from ..evaluation import Scores, evaluate
from ..files import atomic_write
from ..inference import heat, legend, overlay, panel, pseudo_masks
from ..model import FGASeg
from ..training import train

PICTURED = [
    ("seen", 3),
    ("unseen", 0),
    ("unseen", 4),
    ("unseen", 7),
]  # split and scene number of each row of the picture


def run_demo(
    out: Path, seeds: Sequence[int], overrides: Sequence[str], as_json: bool, restart: bool = False
) -> dict[str, Any]:
    """Train and score one model a seed, print the table, write <out>/results.json.

    A run that was interrupted goes on where it stopped; one that is complete is not repeated.
    """
    console = Console(stderr=as_json)
    for text in overrides:
        if text.startswith(("train.out=", "train.seed=")):
            raise ConfigError(f"override {text!r}: the demo sets it; use --out and --seed")
    results: dict[str, Any] = {"out": str(out), "seeds": list(seeds), "runs": []}
    for seed in seeds:
        console.print(f"[bold]training, seed {seed}[/bold]")
        folder = json.dumps(str(out / f"full-{seed}"))
        config = demo_config([*overrides, f"train.seed={seed}", f"train.out={folder}"])
        results["runs"].append({"seed": seed, **_one(config, restart)})
    results["mean"] = _mean(results["runs"])
    first = FGASeg.from_pretrained(results["runs"][0]["model"])
    picture = out / "demo.png"
    drawn = draw(first)
    atomic_write(picture, lambda file: drawn.save(file, format="PNG"))
    results["picture"] = str(picture)
    text = json.dumps(results, indent=1) + "\n"
    atomic_write(out / "results.json", lambda file: file.write(text.encode()))
    if as_json:
        sys.stdout.write(text)
    else:
        _print(console, results)
    return results


def demo_config(overrides: Sequence[str]) -> Config:
    """configs/demo.yaml with overrides; the encoders start from the file beside it."""
    with as_file(files("fgaseg.configs")) as folder:
        encoder = f"model.encoder.pretrained={json.dumps(str(folder / 'demo_encoder.safetensors'))}"
        return load_config(folder / "demo.yaml", [encoder, *overrides])


def _one(config: Config, restart: bool) -> dict[str, Any]:
    """Score, train, score again. Figures are mIoU (classes in the ground truth), vocabulary seen + unseen + grounds."""
    began = time.monotonic()
    torch.manual_seed(config.train.seed)
    before = score(FGASeg(config.model), config)
    summary = train(config, resume=not restart)
    model = FGASeg.from_pretrained(summary.model)
    return {
        "before": {name: one.miou_gt for name, one in before.items()},
        "after": {name: one.miou_gt for name, one in summary.scores.items()},
        "changed_by_zero": influence(model, config),
        "training_seconds": summary.seconds,
        "seconds": time.monotonic() - began,
        "parameters": summary.parameters,
        "model": summary.model,
    }


def score(model: FGASeg, config: Config) -> dict[str, Scores]:
    """Scores on every validation set of a configuration; on scenes over its own classes, with all names competing."""
    scores = {}
    for name, data in data_sets(config)[1].items():
        one = evaluate(model, data, count=config.data.val_count, progress=True)
        scores[name] = one.subset(data.scored) if config.data.scenes else one
    return scores


@torch.no_grad()
def influence(model: FGASeg, config: Config, scenes: int = 20) -> dict[str, float]:
    """Share of pixels whose label changes when S_g, S_l or γ is replaced by zero."""
    data = SceneDataset("unseen", scenes, config.data.crop, seed=0)
    vocabulary = model.encode(data.names)
    photos = [item["image"].numpy() for item in (data[i] for i in range(scenes))]

    def labels() -> Tensor:
        return torch.stack([model.predict_labels(photo, vocabulary) for photo in photos])

    usual, head = labels(), model.head
    changed: dict[str, float] = {}
    maps = (("S_g", head.embed_global), ("S_l", head.embed_local)) if config.model.propagation else ()
    for name, module in maps:
        if module is not None:
            hook = module.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),))
            changed[name] = float((labels() != usual).float().mean())
            hook.remove()
    if head.p2t.layers:
        gamma = head.p2t.gamma.clone()
        head.p2t.gamma.zero_()
        changed["γ"] = float((labels() != usual).float().mean())
        head.p2t.gamma.copy_(gamma)
    return changed


def draw(model: FGASeg) -> Image.Image:
    """One picture: photos, truth, labels, and the two pseudo-masks of the largest object (Fig. 6)."""
    rows, maps, names = [], [], SceneDataset("seen", 1).names
    vocabulary = model.encode(names)
    for split, index in PICTURED:
        item = SceneDataset(split, SCENES_SCORED, (96, 144), seed=7)[index]
        photo, truth = Image.fromarray(item["image"].numpy()), item["labels"].numpy()
        result = model.segment(photo, vocabulary)
        rows.append((split, photo, truth, result.labels, pseudo_masks(model, photo, vocabulary)))
        maps += [truth, result.labels]
    shown = np.unique(np.concatenate([m.ravel() for m in maps]))  # colours are told apart best among few classes
    short = [names[i] for i in shown]

    def painted(photo: Image.Image, labels: np.ndarray) -> Image.Image:
        small = np.searchsorted(shown, labels)
        size = (photo.width * 3, photo.height * 3)
        large = np.asarray(Image.fromarray(small.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
        return overlay(photo.resize(size, Image.Resampling.BICUBIC), large, short, with_legend=False)

    grid = []
    for split, photo, truth, labels, masks in rows:
        objects = truth[truth < len(SEEN) + len(UNSEEN)]
        subject = int(np.bincount(objects).argmax())
        size = (photo.height * 3, photo.width * 3)
        row = [
            (f"{split} pairs", photo.resize(size[::-1], Image.Resampling.BICUBIC)),
            ("truth", painted(photo, truth)),
            ("FGAseg", painted(photo, labels)),
            (f"S_g: {names[subject]}", heat(masks.gcs[subject], size)),
        ]
        if masks.lcs is not None:
            row.append((f"S_l: {names[subject]}", heat(masks.lcs[subject], size)))
        grid.append(row)
    strip = legend([np.searchsorted(shown, m) for m in maps], short, 5 * 250, size=15)
    return panel(grid, cell=240, below=strip)


def _mean(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        when: {split: float(np.mean([r[when][split] for r in runs])) for split in ("seen", "unseen")}
        for when in ("before", "after")
    }


def _print(console: Console, results: dict[str, Any]) -> None:
    seeds = len(results["seeds"])
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    table = Table(title=f"mIoU on drawn scenes, every pair and ground in the vocabulary{mean}")
    for column in ("", "seen classes, before", "after", "unseen pairs, before", "after"):
        table.add_column(column, justify="right" if column else "left")
    order = [(when, split) for split in ("seen", "unseen") for when in ("before", "after")]
    table.add_row("FGAseg", *(f"{results['mean'][when][split]:.3f}" for when, split in order))
    console.print(table)
    first = results["runs"][0]
    changed = ", ".join(f"{name} {share:.1%}" for name, share in first["changed_by_zero"].items())
    console.print(f"labels that change when a part is replaced by zero: {changed}")
    console.print(f"{first['parameters']:,} parameters, {first['training_seconds']:.0f} s of training a run")
    console.print(f"picture: {results['picture']}    model: {first['model']}", soft_wrap=True)
