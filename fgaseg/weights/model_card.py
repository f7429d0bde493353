"""The model card, README.md beside a saved model: what is known of it, and what is not."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config import ModelConfig
from ..errors import CheckpointError
from ..visible import visible
from .hub import sha256_of
from .named_models import NamedModel

MARK = "<!-- written by fgaseg; without this line the text is yours and is not written again -->"
TAGS = ("open-vocabulary", "semantic-segmentation", "clip", "fgaseg")
FIGURES = {"miou_gt": "mIoU", "miou_union": "union", "fwiou": "fwIoU", "mean_accuracy": "mAcc",
           "pixel_accuracy": "pAcc"}  # fmt: skip
# by the beginning of open_clip's tag
ENCODER_LICENCES = {
    "openai": "MIT",
    "laion": "MIT",
    "datacomp": "MIT",
    "webli": "Apache-2.0",
    "metaclip": "CC-BY-NC-4.0",
}
ON_DISK = "path/to/this/folder"


# what each fact is; a saved model, which nobody has to trust, brings them along
TEXTS = (
    "name",
    "description",
    "source",
    "licence",
    "licence_id",
    "trained_on",
    "base_model",
    "published_in",
    "verified",
)
TABLES: dict[str, dict[str, type]] = {  # facts with parts, and what these are
    "encoder": {"name": str, "pretrained": str},
    "training": {"recipe": dict, "data": str, "steps": int, "batch": int, "processes": int},
    "published": {},
    "results": {},
}


def known_facts(facts: Any) -> dict[str, Any]:
    """Those facts of a saved model of which a card can be made; others say nothing and are left out."""
    return {key: value for key, value in facts.items() if _is_fact(key, value)} if isinstance(facts, dict) else {}


def _is_fact(key: str, value: Any) -> bool:
    if key not in TABLES:
        return key in TEXTS and isinstance(value, str)
    if not isinstance(value, dict) or not all(isinstance(value.get(k), kind) for k, kind in TABLES[key].items()):
        return False
    rows = value.values() if key == "results" else ()
    return all(isinstance(row, dict) and all(isinstance(row[key], float | int) for key in FIGURES if key in row)
               for row in rows)  # fmt: skip


def _as_text(value: Any) -> Any:
    """Facts as text of a card: no line breaks, no HTML, and no end of a block of code."""
    if isinstance(value, Mapping):
        return {_as_text(key): _as_text(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_text(one) for one in value]
    return html.escape(visible(value), quote=False).replace("```", "'''") if isinstance(value, str) else value


def facts_of(model: NamedModel, commit: str, sha256: str) -> dict[str, Any]:
    """What a card says of a published checkpoint, as plain JSON types."""
    return {
        "name": model.name,
        "description": model.description,
        "source": f"{model.source}, commit {commit}, SHA-256 {sha256}, converted",
        "licence": model.licence,
        "licence_id": model.licence_id,
        "trained_on": model.trained_on,
        "base_model": model.base_model,
        "published": dict(model.published),
        "published_in": model.published_in,
        "verified": model.verified,
    }


def model_card(config: ModelConfig, facts: Mapping[str, Any], load_from: str = ON_DISK) -> str:
    """The text of README.md: Markdown with the YAML header that the Hugging Face Hub reads.

    facts      plain JSON types, all optional: what `facts_of` gives, "encoder" {"name", "pretrained"}, "training" and
               "results" {set: figures, "images", "record"}. What is missing is said to be unknown
    load_from  what `fgaseg.load` is given
    """
    facts = _as_text(facts)
    sections = (
        _header(facts),
        f"{MARK}\n\n# {facts.get('name') or 'A segmentation model'}",
        facts.get("description")
        or "Open-vocabulary semantic segmentation: a label for every pixel, from any list of class names.",
        _use(load_from),
        "## Configuration\n\n" + _configuration(config),
        "## Training\n\n" + _training(facts),
        "## Metrics\n\n" + _metrics(facts),
        "## Licences\n\n" + _licences(facts),
        "## Limits\n\n" + _limits(facts),
    )
    return "\n\n".join(sections) + "\n"


def read_results(source: str | Path, weights: Path) -> dict[str, Any]:
    """The figures that `fgaseg eval` left in a folder (its --out), or in one of its files, by data set.

    weights  the model.safetensors that they must have been computed with
    Raises CheckpointError if there are none, or they are of other weights.
    """
    source = Path(source)
    found = {}
    for file in sorted(source.glob("*.json")) if source.is_dir() else [source]:
        try:
            data = json.loads(file.read_text())
            scores, record = data["scores"], data["record"]
            figures = {key: scores[key] for key in FIGURES if scores.get(key) is not None}
            found[file.stem] = {"images": scores["images"], **figures, "record": data["hash"]}
            sha256 = record["weights"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of something else
        if sha256 != sha256_of(weights):
            raise CheckpointError(f"{file}: was computed with other weights than this model's; evaluate this model")
    if not found:
        raise CheckpointError(f"{source}: holds no results of fgaseg eval; give the folder that was its --out")
    return found


def is_ours(text: str) -> bool:
    """Whether a card may be written again."""
    return MARK in text


def _header(facts: Mapping[str, Any]) -> str:
    header: dict[str, Any] = {"library_name": "fgaseg", "pipeline_tag": "image-segmentation", "tags": list(TAGS)}
    if facts.get("licence_id"):
        header["license"] = facts["licence_id"]
    if facts.get("base_model"):
        header["base_model"] = facts["base_model"]
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


def _use(load_from: str) -> str:
    return f"""## Use

