"""Writing video files frame by frame, through FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ..errors import ImageError, UsageError
from .video_reading import Frame, VideoReader, load_av

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet

_H264 = (
    ("libx264", {"preset": "veryfast", "crf": "20", "bf": "0"}),  # frames in their order need no shift of the times
    ("libopenh264", {"b": "6M"}),
    ("mpeg4", {"qscale": "3"}),
)
_VP9 = (
    ("libvpx-vp9", {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}),
    ("libvpx", {"crf": "10", "b": "4M", "deadline": "realtime"}),
)
# by suffix: FFmpeg's name of the container, and encoders with their options, the best first
CONTAINERS = {".mp4": ("mp4", _H264), ".m4v": ("mp4", _H264), ".mov": ("mov", _H264), ".mkv": ("matroska", _H264),
              ".webm": ("webm", _VP9)}  # fmt: skip
_MILLISECOND = Fraction(1, 1000)  # in which Matroska and WebM count
_MPEG4_TICKS = 65535  # of a second, that MPEG-4 can count
_BT709, _LIMITED = 1, 1  # of H.273, told to players


def check_container(path: str | os.PathLike[str]) -> None:
    """Raise UsageError if a video of that name is not written."""
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS:
        raise UsageError(f"{path}: videos are written as {', '.join(CONTAINERS)}: choose one of these")


def _opened(path: Path) -> IO[bytes]:
    return path.open("w+b")


class _Target:
    """The file as FFmpeg writes to it: an error of the disk is kept for `check`, and what follows it is dropped.

    Raised, it would come back later and from another call, and PyAV prints the traceback of any further one.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._error is None:
            try:
                return self._file.seek(offset, whence)
            except OSError as error:
                self._error = error
        return offset

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        if self._error is not None:
            raise self._error


class VideoWriter:
    """A video file that takes frames and, from the same `VideoReader`, packets of sound.

    path    its suffix chooses container and codec
    source  the video that frame rate, times and sound are from
    size    (height, width) of the frames; an odd one gets one more row or column, the last one repeated

    codec   FFmpeg's name of the encoder
    sound   what becomes of the sound: "copied", "none" if there is none, or why it is left out
    frames  how many were written
    Raises UsageError for an unknown suffix, ImageError for a size that cannot be encoded, and OSError.
    """

    def __init__(self, path: Path, source: VideoReader, size: tuple[int, int]) -> None:
        check_container(path)
        self._av = load_av()
        self.path, self._source, self._size = path, source, size
        self._kind, encoders = CONTAINERS[path.suffix.lower()]
        known = self._av.codec.codecs_available
        available = [one for one in encoders if one[0] in known]
        if not available:
            raise UsageError(f"{path}: this FFmpeg has no encoder for it ({', '.join(name for name, _ in encoders)}): "
                             "choose another suffix, or install PyAV from its wheel")  # fmt: skip
        self.codec, self._options = available[0]
        self._converter = self._av.video.reformatter.VideoReformatter()
        self.frames, self._last, self._last_sound = 0, -1, -1
        self._file = _opened(path)
        self._target = _Target(self._file)
        try:
            self.sound = self._open(source.audio)
        except BaseException:
            self._file.close()
            raise

    def _open(self, audio: AudioStream | None) -> str:
        """Write the header: "copied" or why there is no sound."""
        refused = ""
        if audio is not None:
            try:
                self._begin(audio)
                return "copied"
            except (self._av.FFmpegError, ValueError):
                refused = f"left out: {self.path.suffix} takes no {audio.codec_context.name}"
                self._file.seek(0)
                self._file.truncate()
        try:
            self._begin(None)
        except (self._av.FFmpegError, ValueError) as error:
            raise ImageError(f"{self.path}: {self._size[1]}x{self._size[0]} cannot be written with {self.codec} "
                             f"({error}): make the video smaller, or choose another suffix") from error  # fmt: skip
        return refused or "none"

    def _begin(self, audio: AudioStream | None) -> None:
        self._container = self._av.open(self._target, "w", format=self._kind)
        self._time_base = self._source.time_base
        if self._kind in ("matroska", "webm") or (self.codec == "mpeg4" and self._time_base.denominator > _MPEG4_TICKS):
            self._time_base = _MILLISECOND
        self._stream = self._container.add_stream(self.codec, rate=self._source.rate.limit_denominator(1001),
                                                  options=dict(self._options))  # fmt: skip
        height, width = (n + n % 2 for n in self._size)  # a 4:2:0 frame has whole pairs of rows and columns
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._time_base
        context.colorspace, context.color_range = _BT709, _LIMITED
        context.color_primaries = context.color_trc = _BT709
        context.sample_aspect_ratio = self._source.aspect
        context.flags |= self._av.codec.context.Flags.frame_duration  # else the last frame lasts as long as the average
        self._sound = None if audio is None else self._container.add_stream_from_template(audio)
        self._container.start_encoding()
        self._target.check()

    def write(self, frame: Frame, pixels: np.ndarray) -> None:
        """Add pixels, uint8 [H, W, 3] RGB, with the time of `frame`."""
        height, width = self._size
        padded = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._av.VideoFrame.from_ndarray(padded, "rgb24")
        picture = self._converter.reformat(
            picture, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", threads=1
        )
        self._last = max(round(frame.time / self._time_base), self._last + 1)
        picture.pts, picture.time_base = self._last, self._time_base
        picture.duration = round(frame.duration / self._time_base)
        self._container.mux(self._stream.encode(picture))
        self._target.check()
        self.frames += 1

    def copy(self, packet: Packet) -> None:
        """Add a packet of sound; one that the container does not take is left out."""
        if self._sound is None or packet.dts is None or packet.dts <= self._last_sound:
            return
        self._last_sound = packet.dts
        packet.stream = self._sound
        try:
            self._container.mux(packet)
        except (self._av.error.InvalidDataError, self._av.error.ArgumentError):
            self.sound = "copied with gaps"

    def close(self) -> None:
        """Write what the encoder still holds and the end of the file, which can be played only then."""
        try:
            self._target.check()
            self._container.mux(self._stream.encode())
            self._container.close()
            self._target.check()
        finally:
            self._file.close()
