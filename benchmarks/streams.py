"""Many photos on a CPU: batches, threads and processes, with a core that is busy, and the text of a large vocabulary.

    python benchmarks/streams.py [--csv FILE] [--only batch,load,folder,text] [--photos 24] [--rounds 3]

ViT-B/16 with random weights in the released preset, photos of 480×640 pixels seen whole, float32. The settings of a
group take turns, so that a busy moment of the machine affects all of them; a row has their median.

batch   photos as one batch, and the image tower alone: a batch of four at once and one by one
load    a photo with 20 classes, and a training step of `fgaseg demo`, on a quiet machine and with another program on
        one of the cores; with all threads, as many as the load leaves (fgaseg/threads.py), one, and with what OpenMP's
        threads can be told to do while they wait. Each setting is a process, since OpenMP reads it when it starts
folder  `fgaseg segment FOLDER --save mask`, from the first photo that is done to the last; memory is the peak of all
        processes together, models included
text    847 names in batches of different lengths
"""

import argparse
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import machine, peak
from PIL import Image

from fgaseg import FGASeg, ModelConfig
from fgaseg.inference import prediction
from fgaseg.model.encoders import text_tower
from fgaseg.reproduce.demo import demo_config
from fgaseg.threads import adjust_threads, follow_load
from fgaseg.training import Trainer
from fgaseg.vocabulary import Vocabulary

