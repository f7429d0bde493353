"""`fgaseg segment`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import add_json, add_model_options, autocast, check_out, load_model

HELP = """\
Label photos with the names you give.

  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa, wooden floor" --out labelled.png
  fgaseg segment photos/*.jpg --model runs/mine/model --names names.txt --out labelled/
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa" --pseudo-masks
  fgaseg segment photo.jpg --model runs/a/model --compare runs/b/model --classes "cat, sofa"     side by side (Fig. 7)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("images", nargs="+", help="photos")
    parser.add_argument("--model", required=True, help="folder or hub id")
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument("--classes", help="names, separated by commas")
    names.add_argument("--names", type=Path, help="file with one name a line, or a JSON list")
    parser.add_argument("--out", type=Path, help="picture or folder to write (default: <photo>_labels.png)")
    parser.add_argument(
        "--pseudo-masks", action="store_true", help="also draw S_g and S_l of each class found (Fig. 6)"
    )
    parser.add_argument("--compare", action="append", default=[], help="another model to draw beside (Fig. 7)")
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    from ..data import read_names
    from ..vocabulary import check_names

    outputs = [_output(options, source) for source in options.images]
    for folder in {out.parent for out in outputs}:
        check_out(folder)
    if twice := {str(out) for out in outputs if outputs.count(out) > 1}:
        raise UsageError(f"several photos would be written to {', '.join(sorted(twice))}: label them in separate runs")
    names = read_names(options.names) if options.names else [n.strip() for n in options.classes.split(",")]
    check_names(names)
    models = {source: load_model(source, options) for source in [options.model, *options.compare]}
    for source, out in zip(options.images, outputs, strict=True):
        with autocast(options):
            row = _segment_one(models, source, names, out, options.pseudo_masks)
        if options.json:
            print(json.dumps(row), flush=True)  # a line a photo: what is done stays done if a later photo is corrupt
        else:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in row["classes"].items())
            print(f"{source}: {shares} -> {out}")


def _segment_one(models: dict[str, Any], source: str, names: list[str], out: Path, with_masks: bool) -> dict[str, Any]:
    """Label one photo with the first model (drawn beside the others if there are any) and write the pictures."""
    from ..inference import comparison, draw_pseudo_masks, pseudo_masks

    results = {name: model.segment(source, names) for name, model in models.items()}
    name, first = next(iter(results.items()))
    if len(results) > 1:
        picture = comparison(first.image, [(title, r.labels) for title, r in results.items()], names)
    else:
        picture = first.overlay()
    _save_picture(picture, out)
    row = {
        "image": source,
        "size": [first.image.height, first.image.width],
        "picture": str(out),
        "classes": first.present,
        "masks": first.run_lengths(),
    }
    if with_masks:
        masks = pseudo_masks(models[name], first.image, models[name].encode(names))
        row["pseudo_masks"] = str(out.with_name(f"{out.stem}_masks.png"))
        _save_picture(draw_pseudo_masks(first, masks), Path(row["pseudo_masks"]))
    return row


def _output(options: argparse.Namespace, source: str) -> Path:
    name = f"{Path(source).stem}_labels.png"
    if options.out is None:
        return Path(name)
    if len(options.images) > 1 or options.out.is_dir() or not options.out.suffix:
        return options.out / name
    return options.out


def _save_picture(picture: Any, path: Path) -> None:
    from ..files import atomic_write

    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    atomic_write(path, lambda file: picture.save(file, format=kind))
