"""Evaluation of a model on a labelled data set: predict every image, count, add up over processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import DataConfig
from ..data import FolderDataset, check_labels, default_root, open_set, read_ahead
from ..distributed import gather_objects, rank, world_size
from ..errors import DataError
from ..progress import track
from ..vocabulary import ClassNames, ClassPrompts, Vocabulary, check_names
from .partial import PartialCounts
from .scores import ConfusionMatrix, Scores
from .state import EvalState, sample_hash

READ_AHEAD = 4
SECONDS_OF_LABELS = 1.0  # looked at before an evaluation

log = logging.getLogger(__name__)


class Segmenter(Protocol):
    """What evaluation needs of a model; FGASeg has it."""

    training: bool

    def train(self, mode: bool) -> Any:
        """Switch to training mode, or with False to evaluation mode."""

    def encode(self, names: Sequence[Any]) -> Vocabulary:
        """Embed class names."""

    def predict_labels(self, image: Any, vocabulary: Vocabulary) -> Tensor:
        """Indices into the vocabulary [H, W] int64 for a photo uint8 [H, W, 3], on any device."""


class LabelledImages(Protocol):
    """What evaluation needs of a data set, such as FolderDataset or a prepared benchmark set.

    names     classes that the model is given: names, or with prompts (ClassPrompts)
    items     {"image": uint8 [H, W, 3], "labels": int64 [H, W], "stem": identifies it in messages}
    Optional attributes:
    classes   that labels index and that are scored (default: the names)
    class_of  the class of each name (default: name i is class i)
    ignore    the label that is not scored (default: 255)
    """

    @property
    def names(self) -> Sequence[str | ClassPrompts]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class EvalOptions:
    """How much is evaluated, and how it is run; only `count` can change a figure.

    count       only the first so many images; None: all
    progress    a bar on a terminal, else a line in the log now and then
    stop        asked before each image; True leaves the rest out
    read_ahead  images that threads read while one is being predicted
    """

    count: int | None = None
    progress: bool = False
    stop: Callable[[], bool] | None = None
    read_ahead: int = READ_AHEAD

    def stopped(self) -> bool:
        return self.stop is not None and self.stop()


@dataclass(frozen=True)
class Target:
    """What is scored: so many images, on `classes`, with the prompts that the model is given."""

    prompts: list[Any]
    classes: list[str]
    class_of: list[int] | None
    ignore: int
    images: int

    @classmethod
    def of(cls, dataset: LabelledImages, names: ClassNames | None, count: int | None) -> Target:
        given = dataset.names if names is None else names
        classes, class_of = [one.name for one in check_names(given)], None
        prompts = list(check_names(given)) if isinstance(given, Mapping) else list(given)
        if names is None:
            classes, class_of = list(getattr(dataset, "classes", classes)), getattr(dataset, "class_of", None)
        images = len(dataset) if count is None else min(count, len(dataset))
        return cls(prompts, classes, class_of, getattr(dataset, "ignore", 255), images)


def evaluate(
    model: Segmenter,
    data: LabelledImages | DataConfig,
    *,
    names: ClassNames | None = None,
    count: int | None = None,
    progress: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Scores:
    """Score a model on labelled images, each at its own size.

    model     an FGASeg; it is returned to the mode (training or evaluation) that it came in
    data      a data set (see LabelledImages), or the DataConfig of a folder or a benchmark set
    names     class names in place of the data set's, in the order that the labels index
    count, progress, stop  see EvalOptions

    Predictions are the argmax of the class scores after bilinear upsampling to H x W; all images are counted in one
    confusion matrix. Under torchrun the processes share the images, and each gets the scores of all. Raises DataError
    naming an image whose labels do not fit, or when no pixel is labelled.
    """
    dataset = open_validation_set(data) if isinstance(data, DataConfig) else data
    return run_evaluation(model, dataset, EvalOptions(count, progress, stop), names=names)


def open_validation_set(data: DataConfig) -> LabelledImages:
    """The one validation set of a configuration: `val_set`, or the validation split of its folders.

    Labels in folders are looked at for a second (`check_labels`): DataError where they are surely wrong.
    """
    if data.scenes:
        raise DataError(
            'data.scenes: the scenes have two validation sets: evaluate on SceneDataset("seen", 100) or '
            'SceneDataset("unseen", 100)'
        )
    if data.val_set:
        return open_set(data.val_set, data.root or default_root())
    dataset = FolderDataset(data, "val")
    check_labels(dataset, "labels", seconds=SECONDS_OF_LABELS)
    return dataset


def run_evaluation(
    model: Segmenter,
    dataset: LabelledImages,
    options: EvalOptions,
    *,
    names: ClassNames | None = None,
    partial: PartialCounts | None = None,
) -> Scores:
    """`evaluate`, which with `partial` saves its counts now and then, and resumes from those that are there.

    Raises UnfinishedError where the saved counts belong to another evaluation.
    """
    target = Target.of(dataset, names, options.count)
    with evaluation_mode(model), torch.no_grad():  # not inference_mode: a vocabulary cached here may serve training
        vocabulary = model.encode(target.prompts)
        state = EvalState(ConfusionMatrix(len(target.classes), target.ignore, vocabulary.embeddings.device))
        indices = _share(state, target.images, partial)
        upcoming = _samples(dataset, indices, options, target.images, len(state.done))
        with _saving_on_error(state, partial), closing(upcoming) as samples:
            for sample in samples:
                predicted = model.predict_labels(sample.item["image"], vocabulary)
                _count(state, sample, predicted, target)
                if partial is not None:
                    partial.save_when_due(state)
    if partial is not None and options.stopped():  # before waiting for the other processes
        partial.save(state)
    scores = state.scores(target.classes)
    if partial is not None and scores.images < target.images:  # another process was stopped
        partial.save(state)
    if not scores.pixels and scores.images == target.images:
        raise DataError(
            f"nothing to score: all pixels of the {scores.images} images are ignored (label {target.ignore})"
        )
    return scores


@contextmanager
def evaluation_mode(model: Segmenter) -> Iterator[None]:
    """Evaluation mode inside the block, afterwards the mode from before."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


