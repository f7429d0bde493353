"""`fgaseg segment`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .labeller import Labeller
from .options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    add_background_options,
    add_class_options,
    add_json,
    add_model_options,
    add_view_options,
    add_words,
    split_words,
)
from .photos import Photo, find_photos, picture_paths
from .printing import say, say_json
from .processes import process
from .result_files import write_picture
from .saving import run_saving
from .stages import Failure, report, run_stages

if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Result

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
  fgaseg segment photos/ --model runs/mine/model --names names.txt --save mask,overlay,coco --out labelled/
  fgaseg segment photos/ --model runs/mine/model --names names.txt --save dataset --out labelled_set/   to train on
  torchrun --nproc-per-node 8 -m fgaseg segment photos/ --names names.txt --save mask     photos shared by 8 GPUs
  fgaseg segment scene.tif --model runs/mine/model --classes "water, forest" --bands 4,3,2 --range 2%,98%

Every pixel gets one of the names, whether it is there or not: name all that the photos show, or give a --background.
PHOTO is a file, a folder (with all in it), a pattern such as "photos/**/*.jpg", a web address, @list.txt (a list of
photos, one a line), or - (an image on standard input). A photo that cannot be read is named, the others are labelled,
and the exit status is 1. With --save, a run that was stopped goes on with the same command. Rasters and videos have
commands of their own: raster, video.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "PHOTO | key=value",
              "photos, folders, patterns, addresses, @lists or -; overrides of the configuration of every model, e.g. "
              "inference=windows")  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})")
    add_class_options(parser)
    parser.add_argument("--out", help="picture (.png, .jpg, .webp) or folder to write (default: <photo>_labels.png; "
                        "with --save: labelled)")  # fmt: skip
    parser.add_argument("--save", metavar="KIND[,KIND...]",
                        help="write results as files, below the folder --out: mask, overlay, coco, probabilities, "
                        "dataset; or one of them of one photo as the file --out")  # fmt: skip
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
    if options.save is not None:
        return run_saving(options, photos, overrides)
    outputs = picture_paths(photos, options.out)
    if process()[1] > 1:
        raise UsageError("several processes share photos with --save alone: give --save overlay, or unset WORLD_SIZE")
    jobs = list(zip(photos, outputs, strict=True))
    labeller = None if all(photo.error for photo in photos) else Labeller(options, overrides)
    failed: dict[str, str] = {}
    stages = _run(labeller, jobs, options)
    for (photo, _), row in track(stages, "labelling", len(jobs), unit="photos", shown=len(jobs) > 1):
        if isinstance(row, Failure):
            failed[photo.name] = row.reason
            if len(photos) > 1:
                say(row.reason, error=True)
            row = {"image": photo.name, "error": row.reason}
        if options.json:
            say_json(row)
        elif "error" not in row:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in row["classes"].items())
            say(f"{row['image']}: {shares} -> {row['picture']}")
    return report(failed, len(photos))


Job = tuple[Photo, Path]


def _run(labeller: Labeller | None, jobs: list[Job], options: argparse.Namespace) -> Iterator[tuple[Job, Any]]:
    """Each photo with what is printed about it, or the Failure of one that cannot be labelled."""
    if labeller is None:
        return iter([(job, Failure(job[0].error)) for job in jobs])

    def label(job: Job, image: "Image.Image") -> tuple[dict[str, "Result"], Any]:
        results = labeller.label(job[0], image)
        return results, labeller.pseudo_masks(next(iter(results.values()))) if options.pseudo_masks else None

    return run_stages(jobs, lambda job: job[0].name, lambda job: labeller.read(job[0]), label, _write,
                      lambda image: image.width * image.height)  # fmt: skip


def _write(job: Job, labelled: tuple[dict[str, "Result"], Any]) -> dict[str, Any]:
    """Draw the pictures of a photo; the figures are those of the first model."""
    from ..inference import comparison, draw_pseudo_masks

    (photo, out), (results, masks) = job, labelled
    first = next(iter(results.values()))
    if len(results) > 1:
        picture = comparison(first.image, [(title, r.labels) for title, r in results.items()], first.classes)
    else:
        picture = first.overlay()
    write_picture(picture, out)
    row: dict[str, Any] = {
        "image": photo.name,
        "size": [first.image.height, first.image.width],
        "picture": str(out),
        "classes": first.present,
        "masks": first.run_lengths(),
    }
    if masks is not None:
        row["pseudo_masks"] = str(out.with_name(f"{out.stem}_masks.png"))
        write_picture(draw_pseudo_masks(first, masks), Path(row["pseudo_masks"]))
    return row
