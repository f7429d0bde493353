"""A table of encoders: parameters, and time and memory of one view at the size that the encoder was trained at.

    python benchmarks/encoders.py [--csv FILE] [--encoders ViT-B-16,EVA02-B-16] [--again]

Random weights, float32, no download (tokenizers neither, so text is only counted). One process per encoder, whose row
is written as soon as it is measured; encoders that have a row of the same versions are skipped unless --again is given,
so that a run that was stopped continues. The time is the median of a few rounds after a warm-up, the memory the peak
beyond the weights.
"""

import argparse
import csv
import io
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine, peak
from shapes import DEVICE

from fgaseg import EncoderConfig
from fgaseg.environment import version
from fgaseg.files import atomic_write
from fgaseg.model.encoders.architecture import resolve
from fgaseg.model.encoders.open_clip_encoder import family_of, instantiate

ENCODERS = (
    "ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu", "MobileCLIP2-B", "MobileCLIP2-L-14", "ViT-B-16-SigLIP2-384",
    "ViT-L-16-SigLIP2-384", "ViT-SO400M-14-SigLIP2-378", "EVA02-B-16", "EVA02-L-14-336", "PE-Core-B-16",
    "PE-Core-L-14-336",
)  # fmt: skip
VERSIONS = ("torch", "open_clip", "timm")
FIELDS = ("encoder", "family", "dense", "image_parameters_m", "text_parameters_m", "side", "patch", "tokens", "seconds",
          "slowest", "rounds", "peak_mb", "failed")  # fmt: skip
SECONDS, ROUNDS = 20, 5  # rounds end after so many seconds, or when there are so many


def measure(name: str) -> dict[str, Any]:
    """The row of one encoder."""
    architecture = resolve(EncoderConfig(name=name, pretrained=None)).architecture
    family = family_of(architecture, name)
    clip = instantiate(architecture, name).to(DEVICE).eval()
    tower = family(clip.visual)
    tower.separate()
    tower.choose(None, None)
    image = sum(parameter.numel() for parameter in clip.visual.parameters())
    size = clip.visual.image_size
    side = (size if isinstance(size, int) else size[0]) // tower.patch * tower.patch
    pixels = torch.randn(1, 3, side, side, device=DEVICE)

    def step() -> None:
        tower.features(pixels)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        memory, times = peak(step), list[float]()
        while len(times) < ROUNDS and sum(times) < SECONDS:
            begin = time.perf_counter()
            step()
            times.append(time.perf_counter() - begin)
    return {
        "encoder": name,
        "family": family.family,
        "dense": tower.dense,
        "image_parameters_m": round(image / 1e6, 1),
        "text_parameters_m": round((sum(p.numel() for p in clip.parameters()) - image) / 1e6, 1),
        "side": side,
        "patch": tower.patch,
        "tokens": (side // tower.patch) ** 2 + tower.prefix,
        "seconds": round(statistics.median(times), 4),
        "slowest": round(max(times), 4),
        "rounds": len(times),
        "peak_mb": round(memory / 1e6),
    }


def in_a_process(name: str) -> dict[str, Any]:
    """The row of one encoder, or what went wrong: a process that the system ends for its memory loses no other row."""
    done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"encoder": name, "failed": said[-1] if said else f"ended by signal {-done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / f"results/encoders_{DEVICE}.csv")
    parser.add_argument("--encoders", type=lambda text: text.split(","), default=list(ENCODERS))
    parser.add_argument("--again", action="store_true", help="measure encoders that have a row too")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the row of one encoder, on stdout
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    here = {**machine(), "open_clip": version("open_clip_torch"), "timm": version("timm")}
    rows = read_rows(options.csv)
    done = {row["encoder"] for row in rows if all(row[key] == here[key] for key in VERSIONS) and not row["failed"]}
    for name in options.encoders:
        if name in done and not options.again:
            continue
        row = in_a_process(name)
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        rows = [other for other in rows if other["encoder"] != name] + [row | here]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*FIELDS, *here], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(options.csv, lambda file, text=text: file.write(text.getvalue().encode()))


if __name__ == "__main__":
    main()