def _share(state: EvalState, images: int, partial: PartialCounts | None) -> list[int]:
    """The indices that this process takes: every n-th of those not yet done. The main process restores saved counts."""
    if partial is not None and rank() == 0:
        partial.restore(state)
    done = set().union(*gather_objects(state.done))
    return [index for index in range(images) if index not in done][rank() :: world_size()]


@contextmanager
def _saving_on_error(state: EvalState, partial: PartialCounts | None) -> Iterator[None]:
    try:
        yield
    except Exception:  # of the model, of a file, of another process: whatever it is, it passes, and counts are kept
        if partial is not None and state.done:
            with suppress(OSError):  # a full disk would take the place of what happened
                partial.save(state)
        raise


@dataclass(frozen=True)
class Sample:
    index: int
    item: dict[str, Any]
    hashed: Tensor  # its `sample_hash`


def _samples(
    dataset: LabelledImages, indices: list[int], options: EvalOptions, images: int, done: int
) -> Generator[Sample, None, None]:
    """The samples of this process, read ahead and with progress shown, until `options.stop`."""
    shown = options.progress and rank() == 0
    if done and shown:
        log.info("resuming: %d of %d images were scored before", done, images)
    title = f"scoring, process 0 of {world_size()}" if world_size() > 1 else "scoring"

    def read(index: int) -> Sample:
        item = dataset[index]
        return Sample(index, item, sample_hash(item))

    with closing(read_ahead(read, indices, options.read_ahead)) as samples:
        for sample in track(samples, title, done + len(indices), done=done, unit="images", shown=shown):
            if options.stopped():
                return
            yield sample


def _count(state: EvalState, sample: Sample, predicted: Tensor, target: Target) -> None:
    if target.class_of is not None:
        predicted = torch.tensor(target.class_of, device=predicted.device)[predicted]
    try:
        state.add(sample.index, sample.item["stem"], predicted, sample.item["labels"], sample.hashed)
    except ValueError as error:
        raise DataError(f"{sample.item['stem']}: {error}") from error
