"""`fgaseg segment --save` of many photos: stages that overlap, runs that are killed, processes that share."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import TORCHRUN, single_thread

from fgaseg.cli import main, saving
from fgaseg.cli.processes import process, share
from fgaseg.cli.stages import LARGE, READ_AHEAD, WRITE_BEHIND, Failure, run_stages
from fgaseg.errors import ImageError, UsageError

NAMES = "cat, dog, red star"
COUNT = 8
SAVE = ["--classes", NAMES, "--save", "mask,overlay,coco,dataset"]
WAIT = 30  # seconds, for what takes a moment


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Scores are added up in the same order here and in the processes that are started: by one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for number in range(COUNT):
        Path("in").mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (14, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"in/{number}.png")
    with single_thread():
        yield


def command(model: str, out: str, *words: str) -> list[str]:
    return ["segment", "in", "--model", model, *SAVE, "--out", out, *words]


def written(folder: str) -> dict[str, bytes]:
    files = [path for path in Path(folder).rglob("*") if path.is_file() and ".fgaseg" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def whole(model, capsys):
    """What one run that nothing disturbs writes."""
    assert main(command(model, "whole")) == 0
    capsys.readouterr()
    return written("whole")


# ---- stages


def test_reading_and_writing_overlap_with_the_model():
    """Nothing here ends unless the stages overlap: labelling waits for what is read ahead, writing for the model."""
    read, labelled = [threading.Event() for _ in range(20)], [threading.Event() for _ in range(20)]
    most, written = 0, []

    def read_one(item):
        read[item].set()
        return item

    def label(item, image):
        nonlocal most
        assert read[min(item + READ_AHEAD, 19)].wait(WAIT), "photos are not read ahead"
        time.sleep(0.01)  # for threads that read too much
        most = max(most, sum(event.is_set() for event in read) - item)
        labelled[item].set()
        return image

    def write(item, image):
        assert labelled[min(item + 1, 19)].wait(WAIT), "the model waits for writing"
        written.append(item)
        return image

    found = list(run_stages(range(20), str, read_one, label, write))
    assert found == [(item, item) for item in range(20)] and sorted(written) == list(range(20))
    assert most <= READ_AHEAD + 1


def test_writing_falls_behind_by_a_bounded_number():
    labelled, begun, go = [], threading.Event(), threading.Event()

    def write(item, image):
        begun.set()
        assert go.wait(WAIT)

    def consume():
        for _ in run_stages(range(20), str, lambda item: item, lambda item, image: labelled.append(item), write):
            pass

    thread = threading.Thread(target=consume)
    thread.start()
    assert begun.wait(WAIT)
    time.sleep(0.2)
    count = len(labelled)
    go.set()
    thread.join(WAIT)
    assert count <= WRITE_BEHIND + 1 and len(labelled) == 20


def test_a_large_photo_is_written_before_the_next_is_labelled():
    order = []

    def label(item, image):
        order.append(f"label {item}")

    def write(item, image):
        time.sleep(0.05)
        order.append(f"write {item}")

    list(run_stages(range(3), str, lambda item: item, label, write, lambda item: LARGE + 1))
    assert order == [f"{stage} {item}" for item in range(3) for stage in ("label", "write")]


def test_the_failure_of_one_photo_is_its_own_and_others_end_it_all():
    def read(item):
        if item == 1:
            raise ImageError("b: is damaged")
        return item

    def label(item, image):
        if item == 2:
            raise MemoryError
        return image

    found = dict(run_stages(range(4), lambda item: f"photo {item}", read, label, lambda item, image: image))
    assert found[0] == 0 and found[3] == 3 and found[1] == Failure("b: is damaged")
    assert found[2].reason == "photo 2: there is not enough memory for it: make it smaller"

    def broken(item, image):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(run_stages(range(4), str, read, label, broken))


# ---- interrupted

SLOW = """
import sys, time
import fgaseg
from fgaseg.cli import main
segment = fgaseg.FGASeg.segment
def slow(self, *args, **kwargs):
    time.sleep(0.3)
    return segment(self, *args, **kwargs)
