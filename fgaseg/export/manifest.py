"""manifest.json: what the files of an export are, and what runs them has to know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..files import atomic_write
from ..inference import ScoreRule
from ..inference.prediction import LONGEST_ASPECT
from ..model import FGASeg
from ..model.packed_maps import DROPPED
from ..vocabulary import Vocabulary
from .graphs import Part

FORMAT, VERSION = "fgaseg-export", 1
MANIFEST = "manifest.json"
VOCABULARY = ("vocabulary.json", "vocabulary.f32")
RESIZE = "bilinear, half-pixel centres, no antialiasing"


def describe(model: FGASeg, name: str, precision: str) -> dict[str, Any]:
    """Everything in a manifest that does not depend on its files, as plain JSON types."""
    from .. import __version__

    config, rule = model.config, ScoreRule.of(model.config)
    before = ("softmax" if rule.softmax else "sigmoid") if rule.before else "none"
    return {
        "format": FORMAT,
        "version": VERSION,
        "fgaseg": __version__,
        "model": {
            "name": model.facts.get("name") or name,
            "licence": model.facts.get("licence") or "unknown",
            "source": model.facts.get("source") or name,
            "preset": config.preset,
            "encoder": config.encoder.name,
            "precision": precision,
        },
        "preprocessing": {
            "colours": "RGB",
            "mean": list(model.normalization[0]),
            "std": list(model.normalization[1]),
            "patch": model.patch,
            "short_side": config.image_size,
            "longest_aspect": LONGEST_ASPECT,
            "resize": RESIZE,
        },
        "text": {
            "templates": [config.template] if isinstance(config.template, str) else list(config.template),
            "first_synonym": config.first_synonym,
            "synonyms": config.synonyms,
        },
        "labels": {
            "before_resize": before,
            # of what is not a probability already
            "probability": "softmax" if rule.softmax else "none" if rule.inner else "sigmoid",
            "dropped": DROPPED,
        },
        "limits": limits(config),
    }


def limits(config: ModelConfig) -> list[str]:
    """What the model does, and its graphs do not, in sentences."""
    found = [
        "a photo more than four times as long as broad is labelled in tiles by fgaseg; here its long side is shortened"
    ]
    if config.inference == "windows":
        found.append(
            "inference=windows: fgaseg averages five views of a photo; a graph sees one, as with inference=whole"
        )
    if config.fast:
        found.append(
            "fast: dropped classes are masked and computed to the end: the same numbers, without the time that fast "
            "mode saves"
        )
    if config.class_maps_budget is not None:
        found.append("class_maps_budget: all class maps are in memory at once")
    if config.released_fast_scores:
        found.append("released_fast_scores: the logits are scores after a sigmoid already")
    return found


def describe_file(path: Path, part: Part, to: str, precision: str, facts: dict[str, Any]) -> dict[str, Any]:
    """A file's entry: what it computes, its checksum, and `facts` such as the operators."""
    return {
        "part": part.name,
        "to": to,
        "precision": precision,
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        "inputs": [asdict(port) for port in part.inputs],
        "outputs": [asdict(port) for port in part.outputs],
        **facts,
    }


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def graph_metadata(manifest: dict[str, Any], names: Sequence[str] | None, first: Sequence[int] = ()) -> dict[str, str]:
    """What an ONNX file says of itself: the manifest without its files, and single values for simple readers.

    names  of the classes that are built in, if any
    first  for each of them the first class that is equal to it
    """
    pixels, own = manifest["preprocessing"], {k: v for k, v in manifest.items() if k not in ("files", "check")}
    found = {
        "fgaseg": json.dumps(own),
        "fgaseg.mean": _joined(pixels["mean"]),
        "fgaseg.std": _joined(pixels["std"]),
        "fgaseg.patch": str(pixels["patch"]),
        "fgaseg.short_side": str(pixels["short_side"]),
        "fgaseg.longest_aspect": str(pixels["longest_aspect"]),
        "fgaseg.before_resize": manifest["labels"]["before_resize"],
    }
    if names is not None:
        found["class_names"] = json.dumps(dict(enumerate(names)))
        found["fgaseg.class_names"] = "\n".join(names)
        found["fgaseg.first"] = _joined(first)
    return found


def _joined(values: Iterable[float]) -> str:
    return ",".join(map(repr, values))


def write_vocabulary(vocabulary: Vocabulary, first: list[int], folder: Path) -> None:
    """vocabulary.json, and vocabulary.f32: the embeddings of the prompts, float32 little-endian, row after row."""
    embeddings = vocabulary.embeddings.float().cpu().numpy().astype("<f4")
    described = {
        "names": vocabulary.names,
        "counts": vocabulary.counts or [1] * len(vocabulary),
        "first": first,
        "background": vocabulary.background,
        "channels": embeddings.shape[1],
    }
    write_json(folder / VOCABULARY[0], described)
    atomic_write(folder / VOCABULARY[1], lambda file: file.write(embeddings.tobytes()))


def write_json(path: Path, value: Any) -> None:
    atomic_write(path, lambda file: file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()))
