"""Reading video files frame by frame, through FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from ..data import is_address, pixel_limit
from ..errors import ImageError, UsageError
from ..notes import note_once

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

_PHOTO_BRANDS = ("avif", "heic", "heix", "mif1")  # of files that hold one picture in a video's container
_PLAYLISTS = ("hls", "dash", "concat", "sdp", "rtsp")
_TEXTS = ("tty", "bin", "xbin", "adf", "idf")  # which FFmpeg draws as a terminal would show them
# of H.273, as swscale calls them; 601 where it is another or none
_MATRICES = {1: "ITU709", 4: "FCC", 7: "SMPTE240M", 9: "BT2020", 10: "BT2020"}
_UNTAGGED, _HIGH_DEFINITION = 2, 720  # from so many lines on players assume BT.709 where no matrix is named
_NO_TIMES = 0x80  # AVFMT_NOTIMESTAMPS, of containers such as raw H.264
_BACK = (0, 10, 60)  # seconds before the start to seek to, one after the other
_HDR = (16, 18)  # transfer functions of H.273: PQ and HLG


def load_av() -> Any:
    """The module av. Raises UsageError naming the extra if it is not installed."""
    try:
        import av
    except ImportError:
        raise UsageError("videos are read by PyAV: pip install 'fgaseg[video]'") from None
    return av


class Frame(NamedTuple):
    """One picture of a video.

    number    from 1 on
    time      in seconds after the first frame
    duration  in seconds; 0 where it is not known
    pixels    uint8 [H, W, 3], RGB, upright
    """

    number: int
    time: Fraction
    duration: Fraction
    pixels: np.ndarray


class _Timed(NamedTuple):
    """A decoded frame, and its time in seconds after the beginning of the video."""

    frame: VideoFrame
    time: Fraction


class VideoReader:
    """The frames of a video file from `start` on and before `stop`, in seconds, and the packets of its sound.

    Iteration gives a `Frame` for each picture and, in between, PyAV's packets of the best audio stream, whose times are
    counted from the first frame on too. Nothing is kept of what was given. Then `doubt` says what could not be read.

    size       (height, width) of the upright first frame, to which others are scaled
    rate       frames per second on average
    time_base  the unit in which the file counts time, in seconds
    audio      the stream that the packets are of, or None
    Raises ImageError naming the file, and UsageError if PyAV is missing.
    """

    def __init__(self, path: str | os.PathLike[str], start: float | None = None, stop: float | None = None) -> None:
        self._av = load_av()
        self.path = str(path)
        self.start, self.stop = (None if x is None else Fraction(x).limit_denominator(10**6) for x in (start, stop))
        _refuse_path(self.path)
        self._converter: VideoReformatter = self._av.video.reformatter.VideoReformatter()
        self._open()
        try:
            first = self._begin()
            if not isinstance(first, _Timed):  # sound from before it is in _early
                raise ImageError(f"{self.path}: {self._why_no_frame()}")
            self._first = first
            self.size: tuple[int, int] = _upright(first.frame, self._converter).shape[:2]
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        av = self._av
        self._early: list[Packet] = []
        self._lost, self._damaged, self._broken, self._sure = 0, 0, "", False
        self._end = self._sound_end = Fraction(0)
        try:  # the protocol is named, or FFmpeg would find one in a name with a colon
            self.container: InputContainer = av.open(f"file:{self.path}", metadata_errors="replace")
        except av.FFmpegError as error:
            raise ImageError(
                f"{self.path}: is no video that FFmpeg can read, or it is damaged or incomplete "
                f"({error.strerror or error}): fetch or copy it again, or convert it to MP4"
            ) from None
        try:
            self.stream = _video_stream(self.container, self.path)
        except ImageError:
            self.container.close()
            raise
        self.stream.thread_type = "AUTO"
        self.time_base = Fraction(self.stream.time_base or Fraction(1, 1000))
        self.rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or 25)
        self._origin = (self.stream.start_time or 0) * self.time_base
        best = self.container.streams.best("audio")
        self.audio = best if best is not None and best.codec_context is not None else None
        self._items = self._decode()

    def _begin(self) -> _Timed | Packet | None:
        """The first frame, the one at `start` if there is one; None if there are no frames.

        Containers without an index, as of television, seek to any packet, and often a late one: a frame is taken only
        after a key frame before `start` has been seen, which is looked for further and further back.
        """
        for back in _BACK if self.start and not self.container.format.flags & _NO_TIMES else ():
            try:
                time = max((self.start or 0) - back, 0) + self._origin
                self.container.seek(int(time / self.time_base), stream=self.stream)
                first = next(self._items, None)
                if self._sure:
                    return first
            except self._av.FFmpegError:
                pass
            self.close()
            self._open()
        return next(self._items, None)

    @property
    def duration(self) -> Fraction | None:
        """Of the pictures in seconds, as the file states it."""
        if self.container.format.name == "avi" and self.stream.frames:  # its duration is that of what there is
            return Fraction(self.stream.frames) / self.rate
        if self.stream.duration:
            return self.stream.duration * self.time_base
        if self.container.duration and self.audio is None:  # with sound it may be the sound's
            return Fraction(self.container.duration, 1_000_000)
        return None

    @property
    def count(self) -> int | None:
        """Frames to be expected; None if the file does not say."""
        if self.start is None and self.stop is None and self.stream.frames:
            return int(self.stream.frames)
        length = self.container.duration and Fraction(self.container.duration, 1_000_000)
        length = self.duration or length or None
        if length is None:
            return None
        last = length if self.stop is None else min(length, self.stop)
        return max(round((last - (self.start or 0)) * self.rate), 1)

    @property
    def aspect(self) -> Fraction:
        """Width of a pixel by its height; of the upright frame."""
        ratio = Fraction(self.stream.codec_context.sample_aspect_ratio or 1) or Fraction(1)
        return 1 / ratio if _turn(self._first.frame)[0] else ratio

    @property
    def doubt(self) -> str:
        """What was not read, though the file should hold it; or ""."""
        found = [f"{self._lost} packets of it could not be decoded"] if self._lost else []
        found += [f"{self._damaged} frames are damaged"] if self._damaged else []
        stated, end = self.duration, self._end
        if stated is None and self.container.duration:  # of pictures or sound, whatever is longer
            stated, end = Fraction(self.container.duration, 1_000_000), max(end, self._sound_end)
        missing = (stated or 0) - end
        if self.stop is None and (self._broken or missing > max(Fraction(1, 2), 2 / self.rate)):
            whole = f" of {float(stated):.1f} s" if stated else ""
            reason = f" ({self._broken})" if self._broken else ""
            found.append(f"it ends early, after {float(self._end):.1f} s{whole}{reason}")
        return "; ".join(found)

    def __iter__(self) -> Iterator[Frame | Packet]:
        self._note(self._first.frame)
        offset, number, previous = self._first.time, 0, Fraction(-1)
        for item in self._following():
            if not isinstance(item, _Timed):
                if self._shift(item, offset):
                    yield item
                continue
            number, time = number + 1, max(item.time - offset, Fraction(0))
            if time <= previous:
                note_once(("times", self.path), f"{self.path}: times of frames do not increase: their order is kept")
                time = previous + self.time_base
            self._damaged += bool(item.frame.is_corrupt)
            previous, duration = time, (item.frame.duration or 0) * self.time_base
            self._end = max(self._end, time + offset + (duration or 1 / self.rate))
            yield Frame(number, time, duration, self._pixels(item.frame))

    def _following(self) -> Iterator[_Timed | Packet]:
        """The first frame, the sound that was read before it, and all that comes after."""
        yield self._first
        yield from self._early
        self._early.clear()
        yield from self._items

    def _decode(self) -> Generator[_Timed | Packet, None, None]:
        """Frames between start and stop, and packets of sound; those from before the first frame are in `_early`."""
        begun, time = False, -1 / self.rate
        for packet in self._packets():
            if packet.stream is not self.stream:
                if packet.pts is not None:
                    last = (packet.pts + (packet.duration or 0)) * packet.time_base - self._origin
                    self._sound_end = max(self._sound_end, last)
                if begun:
                    yield packet
                elif packet.pts is not None and packet.pts * packet.time_base - self._origin >= (self.start or 0):
                    self._early.append(packet)
                continue
            for frame in self._frames_of(packet):
                # where the file does not say, frames follow one another at its rate
                time = time + 1 / self.rate if frame.pts is None else frame.pts * self.time_base - self._origin
                self._sure |= frame.key_frame and time <= (self.start or 0)
                if self.stop is not None and time >= self.stop:
                    return
                if begun or time >= (self.start or time):
                    begun = True
                    yield _Timed(frame, time)

    def _packets(self) -> Iterator[Packet]:
        try:
            yield from self.container.demux([self.stream, self.audio] if self.audio else [self.stream])
        except IndexError:
            pass  # of PyAV at the end of a file in which streams have begun that it did not know, when these have ended
        except self._av.FFmpegError as error:
            self._broken = error.strerror or str(error)

    def _frames_of(self, packet: Packet) -> list[VideoFrame]:
        try:
            return packet.decode()  # type: ignore[return-value]
        except self._av.FFmpegError:
            self._lost += 1
            return []

    def _shift(self, packet: Packet, offset: Fraction) -> bool:
        """Count a packet's times from the first frame on; False if it is from before it, or after the stop."""
        if packet.pts is None or packet.dts is None:
            return False
        by = round((offset + self._origin) / packet.time_base)
        packet.pts, packet.dts = packet.pts - by, packet.dts - by
        return packet.dts >= 0 and (self.stop is None or packet.pts * packet.time_base + offset < self.stop)

    def _pixels(self, frame: VideoFrame) -> np.ndarray:
        pixels = _upright(frame, self._converter)
        if pixels.shape[:2] == self.size:
            return pixels
        width, height = self.size[::-1]
        note_once(("size", self.path), f"{self.path}: its frames change in size: all are scaled to {width}x{height}")
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

    def _note(self, frame: VideoFrame) -> None:
        if frame.interlaced_frame:
            note_once(("interlaced",), f"{self.path}: is interlaced: moving edges are combs, and so are their labels; "
                      "deinterlace it first, for example with FFmpeg's filter bwdif")  # fmt: skip
        if frame.color_trc in _HDR:
            note_once(("hdr",), f"{self.path}: is HDR, and its values are taken as they are, paler than shown: "
                      "convert it to SDR first if the labels suffer")  # fmt: skip

    def _why_no_frame(self) -> str:
        if not self._lost and (self.start is not None or self.stop is not None):
            length = f" (it is {float(self.duration):.2f} s long)" if self.duration else ""
            return f"no frame of it lies between start and stop{length}"
        return "no frame of it can be decoded: it is empty or damaged: fetch or copy it again"

    def close(self) -> None:
        self._items.close()
        self.container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _refuse_path(path: str) -> None:
    """Raise ImageError for what is no file with content."""
    if is_address(path):
        raise ImageError(f"{path}: videos are not fetched from addresses: download it and give the file")
    if path == "-":
        raise ImageError("-: videos are not read from standard input: give a file")
    file = Path(path)
    if file.is_dir():
        raise ImageError(f"{path}: is a folder, not a video: `fgaseg segment` labels the photos in it")
    if not file.exists():
        raise ImageError(f"{path}: no such file: check the path")
    if file.is_file() and not file.stat().st_size:
        raise ImageError(f"{path}: is empty (0 bytes): fetch or copy it again")
    if not os.access(file, os.R_OK):
        raise ImageError(f"{path}: may not be read: change its permissions")


