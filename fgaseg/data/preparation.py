"""`fgaseg data prepare`: converts benchmark sets as they are published into what is trained on and scored."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image

from ..config import DataConfig
from ..errors import DataError, ImageError
from ..files import atomic_write
from .benchmark_sets import BenchmarkSet, find_set, find_splits
from .folders import FolderDataset
from .images import load_pixels, open_image
from .names_files import names_text
from .set_files import SplitFiles, require_root
from .workers import run_tasks

SHORT_SIDE = 512  # of A-847's prepared photos

Outcome = Literal["converted", "empty", "failed", "disk full"]


@dataclass
class PrepareReport:
    """What ``prepare`` did for one split: how many label images, and why some failed."""

    set: str
    split: str
    converted: int = 0
    already: int = 0  # were there
    empty: int = 0  # without a labelled pixel: left out, as the protocol says
    dropped: int = 0  # photos without labels, or labels without a photo
    failed: dict[str, str] = field(default_factory=dict)  # stem: reason

    def count(self, stem: str, outcome: Outcome, reason: str, folder: Path) -> None:
        """Note what became of one label image in ``folder``. Raises DataError when the disk is full."""
        match outcome:
            case "disk full":
                raise DataError(f"{folder}: {reason}. Free some space and run the same command again to resume")
            case "converted":
                self.converted += 1
            case "empty":
                self.empty += 1
            case "failed":
                self.failed[stem] = reason


def prepare(
    names: Sequence[str],
    root: Path,
    *,
    split: str | None = None,
    out: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    workers: int = 0,
    progress: bool = False,
) -> list[PrepareReport]:
    """Convert published labels (and A-847's photos) into what is scored. The originals are only read.

    names     the sets; none: every set whose labels are below ``root``
    split     None: the splits that the protocol uses, as far as they are there
    out       write there instead of below ``root``; the originals are linked into it, so that it is a root of its own
    images    folder of a single set's photos, where they are not below ``root``; linked into ``out`` (None: ``root``)
    labels    likewise the published labels
    workers   processes; 0: this one
    progress  show a progress bar

    Files that exist are not written again, so that an interrupted run is resumed by running it again. A file that
    cannot be converted is reported and does not stop the others. Raises DataError when a set has no originals, or the
    disk is full.
    """
    if (images or labels) and (len(names) != 1 or (split is None and len(find_set(names[0]).usual_splits) > 1)):
        raise DataError("images and labels are those of one set: give its name, and the split where it has two")
    if labels and any(part.startswith("annotations_detectron2") for part in labels.resolve().parts):
        raise DataError(
            f"{labels}: holds prepared labels, by its name, and would be converted twice: name the folder of published "
            f"labels, or score these with fgaseg eval --data {names[0]} --images ... --labels ..."
        )
    if not (out and images):
        require_root(root)
    target, reports = out or root, []
    for benchmark, part in _available_splits(names, split, root, elsewhere=bool(images or labels)):
        if out or images or labels:
            _link_originals(SplitFiles(benchmark, part, root), target, images, labels)
        files = SplitFiles(benchmark, part, target)
        if missing := files.missing():
            raise DataError(f"{files.title}: cannot be prepared, missing: {'; '.join(missing)}")
        reports.append(_prepare_split(files, workers, progress))
    return reports


def prepare_folders(config: DataConfig, out: Path, *, workers: int = 0, progress: bool = False) -> PrepareReport:
    """Write a user's own labels as PNGs whose values are lines of a names file, which is written too.

    config    ``images``, ``labels``, ``names``, ``label_map``, ... of DataConfig: what the labels are and mean
    out       gets labels/<stem>.png, of the upright photos' size, and names.txt; void is 255 (65535 if that is a class)
    workers   processes; 0: this one
    progress  show a progress bar

    Files are written anew, since another label map gives others. A file that cannot be converted is reported. Raises
    DataError as FolderDataset does, or when the disk is full.
    """
    dataset = FolderDataset(config, "val")
    report = PrepareReport(dataset.name, "val", dropped=len(dataset.skipped))
    text = names_text(dataset.names)
    atomic_write(out / "names.txt", lambda file: file.write(text.encode()))
    tasks = [(dataset, index, out / "labels") for index in range(len(dataset))]
    for stem, outcome, reason in run_tasks(_convert_own, tasks, workers, f"preparing {dataset.name}", progress):
        report.count(stem, outcome, reason, out)
    return report


def _convert_own(dataset: FolderDataset, index: int, folder: Path) -> tuple[str, Outcome, str]:
    stem = dataset.pairs[index][0]
    void, kind = (255, np.uint8) if len(dataset.classes) <= 255 else (65535, np.uint16)
    try:
        labels = dataset.read_pair(index)[1]
        picture = Image.fromarray(np.where(labels == dataset.ignore, void, labels).astype(kind))
        atomic_write(folder / f"{stem}.png", lambda file: picture.save(file, format="PNG"))
    except (DataError, ImageError) as error:
        return stem, "failed", str(error)
    except OSError as error:
        return stem, _outcome(error), str(error)
    return stem, "converted", ""


def _available_splits(
    names: Sequence[str], split: str | None, root: Path, elsewhere: bool
) -> list[tuple[BenchmarkSet, str]]:
    """The sets and splits whose labels are there; a named set of which no split is there is kept, to be reported."""
    wanted = find_splits(names, split)
    here = [(one, part) for one, part in wanted if elsewhere or (root / one.splits[part].labels).exists()]
    if not names:
        if not here:
            raise DataError(
                f"{root} holds the labels of no benchmark set: fgaseg data list shows which folders belong there"
            )
        return here
    found = {one.name for one, _ in here}
    for one, part in wanted:
        if one.name in found and (one, part) not in here:
            warnings.warn(f"{one.name} {part}: {one.splits[part].labels} is not there: left out", stacklevel=3)
    return here + [(one, part) for one, part in wanted if one.name not in found]


def _link_originals(files: SplitFiles, out: Path, images: Path | None, labels: Path | None) -> None:
    """Link photos, labels and the list of a split into ``out``, where ``files`` has them or the caller says."""
    layout = files.layout
    wanted = {layout.images: images or files.root / layout.images, layout.labels: labels or files.root / layout.labels}
    if layout.images == layout.labels:
        if images and labels and images.resolve() != labels.resolve():
            raise DataError(
                f"{files.benchmark.name}: photos and labels are in one folder: give the same one for images and labels"
            )
        wanted = {layout.images: images or labels or files.root / layout.images}
    if layout.stems and "/" in layout.stems:
        wanted[layout.stems] = files.root / layout.stems
    for relative, given in wanted.items():
        source, link = given.resolve(), out / relative
        if given in (images, labels) and not source.exists():
            raise DataError(f"{given}: is missing: name the folder of {files.benchmark.name}'s originals")
        if not source.exists() or (link.exists() and link.resolve() == source):
            continue
        if link.exists() or link.is_symlink():
            raise DataError(f"{link}: is in the way of a link to {source}: remove it, or write to another folder")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)


def _prepare_split(files: SplitFiles, workers: int, progress: bool) -> PrepareReport:
    layout, root = files.layout, files.root
    report = PrepareReport(files.benchmark.name, files.split)
    photos, labels = files.published_photos(), files.published_labels()
    prepared, empty = files.prepared_labels(), files.empty()
    stems = [stem for stem in photos if stem in labels]
    if not stems and not prepared:
        raise DataError(
            f"{files.benchmark.name}: {root / layout.images} and {root / layout.labels} have no pair of the same name"
        )
    report.dropped = len(photos.keys() ^ labels.keys()) if labels else 0
    if layout.prepared_images:
        prepared_photos = files.scored_photos()
        prepared = {stem: file for stem, file in prepared.items() if stem in prepared_photos}
    report.already, report.empty = len(prepared), len(empty)
    label_folder = root / layout.prepared
    photo_folder = root / layout.prepared_images if layout.prepared_images else None
    for folder in filter(None, (label_folder, photo_folder)):
        for leftover in folder.glob(".*.tmp"):  # of a run that was killed
            leftover.unlink(missing_ok=True)
    tasks = [
        (files.benchmark, stem, photos[stem], labels[stem], label_folder, photo_folder)
        for stem in stems
        if stem not in prepared and stem not in empty
    ]
    for stem, outcome, reason in run_tasks(_convert, tasks, workers, f"preparing {files.title}", progress):
        report.count(stem, outcome, reason, label_folder)
        if outcome == "empty":
            empty.add(stem)
    if empty:
        text = "".join(f"{stem}\n" for stem in sorted(empty))
        atomic_write(files.empty_file, lambda file: file.write(text.encode()))
    return report


def _convert(
    benchmark: BenchmarkSet, stem: str, photo: Path, label: Any, label_folder: Path, photo_folder: Path | None
) -> tuple[str, Outcome, str]:
    """Write one label image (and photo): its stem, what became of it and, where it failed, why."""
    try:
        with open_image(photo) as image:
            labels = benchmark.convert(benchmark.read(label), label)
            width, height = image.size if photo_folder else _upright_size(image)
            if (height, width) != labels.shape:
                raise DataError(f"{photo} is {width}x{height}, its labels are {labels.shape[1]}x{labels.shape[0]}")
            if benchmark.drop_empty and (labels == benchmark.ignore).all():
                return stem, "empty", ""
            if photo_folder:
                small, labels = shrink(decode_unrotated(image, photo), labels)
                # quality 75, as in CAT-Seg's preparation: photos that were compressed again are what is scored
                atomic_write(photo_folder / f"{stem}.jpg", lambda file: small.save(file, format="JPEG", quality=75))
        if benchmark.suffix == ".png":
            options = {"format": "PNG"}
        else:
            options = {"format": "TIFF", "compression": "tiff_adobe_deflate"}
        target = label_folder / f"{stem}{benchmark.suffix}"
        atomic_write(target, lambda file: Image.fromarray(labels).save(file, **options))
    except (DataError, ImageError) as error:
        return stem, "failed", str(error)
    except OSError as error:
        return stem, _outcome(error), str(error)
    return stem, "converted", ""


def _outcome(error: OSError) -> Outcome:
    return "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height that ``read_image`` gives, without decoding the pixels."""
    width, height = image.size
    return (height, width) if image.getexif().get(ExifTags.Base.Orientation, 1) > 4 else (width, height)


def decode_unrotated(image: Image.Image, file: Path) -> Image.Image:
    """An opened photo as grey or RGB, without applying its EXIF orientation: what A-847's preparation shrinks."""
    load_pixels(image, file)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def shrink(image: Image.Image, labels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Resize a photo (bilinear, no antialiasing) and its labels [H, W] (nearest) to a shorter side of at most 512.

    Sizes, sampling positions and rounding are those of OpenCV's resize, which the protocol's preparation uses: label
    pixel i is the source's floor(i / scale), photo values differ by at most 1 of 255.
    """
    height, width = labels.shape
    if min(height, width) <= SHORT_SIDE:
        return image, labels
    new_height = SHORT_SIDE if width >= height else round(height / width * SHORT_SIDE)
    new_width = SHORT_SIDE if height >= width else round(width / height * SHORT_SIDE)
    # 1 / (new / old) and not old / new: OpenCV's rounding
    rows = np.minimum((np.arange(new_height) * (1 / (new_height / height))).astype(int), height - 1)
    columns = np.minimum((np.arange(new_width) * (1 / (new_width / width))).astype(int), width - 1)
    values = torch.from_numpy(np.array(image)).reshape(height, width, -1).permute(2, 0, 1)[None].float()
    values = torch.nn.functional.interpolate(values, (new_height, new_width), mode="bilinear")[0].permute(1, 2, 0)
    array = values.round().clamp(0, 255).byte().numpy()
    return Image.fromarray(array if image.mode == "RGB" else array[..., 0]), labels[rows[:, None], columns]
