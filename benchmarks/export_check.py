"""Models of ViT-B/16 size, exported to every target and compared with PyTorch: the largest errors, in one table.

    python benchmarks/export_check.py --csv FILE [--models cat-seg,released] [--parts head] [--to onnx,openvino,torch]
                                      [--classes 1,3,150,847] [--folder exported]

Random weights. The models: `demo` (that of `fgaseg demo`), `cat-seg` (CAT-Seg's configuration), FGAseg in the presets
`paper` and `released`, and both in fast mode. Rows are added to those that FILE has; a model's earlier rows of the same
part and program are replaced. An export in FOLDER/<model> that is there already is not made again.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import machine

from fgaseg import FGASeg, ModelConfig, load_config
from fgaseg.environment import version
from fgaseg.export import PARTS, TARGETS, ExportOptions, check_export, export_model

CAT_SEG = {"p2t_layers": 0, "t2p": False, "lcs": False}
MODELS = {
    "cat-seg": {"preset": "released", **CAT_SEG},
    "released": {"preset": "released"},
    "released fast": {"preset": "released", "fast": True},
    "paper": {"preset": "paper"},
    "paper fast": {"preset": "paper", "fast": True},
}
PROGRAMS = ("onnxruntime", "openvino")
FREE = [to for to in TARGETS if to != "aoti"]  # whose graphs are of any size
FIELDS = ("model", "part", "runtime", "precision", "classes", "batch", "height", "width", "error", "labels_changed",
          "classes_differ", "failed")  # fmt: skip


def model_of(name: str) -> FGASeg:
    torch.manual_seed(0)
    if name == "demo":
        config = load_config(Path(__file__).parents[1] / "configs/demo.yaml").model
    else:
        encoder = {"name": "ViT-B-16-quickgelu", "pretrained": None}
        config = ModelConfig(encoder=encoder, **MODELS[name])  # type: ignore[arg-type]
    model = FGASeg(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith(("pad_token", "pad_guidance")):  # zero in a new model
                value.normal_()
    return model


def measure(name: str, options: argparse.Namespace, folder: Path) -> list[dict]:
    model = model_of(name)
    begin = time.perf_counter()
    if not (folder / "manifest.json").exists():
        export_model(model, folder, ExportOptions(tuple(options.to), tuple(options.parts), name=name))
        print(f"{name}: exported in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    begin = time.perf_counter()
    rows = check_export(model, folder, classes=options.classes)
    print(f"{name}: checked in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return [{"model": name, **row} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--models", default="demo," + ",".join(MODELS))
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS[:3]))
    parser.add_argument("--to", type=lambda text: text.split(","), default=list(FREE))
    parser.add_argument("--classes", type=lambda text: [int(n) for n in text.split(",")], default=[1, 3, 150, 847])
    parser.add_argument("--folder", type=Path, help="keep the exports here")
    options = parser.parse_args()
    here = machine() | {name: version(name) for name in PROGRAMS}
    rows = []
    if options.csv.exists():
        with options.csv.open(newline="") as file:
            rows = list(csv.DictReader(file))
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(name, options, (options.folder or Path(scratch)) / name.replace(" ", "_"))
        new = {(name, row["part"], row["runtime"]) for row in found}
        rows = [row for row in rows if (row["model"], row["part"], row["runtime"]) not in new]
        rows += [row | here for row in found]
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*FIELDS, *here], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(json.dumps(max(found, key=lambda row: row["error"] or 0)), file=sys.stderr)
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
