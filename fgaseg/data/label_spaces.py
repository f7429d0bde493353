"""What the values in a user's own labels mean, from names file, label map, ignored values and COCO categories."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..config import DataConfig
from ..errors import DataError
from .class_names import LabelSpace
from .class_tables import ClassTable, Name, is_void_name
from .coco import read_coco
from .label_formats import UNPAINTED, describe
from .label_maps import LabelMap
from .names_files import read_table

_UNNAMED = LabelMap("")


def is_coco(labels: Path) -> bool:
    """Whether labels are COCO annotations in a JSON file, not a folder of images."""
    return labels.suffix.lower() == ".json" and not labels.is_dir()


def open_label_space(config: DataConfig, labels: Path | None) -> LabelSpace:
    """The classes of a configuration's own folders, and the label of every value in its label images.

    labels  the labels of the split: a folder, or a COCO file, whose categories then have names; None: not known

    The classes are those of ``config.names``; without it, of ``config.label_map``, or else of the COCO file. Raises
    DataError where names and map do not fit, or a value is both void and a class.
    """
    label_map = _UNNAMED if config.label_map is None else LabelMap.read(config.label_map)
    table = None if config.names is None else read_table(config.names)
    names = None if table is None else table.class_names(by_value=True)
    coco = read_coco(labels).categories if labels is not None and is_coco(labels) else None
    void_values = config.void_values
    if coco is not None:
        void_values = ()  # category ids are no values of pixels
        entries: dict[int, Name] = {**coco, **label_map.names}
        origin = str(labels) if label_map is _UNNAMED else f"{labels} and {label_map.origin}"
    elif (stored := _first_stored(label_map, table)) is not None:
        entries, origin = dict(stored.names), stored.origin if stored is label_map else f"the names of {config.names}"
        # 255 is only the default; and colours are no values
        void_values = tuple(one for one in void_values if one != 255 or 255 not in entries) * stored.has_values
    else:
        if names is None:
            raise DataError("data.names is not set: set it to a path, for example data.names=my_data/names")
        entries, origin = _numbered(names, config), f"the names of {config.names}"
    if names is None:
        names = _names_without_file(config, label_map)
        origin_of_classes = origin
    else:
        origin_of_classes = f"the names of {config.names}"
    _refuse_void_class(names, config.void, origin_of_classes)
    prompts = (replace(table, prompts=label_map.prompts | table.prompts) if table else label_map).with_prompts(names)
    numbered = table is not None and bool(table.names)
    plain = label_map is _UNNAMED and coco is None and entries == dict(enumerate(names))
    if plain and void_values == (config.void,):
        return LabelSpace(prompts, names, config.void, None, origin, numbered=numbered)  # values are labels
    label_of, others = _resolve(entries, label_map, names, config, origin)
    for value in void_values:
        if label_of.setdefault(value, config.void) != config.void:
            raise DataError(
                f"{origin}: label {value} is {names[label_of[value]]!r} and cannot be ignored too: set data.ignore "
                "to a value that no class has, such as 65535"
            )
    return LabelSpace(prompts, names, config.void, None, origin, label_of, others, numbered)


def _first_stored(*tables: ClassTable | None) -> ClassTable | None:
    """The first that has values or colours: a label map, else a names file that has them."""
    return next((one for one in tables if one is not None and (one.has_values or one.has_colours)), None)


def _names_without_file(config: DataConfig, label_map: LabelMap) -> list[str]:
    """The classes that a map names; of COCO files, those of the training set and what a map adds."""
    names: list[str] = []
    labels = next((one for one in (config.labels, config.val_labels) if one is not None and is_coco(one)), None)
    if labels is not None:
        entries = {**read_coco(labels).categories, **label_map.names}
        texts = [name for name in entries.values() if isinstance(name, str)]
        names = list(dict.fromkeys(name for name in texts if not is_void_name(name)))
    names += [name for name in label_map.class_names() if name not in names]
    if not names:
        raise DataError("data.names is not set, and data.label_map names no class: give a file of class names")
    return names


def _numbered(names: Sequence[str], config: DataConfig) -> dict[int, Name]:
    """Value n is the n-th name; names begin after the void values 0, 1, ..."""
    first = 0
    while first in config.void_values:
        first += 1
    if first and is_void_name(names[0]):
        raise DataError(
            f"{config.names}: the first name is {names[0]!r}, but with data.ignore={list(config.void_values)} the "
            f"first name is that of value {first}: remove the line, or take 0 out of data.ignore"
        )
    return {first + number: name for number, name in enumerate(names)}


def _refuse_void_class(names: Sequence[str], void: int, origin: str) -> None:
    if void < len(names):
        raise DataError(
            f"{origin.removeprefix('the names of ')}: label {void} is {names[void]!r} and cannot be ignored too: "
            "set data.ignore to a value that no class has, such as 65535"
        )


def _resolve(
    entries: Mapping[int, Name], label_map: LabelMap, names: Sequence[str], config: DataConfig, origin: str
) -> tuple[dict[int, int], int | None]:
    """The label of each stored value, and of all others."""
    index = {name: number for number, name in enumerate(names)}
    label_of: dict[int, int] = {}
    unknown: dict[int | str, Name] = {}
    for stored, name in entries.items():
        label = _label(name, index, names, config)
        if label is None and label_map.others and stored not in label_map.names:
            label = _label(label_map.others[0], index, names, config)
        if label is None:
            unknown[stored] = name
            continue
        label_of[stored] = label
    if unknown:
        raise DataError(_explain_unknown(unknown, index, origin, config))
    background = next((number for name, number in index.items() if name.lower() == "background"), config.void)
    drawn = background in label_of.values()
    label_of.setdefault(UNPAINTED, config.void if drawn else background)
    others = _label(label_map.others[0], index, names, config) if label_map.others else None
    if label_map.others and others is None:
        raise DataError(_explain_unknown({"others": label_map.others[0]}, index, origin, config))
    return label_of, others


def _label(name: Name, index: Mapping[str, int], names: Sequence[str], config: DataConfig) -> int | None:
    """The label that a name means; None if it means none."""
    if name is None:
        return config.void
    if isinstance(name, int):
        if name < 0 or name in config.void_values:
            return config.void
        return name if name < len(names) and config.names is not None else None
    return index.get(name, config.void if is_void_name(name) else None)


def _explain_unknown(
    unknown: Mapping[int | str, Name], index: Mapping[str, int], origin: str, config: DataConfig
) -> str:
    stored, name = next(iter(unknown.items()))
    more = f", and {len(unknown) - 1} more names" if len(unknown) > 1 else ""
    where = f"{origin}: {describe(stored) if isinstance(stored, int) else stored} is"
    if isinstance(name, int):
        return (
            f"{where} class {name}, but "
            + (f"{config.names} has {len(index)} names" if config.names else "data.names is not set")
            + f"{more}: numbers of classes index the names file, from 0 on"
        )
    close = difflib.get_close_matches(str(name), index, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return (
        f"{where} {name!r}{more}, which {config.names or origin} does not list{hint}: add it there, or give it the "
        "name null (void) in data.label_map, or all that are not listed: data.label_map='{others: null}'"
    )
