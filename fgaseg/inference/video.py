"""Labelling videos: every frame as a photo, or with logits that are averaged over time, in bounded memory."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UsageError, VocabularyError
from ..progress import track
from ..vocabulary import ClassNames, Vocabulary
from .doubts import note_doubts
from .overlap import ahead
from .prediction import LONGEST_ASPECT, Segmenter, decide, evaluation_mode, label_names, predict, view_logits
from .results import Result
from .scores import ScoreRule
from .video_outputs import Outputs
from .video_reading import Frame, VideoReader
from .video_writing import check_container

AHEAD = 3  # frames that are decoded before the model takes them
CUT = 24.0  # mean difference, of 255, between the thumbnails of two frames, from which on they are two scenes
THUMBNAIL = 16  # pixels a side

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoSummary:
    """What `segment_video` did.

    video     the file that was read
    size      (height, width) of its upright frames
    classes   the names that labels index, the "none of these" label included
    frames    how many were read and written
    labelled  how many of them went through the model
    duration  of these frames, in seconds
    seconds   that it took
    present   share of the pixels of all labelled frames of every class that was found, largest first
    files     what was written: the video, the folder of masks
    codec     FFmpeg's name of the encoder, "" without a video
    sound     "copied", "none", or why it was left out
    doubt     what could not be read, though the file should hold it, or ""
    complete  False if it was cancelled: files then have names that say so, or there are none
    """

    video: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    frames: int
    labelled: int
    duration: float
    seconds: float
    present: dict[str, float]
    files: tuple[Path, ...]
    codec: str
    sound: str
    doubt: str
    complete: bool

    @property
    def fps(self) -> float:
        """Frames that were read, labelled and written in a second."""
        return self.frames / max(self.seconds, 1e-9)


def segment_video(
    model: Segmenter,
    path: str | os.PathLike[str],
    names: ClassNames | Vocabulary,
    out: str | os.PathLike[str] | None = None,
    *,
    masks: str | os.PathLike[str] | None = None,
    smooth: float = 0.0,
    every: int = 1,
    start: float | None = None,
    stop: float | None = None,
    background: str | Sequence[str] | None = None,
    threshold: float | None = None,
    legend: bool = True,
    alpha: float = 0.7,
    progress: bool = False,
    cancel: Callable[[], bool] | None = None,
) -> VideoSummary:
    """Label the frames of a video. Memory does not depend on its length.

    path       a file that FFmpeg reads; rotation in its metadata is applied
    names      as `model.segment` takes them
    out        the video to write, labels over the frames: .mp4, .m4v, .mov, .mkv (H.264) or .webm (VP9)
    masks      a new or empty folder for the labels of each labelled frame: 00000001.png, ..., and names.txt
    smooth     average logits over time: after so many seconds a frame counts for 1/e. 0: as `model.segment` labels it
    every      only every n-th frame goes through the model; the labels of the others are those of the one before
    start, stop  where to begin and to end in the video, in seconds
    background, threshold  as for `model.segment`
    legend     add a strip below the frames, with all classes in their order
    alpha      opacity of the colours, 0 to 1
    progress   show a bar, or log once a minute
    cancel     asked after every frame: True ends the work

    Times of frames are kept, sound is copied where the container takes it; odd sizes become even. If the work is
    cancelled or fails, what was written stays as `<out>.partial.<suffix>` and `<masks>.partial`. Raises ImageError,
    UsageError, VocabularyError, OSError, and DataError for names that stand twice, with masks.
    """
    check_call(path, out, masks, smooth=smooth, every=every, start=start, stop=stop)
    began = time.monotonic()
    with ExitStack() as stack:
        source = stack.enter_context(VideoReader(path, start, stop))
        vocabulary = _vocabulary(model, names, background)
        label = _Labeller(model, vocabulary, threshold, _smoother(model, source, smooth))
        outputs = Outputs(source, out, masks, label.classes, legend=legend, alpha=alpha, stack=stack)
        complete = _label_all(label, source, outputs, every, progress, cancel)
        return VideoSummary(
            video=str(path),
            size=source.size,
            classes=label.classes,
            frames=outputs.frames,
            labelled=outputs.labelled,
            duration=float(outputs.end),
            seconds=time.monotonic() - began,
            present=outputs.present,
            files=outputs.files,
            codec=outputs.codec,
            sound=outputs.sound,
            doubt=source.doubt if complete else "",
            complete=complete,
        )


def _label_all(
    label: _Labeller,
    source: VideoReader,
    outputs: Outputs,
    every: int,
    progress: bool,
    cancel: Callable[[], bool] | None,
) -> bool:
    """Read, label and write all frames, and complete what was written; False if that was cancelled."""
    try:
        with closing(ahead(source, AHEAD)) as items:
            frames = track(outputs.without_sound(items), "labelling", source.count, unit="frames", shown=progress)
            cancelled = _label_frames(label, frames, outputs, every, cancel)
        if cancelled:
            outputs.keep()
        else:
            outputs.close()
    except BaseException:
        outputs.keep()
        if outputs.files:
            log.warning("%s: kept what was done: %s", source.path, ", ".join(map(str, outputs.files)))
        raise
    if source.doubt and not cancelled:
        log.warning("%s: %s", source.path, source.doubt)
    return not cancelled


def _label_frames(
    label: _Labeller,
    frames: Iterable[Frame],
    outputs: Outputs,
    every: int,
    cancel: Callable[[], bool] | None,
) -> bool:
    """Label and write frames; True if that was cancelled."""
    labels = np.zeros(0, np.int64)
    for frame in frames:
        fresh = (frame.number - 1) % every == 0  # the first is
        if fresh:
            labels = label(frame)
        outputs.add(frame, labels, fresh)
        if cancel is not None and cancel():
            return True
    return False


@dataclass
class _Labeller:
    """Labels [H, W] of frames, given one after the other."""

    model: Segmenter
    vocabulary: Vocabulary
    threshold: float | None
    smoother: Smoother | None

    def __post_init__(self) -> None:
        self.classes, self.nothing = label_names(self.vocabulary, self.threshold)

    @torch.inference_mode()
    def __call__(self, frame: Frame) -> np.ndarray:
        image = Image.fromarray(frame.pixels)
        if self.smoother is None:
            result = predict(self.model, image, self.vocabulary, threshold=self.threshold)
        else:
            with evaluation_mode(self.model):
                logits = self.smoother(view_logits(self.model, image, self.vocabulary), frame)
                labels, scores = decide(
                    self.model, logits, self.vocabulary, (image.height, image.width), self.threshold
                )
            result = Result(labels.cpu().numpy(), self.classes, scores.cpu().numpy(), image, self.nothing)
        if frame.number == 1:
            softmax = ScoreRule.of(self.model.config).softmax
            note_doubts(result, softmax, self.threshold, len(self.vocabulary), "the first frame")
        return result.labels


class Smoother:
    """An average of logits over frames whose weights fall exponentially with time; it begins anew at a scene cut.

        average = w * average + (1 - w) * logits,  w = exp(-(time since the frame before) / seconds)

    A scene cut lies between two frames whose thumbnails of 16x16 pixels, RGB, differ by 24 of 255 in the mean.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._average: Tensor | None = None
        self._time = Fraction(0)
        self._thumbnail = np.zeros((THUMBNAIL, THUMBNAIL, 3), np.float32)

    def __call__(self, logits: Tensor, frame: Frame) -> Tensor:
        """The average for a frame, from its own logits [T, h, w]; the same shape."""
        small = Image.fromarray(frame.pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        thumbnail = np.asarray(small, np.float32)
        cut = float(np.abs(thumbnail - self._thumbnail).mean()) > CUT
        if self._average is not None and not cut:
            weight = math.exp(-float(frame.time - self._time) / self.seconds)
            logits = torch.lerp(logits, self._average, weight)
        self._average, self._time, self._thumbnail = logits, frame.time, thumbnail
        return logits


def _vocabulary(model: Segmenter, names: ClassNames | Vocabulary, background: str | Sequence[str] | None) -> Vocabulary:
    if not isinstance(names, Vocabulary):
        with torch.inference_mode():
            return model.encode(names, background=background)
    if background is not None:
        raise VocabularyError("background: the vocabulary is made already: give the background to encode")
    return names


def _smoother(model: Segmenter, source: VideoReader, seconds: float) -> Smoother | None:
    if not seconds:
        return None
    if model.config.inference != "whole":
        raise UsageError("smooth: averages the logits of frames seen whole, and inference=windows sees parts: set "
                         "inference=whole, or leave smooth out")  # fmt: skip
    if max(source.size) > LONGEST_ASPECT * min(source.size):
        raise UsageError(f"smooth: {source.path} is more than {LONGEST_ASPECT} times as long as broad, and is not seen "
                         "whole: leave smooth out")  # fmt: skip
    return Smoother(seconds)


def check_call(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    masks: str | os.PathLike[str] | None,
    *,
    smooth: float,
    every: int,
    start: float | None,
    stop: float | None,
) -> None:
    """Raise UsageError, before hours of work, for values out of range and for outputs that would destroy something."""
    for name, value in (("smooth", smooth), ("start", start or 0), ("stop", stop or 0)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} {value}: is a time in seconds: give 0 or more")
    if not isinstance(every, int) or every < 1:
        raise UsageError(f"every {every}: give a whole number from 1 on; 2 labels every second frame")
    if stop is not None and stop <= (start or 0):
        raise UsageError(f"stop {stop}: nothing lies before it and after the start, {start or 0} (both in seconds)")
    if out is None and masks is None:
        raise UsageError("nothing is to be written: name a video (out), a folder of masks (masks), or both")
    if out is not None:
        check_container(out)
        if Path(out).is_dir():
            raise UsageError(f"{out}: is a folder: name a file")
        if Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
            raise UsageError(f"{out}: is the video itself, which would be lost: choose another name")
    if masks is not None and Path(masks).exists() and not (Path(masks).is_dir() and not any(Path(masks).iterdir())):
        raise UsageError(f"{masks}: exists and is not an empty folder: name a new one, so that nothing is mixed")
