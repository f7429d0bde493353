"""Full disks, targets that cannot be written, few file descriptors, runs beside each other, thousands of calls.

FGASEG_FUZZ=N makes the counts N times as large.
"""

import contextlib
import os
import resource
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import TINY_MODEL
from tiny import NAMES, tiny_model
from videos import scene, write_video

from fgaseg.cli import main
from fgaseg.data import SceneDataset

FUZZ = int(os.environ.get("FGASEG_FUZZ", "1"))
PHOTOS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, photos, labels, names and a video, and a file that is no folder."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model().save_pretrained(folder / "model")
    scenes = SceneDataset("seen", PHOTOS, 64)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(PHOTOS):
        item = scenes[number]
        Image.fromarray(item["image"].numpy()).save(folder / "images" / f"{number}.png")
        Image.fromarray(item["labels"].numpy().astype(np.uint8)).save(folder / "labels" / f"{number}.png")
    (folder / "names.txt").write_text("\n".join(scenes.names))
    (folder / "file").write_text("no folder")
    write_video(folder / "clip.mp4", [scene(number) for number in range(4)])
    data = {"images": str(folder / "images"), "labels": str(folder / "labels"), "names": str(folder / "names.txt"),
            "crop": 32, "val_count": 1}  # fmt: skip
    train_ = {"steps": 1, "batch": 1, "warmup": 0, "eval_every": 0, "tensorboard": False}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"model": TINY_MODEL, "data": data, "train": train_}))
    return folder


def leave_descriptors(count: int) -> None:
    """So many file descriptors are left, whatever this process has open."""
    most = max(map(int, os.listdir("/proc/self/fd"))) + 32
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened = []
    with contextlib.suppress(OSError):
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    for descriptor in opened[:count]:
        os.close(descriptor)
    assert len(opened) >= count


