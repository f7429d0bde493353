"""`fgaseg data check`: are the files of a data set there, can they be read, and do they fit together?

One report (``CheckReport``) serves benchmark sets, as published and as prepared, and a user's own folders.
``check_labels`` is the part of it that training and evaluation begin with.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..config import DataConfig
from ..errors import DataError, ImageError
from .benchmark_sets import BenchmarkSet, find_set, find_splits
from .class_names import LabelSpace
from .datasets import Labels
from .folders import FolderDataset, split_folders
from .images import open_image, read_image
from .label_formats import describe, read_labels
from .label_spaces import is_coco, open_label_space
from .label_survey import LabelFacts, LabelSurvey, inspect_pair, survey
from .label_suspicions import Finding, findings
from .pairing import PairNames, find_pairs
from .preparation import decode_unrotated, shrink
from .samples import Bands, ValueRange, View
from .set_files import SplitFiles, require_root
from .workers import run_tasks

log = logging.getLogger(__name__)

_SECONDS_MORE = 5.0  # between two looks at whether more files have cleared a suspicion

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """A photo and its labels of a benchmark set, in those forms that exist."""

    photo: Path | None  # as published
    labels: Any  # as published: what BenchmarkSet.read takes
    scored_photo: Path | None  # the same as photo where photos are not prepared
    scored_labels: Path | None  # a label image that read_labels reads


@dataclass
class Findings:
    """What is wrong with one sample: (kind, text that names the file), and its smallest and largest label value."""

    problems: list[tuple[str, str]] = field(default_factory=list)
    values: tuple[int, int] | None = None

    def add(self, kind: str, text: str) -> None:
        self.problems.append((kind, text))

    def read(self, reader: Callable[[Any], T], source: Any) -> T | None:
        """reader(source); None if there is no source, or if it cannot be read, which is a problem."""
        if source is None:
            return None
        try:
            return reader(source)
        except (DataError, ImageError, OSError) as error:
            self.add("unreadable", str(error))
            return None

    def compare_sizes(self, photo: Path | None, image: Image.Image, source: object, labels: np.ndarray) -> None:
        if image.size != labels.shape[::-1]:
            sizes = f"{photo} is {image.width}x{image.height}, {source} is {labels.shape[1]}x{labels.shape[0]}"
            self.add("sizes that differ", sizes)


@dataclass
class CheckReport:
    """What was found in one split of a benchmark set, or in a user's own folders."""

    set: str
    split: str
    expected: int  # pairs of the whole set
    photos: int = 0
    labels: int = 0  # as published
    pairs: int = 0
    prepared: int = 0
    empty: int = 0  # without a labelled pixel: left out by the preparation
    values: list[int] | None = None  # smallest and largest label value, as published or else as prepared
    missing: list[str] = field(default_factory=list)  # what is not there, and the archive that it comes from
    problems: dict[str, list[str]] = field(default_factory=dict)  # kind: what is wrong, file by file
    shares: dict[str, float] = field(default_factory=dict)  # of all pixels, by class; own folders
    void: float | None = None  # share of the pixels that are not scored
    unnamed: dict[str, float] = field(default_factory=dict)  # share of the pixels of each value without a name
    warnings: list[str] = field(default_factory=list)  # what is suspicious
    state: str = ""  # "absent", "wrong", "incomplete", "not prepared" or "ready"

    def check_samples(
        self,
        samples: Sequence[Sample],
        label_space: LabelSpace,
        benchmark: BenchmarkSet | None,
        workers: int,
        progress: bool,
    ) -> None:
        """Add what ``check_sample`` finds in each sample."""
        tasks = [(sample, label_space, benchmark) for sample in samples]
        title = f"checking {self.set} {self.split}"
        for found in run_tasks(check_sample, tasks, workers, title, progress):
            self.add(found)

    def add(self, found: Findings) -> None:
        """Add what was found in one sample."""
        for kind, text in found.problems:
            self.problems.setdefault(kind, []).append(text)
        if found.values:
            values = [*found.values, *(self.values or [])]
            self.values = [min(values), max(values)]

    def add_shares(self, survey: LabelSurvey, label_space: LabelSpace) -> None:
        """Add the share of the pixels of each class, of void, and of each value without a name."""
        if not survey.pixels:
            return
        labels, missing = survey.by_label(label_space)
        pixels = survey.pixels
        self.shares = {name: labels.get(label, 0) / pixels for label, name in enumerate(label_space.classes)}
        self.void = labels.get(label_space.ignore, 0) / pixels
        order = sorted(missing, key=lambda value: -missing[value])
        self.unnamed = {describe(value): missing[value] / pixels for value in order}

    def add_findings(self, found: Sequence[Finding]) -> None:
        """Add what is suspicious; what is surely wrong, and not yet listed file by file, is a problem."""
        for one in found:
            if one.sure and not one.listed:
                self.problems.setdefault("labels that cannot be right", []).append(one.text)
            else:
                self.warnings.append(one.text)

    def check_count(self, hint: str = "") -> None:
        """Add a problem if the set is not whole."""
        if self.pairs != self.expected:
            self.problems["count"] = [f"{self.pairs} pairs, and the whole set has {self.expected}{hint}"]

    def conclude(self, unprepared: bool = False) -> None:
        """Set ``state``, from what was found so far."""
        if self.problems.keys() - {"count"}:
            self.state = "wrong"
        elif self.problems or self.missing:
            self.state = "incomplete"
        else:
            self.state = "not prepared" if unprepared else "ready"


