"""Label maps: the names of the values or colours in label images, from a file, a preset or the configuration itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .benchmark_sets import BENCHMARK_SETS
from .class_tables import ClassTable, Collector
from .names_files import read_table

PRESETS = Path(__file__).parent / "label_presets"


class LabelMap(ClassTable):
    """The names of the values or colours in label images."""

    @classmethod
    def read(cls, source: str | Path | Mapping[Any, Any]) -> LabelMap:
        """A map written in the configuration, the path of a file, or the name of a preset.

        Files: YAML or JSON, a label map of an annotation tool (``car:0,0,142::``), ``0 0 142 car`` or ``7: car`` line
        by line, or CSV with a header; see ``read_table`` and docs/guides/own_data.md. Raises DataError naming the
        source, and the line or the entry that cannot be read.
        """
        if isinstance(source, Mapping):
            collect = Collector("data.label_map", label_map=True)
            collect.add_data(source)
            return cls._of(collect.finish())
        file = Path(source)
        if not file.exists() and str(source) in preset_names():
            return cls._preset(str(source))
        return cls._of(read_table(file, label_map=True, presets=", ".join(preset_names())))

    @classmethod
    def _of(cls, table: ClassTable, origin: str = "") -> LabelMap:
        return cls(origin or table.origin, table.names, table.unstored, table.prompts, table.others)

    @classmethod
    def _preset(cls, name: str) -> LabelMap:
        if (file := PRESETS / f"{name}.yaml").exists():
            return cls._of(read_table(file, label_map=True), f"the preset {name}")
        one = BENCHMARK_SETS[name]
        defined = {value: int(label) for value, label in enumerate(one.table) if label >= 0}
        names = {value: None if label == one.ignore else one.classes[label] for value, label in defined.items()}
        ordered = sorted(names, key=lambda value: (names[value] is None, defined[value]))  # classes in the set's order
        return cls(f"the preset {name}", {value: names[value] for value in ordered})


def preset_names() -> list[str]:
    """The names that ``LabelMap.read`` knows: benchmark sets as they are published, and other well-known sets."""
    return sorted({*BENCHMARK_SETS, *(file.stem for file in PRESETS.glob("*.yaml"))})
