"""`fgaseg segment`."""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    add_json,
    add_model_options,
    add_words,
    autocast,
    check_out,
    load_model,
    split_words,
)

if TYPE_CHECKING:
    from ..vocabulary import ClassNames

HELP = """\
Label every pixel of photos with one of the class names that you give. The labels are drawn over each photo, and their
shares are printed; with --json also the masks, as run lengths. The default model is CAT-Seg, whose weights (819 MB) are
fetched once; `fgaseg models` lists others.

  fgaseg segment street.jpg --classes "road, car, person riding a bicycle, sky"
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa, wooden floor" --out labelled.png
  fgaseg segment photo.jpg --model runs/mine/model --classes "car | automobile | van, person, sky"
  fgaseg segment photos/*.jpg --model runs/mine/model --names names.txt --out labelled/
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa" --pseudo-masks
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa" inference=windows class_maps_budget=500
  fgaseg segment photo.jpg --model runs/a/model --compare runs/b/model --classes "cat, sofa"     side by side (Fig. 7)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "PHOTO | key=value",
              "photos; overrides of the configuration of every model, e.g. inference=windows")  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})")
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument("--classes", help="names with commas between them; | between synonyms of one class")
    names.add_argument("--names", type=Path, help="file of names: text, JSON, YAML, CSV, a label map of a tool, ...")
    parser.add_argument("--out", type=Path, help="picture or folder to write (default: <photo>_labels.png)")
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
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    from ..vocabulary import check_names

    photos, overrides = split_words(options.words)
    outputs = _outputs(photos, options.out)
    classes = check_names(_classes(options))
    models = {source: load_model(source, overrides, options.device) for source in [options.model, *options.compare]}
    for photo, out in zip(photos, outputs, strict=True):
        with autocast(options.precision, options.device):
            row = _segment_one(models, photo, classes, out, options.pseudo_masks)
        if options.json:
            print(json.dumps(row), flush=True)  # at once: earlier results survive a bad photo
        else:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in row["classes"].items())
            print(f"{photo}: {shares} -> {out}")


def _classes(options: argparse.Namespace) -> "ClassNames":
    from ..data import read_classes, read_typed

    if options.names:
        return read_classes(options.names)
    if re.search(r"\.(txt|json|ya?ml|csv|names)$", options.classes.strip().lower()):
        raise UsageError(f"--classes {options.classes}: is a file, and not names: give it as --names")
    return read_typed(options.classes)


def _outputs(photos: list[str], out: Path | None) -> list[Path]:
    """The picture to write for each photo: --out itself for one photo if it has a suffix, else a file in that folder.

    Raises UsageError if there are no photos, two would be written to one file, or the folder cannot be written to.
    """
    if not photos:
        raise UsageError("give the photos to label")
    outputs = [Path(f"{Path(photo).stem}_labels.png") for photo in photos]
    if out is not None:
        in_folder = len(photos) > 1 or out.is_dir() or not out.suffix
        outputs = [out / name for name in outputs] if in_folder else [out]
    if twice := {str(path) for path in outputs if outputs.count(path) > 1}:
        raise UsageError(f"several photos would be written to {', '.join(sorted(twice))}: label them in separate runs")
    for folder in {path.parent for path in outputs}:
        check_out(folder)
    return outputs


def _segment_one(
    models: dict[str, Any], photo: str, classes: "ClassNames", out: Path, with_masks: bool
) -> dict[str, Any]:
    """Label one photo with every model and write the pictures; the figures are those of the first model."""
    from ..inference import comparison, draw_pseudo_masks, pseudo_masks

    results = {name: model.segment(photo, classes) for name, model in models.items()}
    name, first = next(iter(results.items()))
    if len(results) > 1:
        picture = comparison(first.image, [(title, r.labels) for title, r in results.items()], first.classes)
    else:
        picture = first.overlay()
    _save_picture(picture, out)
    row = {
        "image": photo,
        "size": [first.image.height, first.image.width],
        "picture": str(out),
        "classes": first.present,
        "masks": first.run_lengths(),
    }
    if with_masks:
        masks = pseudo_masks(models[name], first.image, models[name].encode(classes))
        row["pseudo_masks"] = str(out.with_name(f"{out.stem}_masks.png"))
        _save_picture(draw_pseudo_masks(first, masks), Path(row["pseudo_masks"]))
    return row


def _save_picture(picture: Any, path: Path) -> None:
    from ..files import atomic_write

    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    atomic_write(path, lambda file: picture.save(file, format=kind))
