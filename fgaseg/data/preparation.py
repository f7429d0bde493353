"""`fgaseg data`: the benchmark sets from what was downloaded to what is scored, converted and checked."""

from __future__ import annotations

import errno
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from ..config import DataConfig
from ..errors import DataError, ImageError
from ..files import atomic_write
from .benchmark_sets import SETS, BenchmarkSet, find_set, prepare_command, set_in_folders
from .folders import FolderDataset, read_labels
from .images import open_image, read_image
from .label_formats import RunLengths

SHORT_SIDE = 512  # of A-847's photos
SHOWN = 10  # lines of one kind that a table shows


@dataclass
class Prepared:
    """What ``prepare`` did for one split: numbers of label pictures, and the reason of each failure."""

    set: str
    split: str
    converted: int = 0
    already: int = 0
    empty: int = 0  # without any labelled pixel: left out, as the protocol says
    dropped: int = 0  # photos without labels, or labels without photo
    failed: dict[str, str] = field(default_factory=dict)  # stem: reason


@dataclass
class Checked:
    """What ``check`` found for one split."""

    set: str
    split: str
    expected: int
    photos: int = 0
    labels: int = 0  # as published
    pairs: int = 0
    prepared: int = 0
    empty: int = 0
    values: list[int] | None = None  # smallest and largest label value, as published or else as prepared
    missing: list[str] = field(default_factory=list)  # what is not there, and the archive that it comes from
    problems: dict[str, list[str]] = field(default_factory=dict)  # kind: files
    state: str = ""  # "absent", "wrong", "incomplete", "not prepared" or "ready"


def list_sets() -> list[dict[str, Any]]:
    """The registry as plain JSON types, one row a split."""
    return [
        {
            "set": one.name,
            "split": split,
            "title": one.title,
            "images": place.count,
            "classes": len(one.classes),
            "prompts": len(one.names),
            "ignore": one.ignore,
            "needs": {place.images: place.images_from, place.labels: place.labels_from},
            "writes": [folder for folder in (place.prepared_images, place.prepared) if folder],
        }
        for one in SETS.values()
        for split, place in one.splits.items()
    ]


def list_table() -> Table:
    table = Table(title="benchmark sets")
    for heading in ("set", "split", "images", "classes", "ignore", "needs, below --root, and where it comes from"):
        table.add_column(heading, overflow="fold")
    for row in list_sets():
        needs = "\n".join(f"{path}\n    {archive}" for path, archive in row["needs"].items())
        table.add_row(*(str(row[key]) for key in ("set", "split", "images", "classes", "ignore")), needs,
                      end_section=True)  # fmt: skip
    return table


# --- prepare


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
) -> list[Prepared]:
    """Convert published labels (and A-847's photos) to what is scored. Originals are only read.

    names     the sets; none: all whose originals are below ``root``
    split     default: the splits that the protocol uses, as far as they are there
    out       write there instead of below ``root``: the originals are linked into it, so that it is a root of its own
    images    the originals of a single set that lie elsewhere; they are linked into ``out`` (default: ``root``)
    labels    likewise
    workers   processes; 0: this one
    A file that is there is not written again, so a run that was stopped goes on where it was. Files that cannot be
    converted are named in the result and do not stop the others. Raises DataError when a set has no originals, or
    the disk is full.
    """
    if (images or labels) and (len(names) != 1 or (split is None and len(find_set(names[0]).usual_splits) > 1)):
        raise DataError("--images and --labels are those of one set and split: name it, with --split where it has two")
    if labels and any(part.startswith("annotations_detectron2") for part in labels.resolve().parts):
        raise DataError(
            f"--labels {labels}: holds prepared labels, by its name, and would be converted twice: name the published "
            f"ones, or score these with fgaseg eval --data {names[0]} --images ... --labels ..."
        )
    if not (out and images):
        _check_root(root)
    target, done = out or root, []
    for one, part in _chosen(names, split, root, bool(images or labels)):
        if out or images or labels:
            _link_originals(one, part, root, target, images, labels)
        if missing := _missing(one, part, target):
            raise DataError(f"{one.name} {part}: cannot be prepared, missing: {'; '.join(missing)}")
        done.append(_prepare_split(one, part, target, workers, progress))
    return done


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise DataError(
            f"--root {root}: {'is not a folder' if root.exists() else 'is missing'}: give the folder that holds "
            "coco-stuff, ADEChallengeData2016, ADE20K_2021_17_01 or VOCdevkit"
        )


