"""What lower precisions of an export cost: labels against float32 PyTorch, mIoU, error of the logits, and sizes.

    python benchmarks/export_precision.py demo --model runs/demo/full-0/model
    python benchmarks/export_precision.py photos --model runs/msrc/model --images MSRC/images --labels MSRC/labels \
        --calibrate-list MSRC/train.txt --score-list MSRC/val.txt --names building,grass,tree --values 0,1,2
    python benchmarks/export_precision.py random --images MSRC/images --calibrate-list MSRC/train.txt \
        --score-list MSRC/val.txt --names building,grass,tree

demo: drawn scenes of seen and unseen pairs. random: ViT-B/16 with random weights, whose classes are near ties in many
pixels, which any step turns over: its agreement is far below that of trained weights, and it has no mIoU. Rows replace
those of the same kind in --out. Exports go to --exports, and those that are there are not made again. Photos that
calibrate are never scored.
"""

import argparse
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import machine
from PIL import Image
from torch import Tensor

import fgaseg
from fgaseg.data import SEEN, SceneDataset, read_image, to_pixels
from fgaseg.data.scenes import scene
from fgaseg.evaluation.scores import ConfusionMatrix
from fgaseg.export.graphs import text_tower
from fgaseg.files import atomic_write
from fgaseg.inference.prediction import input_size
from fgaseg.inference.scores import ScoreRule

Run = Callable[..., list[np.ndarray]]
PRECISIONS = ("float32", "float16", "int8")
CALIBRATION_SEED = 4711  # of drawn scenes; those that are scored have seed 0


class Photos:
    """What is scored and what calibrates: images, their labels (None: unknown), class names."""

    def __init__(self, images: list, labels: list | None, names: list, calibration: list) -> None:
        self.images, self.labels, self.names, self.calibration = images, labels, names, calibration


