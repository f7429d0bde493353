"""Memory and time of `fgaseg raster`, apart from the model: a large raster, and a model that costs next to nothing.

    python benchmarks/raster.py [--csv FILE] [--sizes 20000x20000,4000x20000] [--classes 20,150]

For every size (rows x columns) a noisy RGB GeoTIFF of 8 bits, made in a temporary folder and removed afterwards, is
labelled by a process of its own. The model sees tiles of 384 pixels by patches of 16, as the published ones do, but has
one narrow layer and no propagation. Memory is the peak beyond what is resident when the model is loaded, and includes
its views; time is divided by the tiles, with the model's own share, measured beside it, in a column.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from machine import machine, peak
from PIL import Image
from rasterio.transform import from_origin
from rasterio.windows import Window

from fgaseg import FGASeg, ModelConfig, segment_raster
from fgaseg.environment import version
from fgaseg.files import atomic_write
from fgaseg.inference import view_logits

ENCODER = {
    "name": "narrow",
    "pretrained": None,
    "architecture": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 384, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
}
FIELDS = ("rows", "columns", "classes", "tiles", "seconds", "tiles_per_second", "model_seconds", "peak_mb", "labels_mb")


def draw(path: Path, rows: int, columns: int) -> None:
    """Blobs and noise, written by strips, so that this script needs little memory too."""
    rng, step = np.random.default_rng(0), 512
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "blockxsize": 512, "blockysize": 512,
               "crs": "EPSG:32632", "transform": from_origin(500_000, 5_000_000, 0.5, 0.5)}  # fmt: skip
    with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(path, "w", height=rows, width=columns, **profile) as file:
        for top in range(0, rows, step):
            height = min(step, rows - top)
            small = Image.fromarray(rng.integers(0, 256, (height // 64 + 1, columns // 64 + 1, 3), dtype=np.uint8))
            strip = np.asarray(small.resize((columns, height), Image.Resampling.BICUBIC))
            strip = strip ^ rng.integers(0, 16, strip.shape, dtype=np.uint8)
            file.write(strip.transpose(2, 0, 1), window=Window(0, top, columns, height))


def measure(path: Path, classes: int, out: Path) -> dict[str, Any]:
    """One raster labelled in this process."""
    torch.manual_seed(0)
    model = FGASeg(ModelConfig(encoder=ENCODER, image_size=384, propagation=False, lcs=False, t2p=False)).eval()
    vocabulary = model.encode([f"class {number}" for number in range(classes)])
    seconds: list[float] = []

    def step() -> None:
        begin = time.perf_counter()
        segment_raster(model, path, vocabulary, out)
        seconds.append(time.perf_counter() - begin)

    memory = peak(step)
    view, count = Image.new("RGB", (384, 384)), 20
    with torch.inference_mode():
        view_logits(model, view, vocabulary)
        begin = time.perf_counter()
        for _ in range(count):
            view_logits(model, view, vocabulary)
    return {"seconds": seconds[0], "view": (time.perf_counter() - begin) / count, "peak": memory}


def row(path: Path, rows: int, columns: int, classes: int) -> dict[str, Any]:
    out = path.with_name("labels.tif")
    command = [sys.executable, __file__, "--one", str(path), str(classes), str(out)]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    along = [1 if n <= 384 else -(-(-(-n // 16) - 24) // 18) + 1 for n in (rows, columns)]
    tiles = along[0] * along[1]
    found = {
        "rows": rows,
        "columns": columns,
        "classes": classes,
        "tiles": tiles,
        "seconds": round(done["seconds"], 1),
        "tiles_per_second": round(tiles / done["seconds"], 1),
        "model_seconds": round(done["view"] * tiles, 1),
        "peak_mb": round(done["peak"] / 1e6),
        "labels_mb": round(out.stat().st_size / 1e6, 1),
    }
    print(" ".join(f"{key}={value}" for key, value in found.items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results/raster_cpu.csv")
    parser.add_argument("--sizes", default="20000x20000,4000x20000")
    parser.add_argument("--classes", default="20,150")
    parser.add_argument("--note", default="", help="what else ran on the machine meanwhile")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # raster, classes, labels: figures on stdout
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Path(options.one[0]), int(options.one[1]), Path(options.one[2]))))
        return
    here = {**machine(), "rasterio": rasterio.__version__, "gdal": rasterio.__gdal_version__,
            "numpy": version("numpy"), "note": options.note}  # fmt: skip
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*FIELDS, *here], lineterminator="\n")
    writer.writeheader()
    for size in options.sizes.split(","):
        rows, columns = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "raster.tif"
            draw(path, rows, columns)
            for classes in map(int, options.classes.split(",")):
                writer.writerow(row(path, rows, columns, classes) | here)
                atomic_write(options.csv, lambda file: file.write(text.getvalue().encode()))


if __name__ == "__main__":
    main()