def _video_stream(container: InputContainer, path: str) -> Any:
    """The stream of moving pictures. Raises ImageError for photos, sound, playlists, and unknown codecs."""
    from av.stream import Disposition

    kind = container.format.name
    if kind == "image2" or kind.endswith("_pipe") or container.metadata.get("major_brand") in _PHOTO_BRANDS:
        raise ImageError(f"{path}: is a photo, not a video: `fgaseg segment` labels it")
    if kind in _PLAYLISTS:
        raise ImageError(f"{path}: is a list of videos ({kind}), not a video: download the video itself")
    pictures = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if kind in _TEXTS or not pictures:
        found = "sound only" if container.streams.audio else "no moving pictures"
        raise ImageError(f"{path}: has {found}: give a video")
    best = container.streams.best("video")
    stream = best if best in pictures else pictures[0]
    if stream.codec_context is None:
        raise ImageError(f"{path}: its codec is unknown to this FFmpeg: convert it to MP4 with H.264")
    if len(pictures) > 1:
        note_once(("streams", path), f"{path}: holds {len(pictures)} video streams: one is labelled, the best")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > pixel_limit():
        raise ImageError(f"{path}: {width}x{height} is more than {pixel_limit():,} pixels: make it smaller, or set "
                         f"FGASEG_PIXEL_LIMIT={width * height} in the environment")  # fmt: skip
    return stream


