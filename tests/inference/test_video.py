"""Videos labelled frame by frame: the same labels as photos get, smoothing, what is written and what is left behind."""

import gc
import math
import os
import subprocess
import sys
import weakref
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from tiny import NAMES, tiny_model
from videos import frame_times, read_video, scene, write_video

from fgaseg import segment_video
from fgaseg.data import read_names
from fgaseg.errors import ImageError, UsageError, VocabularyError
from fgaseg.inference import video
from fgaseg.inference.prediction import decide, evaluation_mode, view_logits
from fgaseg.inference.video import AHEAD, Smoother
from fgaseg.inference.video_outputs import BEHIND
from fgaseg.inference.video_reading import Frame, VideoReader
from fgaseg.inference.video_writing import VideoWriter


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", [scene(number) for number in range(12)])


class Counted:
    """A model that counts its calls, and does something at one of them."""

    def __init__(self, model, at=0, act=None):
        self._model, self.calls, self._at, self._act = model, 0, at, act

    def __getattr__(self, name):
        return getattr(self._model, name)

    def stream(self, *arguments):
        self.calls += 1
        if self.calls == self._at:
            self._act()
        return self._model.stream(*arguments)


def masks_of(folder) -> dict[int, np.ndarray]:
    return {int(file.stem): np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))}


def listing(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- labels


def test_every_frame_of_ten_seconds_is_labelled_as_a_photo_is(model, tmp_path):
    """To the bit; and the video has the frames, times and size of the first."""
    path = write_video(tmp_path / "clip.mp4", [scene(number) for number in range(100)], rate=10, sound="aac")
    done = segment_video(model, path, NAMES, tmp_path / "out.mp4", masks=tmp_path / "masks", legend=False)
    masks = masks_of(tmp_path / "masks")
    frames = read_video(path)
    assert list(masks) == list(range(1, 101)) and listing(tmp_path / "masks")[0] == "00000001.png"
    counted = np.zeros(len(NAMES), int)
    for number, frame in enumerate(frames, 1):
        result = model.segment(Image.fromarray(frame), NAMES)
        assert (masks[number] == result.labels).all(), number
        counted += np.bincount(result.labels.ravel(), minlength=len(NAMES))
    assert read_names(tmp_path / "masks" / "names.txt") == NAMES
    assert done.present == pytest.approx({NAMES[i]: counted[i] / counted.sum() for i in np.flatnonzero(counted)})
    assert list(done.present.values()) == sorted(done.present.values(), reverse=True)
    assert (done.frames, done.labelled, done.size, done.duration) == (100, 100, (48, 64), 10.0)
    assert done.files == (tmp_path / "out.mp4", tmp_path / "masks") and done.complete and done.sound == "copied"
    assert done.fps == pytest.approx(100 / done.seconds) and done.codec == "libx264" and done.doubt == ""
    assert frame_times(tmp_path / "out.mp4") == frame_times(path)
    assert len(read_video(tmp_path / "out.mp4")) == 100 and read_video(tmp_path / "out.mp4")[0].shape == (48, 64, 3)


def test_the_overlay_is_that_of_a_photo(model, clip, tmp_path):
    segment_video(model, clip, NAMES, tmp_path / "out.mkv", legend=False)
    for frame, drawn in zip(read_video(clip), read_video(tmp_path / "out.mkv"), strict=True):
        expected = np.asarray(model.segment(Image.fromarray(frame), NAMES).overlay(legend=False), int)
        lost = np.abs(expected - drawn).mean()  # colour has half the size
        assert lost < 20 and 2 * lost < np.abs(expected - frame).mean()


def test_the_legend_is_the_same_below_all_frames(model, clip, tmp_path):
    segment_video(model, clip, NAMES, tmp_path / "out.mp4")
    written = read_video(tmp_path / "out.mp4")
    assert written[0].shape[0] > 48 + 12 and written[0].shape[1] == 64
    assert np.abs(written[0][50:].astype(int) - written[-1][50:]).mean() < 4
    assert np.abs(written[0][50:].astype(int) - 255).mean() < 120  # a light strip


def test_the_labels_of_a_turned_video_are_those_of_the_upright_frames(model, tmp_path):
    path = write_video(tmp_path / "turned.mp4", [scene(number) for number in range(3)], turn=90)
    done = segment_video(model, path, NAMES, tmp_path / "out.mp4", masks=tmp_path / "masks", legend=False)
    assert done.size == (64, 48) and read_video(tmp_path / "out.mp4")[0].shape == (64, 48, 3)
    upright = np.rot90(read_video(path)[0], _stored_turn(path))
    assert (masks_of(tmp_path / "masks")[1] == model.segment(np.ascontiguousarray(upright), NAMES).labels).all()
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert reader.size == (64, 48)  # and it is not turned again


def _stored_turn(path) -> int:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).rotation // 90


