"""How a number was made: the record that is hashed and printed beside it, and the published numbers to put it under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from rich.table import Table

from ..distributed import any_process, rank, world_size
from ..environment import processor, version
from ..errors import ResultError
from ..files import atomic_write
from ..inference import LONGEST, LONGEST_ASPECT, STRIDE, WINDOW, WINDOWS_SIZE
from .evaluator import AHEAD, Unfinished, differences, evaluate
from .scores import FIGURES, Scores

COLUMNS = {"a847": "A-847", "pc459": "PC-459", "a150": "A-150", "pc59": "PC-59", "pas20": "PAS-20", "pas20b": "PAS-20b"}
# mIoU in percent over the classes in the ground truth, by the order of COLUMNS: the paper's Table I, and what CAT-Seg's
# released weights give
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    "FGAseg B/16": (12.0, 19.0, 31.4, 57.5, 95.2, None),
    "CAT-Seg B/16": (12.0, 19.0, 31.8, 57.5, 94.6, 77.3),
    "FGAseg L/14": (16.3, 23.9, 37.7, 63.1, 96.9, None),
    "CAT-Seg L/14": (16.0, 23.8, 37.9, 63.3, 97.0, 82.5),
}
PUBLISHED_TEMPLATE = "A photo of a {} in the scene"
TRAINING_ONLY = ("preset", "checkpointing", "class_pooling", "t2p", "t2p_text", "t2p_kernel_size")
METRICS = {
    "miou_gt": "mean IoU over the classes that occur in the ground truth",
    "miou_union": "mean IoU over the classes that occur in the ground truth or the prediction",
    "matrix": "one confusion matrix for the set; pixels ignored in the ground truth leave both axes",
    "prediction": "argmax of the scores after bilinear upsampling to the size of the labels",
}
TEMPLATES = {
    "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,  # 80
    "imagenet_select": open_clip.SIMPLE_IMAGENET_TEMPLATES,  # 7
}


def templates(name: str) -> str | list[str]:
    """The prompt templates called "imagenet" or "imagenet_select"; any other name is a template itself."""
    return [template("{}") for template in TEMPLATES[name]] if name in TEMPLATES else name


def weights_hash(model: Any) -> str:
    """SHA-256 of the model's weights as safetensors: for float32 weights, of the file that `save_pretrained` writes."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()


def record(model: Any, dataset: Any, name: str, count: int | None = None, weights: str | None = None) -> dict[str, Any]:
    """Everything that decides the figures of a model on a data set, but the pictures; JSON-able.

    count    of pictures that are scored; None: all
    weights  `weights_hash(model)`, where it is known

    Call it inside the autocast that the evaluation runs in. Batch, reading threads, number of processes, place of the
    files, GPU's name, and what only training reads are not in it: they change no figure. With `pictures`, of the
    scores, added, its `short_hash` stands beside a number.
    """
    config = {key: value for key, value in model.config.dump().items() if key not in TRAINING_ONLY}
    encoder = {key: value for key, value in config.pop("encoder").items() if key not in ("pretrained", "name")}
    template = config.pop("template")
    names, class_of = list(dataset.names), getattr(dataset, "class_of", None)
    device = model.mean.device.type
    return {
        "data": {
            "set": name,
            "images": min(len(dataset), count or len(dataset)),
            "images_of_set": len(dataset),
            "prompts": len(names),
            "classes": len(getattr(dataset, "classes", names)),
            "names": _hash([names, class_of]),
            "ignore": getattr(dataset, "ignore", 255),
        },
        "text": {"templates": [template] if isinstance(template, str) else template,
                 "first_synonym": config.pop("first_synonym")},
        "input": _input(config.pop("inference"), config.pop("image_size"), model.patch),
        "model": config | {"encoder": encoder, "loss": {"seg": config["loss"]["seg"]}},
        "weights": weights or weights_hash(model),
        "numerics": {
            "device": device,
            "autocast": str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "no",
            "float32_products": torch.get_float32_matmul_precision() if device == "cuda" else "highest",
            "tf32_convolutions": device == "cuda" and torch.backends.cudnn.allow_tf32,
        },
        "metrics": METRICS,
        "versions": {package: version(package) for package in ("fgaseg", "torch", "open_clip_torch")},
    }  # fmt: skip


