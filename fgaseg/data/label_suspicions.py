"""What is wrong, or looks wrong, about the labels of a data set: each finding names the likely cause and its cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..config import DataConfig
from .class_names import LabelSpace, percent
from .class_tables import is_void_name
from .label_formats import COLOURS, UNPAINTED, describe
from .label_survey import LabelSurvey

BACKGROUNDS = {"background", "bg", "other", "others", "none", "nothing", "unknown", "rest", "clutter", "backgroud"}
_TRAIN_IDS, _LABEL_IDS = 19, 34  # of Cityscapes


@dataclass(frozen=True)
class Finding:
    """A line for the user.

    sure    an answer learned or scored on these labels would be wrong
    listed  it sums up what a check lists file by file
    final   files that were not read yet cannot refute it
    """

    text: str
    sure: bool
    listed: bool = False
    final: bool = True


@dataclass(frozen=True)
class Evidence:
    """What the findings are made from.

    values   stored values that occur, ascending, without UNPAINTED
    present  classes that occur
    plain    value n is the n-th name, or the n-th after void ones: there is no label map
    training the labels are trained on
    """

    survey: LabelSurvey
    space: LabelSpace
    config: DataConfig
    values: list[int]
    present: list[int]
    labels: dict[int, int]
    missing: dict[int, int]
    plain: bool
    training: bool

    @property
    def names(self) -> list[str]:
        return self.space.classes

    @property
    def void(self) -> int:
        return self.labels.get(self.space.ignore, 0)

    def share(self, label: int) -> float:
        """Of a class among the labelled pixels."""
        return self.labels.get(label, 0) / max(sum(self.labels.values()) - self.void, 1)


def findings(survey: LabelSurvey, space: LabelSpace, config: DataConfig, training: bool = False) -> list[Finding]:
    """What is suspicious about the labels that a survey has read, sure findings first."""
    labels, missing = survey.by_label(space)
    values = sorted(value for value in survey.counts if value != UNPAINTED)
    present = sorted(label for label in labels if label != space.ignore)
    coco = config.labels is not None and config.labels.suffix.lower() == ".json"
    plain = config.label_map is None and not coco and not space.numbered
    evidence = Evidence(survey, space, config, values, present, labels, missing, plain, training)
    found = [one for rule in _RULES for one in rule(evidence)]
    return sorted(found, key=lambda one: not one.sure)


def label_map_option(text: str) -> str:
    return f"data.label_map='{text}' (--label-map)"


# ---- values that have no name


def _unnamed(e: Evidence) -> Iterator[Finding]:
    if not e.missing:
        return
    worst = max(e.missing, key=lambda value: e.missing[value])
    what = e.space.explain_missing(worst, e.missing[worst] / e.survey.pixels)
    others = sorted(e.missing.items(), key=lambda item: -item[1])[1:5]
    shown = ", ".join(f"{describe(value)} ({percent(count / e.survey.pixels)})" for value, count in others)
    more = f"; also without a name: {shown}" if others else ""
    more += f" and {len(e.missing) - 5} more values" if len(e.missing) > 5 else ""
    cause = _cause(e)
    yield Finding(f"{e.survey.first[worst]}: {what}{more}" + (f". Likely cause: {cause}" if cause else ""), True, True)


def _cause(e: Evidence) -> str:
    """Why values have no name, as far as they tell."""
    count, values = len(e.names), e.values
    classes = [value for value in values if value not in e.config.void_values]
    if len(e.missing) > max(64, 2 * count):
        return (
            f"{len(e.values)} different values: the files are photos, or labels that were resized or compressed so "
            "that values mix: resize with nearest neighbour and save as PNG"
        )
    if not e.plain or not classes:
        return ""
    if min(classes) >= 0 and max(classes) == count and 1 in classes:
        start = "" if 0 in classes else "labels count from 1: "
        rest = "" if 0 not in classes else "; if it is background, add a first line 'background' to the names"
        return f"{start or '0 is one value more than there are names: if it is void, '}give data.ignore=[0,255]{rest}"
    if count == _TRAIN_IDS and max(classes) < _LABEL_IDS:
        return f"Cityscapes labelIds: give {label_map_option('cityscapes')}"
    if max(classes) >= 1000:
        return "ids of instances (_instanceIds.png), not of classes: use the label images of classes"
    nonzero = [value for value in values if value]
    for candidates, first in ((classes, ""), (values, ""), (nonzero, "0: null, ")):
        if len(candidates) == count:
            pairs = ", ".join(f"{value}: {name}" for value, name in zip(candidates, e.names, strict=True))
            return f"values with gaps: if in the order of the names, give {label_map_option(f'{{{first}{pairs}}}')}"
    return f"values with gaps: say which value has which name with {label_map_option('{7: road, 8: sidewalk, ...}')}"


# ---- values that have a wrong name


def _black_and_white(e: Evidence) -> Iterator[Finding]:
    if not e.plain or e.values != [0, 255] or 255 not in e.config.void_values or 0 in e.config.void_values:
        return
    second = e.names[1] if len(e.names) > 1 else e.names[0]
    first = e.names[0] if len(e.names) > 1 else "background"
    white = percent(e.void / e.survey.pixels)
    yield Finding(
        f"labels hold only 0 and 255, and 255 ({white} of the pixels) is void (data.ignore), so that {e.names[0]!r} is "
        f"everywhere: if 255 is a class, give {label_map_option(f'{{0: {first}, 255: {second}}}')}",
        True,
        final=False,
    )


def _one_class(e: Evidence) -> Iterator[Finding]:
    if len(e.present) > 1 or e.missing or not e.survey.counts:
        return
    if not e.present:
        values = ", ".join(map(describe, sorted(e.survey.counts)[:5]))
        yield Finding(
            f"no pixel has a label: all are void (values {values}): correct data.ignore or data.label_map",
            True,
            final=False,
        )
    elif not list(_black_and_white(e)):
        name, void = e.names[e.present[0]], [value for value in e.values if value in e.config.void_values]
        cure = "check data.names, data.ignore and data.label_map"
        if e.survey.counts[UNPAINTED]:
            cure = f"name what is outside the annotations: {label_map_option('{unpainted: background}')}"
        elif e.plain and void and len(e.values) == 2:
            other = next((one for one in e.names if one != name), "background")
            cure = f"if {void[0]} is one, give {label_map_option(f'{{{e.values[0]}: {name}, {void[0]}: {other}}}')}"
        yield Finding(
            f"{name!r} is the only class that occurs, and everything would be {name!r}: a model needs pixels of "
            f"two classes or more; {cure}",
            e.training,
            final=False,
        )


def _starts_at_one(e: Evidence) -> Iterator[Finding]:
    if not e.plain or e.missing or 0 in e.config.void_values or len(e.present) < 2 or e.present[0] != 1:
        return
    if e.names[0].lower() not in BACKGROUNDS and not is_void_name(e.names[0]):
        yield Finding(
            f"label 0, {e.names[0]!r}, never occurs, and labels are {e.present[0]} to {e.present[-1]}: if the first "
            "name is that of value 1, give data.ignore=[0,255]",
            False,
        )


def _void_in_names(e: Evidence) -> Iterator[Finding]:
    """Names that begin with "unlabeled" or the like, as COCO-Stuff's labels.txt, on labels that count from 0."""
    numbered = e.space.label_of or dict(enumerate(range(len(e.names))))
    name_of = {value: e.names[label] for value, label in numbered.items() if label < len(e.names)}
    void = e.space.ignore
    coco_stuff = name_of.get(1) == "person" and "wood" in (name_of.get(182, ""), name_of.get(len(e.names) - 1, ""))
    zero_is_void = numbered.get(0) == void or is_void_name(name_of.get(0, ""))
    if zero_is_void and coco_stuff and 255 in e.survey.counts:
        yield Finding(
            "the names are those of COCO-Stuff's labels.txt, whose numbers are one more than the values in its PNGs "
            f"(255 is void there): give {label_map_option('coco-stuff')}",
            True,
        )
    elif e.plain and is_void_name(e.names[0]) and 0 in e.present:
        yield Finding(
            f"label 0 is called {e.names[0]!r} and is a class like any other ({percent(e.share(0))} of the labelled "
            "pixels): if it is void, remove the line and give data.ignore=[0,255]",
            False,
        )