def test_only_every_nth_frame_goes_through_the_model(model, clip, tmp_path):
    counted = Counted(model)
    done = segment_video(counted, clip, NAMES, tmp_path / "out.mkv", masks=tmp_path / "masks", every=5, legend=False)
    assert counted.calls == 3 and (done.frames, done.labelled) == (12, 3)
    masks = masks_of(tmp_path / "masks")
    assert list(masks) == [1, 6, 11]
    shares = np.bincount(np.concatenate([mask.ravel() for mask in masks.values()]), minlength=len(NAMES)) / 3 / 48 / 64
    assert done.present == pytest.approx({NAMES[i]: shares[i] for i in np.flatnonzero(shares)})
    frames, drawn = read_video(clip), read_video(tmp_path / "out.mkv")
    for number in (1, 4, 5, 6):  # counted from 0
        labels = model.segment(Image.fromarray(frames[number // 5 * 5]), NAMES).labels
        expected = np.asarray(video_overlay(frames[number], labels), int)
        assert np.abs(expected - drawn[number]).mean() < 20


def video_overlay(frame, labels):
    from fgaseg.inference import overlay

    return overlay(Image.fromarray(frame), labels, NAMES, with_legend=False)


def test_background_and_threshold_are_those_of_photos(model, clip, tmp_path):
    segment_video(model, clip, NAMES[:2], masks=tmp_path / "one", background="wall | sky", every=20)
    segment_video(model, clip, NAMES[:3], masks=tmp_path / "two", threshold=0.5, every=20)
    frame = Image.fromarray(read_video(clip)[0])
    for folder, expected in (
        ("one", model.segment(frame, NAMES[:2], background="wall | sky")),
        ("two", model.segment(frame, NAMES[:3], threshold=0.5)),
    ):
        assert (masks_of(tmp_path / folder)[1] == expected.labels).all()
        assert tuple(read_names(tmp_path / folder / "names.txt")) == expected.classes
    vocabulary = model.encode(NAMES)
    segment_video(model, clip, vocabulary, masks=tmp_path / "three", every=20)
    with pytest.raises(VocabularyError, match="the vocabulary is made already"):
        segment_video(model, clip, vocabulary, masks=tmp_path / "four", background="wall")


def test_the_names_are_embedded_once_and_the_mode_of_the_model_stays(model, clip, tmp_path, monkeypatch):
    seen = []
    encode = type(model).encode
    monkeypatch.setattr(
        type(model), "encode", lambda self, *args, **more: seen.append(args) or encode(self, *args, **more)
    )
    model.train()
    try:
        segment_video(model, clip, NAMES, masks=tmp_path / "masks", every=3, smooth=0.1)
        assert len(seen) == 1 and model.training
    finally:
        model.eval()


# ---- smoothing


def frame_at(time, pixels=None) -> Frame:
    return Frame(1, Fraction(time), Fraction(0), scene(0) if pixels is None else pixels)


def test_smoothing_is_an_average_whose_weights_fall_with_time():
    smoother = Smoother(0.5)
    first, second, third = torch.randn(3, 4, 6, 8).unbind()
    assert torch.equal(smoother(first, frame_at(0)), first)
    w = math.exp(-0.1 / 0.5)
    average = w * first + (1 - w) * second
    torch.testing.assert_close(smoother(second, frame_at(Fraction(1, 10))), average)
    w = math.exp(-0.4 / 0.5)  # a longer time: the past counts for less
    torch.testing.assert_close(smoother(third, frame_at(Fraction(1, 2))), w * average + (1 - w) * third)


def test_smoothing_begins_anew_at_a_scene_cut():
    smoother = Smoother(10.0)
    first, second, third = torch.randn(3, 4, 6, 8).unbind()
    smoother(first, frame_at(0))
    assert not torch.equal(smoother(second, frame_at(1, scene(3))), second)  # what moves is no cut
    assert torch.equal(smoother(third, frame_at(2, scene(4, ground=1))), third)


@pytest.mark.parametrize(("difference", "cut"), [(23, False), (26, True)])
def test_a_scene_cut_is_a_mean_difference_of_24(difference, cut):
    smoother = Smoother(10.0)
    first, second = torch.randn(2, 4, 6, 8).unbind()
    smoother(first, frame_at(0, np.full((48, 64, 3), 100, np.uint8)))
    smoothed = smoother(second, frame_at(1, np.full((48, 64, 3), 100 + difference, np.uint8)))
    assert torch.equal(smoothed, second) == cut


def test_noise_is_no_scene_cut():
    smoother = Smoother(10.0)
    first, second = torch.randn(2, 4, 6, 8).unbind()
    before, after = noisy_frames(2, (96, 128))
    smoother(first, frame_at(0, before))
    assert not torch.equal(smoother(second, frame_at(1, after)), second)


def noisy_frames(count, size=(48, 64)) -> list[np.ndarray]:
    """One scene, with other noise in every frame."""
    rng = np.random.default_rng(0)
    return [np.clip(scene(0, size) + rng.normal(0, 40, (*size, 3)), 0, 255).astype(np.uint8) for _ in range(count)]


def test_smoothed_labels_are_those_of_the_averaged_logits(model, tmp_path):
    clip = write_video(tmp_path / "clip.mkv", noisy_frames(8), codec="ffv1", pixel_format="bgr0")
    segment_video(model, clip, NAMES, masks=tmp_path / "masks", smooth=0.1, threshold=0.21)
    masks, vocabulary = masks_of(tmp_path / "masks"), model.encode(NAMES)
    average, w = None, math.exp(-0.04 / 0.1)
    alone = 0
    for number, pixels in enumerate(read_video(clip), 1):
        image = Image.fromarray(pixels)
        with torch.inference_mode(), evaluation_mode(model):
            logits = view_logits(model, image, vocabulary)
            average = logits if average is None else torch.lerp(logits, average, w)
            labels, _ = decide(model, average, vocabulary, (48, 64), 0.21)
        assert (masks[number] == labels.numpy()).all(), number
        alone += int((masks[number] != model.segment(image, NAMES, threshold=0.21).labels).sum())
    assert alone > 0


def test_smoothing_takes_flicker_out(model, tmp_path):
    path = write_video(tmp_path / "noisy.mkv", noisy_frames(15), codec="ffv1", pixel_format="bgr0")
    changes = []
    for number, smooth in enumerate((0.0, 0.2, 1.0)):
        segment_video(model, path, NAMES, masks=tmp_path / str(number), smooth=smooth)
        masks = list(masks_of(tmp_path / str(number)).values())
        changes.append(np.mean([(a != b).mean() for a, b in pairwise(masks[5:])]))
    assert changes[1] < 0.6 * changes[0] and changes[2] < 0.5 * changes[1]


def test_smoothing_needs_frames_that_are_seen_whole(model, clip, tmp_path):
    windows = tiny_model(inference="windows")
    with pytest.raises(UsageError, match="inference=windows sees parts"):
        segment_video(windows, clip, NAMES, tmp_path / "out.mp4", smooth=0.1)
    long = write_video(tmp_path / "long.mp4", [np.tile(scene(0), (1, 4, 1))] * 2)
    with pytest.raises(UsageError, match="more than 4 times as long as broad"):
        segment_video(model, long, NAMES, tmp_path / "out.mp4", smooth=0.1)
    assert listing(tmp_path) == ["clip.mp4", "long.mp4"]
    segment_video(model, long, NAMES, tmp_path / "out.mp4")


# ---- memory


def test_few_frames_are_in_memory_at_any_time(model, tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", [scene(number) for number in range(120)], sound="aac")
    alive, most = weakref.WeakSet(), []

    class Kept(np.ndarray):  # hashed by identity
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    pixels = VideoReader._pixels

    def counted(self, frame):
        kept = pixels(self, frame).view(Kept)
        alive.add(kept)
        most.append(len(alive))
        return kept

    monkeypatch.setattr(VideoReader, "_pixels", counted)
    done = segment_video(model, path, NAMES, tmp_path / "out.mp4", every=1000)
    assert done.frames == 120 == len(most) and max(most) <= AHEAD + BEHIND + 4
    gc.collect()
    assert not alive


MEASURE = """
import resource, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import torch
from tiny import NAMES, tiny_model
from fgaseg import segment_video
torch.set_num_threads(1)
model = tiny_model()
segment_video(model, sys.argv[2], NAMES, sys.argv[4], every=10**6)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
segment_video(model, sys.argv[3], NAMES, sys.argv[4], every=10**6)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    """Of the whole process: what FFmpeg holds too."""
    frames = [scene(number, (240, 320)) for number in range(16)]
    short, long = (write_video(tmp_path / f"{count}.mp4", frames * (count // 16), sound="aac") for count in (160, 3200))
    command = [sys.executable, "-c", MEASURE, str(ROOT), str(short), str(long), str(tmp_path / "out.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000  # kB; 3200 frames are 740 MB


# ---- what is left behind


def test_an_existing_video_is_replaced_when_the_new_one_is_complete(model, clip, tmp_path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    seen = []

    def look():
        seen.append(out.read_bytes() == b"old")

    segment_video(Counted(model, at=12, act=look), clip, NAMES, out)
    assert seen == [True] and len(read_video(out)) == 12
    assert listing(tmp_path) == ["clip.mp4", "out.mp4"]


def test_what_was_done_is_kept_as_a_part_when_the_work_is_cancelled(model, clip, tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"old")
    (tmp_path / "out.partial.mp4").write_bytes(b"of another day")
    counted = Counted(model)
    done = segment_video(
        counted, clip, NAMES, tmp_path / "out.mp4", masks=tmp_path / "masks", cancel=lambda: counted.calls >= 7
    )
    assert not done.complete and done.frames == 7
    assert done.files == (tmp_path / "out.partial1.mp4", tmp_path / "masks.partial")
    assert len(read_video(tmp_path / "out.partial1.mp4")) == 7 == len(masks_of(tmp_path / "masks.partial"))
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert listing(tmp_path) == ["clip.mp4", "masks.partial", "out.mp4", "out.partial.mp4", "out.partial1.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_what_was_done_is_kept_as_a_part_when_the_work_fails(model, clip, tmp_path, caplog, error):
    def fail():
        raise error

    with pytest.raises(error):
        segment_video(Counted(model, at=6, act=fail), clip, NAMES, tmp_path / "out.mp4", masks=tmp_path / "masks")
    assert len(read_video(tmp_path / "out.partial.mp4")) == 5 == len(masks_of(tmp_path / "masks.partial"))
    assert listing(tmp_path) == ["clip.mp4", "masks.partial", "out.partial.mp4"]
    assert "kept what was done" in caplog.text and "out.partial.mp4" in caplog.text


def test_nothing_is_left_when_nothing_was_done(model, clip, tmp_path):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_video(Counted(model, at=1, act=fail), clip, NAMES, tmp_path / "out.mp4", masks=tmp_path / "masks")
    assert listing(tmp_path) == ["clip.mp4"]


def test_a_full_disk_leaves_no_broken_video(model, tmp_path, monkeypatch):
    from fgaseg.inference import video_writing

    path = write_video(tmp_path / "clip.mp4", [scene(number, (144, 192)) for number in range(40)])

    class Full:
        def __init__(self, file):
            self._file, self._left = file, 8_000

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            self._left -= len(data)
            if self._left < 0:
                raise OSError(28, "No space left on device")
            return self._file.write(data)

    monkeypatch.setattr(video_writing, "_opened", lambda path: Full(path.open("w+b")))
    with pytest.raises(OSError, match="No space left"):
        segment_video(model, path, NAMES, tmp_path / "out.mp4", every=100)
    assert listing(tmp_path) == ["clip.mp4"]


def test_a_part_that_cannot_be_completed_gets_no_name(model, clip, tmp_path, monkeypatch, caplog):
    def fail(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VideoWriter, "close", fail)
    done = segment_video(model, clip, NAMES, tmp_path / "out.mp4", cancel=lambda: True)
    assert not done.complete and done.files == () and listing(tmp_path) == ["clip.mp4"]
    assert "what was written cannot be completed" in caplog.text


def test_a_file_that_ends_early_is_labelled_as_far_as_it_goes(model, tmp_path, caplog):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(50)]
    path = write_video(tmp_path / "t.mkv", frames, rate=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = segment_video(model, path, NAMES, tmp_path / "out.mp4", every=100)
    assert done.complete and 10 < done.frames < 40 and done.frames == len(read_video(tmp_path / "out.mp4"))
    assert "it ends early" in done.doubt and done.doubt in caplog.text


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"smooth": -1}, "smooth -1: is a time in seconds"),
        ({"smooth": math.nan}, "smooth nan"),
        ({"every": 0}, "every 0: give a whole number from 1 on"),
        ({"every": 1.5}, "every 1.5"),
        ({"start": -1.0}, "start -1.0: is a time in seconds"),
        ({"start": 3.0, "stop": 2.0}, "stop 2.0: nothing lies before it and after the start, 3.0"),
        ({"out": "out.avi"}, "out.avi: videos are written as .mp4"),
        ({"out": "out"}, "out: videos are written as .mp4"),
        ({"out": "folder.mp4"}, "is a folder: name a file"),
        ({"out": "link.mp4"}, "is the video itself, which would be lost"),
        ({"out": None}, "nothing is to be written"),
        ({"masks": "full"}, "full: exists and is not an empty folder"),
        ({"masks": "clip.mp4"}, "clip.mp4: exists and is not an empty folder"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_read(clip, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    os.link(clip, tmp_path / "link.mp4")
    before = listing(tmp_path)
    monkeypatch.setattr(video, "VideoReader", None)
    with pytest.raises(UsageError, match=words):
        segment_video(None, clip, NAMES, **{"out": "out.mp4"} | given)
    assert listing(tmp_path) == before


def test_a_photo_is_refused_and_nothing_is_left(model, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "photo.jpg")
    with pytest.raises(ImageError, match="is a photo, not a video"):
        segment_video(model, tmp_path / "photo.jpg", NAMES, tmp_path / "out.mp4")
    assert listing(tmp_path) == ["photo.jpg"]


def test_an_empty_folder_takes_masks_and_one_frame_is_a_video(model, tmp_path):
    path = write_video(tmp_path / "one.mp4", [scene(0)])
    (tmp_path / "masks").mkdir()
    done = segment_video(model, path, NAMES, tmp_path / "out.webm", masks=tmp_path / "masks", progress=True)
    assert done.frames == 1 and listing(tmp_path / "masks") == ["00000001.png", "names.txt"]
    assert len(read_video(tmp_path / "out.webm")) == 1


def test_doubts_about_the_names_are_told(model, clip, tmp_path, caplog):
    segment_video(model, clip, ["cat"], masks=tmp_path / "masks")
    assert caplog.text.count("one class, 'cat'") == 1
    segment_video(model, clip, ["cat", "dog"], masks=tmp_path / "more")
    assert "of the first frame" in caplog.text and "the photo " not in caplog.text
