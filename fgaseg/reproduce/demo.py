"""The whole system in miniature: trained on drawn scenes, scored on colour-shape pairs that it has never seen."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import Config, load_config
from ..data import SEEN, UNSEEN, VALIDATION_SCENES, SceneDataset, data_sets
from ..errors import ConfigError
from ..evaluation import Scores, evaluate
from ..files import atomic_write
from ..inference import heat, legend, overlay, panel, pseudo_masks
from ..model import FGASeg
from ..training import train

PICTURED = (("seen", 3), ("unseen", 0), ("unseen", 4), ("unseen", 7))  # split and scene of each row of the picture
ENLARGED = 3  # factor at which the picture shows the small scenes

log = logging.getLogger(__name__)


def run_demo(
    out: Path = Path("runs/demo"), seeds: Sequence[int] = (0,), overrides: Sequence[str] = (), restart: bool = False
) -> dict[str, Any]:
    """Train and score one model per seed; write results.json, demo.png and the models to `out`.

    overrides  of configs/demo.yaml, as "key=value"
    restart    ignore earlier runs in `out`; otherwise an interrupted run resumes and a complete one is not repeated
    returns    what results.json holds: "runs", one per seed, and "mean" over the seeds, mIoU before and after training
    Raises ConfigError, and whatever `train` raises.
    """
    for text in overrides:
        if text.startswith(("train.out=", "train.seed=")):
            raise ConfigError(f"override {text!r}: set by the demo itself; use --out and --seed")
    results: dict[str, Any] = {"out": str(out), "seeds": list(seeds), "runs": []}
    for seed in seeds:
        log.info("training, seed %d", seed)
        folder = json.dumps(str(out / f"full-{seed}"))
        config = demo_config([*overrides, f"train.seed={seed}", f"train.out={folder}"])
        results["runs"].append({"seed": seed, **_run_one(config, restart)})
    results["mean"] = _mean(results["runs"])
    first = FGASeg.from_pretrained(results["runs"][0]["model"])
    picture = out / "demo.png"
    drawn = draw(first)
    atomic_write(picture, lambda file: drawn.save(file, format="PNG"))
    results["picture"] = str(picture)
    text = json.dumps(results, indent=1) + "\n"
    atomic_write(out / "results.json", lambda file: file.write(text.encode()))
    return results


def demo_config(overrides: Sequence[str] = ()) -> Config:
    """configs/demo.yaml with "key=value" overrides; the encoders start from the file beside it. Raises ConfigError."""
    with as_file(files("fgaseg.configs")) as folder:
        encoder = f"model.encoder.pretrained={json.dumps(str(folder / 'demo_encoder.safetensors'))}"
        return load_config(folder / "demo.yaml", encoder, *overrides)


def _run_one(config: Config, restart: bool) -> dict[str, Any]:
    """Score, train, score again.

    Figures are mIoU over the classes in the ground truth; the vocabulary holds all pairs, seen and unseen, and all
    grounds.
    """
    began = time.monotonic()
    torch.manual_seed(config.train.seed)
    before = validation_scores(FGASeg(config.model), config)
    summary = train(config, resume=not restart)
    model = FGASeg.from_pretrained(summary.model)
    return {
        "before": {name: one.miou_gt for name, one in before.items()},
        "after": {name: one.miou_gt for name, one in summary.scores.items()},
        "changed_by_zero": zero_influence(model, config),
        "training_seconds": summary.seconds,
        "seconds": time.monotonic() - began,
        "parameters": summary.parameters,
        "model": summary.model,
    }


def validation_scores(model: FGASeg, config: Config) -> dict[str, Scores]:
    """Scores on every validation set of a configuration, as its training computes them.

    On scenes all names compete for a pixel, and the averages run over the split's own classes.
    """
    scores = {}
    for name, data in data_sets(config)[1].items():
        one = evaluate(model, data, count=config.data.val_count, progress=True)
        scores[name] = one.subset(data.scored) if config.data.scenes else one
    return scores


@torch.no_grad()
def zero_influence(model: FGASeg, config: Config, scenes: int = 20) -> dict[str, float]:
    """Share of pixels whose label changes when S_g, S_l or γ is replaced by zero, without parts that the model lacks.

    Measured on the first `scenes` drawn scenes of unseen pairs, of size `config.data.crop`.
    """
    data = SceneDataset("unseen", scenes, config.data.crop, seed=0)
    vocabulary = model.encode(data.names)
    photos = [item["image"].numpy() for item in (data[i] for i in range(scenes))]

    def labels() -> Tensor:
        return torch.stack([model.predict_labels(photo, vocabulary) for photo in photos])

    usual, head = labels(), model.head
    changed: dict[str, float] = {}
    embeddings = (("S_g", head.embed_global), ("S_l", head.embed_local)) if config.model.propagation else ()
    for name, module in embeddings:
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
    """One row per scene of PICTURED: photo, truth, labels, and the two pseudo-masks of its largest object (Fig. 6)."""
    scenes, maps, names = [], [], SceneDataset("seen", 1).names
    vocabulary = model.encode(names)
    for split, index in PICTURED:
        item = SceneDataset(split, VALIDATION_SCENES, (96, 144), seed=7)[index]
        photo, truth = Image.fromarray(item["image"].numpy()), item["labels"].numpy()
        labels = model.segment(photo, vocabulary).labels
        scenes.append((split, photo, truth, labels, pseudo_masks(model, photo, vocabulary)))
        maps += [truth, labels]
    shown = np.unique(np.concatenate([m.ravel() for m in maps]))  # few classes have the most distinct colours
    short = [names[i] for i in shown]
    grid = []
    for split, photo, truth, labels, masks in scenes:
        subject = int(np.bincount(truth[truth < len(SEEN) + len(UNSEEN)]).argmax())
        width, height = photo.width * ENLARGED, photo.height * ENLARGED
        row = [
            (f"{split} pairs", photo.resize((width, height), Image.Resampling.BICUBIC)),
            ("truth", _enlarged_overlay(photo, np.searchsorted(shown, truth), short)),
            ("FGAseg", _enlarged_overlay(photo, np.searchsorted(shown, labels), short)),
            (f"S_g: {names[subject]}", heat(masks.gcs[subject], (height, width))),
        ]
        if masks.lcs is not None:
            row.append((f"S_l: {names[subject]}", heat(masks.lcs[subject], (height, width))))
        grid.append(row)
    strip = legend([np.searchsorted(shown, m) for m in maps], short, 5 * 250, size=15)
    return panel(grid, cell=240, below=strip)


def _enlarged_overlay(photo: Image.Image, labels: np.ndarray, names: list[str]) -> Image.Image:
    size = (photo.width * ENLARGED, photo.height * ENLARGED)
    large = np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    return overlay(photo.resize(size, Image.Resampling.BICUBIC), large, names, with_legend=False)


def _mean(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        when: {split: float(np.mean([r[when][split] for r in runs])) for split in ("seen", "unseen")}
        for when in ("before", "after")
    }