fgaseg.FGASeg.segment = slow
sys.exit(main(sys.argv[1:]))
"""


def start(words: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
    """A run in which each photo takes a third of a second at least."""
    return subprocess.Popen([sys.executable, "-c", SLOW, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, **(environment or {})})  # fmt: skip


def wait_for(seen, running: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert running.poll() is None and time.monotonic() < deadline, running.stderr.read()
        time.sleep(0.005)


def records(folder: str) -> list[str]:
    return sorted(path.stem for path in Path(folder).glob(".fgaseg/photos/*.json"))


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(model, whole, capsys):
    running = start(command(model, "out"))
    wait_for(lambda: len(records("out")) >= 2, running)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    done = records("out")
    assert 2 <= len(done) < COUNT and not Path("out/coco.json").exists()
    times = {stem: Path(f"out/masks/{stem}.png").stat().st_mtime_ns for stem in done}
    todo = str(max(int(stem) for stem in done) + 1)  # as if it had been killed while this was written
    for left in (f"out/masks/.{todo}.png.abc.tmp", f"out/.fgaseg/photos/.{todo}.json.xyz_.tmp",
                 "out/.coco.json.k9.tmp"):  # fmt: skip
        Path(left).write_bytes(b"half")
    assert main(command(model, "out")) == 0
    assert f"out: {len(done)} of {COUNT} photos were labelled by an earlier run" in capsys.readouterr().out
    assert {stem: Path(f"out/masks/{stem}.png").stat().st_mtime_ns for stem in done} == times
    assert written("out") == whole and not list(Path("out").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(model, whole, number, status):
    running = start(command(model, "out"))
    wait_for(lambda: len(records("out")) >= 2, running)
    running.send_signal(number)
    _, err = running.communicate(timeout=WAIT)
    assert running.returncode == status
    done = len(records("out"))
    assert 2 <= done < COUNT and f"out: {done} of {COUNT} photos are labelled; the same command goes on" in err
    assert "Traceback" not in err and not list(Path("out").rglob("*.tmp"))
    assert main(command(model, "out")) == 0
    assert written("out") == whole


def test_progress_counts_what_was_done_before(model, monkeypatch):
    assert main(command(model, "out")) == 0
    for stem in "0123":
        Path(f"out/.fgaseg/photos/{stem}.json").unlink()
    seen = []

    def track(items, title, total, *, done=0, unit="", shown=True):
        seen.append((title, total, done, unit, shown))
        yield from items

    monkeypatch.setattr("fgaseg.progress.track", track)
    assert main(command(model, "out")) == 0
    assert seen == [("labelling", COUNT, 4, "photos", True)]


# ---- several processes


def test_every_photo_is_the_share_of_one_process():
    items = list(range(11))
    parts = [share(items, rank, 3) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == items and max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("rank, world", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "none"), ("1", ""), ("", "2")])
def test_a_rank_that_cannot_be_is_refused(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank), monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError, match=f"RANK={rank} WORLD_SIZE="):
        process()


@pytest.mark.slow
def test_two_processes_of_torchrun_write_what_one_does(model, whole):
    Path("in/bad.png").write_bytes(b"none")
    Path("in/a_bad.png").write_bytes(b"none")  # one of each process
    done = subprocess.run([*TORCHRUN, "-m", "fgaseg", *command(model, "out", "--json")],
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(row["image"] for row in found[:-1]) == sorted(f"in/{path.name}" for path in Path("in").iterdir())
    assert found[-1]["labelled"] == COUNT and found[-1]["failed"] == 2
    assert done.stderr.count("2 of 10 photos were not labelled") == 1 and done.returncode == 1
    assert written("out") == whole
    for name in ("bad", "a_bad"):
        Path(f"in/{name}.png").unlink()
    done = subprocess.run(
        [*TORCHRUN, "-m", "fgaseg", *command(model, "out")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.count("coco: out/coco.json") == 1, done.stderr


def test_the_share_of_a_dead_process_is_done_by_the_same_command(model, whole, monkeypatch, capsys):
    monkeypatch.setattr(saving, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(saving, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(command(model, "out")) == 1
    assert "out: 5 of 8 photos are left to other processes, which have done none for" in capsys.readouterr().err
    assert records("out") == ["0", "3", "6"] and not Path("out/coco.json").exists()
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2")  # the other of two, before the first
    assert main(command(model, "out")) == 0
    assert capsys.readouterr().out == "" and not Path("out/coco.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert main(command(model, "out")) == 0
    assert capsys.readouterr().out.count("in/") == 6  # its own two, and four of the other; two were done before
    assert written("out") == whole


def test_what_another_process_could_not_label_is_tried_again(model, whole, monkeypatch, capsys):
    good = Path("in/1.png").read_bytes()
    Path("in/1.png").write_bytes(b"none")
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command(model, "out")) == 0  # torchrun would end the others if one failed
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert main(command(model, "out")) == 1
    assert "1 of 8 photos were not labelled: in/1.png" in capsys.readouterr().err
    Path("in/1.png").write_bytes(good)
    assert main(command(model, "out")) == 0
    assert written("out") == whole


def test_a_slow_process_is_waited_for(model, whole, monkeypatch, capsys):
    other = {"RANK": "1", "WORLD_SIZE": "2"}
    running = start(command(model, "out"), other)
    monkeypatch.setattr(saving, "WAIT_SECONDS", 60.0)
    monkeypatch.setattr(saving, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "2")
    try:
        assert main(command(model, "out", "--json")) == 0
        assert running.wait(WAIT) == 0 and running.stdout.read() == ""
    finally:
        running.kill()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(row["image"] for row in found[:-1]) == [f"in/{number}.png" for number in range(COUNT)]
    assert written("out") == whole


def test_several_processes_need_a_folder_to_share(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["segment", "in", "--model", "no/model", "--classes", NAMES]) == 1
    assert "several processes share photos with --save alone" in capsys.readouterr().err
    assert not Path("in/0_labels.png").exists()