def check(
    names: Sequence[str],
    root: Path,
    *,
    split: str | None = None,
    quick: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> list[CheckReport]:
    """Count and read the benchmark sets below ``root``, as published and as prepared, and compare the two.

    names     the sets; none: all
    split     None: the splits that the protocol uses
    quick     count only; else every photo and every label is decoded, sizes and values are checked, and prepared labels
              are compared with their originals, pixel by pixel
    workers   processes; 0: this one
    progress  show a progress bar

    Raises DataError when the root or every set asked for is absent.
    """
    require_root(root)
    wanted = find_splits(names, split)
    reports = [_check_split(SplitFiles(one, part, root), quick, workers, progress) for one, part in wanted]
    if all(report.state == "absent" for report in reports):
        needed = "; ".join(dict.fromkeys(text for report in reports for text in report.missing))
        hint = f"needed: {needed}" if names else "fgaseg data list shows which folders belong there"
        raise DataError(f"{root} holds none of {', '.join(dict.fromkeys(report.set for report in reports))}; {hint}")
    return reports


def check_folders(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    names: str | os.PathLike[str] | None = None,
    ignore: int | Sequence[int] = 255,
    label_map: str | dict[str, Any] | None = None,
    image_suffix: str | None = None,
    label_suffix: str | None = None,
    rotate_labels: bool | None = None,
    bands: Bands | None = None,
    value_range: ValueRange | None = None,
    set_name: str | None = None,
    workers: int = 0,
    progress: bool = False,
) -> CheckReport:
    """Read the photos and labels of a user's own folders, and say what is wrong or suspicious about them.

    The arguments from ``labels`` to ``value_range`` are the keys of DataConfig.

    names     file of class names; None: those of ``label_map``, of the COCO file ``labels``, or of the set
    set_name  a benchmark set whose prepared labels the folders hold: that as many pairs are there is checked too
    workers   processes; 0: this one
    progress  show a progress bar

    Raises DataError where nothing can be paired, or nothing says what the values in the labels mean.
    """
    config = DataConfig.read(
        {"images": images, "labels": labels, "names": names, "ignore": ignore, "label_map": label_map,
         "image_suffix": image_suffix, "label_suffix": label_suffix, "rotate_labels": rotate_labels,
         "bands": bands, "value_range": value_range},
        "check_folders",
    )  # fmt: skip
    benchmark = find_set(set_name) if set_name and names is None and label_map is None else None
    photos, source = split_folders(config, "val")
    if benchmark is None and names is None and label_map is None and not is_coco(source):
        raise DataError(
            "check_folders: give a file of names, a label map, or the name of the set whose classes the labels have"
        )
    label_space = benchmark.label_space if benchmark else open_label_space(config, source)
    pairs, skipped = find_pairs(photos, source, names=PairNames.parse(image_suffix, label_suffix))
    count = len(pairs)
    expected = find_set(set_name).splits["val"].count if set_name else count
    report = CheckReport(set_name or str(images), "val", expected, count, count, count, count)
    if skipped:
        report.problems["left out"] = skipped
    report.check_count()
    view = View(config.bands, config.value_range)
    tasks = [(photo, label, label_space, rotate_labels, view) for _, photo, label in pairs]
    survey = LabelSurvey(count)
    for found, facts in run_tasks(check_pair, tasks, workers, f"checking {report.set}", progress):
        report.add(found)
        survey.add(facts)
    if benchmark is None:
        report.add_shares(survey, label_space)
        report.add_findings(findings(survey, label_space, config))
    report.conclude()
    return report


def check_pair(
    photo: Path, source: Labels, label_space: LabelSpace, rotated: bool | None, view: View
) -> tuple[Findings, LabelFacts]:
    """Read a photo and its labels, and compare them."""
    found = Findings()
    found.read(partial(read_image, bands=view.bands, value_range=view.value_range), photo)
    facts = inspect_pair(photo, source, label_space, rotated)
    if facts.unreadable and ("unreadable", facts.unreadable) not in found.problems:
        found.add("unreadable", facts.unreadable)
    if facts.problem:
        found.add("sizes that differ" if facts.counts else "unreadable", facts.problem)
    stored = np.array(list(facts.counts), np.int64)
    if stored.size:
        labels, missing = label_space.labels(stored)
        found.values = int(labels.min()), int(labels.max())
        if wrong := sorted(stored[missing].tolist()):
            found.add("values that are not a class", f"{source}: [{', '.join(map(describe, wrong))}]")
    return found, facts


def check_labels(
    dataset: FolderDataset,
    title: str,
    *,
    seconds: float | None = None,
    count: int | None = None,
    training: bool = False,
    progress: bool = False,
) -> None:
    """Before labels are used: log the share of each class, warn of what is suspicious, and refuse what is surely wrong.

    title     of the data set in messages
    seconds   read label files for about so long, all only where something seems wrong; None: read all
    count     of the first so many items; None: all
    training  the labels are trained on, and unreadable files are the trainer's concern
    progress  show a progress bar where all are read

    Raises DataError, or ImageError for a file that cannot be read.
    """
    read = survey(dataset, seconds, count, progress=title if progress and seconds is None else "")
    found = findings(read, dataset.label_space, dataset.config, training)
    told = False
    while not read.complete and (doubts := [one for one in found if one.sure]) and not doubts[0].final:
        if not told:
            log.info("%s: %s. Reading the other files to be sure", title, doubts[0].text)
            told = True
        read = survey(dataset, _SECONDS_MORE, known=read)
        found = findings(read, dataset.label_space, dataset.config, training)
    if read.pixels:
        log.info("%s: %s", title, read.summary(dataset.label_space))
    for one in found:
        if not one.sure:
            warnings.warn(f"{title}: {one.text}", stacklevel=2)
    if read.unreadable and not training:
        raise ImageError(read.unreadable[0])
    if wrong := [*read.problems, *(one.text for one in found if one.sure)]:
        raise DataError(f"{title}: {wrong[0]}")


def check_sample(sample: Sample, label_space: LabelSpace, benchmark: BenchmarkSet | None) -> Findings:
    """Read a photo and its labels in every form that exists, and compare them.

    label_space  what the values of the scored labels mean
    benchmark    how the published form is read and converted; None: there is none
    """
    found = Findings()
    photo, expected = _check_published(found, sample, benchmark) if benchmark else (None, None)
    if sample.scored_photo != sample.photo:
        photo = found.read(read_image, sample.scored_photo)
    labels = found.read(read_labels, sample.scored_labels)
    if labels is None:
        return found
    found.values = found.values or (int(labels.min()), int(labels.max()))
    if photo is not None:
        found.compare_sizes(sample.scored_photo, photo, sample.scored_labels, labels)
    if wrong := label_space.undefined(labels):
        found.add("values that are not a class", f"{sample.scored_labels}: {wrong}")
    if expected is not None and not np.array_equal(expected, labels):
        kind = "prepared labels that differ from their originals: delete them, prepare writes them again"
        found.add(kind, str(sample.scored_labels))
    return found


def _check_published(
    found: Findings, sample: Sample, benchmark: BenchmarkSet
) -> tuple[Image.Image | None, np.ndarray | None]:
    """Check the published form: the photo, and the labels that ``prepare`` makes, None where that cannot be known."""

    def read_photo(file: Path) -> Image.Image:
        if not benchmark.prepares_photos:
            return read_image(file)
        with open_image(file) as image:
            return decode_unrotated(image, file)

    photo, labels = found.read(read_photo, sample.photo), found.read(benchmark.read, sample.labels)
    if labels is None:
        return photo, None
    found.values = int(labels.min()), int(labels.max())
    if photo is not None:
        found.compare_sizes(sample.photo, photo, sample.labels, labels)
    if wrong := benchmark.undefined(labels):
        found.add("values that the set does not define", f"{sample.labels}: {wrong}")
        return photo, None
    converted = benchmark.convert(labels, sample.labels)
    if not benchmark.prepares_photos:
        return photo, converted
    if photo is None or photo.size != labels.shape[::-1]:
        return photo, None
    return photo, shrink(photo, converted)[1]


def _check_split(files: SplitFiles, quick: bool, workers: int, progress: bool) -> CheckReport:
    benchmark = files.benchmark
    report = CheckReport(benchmark.name, files.split, files.layout.count, missing=files.missing())
    try:
        photos, labels = files.published_photos(), files.published_labels()
        prepared, scored = files.prepared_labels(), files.scored_photos()
    except DataError as error:
        report.problems["damaged"] = [str(error)]
        report.conclude()
        return report
    empty, photos_here = files.empty(), (photos or scored).keys()
    labels_here = labels.keys() or prepared.keys() | empty
    report.photos, report.labels, report.prepared = len(photos_here), len(labels), len(prepared)
    report.empty, report.pairs = len(empty), len(photos_here & labels_here)
    if not labels and not prepared:
        report.state = "absent"
        report.missing = report.missing or [f"{files.layout.labels}, from {files.layout.labels_from}"]
        return report
    _compare_names(report, files, photos_here, labels_here)
    if lost := prepared.keys() - scored.keys():
        report.problems["prepared labels without a photo"] = sorted(lost)
    if not quick:
        stems = sorted((photos.keys() | scored.keys()) & (labels.keys() | prepared.keys()))
        samples = [Sample(photos.get(s), labels.get(s), scored.get(s), prepared.get(s)) for s in stems]
        report.check_samples(samples, benchmark.label_space, benchmark, workers, progress)
    report.conclude(unprepared=bool((labels.keys() & photos.keys()) - prepared.keys() - empty))
    return report


def _compare_names(report: CheckReport, files: SplitFiles, photos: Collection[str], labels: Collection[str]) -> None:
    """Compare the stems that are there with each other, and with what should be there."""
    layout = files.layout
    if alone := sorted(set(photos) - set(labels)):
        report.problems["photos without labels (left out)"] = alone
    if alone := sorted(set(labels) - set(photos)):
        report.problems["labels without a photo (left out)"] = alone
    listed = files.listed()
    if listed is not None and (absent := [stem for stem in listed if stem not in photos]):
        report.problems[f"photos of the list that are not in {layout.images}"] = absent
    if layout.images_from == layout.labels_from:
        report.check_count(f"; it comes from {layout.images_from}")
    else:
        report.check_count(f"; photos come from {layout.images_from}, labels from {layout.labels_from}")
    if wrong := _renumbered_classes(files):
        report.problems["labels.txt numbers the classes differently"] = wrong


def _renumbered_classes(files: SplitFiles) -> list[str]:
    """Lines "number: name" of PASCAL Context's labels.txt that name another class than the set's names do."""
    file = (files.root / files.layout.labels).with_name("labels.txt")
    if files.benchmark.name != "pc459" or not file.exists():
        return []
    lines = [line.split(":", 1) for line in file.read_text().splitlines() if ":" in line]
    given = {number.strip(): name.strip().replace(" ", "") for number, name in lines}
    return [
        f"{number}: {given.get(str(number))!r}, not {name!r}"
        for number, name in enumerate(files.benchmark.names, 1)
        if given.get(str(number)) != name
    ]
