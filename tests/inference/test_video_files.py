"""Video files: what is read of them and how it is turned, timed and coloured; what is written."""

import re
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import frame_times, read_video, scene, write_video

from fgaseg.errors import ImageError, UsageError
from fgaseg.inference.video_reading import Frame, VideoReader
from fgaseg.inference.video_writing import CONTAINERS, VideoWriter

UNEVEN = [0, 10, 100, 130, 500, 900]  # milliseconds
FRAMES = [scene(number) for number in range(8)]


def frames_of(path, **limits) -> list[Frame]:
    with VideoReader(path, **limits) as reader:
        return [item for item in reader if isinstance(item, Frame)]


def copy(source, target, **limits) -> VideoWriter:
    with VideoReader(source, **limits) as reader:
        writer = VideoWriter(Path(target), reader, reader.size)
        for item in reader:
            if isinstance(item, Frame):
                writer.write(item, item.pixels)
            else:
                writer.copy(item)
        writer.close()
    return writer


def close(one, other) -> bool:
    """Two pictures but for what a codec loses."""
    return one.shape == other.shape and np.abs(one.astype(int) - other.astype(int)).mean() < 8


# ---- reading


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("clip.mp4", "libx264", "yuv420p"),
        ("clip.mp4", "libx264", "yuv420p10le"),
        ("clip.mp4", "libx264", "yuv444p"),
        ("clip.mkv", "ffv1", "gray"),
        ("clip.avi", "mpeg4", "yuv420p"),
        ("clip.avi", "mjpeg", "yuvj420p"),
        ("clip.webm", "libvpx-vp9", "yuv420p"),
        ("clip.ts", "mpeg2video", "yuv420p"),
        ("clip.gif", "gif", "rgb8"),
    ],
)
def test_containers_and_codecs_that_ffmpeg_reads(tmp_path, name, codec, form):
    path = write_video(tmp_path / name, FRAMES, codec=codec, pixel_format=form)
    frames = frames_of(path)
    assert [frame.number for frame in frames] == list(range(1, 9))
    assert all(frame.pixels.dtype == np.uint8 and frame.pixels.shape == (48, 64, 3) for frame in frames)
    expected = (
        FRAMES if form != "gray" else [np.asarray(Image.fromarray(f).convert("L").convert("RGB")) for f in FRAMES]
    )
    loss = 40 if form == "rgb8" else 12
    assert all(np.abs(f.pixels.astype(int) - e).mean() < loss for f, e in zip(frames, expected, strict=True))


