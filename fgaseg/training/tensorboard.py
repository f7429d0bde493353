"""The callback that writes scalars and drawn validation photos for TensorBoard."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import Config
from ..evaluation import Scores
from ..inference import heat, legend, overlay, panel, pseudo_masks
from ..model import FGASeg
from ..vocabulary import ClassPrompts
from .callbacks import Callback
from .processes import opening
from .validation import rows

log = logging.getLogger(__name__)


class TensorBoard(Callback):
    """Writes to <out>/tensorboard, and stops doing so, with a warning, on a full disk.

    sharded  whether the encoders are: a drawing that fails then ends the run, for an exception in the middle of a block
             leaves the processes out of step; else it is only logged
    """

    def __init__(self, config: Config, model: FGASeg, val_sets: dict[str, Any], *, sharded: bool):
        self.config, self.model, self.val_sets, self.sharded = config.train, model, val_sets, sharded
        self.writer: Any = None

    def on_start(self, step: int, history: list[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        with opening(self.config.out):
            self.writer = SummaryWriter(str(self.config.out / "tensorboard"), purge_step=step + 1)

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self._add(step, "train", metrics)

    def on_evaluation(self, step: int, scores: dict[str, Scores], seconds: float) -> None:
        for name, row in rows(scores, seconds).items():
            self._add(step, name, row)
        self._draw(step)

    def _add(self, step: int, of: str, row: dict[str, Any]) -> None:
        if self.writer is None:
            return
        with self._until_disk_is_full(step):
            for name, scalar in row.items():
                self.writer.add_scalar(f"{of}/{name}", scalar, step)

    def _draw(self, step: int) -> None:
        """The first few photos of each validation set, each with its label, prediction and pseudo-masks."""
        for name, dataset in self.val_sets.items():
            for index in range(min(self.config.pictures, len(dataset)) if self.writer is not None else 0):
                try:
                    item = dataset[index]
                    drawn = picture(self.model, item, dataset.names)
                except Exception as error:  # memory, fonts: nothing that training needs
                    if self.sharded:
                        raise
                    log.warning("no picture %d of %s at step %d: %s", index, name, step, error)
                    return
                with self._until_disk_is_full(step):
                    pixels = np.asarray(drawn.convert("RGB"))
                    self.writer.add_image(f"{name}/{item['stem']}", pixels, step, dataformats="HWC")

    @contextlib.contextmanager
    def _until_disk_is_full(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # the next checkpoint reports it too, and stops the run
            log.warning("TensorBoard stops at step %d: %s", step, error)
            self.writer = None

    def on_end(self) -> None:
        if self.writer is not None:
            with contextlib.suppress(OSError):  # would hide the error that ended the run
                self.writer.close()


def picture(model: FGASeg, item: dict[str, Any], classes: Sequence[str | ClassPrompts]) -> Image.Image:
    """A validation photo, its labels, prediction, and the pseudo-masks S_g and S_l of its largest class."""
    photo, labels = Image.fromarray(item["image"].numpy()), item["labels"].numpy()
    with torch.no_grad():
        vocabulary = model.encode(classes)
        predicted, masks = model.segment(photo, vocabulary).labels, pseudo_masks(model, photo, vocabulary)
    names = list(vocabulary.names)
    counts = np.bincount(labels[labels < len(names)], minlength=len(names))
    subject, size = int(counts.argmax()), (photo.height, photo.width)
    shown = [("photo", photo)]
    shown += [(title, overlay(photo, x, names, with_legend=False)) for title, x in
              (("labels", labels), ("prediction", predicted))]  # fmt: skip
    for title, maps in (("S_g", masks.gcs), ("S_l", masks.lcs)):
        if maps is not None:
            shown.append((f"{title}: {names[subject]}", heat(maps[subject], size)))
    return panel([shown], below=legend([labels, predicted], names, 240 * len(shown)))