def _chosen(names: Sequence[str], split: str | None, root: Path, elsewhere: bool) -> list[tuple[BenchmarkSet, str]]:
    """The sets and splits asked for; of those not asked for by name, the ones that are there."""
    chosen = [
        (one, part)
        for one in [find_set(name) for name in dict.fromkeys(names)] or SETS.values()
        for part in ([split] if split else one.usual_splits)
        if names or part in one.splits
    ]
    for one, part in chosen:
        find_set(one.name, part)
    here = [(one, part) for one, part in chosen if elsewhere or (root / one.splits[part].labels).exists()]
    named = [(one, part) for one, part in chosen if one.name in names]
    missing = [(one, part) for one, part in named if all(one.name != other.name for other, _ in here)]
    if not here and not missing:
        raise DataError(f"{root} holds the labels of no set: fgaseg data list says which folders belong there")
    for one, part in named:
        if (one, part) not in here + missing:
            warnings.warn(f"{one.name} {part}: {one.splits[part].labels} is not there: left out", stacklevel=3)
    return here + missing


def _missing(one: BenchmarkSet, split: str, root: Path) -> list[str]:
    """What must be downloaded before the split can be prepared; nothing if it is prepared."""
    place = one.splits[split]
    missing = [] if (root / place.images).is_dir() else [f"{place.images}, from {place.images_from}"]
    if not one.prepared_labels(split, root):
        if not (root / place.labels).exists() and place.labels != place.images:
            missing.append(f"{place.labels}, from {place.labels_from}")
        if one.listed(split, root) is None and place.list:
            missing.append(f"{place.list}, from {place.images_from}")
    elif place.prepared_images and (root / place.prepared_images).is_dir():
        return []  # the photos as published are not needed any more
    return missing


def _link_originals(
    one: BenchmarkSet, split: str, root: Path, out: Path, images: Path | None, labels: Path | None
) -> None:
    place = one.splits[split]
    wanted = {place.images: images or root / place.images, place.labels: labels or root / place.labels}
    if place.images == place.labels:
        if images and labels and images.resolve() != labels.resolve():
            raise DataError(f"{one.name}: photos and labels lie in one folder: give --images and --labels the same one")
        wanted = {place.images: images or labels or root / place.images}
    if place.list and "/" in place.list:
        wanted[place.list] = root / place.list
    for relative, given in wanted.items():
        source, link = given.resolve(), out / relative
        if given in (images, labels) and not source.exists():
            raise DataError(f"{given}: is missing: name the folder of {one.name}'s originals")
        if not source.exists() or (link.exists() and link.resolve() == source):
            continue
        if link.exists() or link.is_symlink():
            raise DataError(f"{link}: is in the way of a link to {source}: remove it, or give another --out")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)


def _prepare_split(one: BenchmarkSet, split: str, root: Path, workers: int, progress: bool) -> Prepared:
    place = one.splits[split]
    done = Prepared(one.name, split)
    photos, labels = one.published_photos(split, root), one.published_labels(split, root)
    prepared, empty = one.prepared_labels(split, root), one.empty(split, root)
    stems = [stem for stem in photos if stem in labels]
    if not stems and not prepared:
        raise DataError(f"{one.name}: {root / place.images} and {root / place.labels} have no pair of the same name")
    done.dropped = len(photos.keys() ^ labels.keys()) if labels else 0
    if place.prepared_images:
        prepared = {stem: file for stem, file in prepared.items() if stem in one.photos(split, root)}
    done.already, done.empty = len(prepared), len(empty)
    folders = [root / folder if folder else None for folder in (place.prepared, place.prepared_images)]
    for folder in filter(None, folders):
        for leftover in folder.glob(".*.tmp"):  # of a run that was killed
            leftover.unlink(missing_ok=True)
    tasks = [
        (one, stem, photos[stem], labels[stem], *folders)
        for stem in stems
        if stem not in prepared and stem not in empty
    ]
    for stem, state, reason in _each(_convert_file, tasks, workers, f"{one.name} {split}", progress):
        if state == "full":
            raise DataError(f"{root / place.prepared}: {reason}. Make room and run the same command again: it goes on")
        if state == "converted":
            done.converted += 1
        elif state == "empty":
            done.empty += 1
            empty.add(stem)
        else:
            done.failed[stem] = reason
    if empty:
        text = "".join(f"{stem}\n" for stem in sorted(empty))
        atomic_write(one.empty_file(split, root), lambda file: file.write(text.encode()))
    return done