```python
import fgaseg

model = fgaseg.load({json.dumps(load_from)})
model.segment("photo.jpg", ["cat", "sofa", "wooden floor"]).overlay().save("labelled.png")
```"""


def _configuration(config: ModelConfig) -> str:
    """The switches that are not as the preset has them; the encoder's architecture is in config.json."""
    defaults, values = ModelConfig(preset=config.preset).dump(), config.dump()
    changed = {key: value for key, value in values.items() if value != defaults[key]}
    encoder = changed.get("encoder", {})
    for key in ("architecture", "pretrained", "mean", "std", "dense"):  # spelled out when the model is saved
        encoder.pop(key, None)
    text = yaml.safe_dump({"preset": config.preset, **changed}, sort_keys=False).strip()
    return f"The preset, and what differs from it; `config.json` holds everything.\n\n```yaml\n{text}\n```"


def _training(facts: Mapping[str, Any]) -> str:
    if not (training := facts.get("training")):
        source = f"\n\nThe weights are from {facts['source']}." if facts.get("source") else ""
        return f"Data: {facts.get('trained_on') or 'unknown'}. Recipe: unknown to this card.{source}"
    recipe = yaml.safe_dump(training["recipe"], sort_keys=False).strip()
    done = f"{training['steps']} steps of {training['batch']} images on {training['processes']} process(es)"
    return f"Data: {training['data']}. {done}, with this recipe:\n\n```yaml\n{recipe}\n```"


def _metrics(facts: Mapping[str, Any]) -> str:
    parts = []
    if results := facts.get("results"):
        known = [key for key in FIGURES if any(key in result for result in results.values())]
        rows = [f"| set | images | {' | '.join(FIGURES[key] for key in known)} | record |",
                f"|---|{'---|' * (len(known) + 2)}"]  # fmt: skip
        for name, result in results.items():
            figures = (f"{100 * result[key]:.1f}" if key in result else "-" for key in known)
            rows.append(
                f"| {name} | {result.get('images', '-')} | {' | '.join(figures)} | {result.get('record', '-')} |"
            )
        rows.append(
            "\nIn %. The record is the hash of everything that decides the figures; `fgaseg eval` prints the same one "
            "when it computes the same thing."
        )
        parts.append("\n".join(rows))
    if published := facts.get("published"):
        listed = ", ".join(f"{name} {value}" for name, value in published.items())
        where = facts.get("published_in") or "unknown where"
        parts.append(f"Published mIoU in %: {listed} ({where}); not computed with this copy.")
    return "\n\n".join(parts) or "None recorded."


def _licences(facts: Mapping[str, Any]) -> str:
    encoder = facts.get("encoder") or {}
    tag = encoder.get("pretrained") or ""
    licence = next((value for start, value in ENCODER_LICENCES.items() if tag.startswith(start)), "unknown")
    lines = [f"- these weights: {facts.get('licence') or 'unknown; whoever publishes them has to say'}"]
    if tag:
        lines.append(f"- the encoder that they started from, {encoder.get('name')} ({tag}): {licence}")
    elif facts.get("base_model"):
        lines.append(f"- the encoder that they started from: {facts['base_model']}; see there")
    else:
        lines.append("- the encoder that they started from: unknown")
    return "\n".join(lines)


def _limits(facts: Mapping[str, Any]) -> str:
    lines = [
        "- Every pixel gets one of the given names, even where none fits: give names for the rest too (background).",
        "- It has the weaknesses and biases of CLIP and of its training data; do not rely on it where errors do harm.",
    ]
    if facts.get("verified"):
        lines.append(f"- Verified: {facts['verified']}.")
    return "\n".join(lines)


def plain_tag(pretrained: str | None) -> str:
    """`encoder.pretrained` if it is a tag of open_clip; empty if it is a path, which is nobody else's business."""
    return pretrained if pretrained and re.fullmatch(r"[\w-]+", pretrained) else ""
