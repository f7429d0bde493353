"""The paper's Table I: the published figures, ours below them, and what makes the two incomparable."""

from __future__ import annotations

from collections.abc import Mapping

from .results import EvalResult

COLUMNS = {"a847": "A-847", "pc459": "PC-459", "a150": "A-150", "pc59": "PC-59", "pas20": "PAS-20", "pas20b": "PAS-20b"}
# mIoU in percent over the classes in the ground truth, in the order of COLUMNS: from the paper's Table I, and from
# CAT-Seg's released weights
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    "FGAseg B/16": (12.0, 19.0, 31.4, 57.5, 95.2, None),
    "CAT-Seg B/16": (12.0, 19.0, 31.8, 57.5, 94.6, 77.3),
    "FGAseg L/14": (16.3, 23.9, 37.7, 63.1, 96.9, None),
    "CAT-Seg L/14": (16.0, 23.8, 37.9, 63.3, 97.0, 82.5),
}
PUBLISHED_TEMPLATE = "A photo of a {} in the scene"


def table_one(results: Mapping[str, EvalResult]) -> dict[str, list[str | None]]:
    """The rows of the paper's Table I, published above ours, as {name: one cell a column}; None where there is none."""
    rows: dict[str, list[str | None]] = {
        name: [None if value is None else f"{value:.1f}" for value in values] for name, values in PUBLISHED.items()
    }
    ours = [results.get(key) for key in COLUMNS]
    for name, figure in (("ours", "miou_gt"), ("ours, union", "miou_union")):
        rows[name] = [f"{100 * getattr(result.scores, figure):.1f}" if result else None for result in ours]
    rows["record"] = [result.hash if result else None for result in ours]
    return rows


def cautions(name: str, result: EvalResult, published_images: int | None) -> list[str]:
    """Why a figure of ours must not be compared with the published ones, one line for each reason.

    published_images  number of images in the published set
    """
    record, lines = result.record, []
    images, whole = record["data"]["images"], record["data"]["images_of_set"]
    templates = record["text"]["templates"]
    if images != whole:
        lines.append(f"scored on the first {images} of {whole} images")
    if published_images is not None and whole != published_images:
        lines.append(f"the data has {whole} images, the published set {published_images}")
    if templates != [PUBLISHED_TEMPLATE]:
        used = "template" if len(templates) == 1 else f"{len(templates)} templates, the first"
        lines.append(f"{used} {templates[0]!r}, published with {PUBLISHED_TEMPLATE!r} (--template)")
    if not record["text"]["first_synonym"]:
        lines.append("prompts contain all synonyms, published with the first alone (first_synonym=true)")
    if record["input"]["inference"] != "windows":
        lines.append("images are seen whole, published with windows (--window)")
    numerics = record["numerics"]
    autocast = None if numerics["autocast"] == "no" else numerics["autocast"]
    if lower := autocast or numerics.get("precision"):
        lines.append(f"computed in {lower}, published in float32")
    gap = 100 * (result.scores.miou_gt - result.scores.miou_union)
    if gap >= 0.05:
        lines.append(f"the union row is {gap:.1f} lower by its definition alone: mIoU is what was published")
    return [f"{COLUMNS.get(name, name)}: {line}" for line in lines]
