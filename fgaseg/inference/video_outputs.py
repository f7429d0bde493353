"""What is written of a video, labels over its frames and masks: complete, or under a name that says that it is not."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data import names_text
from ..files import atomic_path, atomic_write
from . import pictures
from .label_images import write_index_png
from .overlap import Behind
from .video_reading import Frame, VideoReader
from .video_writing import VideoWriter

BEHIND = 3  # frames that wait to be written while the model is at work

log = logging.getLogger(__name__)


class Outputs:
    """A labelled video and a folder of masks, written by a thread behind the model, under temporary names at first.

    video    the file to write, or None
    masks    the folder to write, or None
    classes  that labels index
    legend   whether a strip with all classes is below the frames
    stack    at its end files have their names, after `close`, or are removed

    frames, labelled  how many were added, and how many of these with labels of their own
    end               of the last frame, in seconds after the first
    files             what was completed, or kept as a part
    """

    def __init__(
        self,
        source: VideoReader,
        video: str | os.PathLike[str] | None,
        masks: str | os.PathLike[str] | None,
        classes: Sequence[str],
        *,
        legend: bool,
        alpha: float,
        stack: ExitStack,
    ) -> None:
        self.video, self.masks = (None if one is None else Path(one) for one in (video, masks))
        self.classes, self.files = classes, tuple[Path, ...]()
        self.frames, self.labelled, self.end = 0, 0, Fraction(0)
        self._alpha, self._strip = alpha, np.zeros((0, source.size[1], 3), np.uint8)
        self._pixels = np.zeros(len(classes), np.int64)
        self._writer: VideoWriter | None = None
        self._folder: Path | None = None
        if self.masks is not None:
            self._folder = stack.enter_context(atomic_path(self.masks))
            self._folder.mkdir()
            names = names_text(classes).encode()
            atomic_write(self._folder / "names.txt", lambda file: file.write(names))
        if self.video is not None:
            height, width = source.size
            if legend:  # of maps with every class once: all of them, in their order
                self._strip = np.asarray(pictures.legend([np.arange(len(classes))[None]], classes, width))
            self._unfinished = stack.enter_context(atomic_path(self.video))
            self._writer = VideoWriter(self._unfinished, source, (height + len(self._strip), width))
        self._thread = Behind(BEHIND)

    @property
    def codec(self) -> str:
        """FFmpeg's name of the encoder; "" without a video."""
        return self._writer.codec if self._writer else ""

    @property
    def sound(self) -> str:
        """What became of the sound of the video."""
        return self._writer.sound if self._writer else "none"

    @property
    def present(self) -> dict[str, float]:
        """Share of the pixels of all labelled frames of every class that was found, largest first."""
        order = np.argsort(-self._pixels, kind="stable")
        total = max(int(self._pixels.sum()), 1)
        return {self.classes[i]: float(self._pixels[i] / total) for i in order if self._pixels[i]}

    def without_sound(self, items: Iterator[Any]) -> Iterator[Frame]:
        """The frames of a reader's items; the packets of sound between them are written."""
        for item in items:
            if isinstance(item, Frame):
                yield item
            elif self._writer is not None:
                self._thread.submit(self._writer.copy, item)

    def add(self, frame: Frame, labels: np.ndarray, fresh: bool) -> None:
        """Write a frame with its labels [H, W], and a mask if they are `fresh` from the model."""
        self.frames, self.labelled, self.end = self.frames + 1, self.labelled + fresh, frame.time + frame.duration
        if fresh:
            self._pixels += np.bincount(labels.ravel(), minlength=len(self.classes))
        self._thread.submit(self._write, frame, labels, fresh)

    def _write(self, frame: Frame, labels: np.ndarray, fresh: bool) -> None:
        if self._folder is not None and fresh:
            write_index_png(labels, len(self.classes), self._folder / f"{frame.number:08}.png")
        if self._writer is not None:
            drawn = pictures.overlay(Image.fromarray(frame.pixels), labels, self.classes, self._alpha, False)
            self._writer.write(frame, np.concatenate([np.asarray(drawn), self._strip]))

    def close(self) -> None:
        """Write what waits, and complete the video."""
        self._thread.finish()
        if self._writer is not None:
            self._writer.close()
        self.files = tuple(file for file in (self.video, self.masks) if file is not None)

    def keep(self) -> None:
        """Complete what there is under names that say that it is a part; nothing else is left."""
        kept = []
        with suppress(Exception):  # the first error is on its way already
            self._thread.finish()
        if self._writer is not None and self.video is not None:
            if self._writer.frames:
                try:
                    self._writer.close()
                    kept.append(_move(self._unfinished, self.video))
                except Exception as error:  # of FFmpeg or the disk
                    log.warning("%s: what was written cannot be completed, and is removed (%s)", self.video, error)
            self._unfinished.unlink(missing_ok=True)
        if self._folder is not None and self.masks is not None:
            if any(self._folder.glob("*.png")):
                kept.append(_move(self._folder, self.masks))
            shutil.rmtree(self._folder, ignore_errors=True)
        self.files = tuple(kept)


def _move(unfinished: Path, final: Path) -> Path:
    """Rename what is unfinished to `<name>.partial<suffix>` beside its final name, with a number if that is taken."""
    names = (final.with_name(f"{final.stem}.partial{number or ''}{final.suffix}") for number in count())
    free = next(name for name in names if not name.exists())
    os.replace(unfinished, free)
    return free