def _background_ignored(e: Evidence) -> Iterator[Finding]:
    """0 is void, so the names begin at value 1; and yet the last name never occurs."""
    if not e.plain or 0 not in e.config.void_values or e.missing or not e.present:
        return
    last = len(e.names) - 1
    telling = e.names[0].lower() in BACKGROUNDS or e.survey.files >= 2 * len(e.names)
    if last not in e.present and e.survey.complete and telling:
        yield Finding(
            f"0 is void (data.ignore), so that the first name, {e.names[0]!r}, is that of value 1; but no pixel is "
            f"{e.names[last]!r}, the last: if the names have a line for 0, remove it",
            False,
        )


def _zero_dominates(e: Evidence) -> Iterator[Finding]:
    name = e.names[0].lower()
    if not e.plain or name in BACKGROUNDS or is_void_name(name) or 0 in e.config.void_values or len(e.present) < 2:
        return
    often = e.survey.in_files[0] / e.survey.files
    # unlabelled pixels are in nearly all files; a class can be too, but then it is seldom that nothing is void
    if e.survey.files > 2 and ((e.share(0) > 0.5 and often >= 0.9) or (not e.void and often >= 0.8)):
        yield Finding(
            f"label 0, {e.names[0]!r}, is in {percent(often)} of the files and on {percent(e.share(0))} of the "
            "labelled pixels: if 0 is background, add a first line 'background' to the names; if it is void, give "
            "data.ignore=[0,255]",
            False,
        )