@pytest.mark.parametrize("matrix", [("ITU601", 6), ("ITU709", 1), ("BT2020", 9)])
def test_colours_are_those_of_the_matrix_that_the_file_names(tmp_path, matrix):
    colour = np.full((48, 64, 3), (200, 30, 60), np.uint8)
    with av.open(str(tmp_path / "c.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.colorspace = matrix[1]
        picture = av.VideoFrame.from_ndarray(colour, "rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=matrix[0], dst_color_range="MPEG")
        out.mux(stream.encode(picture))
        out.mux(stream.encode())
    (frame,) = frames_of(tmp_path / "c.mp4")
    assert np.abs(frame.pixels[10, 10].astype(int) - (200, 30, 60)).max() <= 4


def test_a_large_video_that_names_no_matrix_has_that_of_high_definition(tmp_path):
    with av.open(str(tmp_path / "c.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 720, 64, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.full((720, 64, 3), (200, 30, 60), np.uint8), "rgb24")
        out.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")))
        out.mux(stream.encode())
    (frame,) = frames_of(tmp_path / "c.mp4")
    assert np.abs(frame.pixels[10, 10].astype(int) - (200, 30, 60)).max() <= 4


def test_transparent_frames_lie_on_white(tmp_path):
    frames = [np.dstack([frame, np.full((48, 64), 51, np.uint8)]) for frame in FRAMES]
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pixel_format="bgra", source_format="rgba")
    assert np.abs(frames_of(path)[3].pixels - (FRAMES[3] * 0.2 + 255 * 0.8)).max() <= 1


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_of_the_metadata_is_applied(tmp_path, turn):
    path = write_video(tmp_path / "r.mp4", FRAMES, turn=turn)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        expected = np.rot90(stored.to_ndarray(format="rgb24"), stored.rotation // 90)  # both counter-clockwise
        assert stored.rotation % 360 != 0
    assert (frames_of(path)[0].pixels == expected).all()


def test_a_mirrored_video_is_mirrored(tmp_path):
    with av.open(str(tmp_path / "m.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(0, hflip=True)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(FRAMES[0], "rgb24")))
        out.mux(stream.encode())
    assert close(frames_of(tmp_path / "m.mp4")[0].pixels, FRAMES[0][:, ::-1])


def test_times_are_those_of_the_file_also_where_they_are_uneven(tmp_path):
    path = write_video(tmp_path / "v.mkv", FRAMES[:6], times=UNEVEN)
    assert [frame.time for frame in frames_of(path)] == [Fraction(time, 1000) for time in UNEVEN]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi"])
@pytest.mark.parametrize("keys", [12, 250])
def test_start_and_stop_choose_frames_by_time(tmp_path, name, keys):
    """To the frame, also where a container has no index, or one key frame alone."""
    codec = "mpeg4" if name == "clip.avi" else "libx264"
    frames = [scene(number) for number in range(60)]
    path = write_video(tmp_path / name, frames, codec=codec, rate=10, options={"g": str(keys)})
    everything = frames_of(path)
    assert len(everything) == 60
    for start, stop, first, last in ((2.9, 4.1, 29, 41), (5.0, None, 50, 60), (None, 0.3, 0, 3)):
        some = frames_of(path, start=start, stop=stop)
        assert [frame.number for frame in some] == list(range(1, last - first + 1)) and some[0].time == 0
        assert all((a.pixels == b.pixels).all() for a, b in zip(some, everything[first:last], strict=True))
    with VideoReader(path, 2.9, 4.1) as reader:
        assert reader.count == 12
    with pytest.raises(ImageError, match="no frame of it lies between start and stop .it is 6.0. s long"):
        VideoReader(path, start=7)


def test_a_stream_that_cannot_seek_is_read_from_its_beginning(tmp_path):
    path = write_video(tmp_path / "clip.264", FRAMES, container="h264", rate=25)
    assert len(frames_of(path, start=0.16)) == 4


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path, caplog):
    parts = [write_video(tmp_path / f"{n}.264", FRAMES[:2], container="h264") for n in (0,)]
    small = [np.ascontiguousarray(frame[:32, :32]) for frame in FRAMES[:2]]
    parts.append(write_video(tmp_path / "1.264", small, container="h264"))
    both = tmp_path / "both.264"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = frames_of(both)
    assert len(frames) == 4 and {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
    assert "change in size: all are scaled to 64x48" in caplog.text


def test_what_is_assumed_is_told(tmp_path, caplog):
    interlaced = write_video(tmp_path / "i.mpg", FRAMES, codec="mpeg2video", options={"flags": "+ildct+ilme"})
    frames_of(interlaced)
    frames_of(interlaced)
    assert caplog.text.count("is interlaced") == 1
    with av.open(str(tmp_path / "hdr.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p10le"
        stream.codec_context.color_trc = 16  # PQ
        out.mux(stream.encode(av.VideoFrame.from_ndarray(FRAMES[0], "rgb24")))
        out.mux(stream.encode())
    frames_of(tmp_path / "hdr.mp4")
    assert "hdr.mp4: is HDR, and its values are taken as they are" in caplog.text
    frames_of(write_video(tmp_path / "plain.mp4", FRAMES))
    assert "plain.mp4" not in caplog.text


@pytest.mark.parametrize(
    ("name", "codec"), [("t.mkv", "libx264"), ("t.webm", "libvpx"), ("t.ts", "mpeg2video"), ("t.avi", "mjpeg")]
)
def test_of_a_truncated_file_the_rest_is_read_and_it_is_told(tmp_path, name, codec):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(50)]
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / name, frames, codec=codec, pixel_format=form, rate=10)
    with VideoReader(path) as reader:
        assert len(list(reader)) == 50 and reader.doubt == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(path) as reader:
        assert 10 < len(list(reader)) < 40
        assert (
            re.search("could not be decoded|are damaged", reader.doubt)
            or "it ends early, after" in reader.doubt
            or name == "t.ts"
        )


def test_a_truncated_file_with_sound_is_told_of(tmp_path):
    frames = [scene(i) for i in range(50)]
    path = write_video(tmp_path / "t.mkv", frames, rate=10, sound="libopus")
    with VideoReader(path) as reader:
        assert sum(isinstance(item, Frame) for item in reader) == 50 and reader.doubt == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(path) as reader:
        assert 10 < sum(isinstance(item, Frame) for item in reader) < 40
        assert re.search(r"it ends early, after [1-4]\.\d s of 5\.\d s", reader.doubt)


def test_a_truncated_mp4_whose_index_comes_first(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(50)]
    path = write_video(tmp_path / "t.mp4", frames, rate=10, options={"preset": "ultrafast"})
    content = path.read_bytes()
    moov = content.index(b"moov") - 4
    assert moov > len(content) // 2  # at the end here: cut off, the file says nothing of its content
    path.write_bytes(content[:moov])
    with pytest.raises(ImageError, match="no video that FFmpeg can read, or it is damaged or incomplete"):
        VideoReader(path)


def tone(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        block = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        block.sample_rate = 8000
        out.mux(stream.encode(block))
        out.mux(stream.encode())


def test_what_is_no_video_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20)).save("photo.png")
    Image.new("RGB", (20, 20)).save("photo.avif")
    tone("tone.wav")
    Path("empty.mp4").touch()
    Path("words.mp4").write_text("words\n" * 100)
    Path("words.txt").write_text("words\n" * 100)
    Path("list.m3u8").write_text("#EXTM3U\n#EXTINF:10,\nhttp://example.org/1.ts\n")
    Path("folder").mkdir()
    write_video(Path("good.mp4"), FRAMES)
    head = Path("good.mp4").read_bytes()
    Path("half.mp4").write_bytes(head[: len(head) // 2])
    for name, words in {
        "photo.png": "is a photo, not a video: `fgaseg segment` labels it",
        "photo.avif": "is a photo, not a video",
        "tone.wav": "has sound only",
        "empty.mp4": "is empty",
        "words.mp4": "no video that FFmpeg can read",
        "words.txt": "(no video that FFmpeg can read|no moving pictures)",
        "list.m3u8": "(is a list of videos|no video that FFmpeg can read)",
        "folder": "is a folder, not a video: `fgaseg segment` labels the photos in it",
        "half.mp4": "damaged or incomplete",
        "missing.mp4": "no such file",
        "https://example.org/clip.mp4": "are not fetched from addresses: download it",
        "-": "not read from standard input",
    }.items():
        with pytest.raises(ImageError, match=f"^{name}.*{words}") as caught:
            VideoReader(name)
        assert "\n" not in str(caught.value)


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4", FRAMES).rename(tmp_path / "http:clip.mp4")
    assert len(frames_of("http:clip.mp4")) == 8


def test_too_many_pixels(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", FRAMES)
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "3000")
    with pytest.raises(ImageError, match="64x48 is more than 3,000 pixels"):
        VideoReader(path)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", FRAMES)
    for name in [name for name in sys.modules if name.startswith("av.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'fgaseg\[video\]'"):
        VideoReader(path)


# ---- writing


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("times", [None, UNEVEN])
def test_frames_and_times_are_kept(tmp_path, suffix, times):
    path = write_video(tmp_path / "v.mkv", FRAMES[:6], times=times)
    writer = copy(path, tmp_path / f"out{suffix}")
    assert writer.codec == ("libvpx-vp9" if suffix == ".webm" else "libx264")
    assert frame_times(tmp_path / f"out{suffix}") == frame_times(path)
    for before, after in zip(frames_of(path), frames_of(tmp_path / f"out{suffix}"), strict=True):
        assert close(before.pixels, after.pixels)


def test_the_last_frame_lasts_as_long_as_before(tmp_path):
    path = write_video(tmp_path / "v.mp4", FRAMES[:6], times=UNEVEN, rate=10)
    last = frames_of(path)[-1].duration
    copy(path, tmp_path / "out.mp4")
    with VideoReader(path) as reader:
        assert last != 1 / reader.rate  # which it would be by default
    assert frames_of(tmp_path / "out.mp4")[-1].duration == last


def test_times_finer_than_a_millisecond_are_kept(tmp_path):
    path = write_video(tmp_path / "v.mp4", FRAMES, rate=Fraction(30000, 1001))
    copy(path, tmp_path / "out.mp4")
    assert frame_times(tmp_path / "out.mp4") == [Fraction(1001 * number, 30000) for number in range(8)]


def test_colours_survive_the_way_through_a_file(tmp_path):
    plain = [np.full((48, 64, 3), colour, np.uint8) for colour in ((200, 30, 60), (20, 200, 90), (30, 60, 220))]
    path = write_video(tmp_path / "v.mkv", plain, codec="ffv1", pixel_format="bgr0")
    copy(path, tmp_path / "out.mp4")
    for frame, expected in zip(frames_of(tmp_path / "out.mp4"), plain, strict=True):
        assert np.abs(frame.pixels[20, 20].astype(int) - expected[20, 20]).max() <= 6


def test_odd_sizes_get_one_more_row_and_column(tmp_path):
    frames = [np.ascontiguousarray(frame[:47, :63]) for frame in FRAMES]
    path = write_video(tmp_path / "odd.mkv", frames, codec="ffv1", pixel_format="bgr0")
    copy(path, tmp_path / "out.mp4")
    written = read_video(tmp_path / "out.mp4")
    assert written[0].shape == (48, 64, 3) and close(written[3][:47, :63], frames[3])
    assert np.abs(written[3][47].astype(int) - written[3][46]).mean() < 12


def test_pixels_that_are_not_square_stay_so(tmp_path):
    path = write_video(tmp_path / "wide.mp4", FRAMES, aspect=Fraction(4, 3))
    copy(path, tmp_path / "out.mp4")
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert reader.aspect == Fraction(4, 3)


@pytest.mark.parametrize(
    ("source", "codec", "sound", "target"),
    [
        ("s.mp4", "libx264", "aac", "out.mp4"),
        ("s.mp4", "libx264", "aac", "out.mkv"),
        ("s.ts", "libx264", "aac", "out.mp4"),
        ("s.avi", "mpeg4", "pcm_s16le", "out.mkv"),
        ("s.webm", "libvpx", "libopus", "out.webm"),
    ],
)
def test_sound_is_copied(tmp_path, source, codec, sound, target):
    path = write_video(tmp_path / source, [scene(number) for number in range(30)], codec=codec, sound=sound)
    assert copy(path, tmp_path / target).sound == "copied"
    lengths = []
    for file in (path, tmp_path / target):
        with av.open(str(file)) as container:
            blocks = list(container.decode(audio=0))
        values = [block.to_ndarray() for block in blocks]
        lengths.append(sum(block.shape[-1] for block in values))
        assert max(np.abs(block.astype(float)).max() for block in values) > 0.1
    assert abs(lengths[0] - lengths[1]) <= 2048  # a packet that AAC begins with may lie before the first frame
    assert 0 <= blocks[0].time < 0.05 and 1.1 < blocks[-1].time < 1.3  # of 1.2 s


def test_sound_is_in_time_with_the_frames(tmp_path):
    path = write_video(tmp_path / "s.mp4", [scene(number) for number in range(60)], sound="aac")
    copy(path, tmp_path / "out.mp4", start=0.8, stop=1.6)
    with av.open(str(tmp_path / "out.mp4")) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(audio=0) if packet.pts is not None]
    assert 0 <= times[0] < 0.03 and 0.7 < times[-1] < 0.8
    assert len(frame_times(tmp_path / "out.mp4")) == 20


def test_sound_that_the_container_does_not_take_is_left_out(tmp_path):
    path = write_video(tmp_path / "s.mp4", FRAMES, sound="aac")
    assert copy(path, tmp_path / "out.webm").sound == "left out: .webm takes no aac"
    assert len(read_video(tmp_path / "out.webm")) == 8


def test_another_codec_where_there_is_no_h264(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", FRAMES)
    monkeypatch.setattr(av.codec, "codecs_available", av.codec.codecs_available - {"libx264", "libopenh264"})
    assert copy(path, tmp_path / "out.mp4").codec == "mpeg4"
    assert len(read_video(tmp_path / "out.mp4")) == 8
    monkeypatch.setattr(av.codec, "codecs_available", set())
    with pytest.raises(UsageError, match="no encoder for it"):
        copy(path, tmp_path / "other.mp4")


def test_unknown_suffixes_are_refused(tmp_path):
    path = write_video(tmp_path / "v.mp4", FRAMES)
    with pytest.raises(UsageError, match=r"written as .mp4, .m4v, .mov, .mkv, .webm: choose one"):
        copy(path, tmp_path / "out.avi")


def test_a_size_that_no_encoder_takes_is_one_line(tmp_path):
    path = write_video(tmp_path / "v.mp4", FRAMES)
    with VideoReader(path) as reader, pytest.raises(ImageError, match="cannot be written with libx264"):
        VideoWriter(tmp_path / "out.mp4", reader, (20000, 20000))
