"""The training items per second of a plain loop and of DataLoader with 0, 1 and 2 workers, and the time of every step.

Photos and labels are read as in `fgaseg train`: decoding, resizing, crop, flip, jitter, CLIP's normalisation.

    python benchmarks/loading.py --root DIR --out benchmarks/results/loading.json      DIR: prepared coco-stuff
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from statistics import median

import numpy as np
import PIL
import torch
import torchvision
from torch.utils.data import DataLoader, Dataset

from fgaseg.config import DataConfig
from fgaseg.data.augmentation import augment
from fgaseg.data.datasets import PairDataset
from fgaseg.data.images import read_image, to_pixels
from fgaseg.data.label_formats import read_labels
from fgaseg.data.prepared_sets import open_set


class Repeated(Dataset):
    """The set's items repeated, so that a few photos suffice for a measurement."""

    def __init__(self, data: PairDataset, count: int) -> None:
        self.data, self.count = data, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return self.data[index % len(self.data)]


def rate(items, count: int) -> float:
    start = time.perf_counter()
    for _ in items:
        pass
    return count / (time.perf_counter() - start)


def loader_rate(data: Dataset, workers: int, batch: int) -> float:
    """Items per second once the workers have started: the first batch is not counted."""
    batches = iter(DataLoader(data, batch_size=batch, num_workers=workers))
    next(batches)
    return rate(batches, len(data) - batch)


def decoders_differ(data: PairDataset) -> int:
    """The largest difference between torchvision's and Pillow's decoding, over all photos."""
    worst = 0
    for _, photo, _ in data.pairs:
        ours = np.asarray(read_image(photo)).astype(int)
        theirs = torchvision_photo(photo).permute(1, 2, 0).numpy()
        worst = max(worst, int(np.abs(ours - theirs).max()))
    return worst


def torchvision_photo(photo: Path) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    return decode_jpeg(read_file(str(photo)), ImageReadMode.RGB)


def milliseconds(data: PairDataset, repeats: int) -> dict[str, float]:
    """The median time of each step over the photos and ``repeats``, on one core."""
    plain = data.augmentation.model_copy(update={"color_jitter": False})
    steps = {
        "decode photo (Pillow)": lambda p, i, ls, r: read_image(p[1]),
        "decode photo (torchvision)": lambda p, i, ls, r: torchvision_photo(p[1]),
        "decode labels": lambda p, i, ls, r: read_labels(p[2]),
        "resize, crop, flip, pad": lambda p, i, ls, r: augment(i, ls, plain, r),
        "the same with jitter": lambda p, i, ls, r: augment(i, ls, data.augmentation, r),
        "normalise": lambda p, i, ls, r: to_pixels(i.resize((data.augmentation.crop, data.augmentation.crop))),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats):
        for pair in data.pairs:
            image, labels = read_image(pair[1]), read_labels(pair[2])
            for name, step in steps.items():
                rng = np.random.default_rng(repeat)
                start = time.perf_counter()
                step(pair, image, labels, rng)
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(median(values), 2) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="with coco-stuff prepared")
    parser.add_argument("--count", type=int, default=400, help="items a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_set("coco-stuff", options.root, "train", config=DataConfig(set="coco-stuff"))
    many = Repeated(data, options.count)
    rates: dict[str, list[float]] = {}
    loads: list[float] = []
    for _ in range(options.repeats):  # in turn, so that a busy moment of the machine affects all of them
        loads.append(os.getloadavg()[0])
        loop = rate((many[index] for index in range(len(many))), len(many))
        rates.setdefault("plain loop", []).append(loop)
        for workers in (0, 1, 2):
            rates.setdefault(f"DataLoader, {workers} workers", []).append(loader_rate(many, workers, options.batch))
    result = {
        "images_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "milliseconds_per_step": milliseconds(data, options.repeats),
        "largest_difference_torchvision_decoder": decoders_differ(data),
        "photos": len(data),
        "crop": data.augmentation.crop,
        "batch": options.batch,
        "load_before_each_repeat": loads,  # above 0: other programs used some of the cores
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
