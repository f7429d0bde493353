"""`fgaseg export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import (
    MODEL_HELP,
    add_class_options,
    add_json,
    add_words,
    check_out,
    class_values,
    load_model,
    model_and_overrides,
    whole_numbers,
)
from .photos import STDIN, find_photos
from .printing import say, say_json

if TYPE_CHECKING:
    from ..export import ExportOptions, Tiles
    from ..model import FGASeg

HELP = """\
Write a model as graphs for programs without fgaseg: ONNX Runtime, OpenVINO, PyTorch alone. Three graphs keep the class
names free: image (pixels to features), text (tokens to embeddings) and head (features and embeddings to logits); batch,
image size and number of classes may be any. A manifest beside them says what goes in and out, and how.

  fgaseg export cat-seg-b16 --out exported                               ONNX: image, text, head
  fgaseg export runs/mine/model --to onnx,openvino,torch --out exported
  fgaseg export runs/mine/model --parts image,head --names names.txt --out exported       a prepared vocabulary beside
  fgaseg export runs/mine/model --parts whole --classes "road, roof, tree" --output labels --out exported
  fgaseg export runs/mine/model --precision int8 --calibrate photos/ --to onnx,openvino --out exported
  fgaseg export runs/mine/model --tile 384 --classes "road, roof, tree" --resolution 10 --out exported     for QGIS

The whole graph takes an RGB image with values in 0..1; with --classes or --names these are built in, otherwise text
embeddings are its second input.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "MODEL | key=value", "the model (or --model); overrides of its configuration, e.g. fast=false")
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; one that is an export is replaced")
    parser.add_argument("--to", metavar="TARGET[,TARGET...]", default="onnx",
                        help="onnx, openvino (.xml), torch (.pt2 of torch.export), aoti (with --tile: .pt2 of "
                        "AOTInductor, for C++) (default: onnx)")  # fmt: skip
    parser.add_argument("--parts", metavar="PART[,PART...]", help="image, text, head, whole (default: image,text,head; "
                        "with --tile or --output: whole)")  # fmt: skip
    add_class_options(parser, required=False)
    parser.add_argument("--background", metavar="NAMES", help="names of everything else, as one more class")
    parser.add_argument("--output", choices=("logits", "probabilities", "labels"), help="of the whole graph: logits on "
                        "its own grid, or probabilities or labels at the image's size (default: logits; with --tile: "
                        "probabilities)")  # fmt: skip
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="side of square images: for programs that cut "
                        "rasters into tiles of one size, such as QGIS's plugin Deepness")  # fmt: skip
    parser.add_argument("--resolution", type=float, metavar="CM", help="with --tile: centimetres a pixel on the ground")
    parser.add_argument("--overlap", type=int, metavar="PERCENT", help="with --tile: of neighbours (default: 15)")
    parser.add_argument("--precision", choices=("float32", "float16", "int8"), default="float32",
                        help="of weights and arithmetic: lower ones change some labels; int8 needs --calibrate "
                        "(default: float32)")  # fmt: skip
    parser.add_argument("--calibrate", action="append", default=[], metavar="PHOTOS",
                        help="with --precision int8: a folder, pattern, @list or photo such as the model will see; 16 "
                        "of them are used; may be repeated")  # fmt: skip
    parser.add_argument("--check", action="store_true", help="run every file and compare it with the model, over "
                        "numbers of classes and image sizes; exit status 1 if one differs")  # fmt: skip
    parser.add_argument("--check-classes", type=whole_numbers, metavar="T[,T...]",
                        help="with --check: numbers of classes, up to 847 (default: 1,3,150,847)")  # fmt: skip
    parser.add_argument("--opset", type=int, help="version of ONNX's operators (default: the exporter's)")


def run(options: argparse.Namespace) -> int:
    from ..export import check_export, export_model

    source, overrides = model_and_overrides(options.model, options.words)
    check_arguments(options)
    check_out(options.out)
    model = load_model(source, overrides, "cpu")
    chosen = export_options(options, model, source)
    manifest = export_model(model, options.out, chosen)
    if not options.json:
        say(*lines(manifest, options.out))
    rows = []
    if options.check:
        given = {"classes": options.check_classes} if options.check_classes else {}
        rows = check_export(model, options.out, **given)
        manifest["check"] = rows
    if options.json:
        say_json(manifest)
    elif options.check:
        print_check(rows)
    return 1 if any(row["failed"] for row in rows) else 0


