"""How well encoders name a picture, and how well its pixels: CLIP is good at the first and poor at the second.

    python benchmarks/picture_and_pixel.py runs/scenes_clip runs/msrc_encoder \
        --out benchmarks/results/picture_and_pixel.json

Each folder is that of a training whose logits are the cosines of pixels and names (`model.propagation` off), such as
those of configs/scenes_clip.yaml and configs/msrc_encoder.yaml. Its validation sets are used, --count photos of each.
For embeddings of whole pictures a photo is squashed to the encoder's square. In percent:

own_caption    pictures that are nearer to their own caption (all classes named) than to that of any other picture
right_caption  pictures that are nearer to their own caption than to each of WRONG captions with one mistake
names_map      average precision of "the class is in the picture" by the cosine of picture and name, mean over classes;
               names_chance: the share of pictures that a class is in, mean over classes
miou           of labels that are the best cosine of patch and name, all names competing (`fgaseg eval`)
present        pixel accuracy where only the names of classes in the picture compete; present_chance: of labels drawn
               from these at random; present_largest: of the class that covers most of the picture
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import machine
from PIL import Image
from torch import Tensor

from fgaseg import FGASeg, load_config
from fgaseg.data import CaptionWriter, classes_in, data_sets, to_pixels
from fgaseg.evaluation import evaluate
from fgaseg.files import atomic_write
from fgaseg.vocabulary import check_names

WRONG = 8  # captions with a mistake that compete with the right one


def percent(values: Any) -> float:
    return round(100 * float(np.asarray(values, dtype=float).mean()), 1)


def embed(model: FGASeg, photos: list[np.ndarray], side: int) -> Tensor:
    """Unit embeddings [N, C] of whole pictures uint8 [H, W, 3]."""
    squares = [np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC)) for photo in photos]
    pixels = torch.stack([to_pixels(square, normalization=model.normalization) for square in squares])
    tower: Any = model.encoder
    return F.normalize(torch.cat([tower.image_tower.pooled(some) for some in pixels.split(32)]), dim=-1)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Of a ranking: the mean, over the true items, of the precision down to each."""
    ranked = truth[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())


def pictures(
    model: FGASeg, photos: list[np.ndarray], present: list[list[int]], writer: CaptionWriter
) -> dict[str, float]:
    """How well whole pictures are told apart by captions, and named."""
    names = writer.names
    side = (model.architecture or {})["vision_cfg"]["image_size"]
    images, words = embed(model, photos, side), [[names[index] for index in some] for some in present]
    captions, mistakes = [], []
    for number, some in enumerate(words):
        rng = np.random.default_rng([1, number])
        captions.append(writer.caption(some, rng, whole=True))
        mistakes += [writer.caption(writer.wrong(some, rng), rng, whole=True) for _ in range(WRONG)]
    own = images @ model.embed_prompts(captions).T
    wrong = (images[:, None] * model.embed_prompts(mistakes).unflatten(0, (len(words), WRONG))).sum(-1)
    truth = np.array([[index in some for index in range(len(names))] for some in present])
    scores = (images @ model.embed_prompts(names).T).numpy()
    shown = [index for index in range(len(names)) if truth[:, index].any()]
    return {
        "own_caption": percent((own.argmax(1) == torch.arange(len(words))).float()),
        "right_caption": percent((own.diagonal()[:, None] > wrong).all(1).float()),
        "names_map": percent([average_precision(scores[:, index], truth[:, index]) for index in shown]),
        "names_chance": percent(truth[:, shown].mean(0)),
    }


def pixels(model: FGASeg, photos: list[np.ndarray], labels: list[np.ndarray], names: list[str]) -> dict[str, float]:
    """How well pixels are named among the classes in the picture."""
    correct, chance, largest, total = 0.0, 0.0, 0.0, 0
    for photo, truth in zip(photos, labels, strict=True):
        here, counts = np.unique(truth[truth < len(names)], return_counts=True)
        found = here[model.segment(Image.fromarray(photo), [names[index] for index in here]).labels]
        correct += (found == truth).sum()
        chance += counts.sum() / len(here)
        largest += counts.max()
        total += counts.sum()
    return {"present": percent(correct / total), "present_chance": percent(chance / total),
            "present_largest": percent(largest / total)}  # fmt: skip


@torch.no_grad()
def measure(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """The figures of every validation set of a training's folder."""
    config = load_config(folder / "config.yaml", f"data.val_count={count}")
    model = FGASeg.from_pretrained(folder / "model").eval()
    results = {}
    for name, data in data_sets(config)[1].items():
        items = [data[index] for index in range(min(count, len(data)))]
        names = [one.name for one in check_names(data.names)]
        labels = [item["labels"].numpy() for item in items]
        present = [classes_in(one, len(names)) for one in labels]
        kept = [index for index, some in enumerate(present) if some]
        photos = [items[index]["image"].numpy() for index in kept]
        labels, present = [labels[index] for index in kept], [present[index] for index in kept]
        scores = evaluate(model, data, count=count)
        scores = scores.subset(data.scored) if config.data.scenes else scores
        results[name] = {
            "pictures": len(kept),
            **pictures(model, photos, present, CaptionWriter(names, data.backdrops)),
            "miou": percent(scores.miou_gt),
            **pixels(model, photos, labels, names),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=200, help="photos of each validation set")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {folder.name: measure(folder, options.count) for folder in options.folders}
    text = json.dumps({"machine": machine(), "count": options.count, "encoders": found}, indent=1) + "\n"
    atomic_write(options.out, lambda file: file.write(text.encode()))
    print(text)


if __name__ == "__main__":
    main()