def _convert_file(
    one: BenchmarkSet, stem: str, photo: Path, label: Any, folder: Path, photo_folder: Path | None
) -> tuple[str, str, str]:
    """One label picture (and photo): its stem, what became of it and, where it failed, why."""
    try:
        with open_image(photo) as image:
            labels = _converted(one, label)
            width, height = image.size if photo_folder else _upright_size(image)
            if (height, width) != labels.shape:
                raise DataError(f"{photo} is {width}x{height}, its labels are {labels.shape[1]}x{labels.shape[0]}")
            if one.drop_empty and (labels == one.ignore).all():
                return stem, "empty", ""
            if photo_folder:
                image, labels = shrink(_loaded(image, photo), labels)
                # quality 75, as in the field's own preparation: photos that were compressed again are what is scored
                atomic_write(photo_folder / f"{stem}.jpg", lambda file: image.save(file, format="JPEG", quality=75))
        kind = {"format": "PNG"} if one.suffix == ".png" else {"format": "TIFF", "compression": "tiff_adobe_deflate"}
        atomic_write(folder / f"{stem}{one.suffix}", lambda file: Image.fromarray(labels).save(file, **kind))
    except (DataError, ImageError) as error:
        return stem, "failed", str(error)
    except OSError as error:
        return stem, "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed", str(error)
    return stem, "converted", ""


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of what ``read_image`` gives."""
    width, height = image.size
    return (height, width) if image.getexif().get(ExifTags.Base.Orientation, 1) > 4 else (width, height)


def _converted(one: BenchmarkSet, label: Any) -> np.ndarray:
    """Labels of one photo, uint8 or uint16 [H, W]. Raises DataError or ImageError naming the file."""
    try:
        return one.convert(one.read(label))
    except DataError as error:
        name = "trainval_merged.json" if isinstance(label, RunLengths) else str(label)
        raise error if str(error).startswith(name) else DataError(f"{name}: {error}") from error


def _loaded(image: Image.Image, file: Path) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # every reader of Pillow has its own
        raise ImageError(f"{file}: is truncated or corrupt ({error}): fetch or copy it again") from error
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def shrink(image: Image.Image, labels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """A photo and its labels [H, W] with the shorter side at most 512: bilinear without antialias, and nearest.

    Sizes, sample positions and rounding follow OpenCV's resize, which the protocol's preparation uses: label pixel i is
    the source's floor(i / scale), photo values differ by at most 1 of 255.
    """
    height, width = labels.shape
    if min(height, width) <= SHORT_SIDE:
        return image, labels
    high = SHORT_SIDE if width >= height else round(height / width * SHORT_SIDE)
    wide = SHORT_SIDE if height >= width else round(width / height * SHORT_SIDE)
    rows = np.minimum((np.arange(high) * (1 / (high / height))).astype(int), height - 1)
    columns = np.minimum((np.arange(wide) * (1 / (wide / width))).astype(int), width - 1)
    values = torch.from_numpy(np.array(image)).reshape(height, width, -1).permute(2, 0, 1)[None].float()
    values = torch.nn.functional.interpolate(values, (high, wide), mode="bilinear")[0].permute(1, 2, 0)
    array = values.round().clamp(0, 255).byte().numpy()
    return Image.fromarray(array if image.mode == "RGB" else array[..., 0]), labels[rows[:, None], columns]


class _Tasks(Dataset[Any]):
    def __init__(self, function: Callable[..., Any], tasks: list[tuple[Any, ...]]) -> None:
        self.function, self.tasks = function, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Any:
        return self.function(*self.tasks[index])


def _as_is(result: Any) -> Any:
    return result


def _each(
    function: Callable[..., Any], tasks: list[tuple[Any, ...]], workers: int, title: str, progress: bool
) -> Iterator[Any]:
    """The results of function(*task), in order. A DataLoader's processes end by themselves when this one is killed."""
    loader: Any = DataLoader(
        _Tasks(function, tasks), batch_size=None, num_workers=min(workers, len(tasks)), collate_fn=_as_is
    )
    console = Console(stderr=True)
    try:
        yield from track(loader, escape(title), len(tasks), console=console, transient=True, disable=not progress)
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise DataError(f"{title}: a process died, maybe of too little memory ({error}): run the same command again, "
                        "with fewer --workers") from error  # fmt: skip


