"""Results of evaluations with their provenance, kept in files: written once, read again, resumed where unfinished."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..distributed import any_process, rank, world_size
from ..environment import processor
from ..errors import ResultError
from ..files import atomic_write
from ..model import FGASeg
from .evaluator import EvalOptions, LabelledImages, run_evaluation
from .partial import PartialCounts
from .provenance import differences, files_state, provenance, short_hash
from .scores import Scores


@dataclass(frozen=True)
class EvalResult:
    """The figures of one data set and their provenance.

    record    `provenance`, with the "pictures" of "data": the hash of the samples that were scored
    unhashed  what the figures do not depend on: machine, threads, state of the files
    """

    record: dict[str, Any]
    scores: Scores
    unhashed: dict[str, Any]

    @property
    def hash(self) -> str:
        return short_hash(self.record)

    def dump(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"hash": self.hash, "record": self.record, "free": self.unhashed, "scores": self.scores.dump()}


class ResultFiles:
    """<folder>/<name>.json with the result, and what people look at: <name>.csv with its classes, <name>_images.csv,
    <name>_confusion.csv and <name>_confusion.png. Part files while the evaluation is unfinished.

    record, files  `provenance` and `files_state` of this evaluation: what was saved by another one is refused
    """

    def __init__(self, folder: Path, name: str, record: dict[str, Any], files: str) -> None:
        self.json, self.csv, self.images = (
            folder / f"{name}.json",
            folder / f"{name}.csv",
            folder / f"{name}_images.csv",
        )
        self.confusion, self.picture = folder / f"{name}_confusion.csv", folder / f"{name}_confusion.png"
        self.record, self.files = record, files
        self.partial = PartialCounts(folder, name, record | {"files": files})

    def read(self) -> EvalResult | None:
        """The finished result, or None. Raises ResultError if it belongs to another evaluation or cannot be read."""
        if not self.json.exists():
            return None
        try:
            data = json.loads(self.json.read_text())
            scores = Scores.load(data["scores"], data.get("details"))  # earlier versions had no details
            result = EvalResult(data["record"], scores, data["free"])
            before = _with_samples(result.record, "") | {"files": result.unhashed["files"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{self.json}: holds no result of fgaseg eval ({error!r}): move it away") from None
        if changed := differences(before, _with_samples(self.record, "") | {"files": self.files}):
            raise ResultError(
                f"{self.json}: is the result of another evaluation ({'; '.join(changed)}): give another --out, or "
                "--restart to replace it"
            )
        return replace(result, unhashed=result.unhashed | {"read_from": str(self.json)})

    def write(self, result: EvalResult) -> None:
        """Write the result, each file atomically, and then remove the part files."""
        scores = result.scores
        scores.write_csv(self.csv)
        scores.write_images_csv(self.images)
        scores.write_confusion_csv(self.confusion)
        scores.write_confusion_png(self.picture)
        # numbers that nobody reads line by line, on one line
        text = f'{json.dumps(result.dump(), indent=2)[:-2]},\n  "details": {json.dumps(scores.details())}\n}}\n'
        atomic_write(self.json, lambda file: file.write(text.encode()))
        self.partial.remove()

    def remove(self) -> None:
        """Remove everything, results too: beside an old result, a new evaluation could not be resumed."""
        self.partial.remove()
        for file in (self.json, self.csv, self.images, self.confusion, self.picture):
            file.unlink(missing_ok=True)


def evaluate_with_provenance(
    model: FGASeg,
    dataset: LabelledImages,
    name: str,
    options: EvalOptions | None = None,
    *,
    out: Path | None = None,
    restart: bool = False,
    weights: str | None = None,
) -> EvalResult | None:
    """`evaluate` with a record of everything that decides the figures; None on all processes but the main one.

    name     of the data set
    out      folder of the result (see ResultFiles). Counts are saved there now and then, and the same call resumes from
             them; a result that is already there is read instead of computed
    restart  drop what `out` holds of this data set
    weights  `weights_hash(model)`, where it is known

    None also when `options.stop` ended it early. Raises ResultError or UnfinishedError, naming what differs, when `out`
    holds another evaluation of this data set.
    """
    options = options or EvalOptions()
    record, state = provenance(model, dataset, name, options.count, weights), files_state(dataset)
    files = None if out is None else ResultFiles(out, name, record, state)
    if files is not None:
        finished = None
        if rank() == 0 and restart:
            files.remove()
        elif rank() == 0:
            finished = files.read()
        if any_process(finished is not None, model.mean.device):
            return finished
    scores = run_evaluation(model, dataset, options, partial=files.partial if files else None)
    if rank() or scores.images < record["data"]["images"]:
        return None
    unhashed = {"files": state, "batch": options.read_ahead, "processes": world_size(),
                "threads": torch.get_num_threads(), "machine": _machine(model)}  # fmt: skip
    result = EvalResult(_with_samples(record, scores.samples_hash), scores, unhashed)
    if files is not None:
        files.write(result)
    return result


def record_hash(
    model: FGASeg, dataset: LabelledImages, name: str, scores: Scores, count: int | None, weights: str
) -> str:
    """The hash of the record that `evaluate_with_provenance` makes of scores that `evaluate` gave."""
    return short_hash(_with_samples(provenance(model, dataset, name, count, weights), scores.samples_hash))


def _with_samples(record: dict[str, Any], samples_hash: str) -> dict[str, Any]:
    return record | {"data": record["data"] | {"pictures": samples_hash}}


def _machine(model: FGASeg) -> str:
    return torch.cuda.get_device_name() if model.mean.is_cuda else processor()
