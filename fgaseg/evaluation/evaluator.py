"""Scores of a model on a labelled data set: both definitions of mIoU from one confusion matrix for the whole set."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..distributed import rank, sum_over_processes, world_size
from ..errors import DataError, UnfinishedError
from ..weights import write_weights
from .scores import Confusion, Scores

SAVE_SECONDS = 30.0  # between two saves of an unfinished evaluation
SAID_SECONDS = 60.0  # between two lines of progress where no bar can be drawn
AHEAD = 4  # pictures read while the model labels another


@dataclass
class Tally:
    """What has been counted so far, over pictures in any order."""

    confusion: Confusion
    pictures: Tensor  # int64 [4], the sum (modulo 2^64) of `fingerprint` over the pictures
    done: set[int] = field(default_factory=set)  # indices into the data set

    @classmethod
    def empty(cls, classes: int, ignore: int, device: torch.device | str = "cpu") -> Tally:
        return cls(Confusion(classes, ignore, device), torch.zeros(4, dtype=torch.int64))

    def add(self, index: int, predicted: Tensor, labels: Tensor, fingerprint: Tensor) -> None:
        self.confusion.update(predicted, labels)
        self.pictures += fingerprint
        self.done.add(index)

    def tensors(self) -> dict[str, Tensor]:
        done = torch.tensor(sorted(self.done), dtype=torch.int64)
        return {"matrix": self.confusion.matrix.cpu(), "pictures": self.pictures, "done": done}

    def merge(self, tensors: dict[str, Tensor]) -> None:
        """Add what another process counted, unless some of its pictures are already here."""
        done = set(tensors["done"].tolist())
        if done.isdisjoint(self.done):
            self.confusion.matrix += tensors["matrix"].to(self.confusion.matrix.device)
            self.pictures += tensors["pictures"]
            self.done |= done


def fingerprint(item: dict[str, Any]) -> Tensor:
    """Identifies a picture: its stem, size, pixels and labels, whatever files they came from. int64 [4]."""
    labels = item["labels"].numpy()
    text = f"{item['stem']} {labels.shape}".encode()
    digest = hashlib.sha256(text + labels.astype("<u2").tobytes())
    digest.update(np.asarray(item["image"]).tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64)


class Unfinished:
    """Parts of an evaluation that was interrupted, one file a process: <folder>/<name>.part<rank>.safetensors.

    record   JSON-able; parts with another one are refused, so that counts of two evaluations are never added
    every    seconds between two saves
    A part names its pictures, so another number of processes can go on.
    """

    def __init__(self, folder: str | Path, name: str, record: dict[str, Any], every: float = SAVE_SECONDS) -> None:
        self.folder, self.name, self.record, self.every = Path(folder), name, record, every
        self._saved = time.monotonic()

    def files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}.part*.safetensors"), key=lambda file: (len(file.name), file.name))

    def restore(self, tally: Tally) -> None:
        """Put the parts of all processes of the interrupted run into this process's tally, and into one file.

        Raises UnfinishedError. A damaged part is left out with a warning: its pictures are scored again.
        """
        for file in self.files():
            try:
                with safetensors.safe_open(file, "pt") as part:
                    record = json.loads(part.metadata()["record"])
                    tensors = {key: part.get_tensor(key) for key in part.keys()}
                    if part.metadata()["sha256"] != _digest(tensors):
                        raise ValueError("its counts are not those that were written")
            except Exception as error:  # safetensors, JSON and missing keys: each has its own
                warnings.warn(f"{file}: is damaged ({error}); its pictures are scored again", stacklevel=2)
                continue
            if changed := differences(record, self.record):
                raise UnfinishedError(
                    f"{file}: belongs to another evaluation ({'; '.join(changed)}): give another --out, or --restart "
                    "to drop it"
                )
            tally.merge(tensors)
        if tally.done:
            self.save(tally)
            self._remove(self.files()[1:])

    def save(self, tally: Tally) -> None:
        """Replace this process's part, atomically."""
        path = self.folder / f"{self.name}.part{rank()}.safetensors"
        tensors = tally.tensors()
        write_weights(path, tensors, {"record": json.dumps(self.record), "sha256": _digest(tensors)})
        self._saved = time.monotonic()

    def save_when_due(self, tally: Tally) -> None:
        if time.monotonic() - self._saved >= self.every:
            self.save(tally)

    def remove(self) -> None:
        """Once the result is written."""
        self._remove(self.files())

    @staticmethod
    def _remove(files: Iterable[Path]) -> None:
        for file in files:
            file.unlink(missing_ok=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Where two JSON-able values differ, as "key was x, now y"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        found = [differences(before.get(k), now.get(k), f"{key}.{k}" if key else k) for k in keys]
        return [line for lines in found for line in lines]
    return [] if before == now else [f"{key} was {_short(before)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def evaluate(
    model: Any,
    dataset: Any,
    names: Sequence[str] | None = None,
    *,
    ignore: int | None = None,
    count: int | None = None,
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
    batch: int = AHEAD,
    unfinished: Unfinished | None = None,
) -> Scores:
    """Score an FGASeg on a validation set, each picture at its own size. Several processes share the pictures.

    dataset     items {"image": uint8 [H, W, 3], "labels": int64 [H, W], "stem"}; `names` are its prompts, `classes`
                what its labels index (default: the names), `class_of` the class of each prompt (None: its own place)
    names       a vocabulary in place of the data set's; labels index it
    ignore      label that is not scored; None: dataset.ignore, else 255
    count       only the first so many pictures; None: all
    progress    a progress bar on stderr
    stop        asked before each picture; True leaves the rest out
    batch       pictures held at once: while one is labelled, threads read the next ones. Each is labelled by itself,
                so the figures are the same for any batch
    unfinished  where the counts are saved now and then, and taken up again

    Predictions are the argmax of the score maps after bilinear upsampling to H x W. The model is left in the mode
    (training or not) that it came in. Raises DataError naming a picture whose labels do not fit, or when no pixel is
    labelled; UnfinishedError.
    """
    prompts = list(dataset.names if names is None else names)
    classes = prompts if names is not None else list(getattr(dataset, "classes", prompts))
    class_of = None if names is not None else getattr(dataset, "class_of", None)
    ignore = getattr(dataset, "ignore", 255) if ignore is None else ignore
    images = len(dataset) if count is None else min(count, len(dataset))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: a vocabulary cached here may serve training later
            vocabulary = model.encode(prompts)
            device = vocabulary.embeddings.device
            tally = Tally.empty(len(classes), ignore, device)
            table = None if class_of is None else torch.tensor(class_of, device=device)
            mine = _mine(tally, images, unfinished)
            before = f" ({len(tally.done)} done before)" if tally.done else ""
            console, quiet = Console(stderr=True), not progress or rank() > 0
            if tally.done and not quiet:
                console.print(f"going on: {len(tally.done)} of {images} pictures were scored before", highlight=False)
            said, last = time.monotonic(), len(tally.done) + len(mine)
            with closing(_read_ahead(dataset, mine, batch)) as items:
                for index, item, picture in track(
                    items, f"scoring{before}", len(mine), console=console, transient=True, disable=quiet
                ):
                    if stop is not None and stop():
                        break
                    predicted = model.predict_labels(item["image"], vocabulary)
                    try:
                        tally.add(index, predicted if table is None else table[predicted], item["labels"], picture)
                    except ValueError as error:
                        raise DataError(f"{item['stem']}: {error}") from error
                    if unfinished is not None:
                        unfinished.save_when_due(tally)
                    if not quiet and not console.is_terminal and time.monotonic() - said >= SAID_SECONDS:
                        share = f" of process 0 of {world_size()}" if world_size() > 1 else ""
                        console.print(f"scored {len(tally.done)} of {last} pictures{share}", highlight=False)
                        said = time.monotonic()
    except Exception:
        if unfinished is not None and tally.done:
            unfinished.save(tally)
        raise
    finally:
        model.train(was_training)
    if unfinished is not None and stop is not None and stop():
        unfinished.save(tally)
    tally.confusion.all_reduce()
    rest = sum_over_processes(torch.cat([tally.pictures, torch.tensor([len(tally.done)])]).to(device)).cpu()
    scores = replace(tally.confusion.scores(classes, int(rest[4])), pictures=rest[:4].numpy().tobytes().hex())
    if not scores.pixels and not (stop is not None and stop()):
        raise DataError(f"nothing to score: all pixels of the {images} pictures are ignored (label {ignore})")
    return scores


def _mine(tally: Tally, images: int, unfinished: Unfinished | None) -> list[int]:
    """The pictures of this process: its share of those that are not done. The main process reads what was saved."""
    done = torch.zeros(images, dtype=torch.int64, device=tally.confusion.matrix.device)
    if unfinished is not None:
        if rank() == 0:
            unfinished.restore(tally)
            done[list(tally.done)] = 1
        done = sum_over_processes(done)
    left = (done == 0).nonzero()[:, 0].tolist()
    return left[rank() :: world_size()]


def _read_ahead(
    dataset: Any, indices: Iterable[int], ahead: int
) -> Generator[tuple[int, dict[str, Any], Tensor], None, None]:
    """(index, item, fingerprint) in order; threads read up to `ahead` items before they are asked for."""

    def read(index: int) -> tuple[int, dict[str, Any], Tensor]:
        item = dataset[index]
        return index, item, fingerprint(item)

    waiting: deque[Future[tuple[int, dict[str, Any], Tensor]]] = deque()
    pool = ThreadPoolExecutor(ahead)
    try:
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