def run(*words: object, bytes_of_a_file: int = 0, files: int = 0, left: int | None = None) -> tuple[int, str]:
    """Exit status and standard error of a command in a child of this process, with limits."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        status = 70
        try:
            os.dup2(writer, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            if bytes_of_a_file:
                resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, bytes_of_a_file))
            if files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
            if left is not None:
                leave_descriptors(left)
            torch.set_num_threads(1)
            status = main([str(word) for word in words])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as errors:
        text = errors.read()
    _, ended = os.waitpid(child, 0)
    return ended >> 8 if os.WIFEXITED(ended) else -os.WTERMSIG(ended), text


WRITERS = {
    "segment": ("segment", "{place}/images/0.png", "--model", "{place}/model", "--classes", "cat, sky", "--out",
                "{out}.png"),
    "segment a folder": ("segment", "{place}/images", "--model", "{place}/model", "--classes", "cat, sky", "--save",
                         "mask,coco", "--out", "{out}"),
    "eval": ("eval", "{place}/model", "--images", "{place}/images", "--labels", "{place}/labels", "--names",
             "{place}/names.txt", "--out", "{out}"),
    "eval to CSV": ("eval", "{place}/model", "--images", "{place}/images", "--labels", "{place}/labels", "--names",
                    "{place}/names.txt", "--csv", "{out}.csv"),
    "train": ("train", "{place}/mine.yaml", "--out", "{out}"),
    "raster": ("raster", "{place}/images/0.png", "--model", "{place}/model", "--classes", "cat, sky", "--out",
               "{out}.tif"),
    "video": ("video", "{place}/clip.mp4", "--model", "{place}/model", "--classes", "cat, sky", "--out", "{out}.mp4"),
    "video to WebM": ("video", "{place}/clip.mp4", "--model", "{place}/model", "--classes", "cat, sky", "--out",
                      "{out}.webm"),
    "masks of a video": ("video", "{place}/clip.mp4", "--model", "{place}/model", "--classes", "cat, sky", "--masks",
                         "{out}"),
    "convert": ("convert", "{place}/model", "--to-released", "--out", "{out}.pth"),
    "export": ("export", "{place}/model", "--to", "torch", "--parts", "text", "--out", "{out}"),
    "demo": ("demo", "--out", "{out}", "train.steps=1", "train.warmup=0", "train.eval_every=0"),
    "ablate": ("ablate", "II", "--on", "{place}/mine.yaml", "--steps", "1", "--out", "{out}"),
    "data prepare": ("data", "prepare", "--images", "{place}/images", "--labels", "{place}/labels", "--names",
                     "{place}/names.txt", "--out", "{out}"),
}  # fmt: skip
PLACES = {"a full disk": ("{tmp}/out", 200), "below a file": ("{place}/file/out", 0), "not writable": ("/sys/out", 0)}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
    "writer",
    # the demo trains, half a minute at least, before it finds its disk full
    [pytest.param(one, marks=[pytest.mark.slow, pytest.mark.exhaustive] if one == "demo" else []) for one in WRITERS],
)
def test_what_cannot_be_written_is_one_line_that_names_it(writer, where, place, tmp_path):
    target, limit = PLACES[where]
    out = target.format(place=place, tmp=tmp_path)
    words = [word.format(place=place, out=out) for word in WRITERS[writer]]
    status, errors = run(*words, bytes_of_a_file=limit)
    lines = errors.strip().splitlines()
    assert "Traceback" not in errors, errors
    assert status == 1, errors
    assert lines[-1].startswith(f"fgaseg {words[0]}: ") and Path(out).name in lines[-1], errors
    assert len(lines[-1]) < 500
    assert not list(tmp_path.rglob("*.tmp")) and not list(place.glob("*.tmp"))


def test_few_file_descriptors_are_enough(place, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.png").write_bytes((place / "images" / "0.png").read_bytes())
    words = (
        "segment",
        folder,
        "--model",
        place / "model",
        "--classes",
        "cat, sky",
        "--save",
        "mask",
        "--out",
        tmp_path / "out",
    )
    opened = len(os.listdir("/proc/self/fd"))  # the child has this process's too
    status, errors = run(*words, files=opened + 30)
    assert status == 0, errors
    assert len(list((tmp_path / "out").rglob("*.png"))) == 60


@pytest.mark.parametrize("writer", ["segment", "segment a folder", "eval", "video", "export", "convert", "train"])
def test_too_few_file_descriptors_are_one_line(writer, place, tmp_path):
    """With one left after another, until they are enough."""
    seen = set()
    for left in range(40):
        words = [word.format(place=place, out=tmp_path / f"out{left}") for word in WRITERS[writer]]
        status, errors = run(*words, left=left)
        assert "Traceback" not in errors, errors
        if status == 0:
            break
        last = errors.strip().splitlines()[-1]
        assert status == 1 and last.startswith(f"fgaseg {words[0]}: "), errors
        seen.add(last.replace(str(tmp_path / f"out{left}"), ""))
    assert status == 0 and any("Too many open files" in line for line in seen), seen


def test_what_is_no_file_is_one_line(place, tmp_path):
    """A pipe would be waited for without end."""
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    (tmp_path / "list.txt").write_bytes(b"nul\0.png\n")
    usual = ("--model", place / "model", "--classes", "cat, sky", "--out", tmp_path / "out.png")
    for name, why in {"pipe.png": "is no file", "zero.png": "is no file", "loop.png": "no such file",
                      "list.txt": "no such file"}.items():  # fmt: skip
        status, errors = run("segment", tmp_path / name, *usual)
        lines = errors.strip().splitlines()
        assert status == 1 and why in lines[-1] and "Traceback" not in errors, errors
    photo = place / "images" / "0.png"
    status, errors = run("segment", photo, *usual, "--device", "meta")
    assert status == 1 and "fgaseg segment: device meta: cannot be used here" in errors, errors
    status, errors = run("segment", photo, *usual, "class_cap=" + "0" * 300 + "5")
    assert status == 0, errors
    long = tmp_path / ("x" * 251 + ".png")
    status, errors = run("segment", photo, *usual[:-1], long)
    assert status == 0 and long.exists(), errors


def resident() -> float:
    """Megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.slow
def test_memory_does_not_grow_over_thousands_of_calls():
    """Sizes and names change, so that whatever is cached by them is seen to be bounded."""
    model = tiny_model(image_size=32)
    random = np.random.default_rng(0)

    def calls(first: int, last: int) -> None:
        for number in range(first, last):
            photo = random.integers(0, 256, (int(random.integers(16, 48)), int(random.integers(16, 48)), 3), np.uint8)
            model.segment(photo, [f"thing {number % 1500}", "sky"])

    calls(0, 700 * FUZZ)
    before = resident()
    calls(700 * FUZZ, 2000 * FUZZ)
    assert resident() - before < 25


def test_threads_that_label_while_one_changes_the_names():
    """Every answer is the one of the names that were given with the call; those that change are a call's own."""
    model = tiny_model(image_size=32)
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    lists = [NAMES, NAMES[:2], ["sky", "grass"], [*NAMES[::-1], "sofa"]]
    expected = [model.segment(photo, names).labels for names in lists]
    problems: list[str] = []
    stop = threading.Event()

    def label(number: int) -> None:
        for round_ in range(6 * FUZZ):
            which = (number + round_) % len(lists)
            try:
                labels = model.segment(photo, lists[which]).labels
                if not np.array_equal(np.asarray(labels), np.asarray(expected[which])):
                    problems.append(f"{lists[which]}: other labels")
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")

    def change() -> None:
        number = 0
        while not stop.is_set():
            try:
                model.encode([f"thing {number}", "sky"])
            except Exception as error:
                problems.append(f"encode: {type(error).__name__}: {error}")
            number += 1

    threads = [threading.Thread(target=label, args=(number,)) for number in range(15)]
    writer = threading.Thread(target=change)
    writer.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    stop.set()
    writer.join(120)
    assert problems == []