def drawn(count: int) -> Photos:
    images, labels = [], []
    for split in ("seen", "unseen"):
        data = SceneDataset(split, count // 2, (96, 144), seed=0)
        for i in range(count // 2):
            images.append(Image.fromarray(data[i]["image"].numpy()))
            labels.append(data[i]["labels"])
    calibration = [Image.fromarray(scene([CALIBRATION_SEED, i], (96, 144), SEEN)[0]) for i in range(16)]
    return Photos(images, labels, data.names, calibration)


def photographed(options: argparse.Namespace, names: list) -> Photos:
    """Photos of a folder, by lists of their stems; labels are indices into `names`, others are not scored."""
    calibrate, score = (path.read_text().split() for path in (options.calibrate_list, options.score_list))
    score = score[:: max(len(score) // options.count, 1)][: options.count]
    if both := set(calibrate) & set(score):
        raise SystemExit(f"{sorted(both)[0]}: is in both lists; calibration photos must not be scored")
    files = {path.stem: path for path in options.images.iterdir()}
    labels = None
    if options.labels:
        found = {path.stem: path for path in options.labels.iterdir()}
        order = {int(value): index for index, value in enumerate(options.values.split(","))} if options.values else None
        labels = [renumbered(np.array(Image.open(found[stem])), order) for stem in score]
    return Photos([read_image(files[stem]) for stem in score], labels, names, [files[stem] for stem in calibrate])


def renumbered(values: np.ndarray, order: dict[int, int] | None) -> Tensor:
    if order is None:
        return torch.from_numpy(values.astype(np.int64))
    table = np.full(256, 255)
    table[list(order)] = list(order.values())
    return torch.from_numpy(table[values])


def onnxruntime(folder: Path, part: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(folder / f"{part}.onnx", options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def openvino(folder: Path, part: str) -> Run:
    """What is not in 8 bits in float32: by default the plugin takes bfloat16 where the processor has it."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / f"{part}.xml", "CPU", settings)
    return lambda *inputs: list(compiled(list(inputs)).values())


RUNTIMES: dict[str, tuple[Callable[[Path, str], Run], tuple[str, ...]]] = {
    "onnxruntime": (onnxruntime, (".onnx", ".onnx.data")),
    "openvino": (openvino, (".xml", ".bin")),
}


class Comparison:
    """A model in PyTorch, float32, on the photos; and the same photos in a runtime."""

    def __init__(self, model: fgaseg.FGASeg, photos: Photos) -> None:
        self.model, self.photos, self.rule = model, photos, ScoreRule.of(model.config)
        self.vocabulary = model.encode(photos.names)
        self.template = model.config.template
        self.inputs, self.logits = [], []
        with torch.no_grad():
            for image in photos.images:
                size = input_size(image.height, image.width, model.config.image_size, model.patch)
                pixels = to_pixels(image, size, normalization=model.normalization)[None]
                self.inputs.append(pixels.numpy())
                self.logits.append(model(pixels, self.vocabulary).logits)
        self.labels = self.labelled(self.logits)

    def labelled(self, logits: list[Tensor]) -> list[Tensor]:
        sizes = [(image.height, image.width) for image in self.photos.images]
        maps = [self.rule.prepare(one) for one in logits]
        return [F.interpolate(one, size, mode="bilinear").argmax(1)[0] for one, size in zip(maps, sizes, strict=True)]

    def texts(self, run: Run) -> np.ndarray:
        names = [self.template.format(str(name)) for name in self.photos.names]
        return run(text_tower(self.model).tokenizer(names).numpy())[0]

    def of(self, image: Run, text: Run, head: Run) -> dict[str, Any]:
        texts = self.texts(text)
        logits = [torch.from_numpy(np.array(head(*image(pixels), texts)[0])) for pixels in self.inputs]
        labels = self.labelled(logits)
        same = [(one == other).float().mean() for one, other in zip(labels, self.labels, strict=True)]
        # classes that fast mode drops in one and not in the other differ by a hundred, and their labels tell
        pairs = [(a, b, (a > -50) & (b > -50)) for a, b in zip(logits, self.logits, strict=True)]
        errors = [float((a - b)[both].abs().max() / b[both].abs().max()) for a, b, both in pairs]
        return {"labels_same_percent": round(100 * float(torch.stack(same).mean()), 2),
                "worst_photo_percent": round(100 * float(min(same)), 2),
                "miou_percent": self.miou(labels), "miou_pytorch_percent": self.miou(self.labels),
                "error_of_largest_logit": f"{max(errors):.1e}"}  # fmt: skip

    def miou(self, labels: list[Tensor]) -> float | None:
        """Over the classes in the ground truth."""
        if self.photos.labels is None:
            return None
        matrix = ConfusionMatrix(len(self.photos.names))
        for one, truth in zip(labels, self.photos.labels, strict=True):
            matrix.add(one, truth)
        rows = matrix.rows([str(name) for name in self.photos.names])
        return round(100 * float(np.mean([row.iou for row in rows if row.labelled])), 2)


def export(model: fgaseg.FGASeg, folder: Path, precision: str, photos: Photos, names: list) -> None:
    if (folder / "manifest.json").exists():
        return
    calibration = photos.calibration if precision == "int8" else ()
    vocabulary = model.encode(names) if precision == "int8" else None
    options = fgaseg.ExportOptions(
        ("onnx", "openvino"), vocabulary=vocabulary, precision=precision, calibration=calibration
    )
    fgaseg.export_model(model, folder, options)


def megabytes(folder: Path, part: str, suffixes: tuple[str, ...]) -> float:
    files = [folder / f"{part}{suffix}" for suffix in suffixes]
    return round(sum(file.stat().st_size for file in files if file.exists()) / 1e6, 1)


def random_model() -> fgaseg.FGASeg:
    torch.manual_seed(0)
    encoder = {"name": "ViT-B-16", "pretrained": None}
    return fgaseg.FGASeg(fgaseg.ModelConfig(preset="released", encoder=encoder)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("demo", "photos", "random"))
    parser.add_argument("--model", help="of demo and photos")
    for name in ("images", "labels", "calibrate-list", "score-list"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--names", help="comma-separated; with --values, the values in the label files that they have")
    parser.add_argument("--values")
    parser.add_argument("--count", type=int, default=40, help="photos that are scored (default: 40)")
    parser.add_argument("--exports", type=Path, default=Path("runs/export_precision"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "export_precision.csv")
    options = parser.parse_args()
    model = random_model() if options.kind == "random" else fgaseg.load(options.model)
    names = options.names.split(",") if options.names else []
    photos = drawn(options.count) if options.kind == "demo" else photographed(options, names)
    comparison, rows = Comparison(model, photos), []
    for precision in PRECISIONS:
        folder = options.exports / options.kind / precision
        export(model, folder, precision, photos, photos.names)
        for runtime, (opened, suffixes) in RUNTIMES.items():
            runs = [opened(folder, part) for part in ("image", "text", "head")]
            found = comparison.of(*runs)
            sizes = {f"{part}_mb": megabytes(folder, part, suffixes) for part in ("image", "text", "head")}
            rows.append({"model": options.kind, "photos": len(photos.images), "classes": len(photos.names),
                         "runtime": runtime, "precision": precision, **found, **sizes, **machine()})  # fmt: skip
            print(json.dumps(rows[-1]))
    write(options.out, rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows in place of those of the same model that are there."""
    old = list(csv.DictReader(path.open())) if path.exists() else []
    kept = [row for row in old if row["model"] != rows[0]["model"]]

    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows([*kept, *rows])
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


if __name__ == "__main__":
    main()
