"""`fgaseg raster`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    add_background_options,
    add_class_options,
    add_json,
    add_model_options,
    add_view_options,
    add_words,
    background_values,
    check_out,
    class_values,
    load_model,
    split_words,
    view_values,
)
from .printing import say, say_json

if TYPE_CHECKING:
    from ..inference import RasterLabels

HELP = """\
Label a raster of any size with the class names that you give: a GeoTIFF, JPEG 2000, a photo of 200 megapixels. It is
seen in overlapping tiles whose results are blended, in bounded memory. Labels are written as a GeoTIFF with the
raster's georeference, the classes' colours and names; pixels without a value are void (255). It needs
pip install 'fgaseg[geo]'. The default model is CAT-Seg, as of `fgaseg segment`.

  fgaseg raster scene.tif --model runs/mine/model --classes "water, forest, town"
  fgaseg raster scene.tif --model runs/mine/model --classes "water, forest" --out labels.tif --polygons labels.gpkg
  fgaseg raster scene.tif --model runs/mine/model --classes "water, forest" --bands 4,3,2 --range 2%,98%
  fgaseg raster drone.tif --model runs/mine/model --names names.txt --tile 1536     seen coarser: a tile at image_size
  fgaseg raster scene.tif --model runs/mine/model --classes "water, forest" --background other --threshold 0.3 --json

RASTER is anything that GDAL opens; of many files, make one with gdalbuildvrt. A file that exists under the name of
--out is replaced when the new one is complete; interrupted, nothing is left, and the work begins again.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "RASTER | key=value", "the raster; overrides of the model's configuration, e.g. image_size=768")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})")
    add_class_options(parser)
    parser.add_argument("--out", type=Path, help="GeoTIFF of labels to write (default: <raster>_labels.tif)")
    parser.add_argument("--polygons", type=Path, metavar="FILE", help="also the outlines of labels, .gpkg or .geojson")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="side of a tile, which is seen at the model's image_size: a larger one is seen coarser (default: "
        "image_size, every pixel as it is)",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="what a tile shares with the next at least (default: a quarter of a tile)",
    )
    add_background_options(parser)
    add_view_options(parser)
    add_model_options(parser)


def run(options: argparse.Namespace) -> int:
    import torch

    from ..inference import segment_raster
    from ..inference.raster_files import raster_environment

    words, overrides = split_words(options.words)
    if len(words) != 1:
        raise UsageError(f"give one raster, not {', '.join(words) or 'none'}; of many files, gdalbuildvrt makes one")
    out = options.out or Path(f"{Path(words[0]).stem}_labels.tif")
    for file in (out, options.polygons):
        check_out(None if file is None else file.parent)
    background, threshold = background_values(options)
    classes, view = class_values(options), view_values(options)
    with raster_environment():  # a missing package is told before a model is fetched
        model = load_model(options.model, overrides, options.device, options.precision)
    try:
        done = segment_raster(
            model, words[0], classes, out, **view, background=background, threshold=threshold, tile=options.tile,
            overlap=options.overlap, polygons=options.polygons, progress=True,
        )  # fmt: skip
    except (torch.OutOfMemoryError, MemoryError):
        raise UsageError(f"{words[0]}: there is not enough memory for a tile: give a smaller image_size=") from None
    row = _row(words[0], done)
    if options.json:
        say_json(row)
    else:
        say(_line(words[0], done))
    return 0


def _row(raster: str, done: "RasterLabels") -> dict[str, Any]:
    """What is printed with --json: shares are of the pixels that have a label."""
    pixels = dict(zip(reversed(done.classes), reversed(done.pixels), strict=True))  # of equal names the first
    classes = {}
    for name, share in done.present.items():
        classes[name] = {"share": share, "pixels": pixels[name]}
        if done.pixel_area is not None:
            classes[name]["square_metres"] = pixels[name] * done.pixel_area
    row = {"raster": raster, "labels": str(done.path), "size": list(done.size), "classes": classes, "void": done.void}
    return row if done.polygons is None else row | {"polygons": str(done.polygons)}


def _line(raster: str, done: "RasterLabels") -> str:
    parts = []
    for name, share in done.present.items():
        number = done.classes.index(name)
        area = "" if done.pixel_area is None else f" ({_area(done.pixels[number] * done.pixel_area)})"
        parts.append(f"{name} {share:.1%}{area}")
    void = done.void / (done.size[0] * done.size[1])
    if void:
        parts.append(f"no value {void:.1%} of it")
    files = " and ".join(str(file) for file in (done.path, done.polygons) if file is not None)
    return f"{raster}: {', '.join(parts)} -> {files}"


def _area(square_metres: float) -> str:
    return f"{square_metres / 1e6:,.2f} km²" if square_metres >= 1e5 else f"{square_metres:,.0f} m²"
