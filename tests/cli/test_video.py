"""`fgaseg video`, as typed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import NAMES
from videos import frame_times, read_video, scene, write_video

import fgaseg
from fgaseg.cli import main


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", [scene(number) for number in range(12)], sound="aac")
    return "clip.mp4"


def command(model, *words):
    return ["video", "clip.mp4", "--model", model, "--classes", ", ".join(NAMES), *words]


def test_a_video_and_masks_are_written_and_summed_up(model, clip, tmp_path, capsys):
    assert main(command(model, "--out", "new/labelled.webm", "--masks", "masks", "--every", "3", "--no-legend")) == 0
    out = capsys.readouterr().out
    assert out.startswith("clip.mp4: 12 frames (4 labelled), 0.5 s, in ") and "/s): " in out and "%" in out
    assert out.endswith("-> new/labelled.webm, masks; sound left out: .webm takes no aac\n")
    assert read_video(tmp_path / "new/labelled.webm")[0].shape == (48, 64, 3)
    assert frame_times(tmp_path / "new/labelled.webm") == frame_times(tmp_path / "clip.mp4")
    assert sorted(os.listdir("masks")) == [*(f"{number:08}.png" for number in (1, 4, 7, 10)), "names.txt"]


def test_json_tells_the_same(model, clip, capsys):
    assert main(command(model, "--json", "--start", "0.1", "--stop", "0.3", "--smooth", "0.2", "inference=whole")) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["files"] == ["clip_labels.mp4"] and (row["frames"], row["labelled"]) == (5, 5)
    assert row["size"] == [48, 64] and row["sound"] == "copied" and row["complete"]
    assert row["fps"] == pytest.approx(row["frames"] / row["seconds"], rel=0.01)
    assert sum(row["classes"].values()) == pytest.approx(1) and row["names"] == NAMES
    assert len(read_video("clip_labels.mp4")) == 5


def test_labels_are_those_of_the_options(model, clip):
    given = ["--background", "wall, sky", "--threshold", "0.21", "--every", "100", "class_cap=3"]
    assert main(command(model, "--masks", "masks", *given)) == 0
    loaded = fgaseg.load(model, class_cap=3)
    frame = Image.fromarray(read_video("clip.mp4")[0])
    expected = loaded.segment(frame, NAMES, background=["wall", "sky"], threshold=0.21)
    assert (np.asarray(Image.open("masks/00000001.png")) == expected.labels).all()
    assert not os.path.exists("clip_labels.mp4")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_what_was_done_and_says_where(model, clip, tmp_path, capsys, monkeypatch, number):
    calls = []
    stream = fgaseg.FGASeg.stream

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), number)
        return stream(self, *arguments)

    monkeypatch.setattr(fgaseg.FGASeg, "stream", interrupted)
    assert main(command(model, "--out", "labelled.mp4")) == 128 + number
    assert "interrupted after 5 frames; kept: labelled.partial.mp4" in capsys.readouterr().err
    assert len(read_video("labelled.partial.mp4")) == 5
    assert sorted(os.listdir(".")) == ["clip.mp4", "labelled.partial.mp4"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["other.mp4"], "give one video; got clip.mp4, other.mp4"),
        (["--out", "out.avi"], "videos are written as .mp4, .m4v, .mov, .mkv, .webm"),
        (["--out", "clip.mp4"], "is the video itself, which would be lost"),
        (["--every", "0"], "every 0: give a whole number from 1 on"),
        (["--stop", "0"], "stop 0.0: nothing lies before it"),
        (["--start", "9"], "no frame of it lies between start and stop (it is 0.48 s long)"),
        (["--threshold", "2"], "is a probability"),
        (["--out", "clip.mp4/out.mp4"], "clip.mp4 is a file"),
        (["--smooth", "1", "inference=windows"], "smooth: averages the logits of frames seen whole"),
    ],
)
def test_mistakes_are_one_line_before_a_model_is_loaded(model, clip, capsys, monkeypatch, words, error):
    if "inference=windows" not in words:
        monkeypatch.setattr("fgaseg.cli.video.load_model", None)
    assert main(command(model, *words)) == 1
    message = capsys.readouterr().err
    assert message.startswith("fgaseg video: ") and error in message and message.count("\n") == 1
    assert os.listdir(".") == ["clip.mp4"]


def test_a_photo_and_a_folder_are_led_to_segment(model, clip, capsys):
    Image.new("RGB", (20, 20)).save("photo.jpg")
    os.mkdir("frames")
    for word in ("photo.jpg", "frames"):
        assert main(["video", word, "--classes", "cat, dog"]) == 1
        assert "`fgaseg segment`" in capsys.readouterr().err


def test_help_does_not_load_pyav():
    script = "import sys\nfrom fgaseg.cli import main\ntry: main(['video', '--help'])\nexcept SystemExit: pass\n"
    script += "print('loaded:', sorted({'av', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "--smooth" in done.stdout and done.stdout.splitlines()[-1] == "loaded: []", done.stderr