# --- check


def check(
    names: Sequence[str],
    root: Path,
    *,
    split: str | None = None,
    quick: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> list[Checked]:
    """Count and read what is below ``root``, originals and prepared labels, and compare with what should be there.

    quick     count only; else every photo and label is decoded, values and sizes are checked, and prepared labels are
              compared with their originals, pixel for pixel
    The other arguments are those of ``prepare``. Sets not asked for by name may be absent.
    """
    _check_root(root)
    chosen = [find_set(name) for name in dict.fromkeys(names)] or list(SETS.values())
    places = [(one, part) for one in chosen for part in ([split] if split else one.usual_splits)]
    places = [(one, part) for one, part in places if names or part in one.splits]
    for one, part in places:
        find_set(one.name, part)
    done = [_check_split(one, part, root, quick, workers, progress) for one, part in places]
    if all(row.state == "absent" for row in done):
        wanted = "; ".join(dict.fromkeys(text for row in done for text in row.missing))
        wanted = f"wanted: {wanted}" if names else "fgaseg data list says which folders belong there"
        raise DataError(f"{root} holds none of {', '.join(dict.fromkeys(row.set for row in done))}; {wanted}")
    return done


def _check_split(one: BenchmarkSet, split: str, root: Path, quick: bool, workers: int, progress: bool) -> Checked:
    place = one.splits[split]
    row = Checked(one.name, split, place.count, missing=_missing(one, split, root))
    try:
        photos, labels = one.published_photos(split, root), one.published_labels(split, root)
        prepared, scored = one.prepared_labels(split, root), one.photos(split, root)
    except DataError as error:
        row.problems["damaged"], row.state = [str(error)], "wrong"
        return row
    empty = one.empty(split, root)
    row.photos, row.labels, row.prepared = len(photos or scored), len(labels), len(prepared)
    row.empty = len(empty)
    here = labels or dict.fromkeys([*prepared, *empty])
    row.pairs = len((photos or scored).keys() & here.keys())
    if not labels and not prepared:
        row.state = "absent"
        row.missing = row.missing or [f"{place.labels}, from {place.labels_from}"]
        return row
    _compare_counts(one, split, root, row, (photos or scored).keys(), here.keys())
    if prepared and (lost := prepared.keys() - scored.keys()):
        row.problems["prepared labels without a photo"] = sorted(lost)
    if not quick:
        stems = sorted((photos.keys() | scored.keys()) & (labels.keys() | prepared.keys()))
        tasks = [
            (one, stem, photos.get(stem), labels.get(stem), scored.get(stem), prepared.get(stem)) for stem in stems
        ]
        for problems, low, high in _each(_check_file, tasks, workers, f"{one.name} {split}", progress):
            for kind, text in problems:
                row.problems.setdefault(kind, []).append(text)
            if low is not None:
                row.values = [min(low, row.values[0]), max(high, row.values[1])] if row.values else [low, high]
    waiting = (labels.keys() & photos.keys()) - prepared.keys() - empty
    if row.problems.keys() - {"count"}:
        row.state = "wrong"
    else:
        row.state = "incomplete" if row.problems or row.missing else "not prepared" if waiting else "ready"
    return row


def _compare_counts(one: BenchmarkSet, split: str, root: Path, row: Checked, photos: Any, labels: Any) -> None:
    place = one.splits[split]
    if alone := sorted(photos - labels):
        row.problems["photos without labels (left out)"] = alone
    if alone := sorted(labels - photos):
        row.problems["labels without a photo (left out)"] = alone
    listed = one.listed(split, root)
    if listed is not None and (absent := [stem for stem in listed if stem not in photos]):
        row.problems[f"photos of the list that are not in {place.images}"] = absent
    if row.pairs != place.count:
        origin = f"photos come from {place.images_from}, labels from {place.labels_from}"
        origin = f"it comes from {place.images_from}" if place.images_from == place.labels_from else origin
        row.problems["count"] = [f"{row.pairs} pairs, and the whole set has {place.count}; {origin}"]
    if wrong := _other_names(one, (root / place.labels).with_name("labels.txt")):
        row.problems["labels.txt numbers the classes differently"] = wrong


def _other_names(one: BenchmarkSet, file: Path) -> list[str]:
    """Lines "number: name" of PASCAL Context's labels.txt that name another class than the table does."""
    if one.name != "pc459" or not file.exists():
        return []
    lines = [line.split(":", 1) for line in file.read_text().splitlines() if ":" in line]
    given = {number.strip(): name.strip().replace(" ", "") for number, name in lines}
    return [
        f"{number}: {given.get(str(number))!r}, not {name!r}"
        for number, name in enumerate(one.names, 1)
        if given.get(str(number)) != name
    ]


Problem = tuple[str, str]  # kind, and the file with what is wrong


def _check_file(
    one: BenchmarkSet, stem: str, photo: Path | None, label: Any, scored: Path | None, prepared: Path | None
) -> tuple[list[Problem], int | None, int | None]:
    """What is wrong with one image, its labels as published and as prepared; the smallest and largest value."""
    problems: list[Problem] = []
    published = _try(problems, lambda: one.read(label)) if label is not None else None
    if published is not None and (wrong := one.unexpected(published)):
        problems.append(("values that the set does not define", f"{_named(stem, label)}: {wrong}"))
        converted = None
    else:
        converted = None if published is None else one.convert(published)
    ready = _try(problems, lambda: read_labels(prepared)) if prepared else None
    values = published if published is not None else ready
    low, high = (None, None) if values is None else (int(values.min()), int(values.max()))
    image = _try(problems, lambda: _unrotated(one, photo)) if photo else None
    if image is not None and converted is not None:
        _compare_sizes(problems, photo, image, _named(stem, label), converted)
        if scored != photo and image.size == converted.shape[::-1]:
            converted = shrink(image, converted)[1]
    if scored and scored != photo:
        image = _try(problems, lambda: read_image(scored))
    if ready is not None and prepared is not None:
        if image is not None and scored is not None:
            _compare_sizes(problems, scored, image, str(prepared), ready)
        if wrong := sorted(set(np.unique(ready).tolist()) - {*range(len(one.classes)), one.ignore}):
            problems.append(("prepared values that are no class", f"{prepared}: {wrong}"))
        if converted is not None and not np.array_equal(converted, ready):
            problems.append(("prepared labels that differ from their originals: delete them, prepare writes them again",
                             str(prepared)))  # fmt: skip
    return problems, low, high


def _unrotated(one: BenchmarkSet, photo: Path) -> Image.Image:
    """A photo as it is scored; A-847's are prepared without a look at EXIF."""
    if one.splits["val"].prepared_images is None:
        return read_image(photo)
    with open_image(photo) as image:
        return _loaded(image, photo)


def _named(stem: str, label: Any) -> str:
    return f"trainval_merged.json, {stem}" if isinstance(label, RunLengths) else str(label)


def _try(problems: list[Problem], read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (DataError, ImageError, OSError) as error:
        problems.append(("unreadable", str(error)))
        return None


def _compare_sizes(
    problems: list[Problem], photo: Path | None, image: Image.Image, name: str, labels: np.ndarray
) -> None:
    if image.size != labels.shape[::-1]:
        shape = f"{labels.shape[1]}x{labels.shape[0]}"
        problems.append(("sizes that differ", f"{photo} is {_size(image)}, {name} is {shape}"))


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def check_folder(
    images: Path,
    labels: Path,
    names: Path | None,
    ignore: int | None,
    set_name: str | None,
    *,
    workers: int = 0,
    progress: bool = False,
) -> Checked:
    """The same for a folder of photos and a folder of label pictures in any layout; labels as they are scored.

    names, ignore  of your own data; with ``set_name`` those of that set. Raises DataError where nothing can be paired.
    """
    one = find_set(set_name) if set_name else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left out is in the result
        if one and names is None:
            if ignore is not None:
                raise DataError(
                    f"--ignore {ignore}: {one.name} ignores {one.ignore}: leave it out, or give --names too"
                )
            data = set_in_folders(one.name, images, labels)
        elif names is None:
            raise DataError("--images and --labels need --names FILE, or the name of a set whose classes they have")
        else:
            value = 255 if ignore is None else ignore
            data = FolderDataset(DataConfig(images=images, labels=labels, names=names, ignore=value), "val")
    count = one.splits["val"].count if one else len(data)
    row = Checked(set_name or str(images), "val", count, len(data), len(data), len(data), len(data))
    if data.skipped:
        row.problems["left out"] = data.skipped
    if len(data) != count:
        row.problems["count"] = [f"{len(data)} pairs, and the whole set has {count}"]
    tasks = [(data, index) for index in range(len(data))]
    for problems, low, high in _each(_check_item, tasks, workers, row.set, progress):
        for kind, text in problems:
            row.problems.setdefault(kind, []).append(text)
        if low is not None:
            row.values = [min(low, row.values[0]), max(high, row.values[1])] if row.values else [low, high]
    row.state = "wrong" if row.problems.keys() - {"count"} else "incomplete" if row.problems else "ready"
    return row


def _check_item(data: FolderDataset, index: int) -> tuple[list[Problem], int | None, int | None]:
    problems: list[Problem] = []
    item = _try(problems, lambda: data[index])
    return problems, *((None, None) if item is None else (int(item["labels"].min()), int(item["labels"].max())))


# --- for people


def print_prepared(rows: list[Prepared], root: Path) -> None:
    table = Table()
    for heading in ("set", "split", "converted", "already there", "empty", "dropped", "failed"):
        table.add_column(heading)
    for row in rows:
        numbers = (row.converted, row.already, row.empty, row.dropped, len(row.failed))
        table.add_row(row.set, row.split, *map(str, numbers))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(f"written below {root}", markup=False, soft_wrap=True)
    for row in rows:
        for stem, reason in itertools.islice(row.failed.items(), SHOWN):
            console.print(f"{row.set} {row.split}: {stem} failed: {reason}", markup=False, soft_wrap=True)
        if len(row.failed) > SHOWN:
            console.print(f"{row.set} {row.split}: and {len(row.failed) - SHOWN} more (--json has all)")


def print_checked(rows: list[Checked], root: Path) -> None:
    table = Table(title=escape(str(root)))
    for heading in ("set", "split", "whole set", "photos", "labels", "pairs", "values", "prepared", "state"):
        table.add_column(heading)
    for row in rows:
        numbers = (row.expected, row.photos, row.labels, row.pairs)
        values = "-" if row.values is None else f"{row.values[0]} to {row.values[1]}"
        prepared = f"{row.prepared}, {row.empty} empty" if row.empty else str(row.prepared)
        table.add_row(escape(row.set), row.split, *map(str, numbers), values, prepared, row.state)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for row in rows:
        for line in _explained(row, root):
            console.print(f"{row.set} {row.split}: {line}", markup=False, soft_wrap=True)


def _explained(row: Checked, root: Path) -> list[str]:
    lines = [f"missing: {text}" for text in row.missing]
    for kind, texts in row.problems.items():
        if kind == "count":
            lines += texts
            continue
        shown = [f"    {text}" for text in texts[:SHOWN]]
        more = [f"    and {len(texts) - SHOWN} more (--json has all)"] if len(texts) > SHOWN else []
        lines.append("\n".join([f"{kind}: {len(texts)}", *shown, *more]))
    if row.set in SETS and row.labels and row.prepared + row.empty < row.pairs:
        lines.append(f"to prepare: {prepare_command(row.set, row.split, root)}")
    return lines
