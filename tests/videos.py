"""Small videos of drawn shapes that move, made with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)
COLOURS = ((200, 40, 40), (40, 170, 60), (40, 70, 210))


def scene(number: int, size: tuple[int, int] = (48, 64), ground: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: a square and a disc that move over a ground of one of the colours."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = COLOURS[ground]
    left = (3 * number) % width
    pixels[height // 4 : height // 2, left : left + width // 4] = COLOURS[(ground + 1) % 3]
    pixels[(y - height * 0.7) ** 2 + (x - (width - 2 * number) % width) ** 2 < (height // 6) ** 2] = COLOURS[
        (ground + 2) % 3
    ]
    return pixels


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    rate: int = 25,
    times: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    source_format: str = "rgb24",
    turn: int = 0,
    sound: str = "",
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container: str | None = None,
) -> Path:
    """A video of frames [H, W, channels].

    times   of the frames in milliseconds; None: evenly, as `rate` says
    turn    degrees by which players turn it, counter-clockwise
    sound   the codec of a tone as long as the video
    """
    with av.open(str(path), "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixel_format
        stream.codec_context.time_base = MILLISECOND if times else Fraction(1, rate)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn:
            stream.set_display_rotation(turn)
        tone: Any = out.add_stream(sound, rate=48000) if sound else None
        if tone:
            tone.layout = "mono"
        stamps = times or range(len(frames))
        for pixels, stamp in zip(frames, stamps, strict=True):
            picture = av.VideoFrame.from_ndarray(pixels, source_format)
            picture.pts, picture.time_base = stamp, stream.codec_context.time_base
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
        if tone:
            length = stamps[-1] * stream.codec_context.time_base + Fraction(1, rate)
            for block in tone_blocks(round(length * 48000), tone.codec_context.format.name):
                out.mux(tone.encode(block))
            out.mux(tone.encode())
    return path


def tone_blocks(samples: int, form: str) -> list[Any]:
    blocks = []
    for start in range(0, samples, 1024):
        wave = np.sin(np.arange(start, min(start + 1024, samples)) / 20)[None]
        kind = np.int16 if "s16" in form else np.float32
        block = av.AudioFrame.from_ndarray((wave * (8000 if kind is np.int16 else 0.3)).astype(kind), form, "mono")
        block.sample_rate, block.pts, block.time_base = 48000, start, Fraction(1, 48000)
        blocks.append(block)
    return blocks


def read_video(path: Path) -> list[np.ndarray]:
    """Its frames, uint8 [H, W, 3], as PyAV alone decodes them."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def frame_times(path: Path) -> list[Fraction]:
    """In seconds after the first frame."""
    with av.open(str(path)) as container:
        stamps = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    return [stamp - stamps[0] for stamp in stamps]