def _turn(frame: VideoFrame) -> tuple[bool, int, int]:
    """How the stored picture is turned upright: whether rows become columns, then the steps of rows and columns."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, 1, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(float)  # x' = a x + c y, y' = b x + d y
    if min(abs(a), abs(b)) > 0.01 * max(abs(a), abs(b)):
        note_once(("oblique",), "a video is turned in its metadata, and not by a right angle: the nearest is taken")
    swapped = bool(abs(b) > abs(a))
    rows, columns = (b, c) if swapped else (d, a)
    return swapped, -1 if rows < 0 else 1, -1 if columns < 0 else 1


def _upright(frame: VideoFrame, converter: VideoReformatter) -> np.ndarray:
    """uint8 [H, W, 3], RGB: laid on white where it is transparent, and turned as its metadata says."""
    pixels = _rgb(frame, converter)
    swapped, rows, columns = _turn(frame)
    if swapped:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _rgb(frame: VideoFrame, converter: VideoReformatter) -> np.ndarray:
    transparent = frame.format.name == "pal8" or any(one.is_alpha for one in frame.format.components)
    stored: dict[str, Any] = {}
    if not (frame.format.is_rgb or frame.format.has_palette):
        untagged = "ITU709" if frame.colorspace == _UNTAGGED and frame.height >= _HIGH_DEFINITION else "ITU601"
        stored = {"src_colorspace": _MATRICES.get(frame.colorspace, untagged)}
        stored["src_color_range"] = frame.color_range or None
    form = "rgba" if transparent else "rgb24"
    values: np.ndarray = converter.reformat(frame, format=form, threads=1, **stored).to_ndarray()
    if not transparent:
        return values
    colour, alpha = values[..., :3].astype(np.uint32), values[..., 3:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