def _input(inference: str, image_size: int, patch: int) -> dict[str, Any]:
    view = {"view": image_size // patch * patch if inference == "windows" else image_size, "patch": patch}
    if inference == "windows":
        return {"inference": "windows", "side": WINDOWS_SIZE, "window": WINDOW, "stride": STRIDE,
                "longest": LONGEST, **view}  # fmt: skip
    return {"inference": "whole", "longest": LONGEST_ASPECT * image_size, **view}


def short_hash(record: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a record."""
    return _hash(record)[:8]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_state(dataset: Any) -> str:
    """Changes when a file of the data set does: whether an interrupted evaluation may go on. Root-independent.

    Sizes and times of photos and labels, from `dataset.pairs`; for a data set without files, its length.
    """
    stats = [(stem, [file.stat() for file in files]) for stem, *files in getattr(dataset, "pairs", [])]
    return _hash([len(dataset), [(stem, [(s.st_size, s.st_mtime_ns) for s in files]) for stem, files in stats]])


@dataclass(frozen=True)
class Result:
    """The figures of one set, how they were made, and on which machine.

    record  of `record`, with "pictures" of the scores in "data"
    free    what was different may not have changed the figures: not hashed
    """

    record: dict[str, Any]
    scores: Scores
    free: dict[str, Any]

    @classmethod
    def of(cls, record: dict[str, Any], scores: Scores, free: dict[str, Any]) -> Result:
        return cls(record | {"data": record["data"] | {"pictures": scores.pictures}}, scores, free)

    @property
    def hash(self) -> str:
        return short_hash(self.record)

    def dump(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"hash": self.hash, "record": self.record, "free": self.free, "scores": self.scores.dump()}

    def write(self, file: Path) -> None:
        text = json.dumps(self.dump(), indent=2) + "\n"
        atomic_write(file, lambda out: out.write(text.encode()))

    @classmethod
    def read(cls, file: Path, record: dict[str, Any], state: str) -> Result | None:
        """A result written before, None if there is none. Raises ResultError if it was made in another way."""
        if not file.exists():
            return None
        try:
            data = json.loads(file.read_text())
            result = cls(data["record"], Scores.load(data["scores"]), data["free"])
            before = result.record | {"data": result.record["data"] | {"pictures": ""}, "files": result.free["files"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{file}: holds no result of fgaseg eval ({error!r}): move it away") from None
        if changed := differences(before, record | {"data": record["data"] | {"pictures": ""}, "files": state}):
            raise ResultError(
                f"{file}: is the result of another evaluation ({'; '.join(changed)}): give another --out, or --restart "
                "to replace it"
            )
        return replace(result, free=result.free | {"read_from": str(file)})


def score(
    model: Any,
    dataset: Any,
    name: str,
    *,
    count: int | None = None,
    batch: int = AHEAD,
    out: Path | None = None,
    restart: bool = False,
    weights: str | None = None,
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Result | None:
    """`evaluate` with its record; None where `stop` ended it early, and on all processes but the main one.

    out      folder: the counts are saved there now and then, and the same call goes on with them; in the end
             <name>.json holds the whole result, <name>.csv the classes. A result that is there is read, not made again
    restart  drop what `out` holds of this set
    weights  `weights_hash(model)`, where it is known

    Raises ResultError or UnfinishedError, naming what differs, when `out` holds another evaluation of this set.
    """
    made, state = record(model, dataset, name, count, weights), files_state(dataset)
    unfinished = None if out is None else Unfinished(out, name, made | {"files": state})
    result = None
    if out is not None and unfinished is not None and rank() == 0:
        if restart:  # the result too: beside it, a new evaluation that is stopped could not go on
            unfinished.remove()
            for suffix in (".json", ".csv"):
                (out / f"{name}{suffix}").unlink(missing_ok=True)
        else:
            result = Result.read(out / f"{name}.json", made, state)
    if any_process(result is not None, model.mean.device):
        return result
    scores = evaluate(model, dataset, count=count, batch=batch, unfinished=unfinished, progress=progress, stop=stop)
    if rank() or scores.images < made["data"]["images"]:
        return None
    free = {"files": state, "batch": batch, "processes": world_size(), "threads": torch.get_num_threads(),
            "machine": torch.cuda.get_device_name() if model.mean.is_cuda else processor()}  # fmt: skip
    result = Result.of(made, scores, free)
    if out is not None and unfinished is not None:
        scores.write_csv(out / f"{name}.csv")
        result.write(out / f"{name}.json")
        unfinished.remove()
    return result


def table_one(results: Mapping[str, Result]) -> dict[str, list[str | None]]:
    """The rows of the paper's Table I, published above ours, as {name: one cell a column}; None where there is none."""
    rows: dict[str, list[str | None]] = {
        name: [None if value is None else f"{value:.1f}" for value in values] for name, values in PUBLISHED.items()
    }
    ours = [results.get(key) for key in COLUMNS]
    for name, figure in (("ours", "miou_gt"), ("ours, union", "miou_union")):
        rows[name] = [f"{100 * getattr(one.scores, figure):.1f}" if one else None for one in ours]
    rows["record"] = [one.hash if one else None for one in ours]
    return rows


LEGEND = (
    "In %. mIoU: over the classes in the ground truth, as the published numbers; union: also over those only\n"
    "predicted, as mmseg and detectron2 0.6 count. record: how the numbers were made, whole with --json and in --out."
)


def draw_table_one(results: Mapping[str, Result]) -> Table:
    """`table_one` for people: at most 80 columns wide."""
    table = Table("", *COLUMNS.values(), title="Table I", box=None)
    for name, cells in table_one(results).items():
        if name == "ours":
            table.add_section()
        table.add_row(name, *(cell or "-" for cell in cells))
    return table


def draw_figures(results: Mapping[str, Result]) -> Table:
    """One row a set: all figures, and how many classes occur."""
    table = Table("set", "pictures", "classes", "mIoU", "union", "fwIoU", "mAcc", "pAcc", "record", box=None)
    for name, one in results.items():
        figures = (f"{100 * getattr(one.scores, figure):.1f}" for figure in FIGURES)
        present = f"{one.scores.present}/{len(one.scores.rows)}"
        table.add_row(name, str(one.scores.images), present, *figures, one.hash)
    return table


def cautions(name: str, result: Result, published_images: int | None) -> list[str]:
    """Why a number of ours must not be compared with the published ones, one line a reason."""
    made, lines = result.record, []
    images, whole = made["data"]["images"], made["data"]["images_of_set"]
    if images != whole:
        lines.append(f"scored on the first {images} of {whole} pictures")
    if published_images is not None and whole != published_images:
        lines.append(f"the data has {whole} pictures, the published set {published_images}")
    if made["text"]["templates"] != [PUBLISHED_TEMPLATE]:
        lines.append(f"template {_some(made['text']['templates'])}, published with {PUBLISHED_TEMPLATE!r} (--template)")
    if not made["text"]["first_synonym"]:
        lines.append("all synonyms are in the prompt, published with the first alone (first_synonym=true)")
    if made["input"]["inference"] != "windows":
        lines.append("photos seen whole, published with windows (--window)")
    if made["numerics"]["autocast"] != "no":
        lines.append(f"computed in {made['numerics']['autocast']}, published in float32")
    gap = 100 * (result.scores.miou_gt - result.scores.miou_union)
    if gap >= 0.05:
        lines.append(f"the union row is {gap:.1f} lower by its definition alone: mIoU is what was published")
    return [f"{COLUMNS.get(name, name)}: {line}" for line in lines]


def _some(values: list[str]) -> str:
    return repr(values[0]) if len(values) == 1 else f"{len(values)} templates, the first {values[0]!r}"