def _grey_levels(e: Evidence) -> Iterator[Finding]:
    """Masks such as 0, 128, 255 on a long list of names."""
    classes = [value for value in e.values if value not in e.config.void_values]
    spread = min((high - low for low, high in pairwise(classes)), default=0)
    if e.plain and not e.missing and 2 <= len(classes) <= 16 and spread >= 8:
        pairs = ", ".join(f"{value}: ..." for value in classes)
        yield Finding(
            f"labels hold only the values {', '.join(map(str, e.values))} of 0 to {len(e.names) - 1}: they look like "
            f"grey levels, not like numbers of classes; say which is which with {label_map_option(f'{{{pairs}}}')}",
            False,
        )


def _names_unused(e: Evidence) -> Iterator[Finding]:
    count, files = len(e.names), e.survey.files
    if e.survey.complete and not e.missing and 1 < len(e.present) < count / 2 <= files:
        yield Finding(
            f"only {len(e.present)} of {count} names occur: check that the values mean what the names say (fgaseg data "
            "check --picture shows them)",
            False,
        )


def _train_ids(e: Evidence) -> Iterator[Finding]:
    if e.config.label_map == "cityscapes" and 255 in e.survey.counts:
        yield Finding(
            "labels hold 255, which Cityscapes' labelIds never do: these are its labelTrainIds: give "
            + label_map_option("cityscapes-train-ids"),
            True,
        )


# ---- files


def _reordered(e: Evidence) -> Iterator[Finding]:
    by_index = not any(COLOURS <= value < UNPAINTED for value in e.space.named)
    if e.survey.reordered and by_index:
        yield Finding(
            f"{e.survey.reordered}: a drawing program has reordered the palette, so that indices mean nothing: name "
            f"the colours with {label_map_option('labelmap.txt')}",
            True,
        )


def _grey_palette(e: Evidence) -> Iterator[Finding]:
    if e.survey.greys and e.plain:
        file, pairs = e.survey.greys
        example = '{"0,0,0": ...}'
        indices, greys = (", ".join(map(str, values)) for values in zip(*pairs, strict=True))
        yield Finding(
            f"{file} has a palette of greys: its indices ({indices}) count, not its greys ({greys}). If the greys are "
            f"the values, as after an image optimiser, name them as colours: {label_map_option(example)}",
            False,
        )


def _own_photo(e: Evidence) -> Iterator[Finding]:
    if e.survey.photos:
        yield Finding(
            f"{len(e.survey.photos)} label files are the photos themselves, such as {e.survey.photos[0]}: correct the "
            "folders, or say which files are labels with data.label_suffix (--label-suffix)",
            True,
        )


def _turned(e: Evidence) -> Iterator[Finding]:
    turned, doubtful = e.survey.turned, e.survey.doubtful
    drawn = (
        f"were drawn on the photo before its EXIF orientation was applied, such as those of {turned[0]}"
        if turned
        else ""
    )
    if turned:
        yield Finding(f"the labels of {len(turned)} photos {drawn}: they are turned with it", False)
    if doubtful:
        also = f", and the labels of other photos {drawn}" if turned else ""
        yield Finding(
            f"{len(doubtful)} photos, such as {doubtful[0]}, have an EXIF orientation, and their size does not tell "
            f"whether labels were drawn on the photo as stored or upright{also}: say so with data.rotate_labels=true "
            "(as stored) or false (upright, as is assumed now)",
            bool(turned),
        )


def _overlaps(e: Evidence) -> Iterator[Finding]:
    share = e.survey.several / max(e.survey.pixels, 1)
    if share > 0.005:
        yield Finding(
            f"{percent(share)} of the pixels belong to annotations of several categories: the last one in the file "
            "counts",
            False,
        )


def _mostly_void(e: Evidence) -> Iterator[Finding]:
    share = e.void / max(e.survey.pixels, 1)
    unpainted = min(e.survey.counts[UNPAINTED] / max(e.survey.pixels, 1), share)
    if (share > 0.9 or unpainted > 0.5) and len(e.present) > 1:
        cure = f": pixels outside the annotations become a class with {label_map_option('{unpainted: background}')}"
        yield Finding(f"{percent(share)} of the pixels are void{cure if unpainted > 0.5 else ''}", False)


_RULES: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    _own_photo, _reordered, _grey_palette, _train_ids, _void_in_names, _black_and_white, _unnamed, _one_class, _turned,
    _background_ignored, _starts_at_one, _zero_dominates, _grey_levels, _names_unused, _overlaps, _mostly_void,
)  # fmt: skip