PHOTO, VIEW = (480, 640), (384, 512)
FIELDS = ("group", "what", "setting", "classes", "photos_per_second", "seconds", "busy_seconds", "peak_mb")
WAITS = {
    "all threads": {},
    "threads follow the load": {"follow": "1"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_PROC_BIND=true": {"OMP_PROC_BIND": "true"},
}
STEPS = {"photo": 4, "training step": 8}  # of each setting under load
BATCHES = (32, 128, 256)
Row = dict[str, Any]


def build() -> FGASeg:
    torch.manual_seed(0)
    encoder = {"name": "ViT-B-16-quickgelu", "pretrained": None}
    return FGASeg(ModelConfig(preset="released", encoder=encoder, inference="whole")).eval()


def vocabulary(classes: int) -> Vocabulary:
    embeddings = F.normalize(torch.randn(classes, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    return Vocabulary(tuple(f"thing number {number}" for number in range(classes)), embeddings)


def alternate(settings: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median seconds of every setting; `peak` has warmed them up."""
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name, step in settings.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.inference_mode()
def batch(options: argparse.Namespace) -> Iterator[Row]:
    model, pixels = build(), torch.randn(16, 3, *VIEW)
    for classes, sizes in ((20, (1, 4, 16)), (150, (1, 4))):
        texts = vocabulary(classes)
        steps = {
            size: lambda size=size, texts=texts: prediction.label(model, pixels[:size], texts, PHOTO) for size in sizes
        }
        memory = {size: peak(step) for size, step in steps.items()}
        rounds = options.rounds if classes == 20 else 1
        for size, seconds in alternate(steps, rounds).items():
            yield {"what": "batch", "setting": size, "classes": classes, "photos_per_second": size / seconds,
                   "seconds": seconds, "peak_mb": memory[size] / 1e6}  # fmt: skip
    tower = {
        "four at once": lambda: model.image_encoder(pixels[:4]),
        "one by one": lambda: [model.image_encoder(one) for one in pixels[:4].split(1)],
    }
    memory = {name: peak(step) for name, step in tower.items()}
    for name, seconds in alternate(tower, options.rounds).items():
        yield {"what": "image tower", "setting": name, "photos_per_second": 4 / seconds, "seconds": seconds,
               "peak_mb": memory[name] / 1e6}  # fmt: skip


def load(options: argparse.Namespace) -> Iterator[Row]:
    """Every setting in a process of its own: this script with --measure."""
    for what in STEPS:
        for setting, given in WAITS.items():
            if what == "photo" and not setting.endswith(("threads", "load", "thread")):
                continue
            environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
            command = [sys.executable, __file__, "--measure", what, *(["--follow"] if "follow" in given else [])]
            done = subprocess.run(command, env=environment | given, stdout=subprocess.PIPE, text=True, check=True)
            quiet, busy = json.loads(done.stdout.splitlines()[-1])
            per = demo_config().train.batch if what == "training step" else 1
            yield {"what": what, "setting": setting, "classes": 20 if what == "photo" else "",
                   "photos_per_second": per / quiet, "seconds": quiet, "busy_seconds": busy}  # fmt: skip


def measure(what: str, follow: bool) -> None:
    """Print the mean seconds of a step, quiet and beside a program that never rests."""
    with tempfile.TemporaryDirectory() as folder, follow_load() if follow else contextlib.nullcontext():
        if what == "photo":
            model, pixels, texts = build(), torch.randn(1, 3, *VIEW), vocabulary(20)
            step: Callable[[], Any] = lambda: prediction.label(model, pixels, texts, PHOTO)  # noqa: E731
        else:
            trainer = Trainer(demo_config([f"train.out={json.dumps(folder)}"]), progress=False)
            trainer._prepare()
            step = trainer._step
        with torch.inference_mode(what == "photo"):
            quiet = mean_seconds(step, STEPS[what])
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                busy = mean_seconds(step, STEPS[what])
            finally:
                other.kill()
                other.wait()
    print(json.dumps([quiet, busy]))


def mean_seconds(step: Callable[[], Any], count: int) -> float:
    """After the steps of a second and a half: the load is known by then."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < 1.5:
        step()
    adjust_threads()
    begin = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - begin) / count


def folder(options: argparse.Namespace) -> Iterator[Row]:
    """One process with all threads, and a process with one thread for each core."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        draw(place / "photos", options.photos)
        build().save_pretrained(place / "model")
        (place / "names.txt").write_text("\n".join(vocabulary(20).names))
        for processes in (1, cores):
            rate, memory = segment(place, processes, place / f"out{processes}")
            yield {"what": "folder", "setting": f"processes: {processes}", "classes": 20, "photos_per_second": rate,
                   "seconds": 1 / rate, "peak_mb": memory / 1e6}  # fmt: skip


def draw(place: Path, count: int) -> None:
    """JPEGs of blobs and noise."""
    place.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        photo = np.asarray(small.resize(PHOTO[::-1], Image.Resampling.BICUBIC)) ^ rng.integers(
            0, 8, (*PHOTO, 1), np.uint8
        )
        Image.fromarray(photo).save(place / f"{number:03d}.jpg", quality=92)


def segment(place: Path, processes: int, out: Path) -> tuple[float, float]:
    """Photos per second between the first and the last record, and the memory of all processes in bytes."""
    command = [sys.executable, "-m", "fgaseg", "segment", str(place / "photos"), "--model", str(place / "model"),
               "--names", str(place / "names.txt"), "--save", "mask", "--out", str(out)]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    shares = {"WORLD_SIZE": str(processes)} | ({"OMP_NUM_THREADS": "1"} if processes > 1 else {})
    running = [
        subprocess.Popen(command, env=environment | shares | {"RANK": str(rank)}, stdout=subprocess.DEVNULL)
        for rank in range(processes)
    ]
    memory = 0.0
    for one in running:
        _, status, usage = os.wait4(one.pid, 0)
        one.returncode = os.waitstatus_to_exitcode(status)
        assert one.returncode == 0, "fgaseg segment failed; its message is above"
        memory += 1024.0 * usage.ru_maxrss
    times = sorted(file.stat().st_mtime for file in (out / ".fgaseg" / "photos").iterdir())
    # the first of every process ends what came before the stream
    return (len(times) - processes) / (times[-1] - times[processes - 1]), memory


@torch.inference_mode()
def text(options: argparse.Namespace) -> Iterator[Row]:
    model, names = build(), vocabulary(847).names

    def embed(size: int) -> None:
        text_tower.PROMPTS_PER_BATCH = size
        model.embed_prompts(names)

    steps = {size: lambda size=size: embed(size) for size in BATCHES}
    memory = {size: peak(step) for size, step in steps.items()}
    for size, seconds in alternate(steps, options.rounds).items():
        yield {"what": "text tower", "setting": f"{size} prompts", "classes": len(names), "seconds": seconds,
               "peak_mb": memory[size] / 1e6}  # fmt: skip


GROUPS = {"batch": batch, "load": load, "folder": folder, "text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("streams.csv"))
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(GROUPS))
    parser.add_argument("--photos", type=int, default=24, help="in the folder")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.follow)
        return
    with open(options.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, *machine()], lineterminator="\n")
        writer.writeheader()
        for group in options.only:
            for row in GROUPS[group](options):
                rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
                writer.writerow({"group": group, **rounded, **machine()})
                file.flush()
                print({"group": group, **rounded}, flush=True)


if __name__ == "__main__":
    main()