def check_arguments(options: argparse.Namespace) -> None:
    """Raise UsageError, before a model is loaded, for options that need others."""
    for name in ("resolution", "overlap"):
        if getattr(options, name) is not None and options.tile is None:
            raise UsageError(f"--{name} is of --tile: give both")
    if options.calibrate and options.precision != "int8":
        raise UsageError("--calibrate is of --precision int8: give both")
    if options.precision == "int8" and not options.calibrate and options.parts != "text":
        raise UsageError("--precision int8: give --calibrate PHOTOS, such as the model will see; a dozen are enough")
    if STDIN in options.calibrate:
        raise UsageError("--calibrate -: photos for calibration are files: give a folder or a pattern")
    if options.check_classes and not options.check:
        raise UsageError("--check-classes is of --check: give both")
    classes = options.classes or options.names
    if options.tile is not None and not classes:
        raise UsageError("--tile: programs that cut tiles know nothing of text: give --classes or --names")
    if options.background is not None and not classes:
        raise UsageError("--background is one class more: give --classes or --names too")
    tiles_of(options)


def tiles_of(options: argparse.Namespace) -> Tiles | None:
    from ..export import Tiles

    if options.tile is None:
        return None
    return Tiles(options.tile, options.resolution, 15 if options.overlap is None else options.overlap)


def export_options(options: argparse.Namespace, model: FGASeg, source: str) -> ExportOptions:
    from ..export import ExportOptions

    vocabulary = None
    if options.classes or options.names:
        vocabulary = model.encode(class_values(options), background=options.background)
    tiles = tiles_of(options)
    parts = options.parts or ("whole" if tiles or options.output else "image,text,head")
    return ExportOptions(
        to=_words(options.to),
        parts=_words(parts),
        vocabulary=vocabulary,
        output=options.output or ("probabilities" if tiles else "logits"),
        tiles=tiles,
        precision=options.precision,
        calibration=calibration(options),
        opset=options.opset,
        name=Path(source).name if Path(source).exists() else source,
    )


def calibration(options: argparse.Namespace) -> list[str]:
    """The photos of --calibrate. Raises UsageError for the first that is not there."""
    if not options.calibrate:
        return []
    photos = find_photos(options.calibrate)
    if wrong := next((photo.error for photo in photos if photo.error), ""):
        raise UsageError(f"--calibrate {wrong}")
    return [photo.name for photo in photos]


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def lines(manifest: dict[str, Any], folder: Path) -> list[str]:
    """What was written, for people."""
    found = []
    for name, entry in manifest["files"].items():
        size = entry["bytes"] + sum((folder / file).stat().st_size for file in entry.get("data", {}))
        ports = [", ".join(f"{port['name']} {_shape(port)}" for port in entry[key]) for key in ("inputs", "outputs")]
        found.append(f"{name} ({size / 1e6:.1f} MB): {ports[0]} -> {ports[1]}")
        if "opset" in entry:
            operators = ", ".join(f"{count} {type}" for type, count in entry["operators"].items())
            found.append(f"  opset {entry['opset']}: {operators}")
    found += [f"note: {limit}" for limit in manifest["limits"]]
    return [*found, f"written: {folder}"]


def print_check(rows: list[dict[str, Any]]) -> None:
    """A table of the comparisons, and one line for each that does not pass."""
    from rich.table import Table

    from .tables import console

    table = Table(
        "part", "runtime", "precision", "T", "B", "image", "error", "labels changed", "classes differ", box=None
    )
    for row in rows:
        size = "" if row["height"] is None else f"{row['height']}x{row['width']}"
        numbers = (_number(row["error"], ".1e"), _number(row["labels_changed"], ".4%"), str(row["classes_differ"]))
        table.add_row(row["part"], row["runtime"], row["precision"], _number(row["classes"], "d"),
                      _number(row["batch"], "d"), size, *numbers)  # fmt: skip
    terminal = console()
    terminal.print(table, width=max(terminal.width, 110))  # a file, too, gets whole words
    for row in rows:
        if row["failed"]:
            where = f"{row['part']} in {row['runtime']}, T = {row['classes']}"
            terminal.print(f"failed: {where}: {row['failed']}", highlight=False, soft_wrap=True)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _shape(port: dict[str, Any]) -> str:
    return f"[{', '.join(map(str, port['shape']))}]"
