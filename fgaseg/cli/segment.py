"""`fgaseg segment`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from .options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    add_background_options,
    add_class_options,
    add_json,
    add_model_options,
    add_view_options,
    add_words,
    autocast,
    background_values,
    class_values,
    load_model,
    split_words,
    view_values,
)
from .photos import PICTURES, Photo, find_photos, picture_paths

LISTED = 5  # photos that the summary names

if TYPE_CHECKING:
    from ..vocabulary import ClassNames

HELP = """\
Label every pixel of photos with one of the class names that you give. The labels are drawn over each photo, and their
shares are printed; with --json also the masks, as run lengths. The default model is CAT-Seg, whose weights (819 MB) are
fetched once; `fgaseg models` lists others.

  fgaseg segment street.jpg --classes "road, car, person riding a bicycle, sky"
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa, wooden floor" --out labelled.png
  fgaseg segment photo.jpg --model runs/mine/model --classes "car | automobile | van, person, sky"
  fgaseg segment photos/ --model runs/mine/model --names names.txt --out labelled/
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa" --pseudo-masks
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa" inference=windows class_maps_budget=500
  fgaseg segment photo.jpg --model runs/a/model --compare runs/b/model --classes "cat, sofa"     side by side (Fig. 7)
  fgaseg segment scene.tif --model runs/mine/model --classes "water, forest" --bands 4,3,2 --range 2%,98%

Every pixel gets one of the names, whether it is there or not: name all that the photos show, or give a --background.
PHOTO is a file, a folder (with all in it), a pattern such as "photos/**/*.jpg", a web address, @list.txt (a list of
photos, one a line), or - (an image on standard input). A photo that cannot be read is named, the others are labelled,
and the exit status is 1.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "PHOTO | key=value",
              "photos, folders, patterns, addresses, @lists or -; overrides of the configuration of every model, e.g. "
              "inference=windows")  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})")
    add_class_options(parser)
    parser.add_argument("--out", help="picture (.png, .jpg, .webp) or folder to write (default: <photo>_labels.png)")
    parser.add_argument(
        "--pseudo-masks", action="store_true", help="also draw S_g and S_l of each class found (the paper's Fig. 6)"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="MODEL",
        help="another model, drawn beside the first (Fig. 7); may be repeated",
    )
    add_background_options(parser)
    add_view_options(parser)
    add_model_options(parser)


def run(options: argparse.Namespace) -> int:
    from ..progress import track

    words, overrides = split_words(options.words)
    photos = find_photos(words)
    outputs = picture_paths(photos, options.out)
    view = view_values(options)
    classes = class_values(options)
    models = {}
    if not all(photo.error for photo in photos):
        models = {source: load_model(source, overrides, options.device) for source in [options.model, *options.compare]}
    failed: dict[str, str] = {}
    for photo, out in track(
        zip(photos, outputs, strict=True), "labelling", len(photos), unit="photos", shown=len(photos) > 1
    ):
        row = _row(models, photo, view, classes, out, options)
        if "error" in row:
            failed[photo.name] = row["error"]
            if len(photos) > 1:
                print(row["error"], file=sys.stderr)
        if options.json:
            print(json.dumps(row), flush=True)  # at once: what is done survives whatever comes
        elif "error" not in row:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in row["classes"].items())
            print(f"{row['image']}: {shares} -> {out}", flush=True)
    return _report(failed, len(photos))


def _report(failed: dict[str, str], count: int) -> int:
    """The exit status; of several photos, how many were not labelled is printed on stderr."""
    if not failed:
        return 0
    if count == 1:
        raise ImageError(next(iter(failed.values())))
    listed = ", ".join(list(failed)[:LISTED]) + (", ..." if len(failed) > LISTED else "")
    print(f"fgaseg segment: {len(failed)} of {count} photos were not labelled: {listed}", file=sys.stderr)
    return 1


def _row(
    models: dict[str, Any],
    photo: Photo,
    view: dict[str, Any],
    classes: "ClassNames",
    out: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What is printed about one photo: the figures, or the name and the error of one that cannot be labelled."""
    import torch

    try:
        if photo.error:
            raise ImageError(photo.error)
        with autocast(options.precision, options.device):
            return _segment_one(models, photo, view, classes, out, options)
    except (torch.OutOfMemoryError, MemoryError):
        return {"image": photo.name, "error": f"{photo.name}: there is not enough memory for it: make it smaller"}
    except ImageError as error:
        return {"image": photo.name, "error": str(error)}


def _segment_one(
    models: dict[str, Any],
    photo: Photo,
    view: dict[str, Any],
    classes: "ClassNames",
    out: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Label one photo with every model and write the pictures; the figures are those of the first model."""
    from ..data import read_image
    from ..inference import comparison, draw_pseudo_masks, pseudo_masks

    image = read_image(photo.source(), **view)
    background, threshold = background_values(options)
    results = {
        name: model.segment(image, classes, background=background, threshold=threshold)
        for name, model in models.items()
    }
    name, first = next(iter(results.items()))
    if len(results) > 1:
        picture = comparison(first.image, [(title, r.labels) for title, r in results.items()], first.classes)
    else:
        picture = first.overlay()
    _save_picture(picture, out)
    row = {
        "image": photo.name,
        "size": [first.image.height, first.image.width],
        "picture": str(out),
        "classes": first.present,
        "masks": first.run_lengths(),
    }
    if options.pseudo_masks:
        masks = pseudo_masks(models[name], first.image, models[name].encode(classes))
        row["pseudo_masks"] = str(out.with_name(f"{out.stem}_masks.png"))
        _save_picture(draw_pseudo_masks(first, masks), Path(row["pseudo_masks"]))
    return row


def _save_picture(picture: Any, path: Path) -> None:
    from ..files import atomic_write

    kind = PICTURES[path.suffix.lower()]
    try:
        atomic_write(path, lambda file: picture.save(file, format=kind))
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None):  # a full disk
            raise
        size = f"{picture.width}x{picture.height}"
        raise ImageError(f"{path}: {size} cannot be written as {kind} ({error}): give --out a .png") from error
