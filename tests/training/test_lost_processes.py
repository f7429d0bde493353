"""Of two processes one dies, or both."""

import os
import random
import subprocess
import time

import psutil
import pytest
from runs import TORCHRUN, assert_same_run, configure, lines, log

pytestmark = pytest.mark.slow


def torchrun(config, folder):
    config.save(folder / "run.yaml")
    command = [*TORCHRUN, "-m", "fgaseg", "train", str(folder / "run.yaml")]
    with (folder / "stderr").open("ab") as errors:
        return subprocess.Popen(command, stdout=errors, stderr=errors, env=os.environ | {"OMP_NUM_THREADS": "1"})


def ranks(launcher):
    """The training processes, without their loader workers."""
    return [child for child in psutil.Process(launcher.pid).children() if "fgaseg" in " ".join(child.cmdline())]


def kill_all(launcher):
    processes = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    launcher.wait(30)  # first: a launcher that psutil has waited for seems to have ended with 0
    psutil.wait_procs(processes, timeout=30)


def wait_for(launcher, seen, seconds=90):
    deadline = time.monotonic() + seconds
    while launcher.poll() is None and not seen():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.exhaustive  # two and a half minutes
def test_two_processes_killed_at_random_moments_end_in_the_same_weights(data, tmp_path):
    recipe = ["train.steps=40", "train.save_every=2", "train.eval_every=0", "data.val_count=1", "data.workers=1"]
    for name in ("never", "often"):
        (tmp_path / name).mkdir()
    never = torchrun(configure(data, tmp_path / "never" / "out", recipe), tmp_path / "never")
    assert never.wait(300) == 0, (tmp_path / "never" / "stderr").read_text()

    folder, chance = tmp_path / "often", random.Random(0)
    config, kills = configure(data, folder / "out", recipe), []
    for what in ("one rank", "everything", chance.choice(("one rank", "everything"))):
        launcher = torchrun(config, folder)
        began = lines(folder / "out")
        further = chance.randrange(1, 12)
        wait_for(launcher, lambda began=began, further=further: lines(folder / "out") >= began + further)
        time.sleep(chance.uniform(0, 0.1))  # into a step, a save, or between
        if launcher.poll() is not None:
            break
        kills.append((what, lines(folder / "out")))
        if what == "everything":
            kill_all(launcher)
        else:
            chance.choice(ranks(launcher)).kill()
            assert launcher.wait(60) != 0  # the other rank stops by itself
    if launcher.poll() != 0:
        assert torchrun(config, folder).wait(300) == 0, (kills, (folder / "stderr").read_text())
    print("killed (what, after how many steps):", kills)
    assert kills, "the run was over before it could be killed"
    assert_same_run(folder / "out", tmp_path / "never" / "out")
    steps = [row["step"] for row in log(folder / "out") if row["set"] == "train"]
    assert steps == list(range(1, 41))


@pytest.mark.parametrize(
    "fsdp", [pytest.param("false", id="whole"), pytest.param("true", id="fsdp", marks=pytest.mark.exhaustive)]
)
def test_a_dead_rank_stops_the_other_soon_and_with_one_message(data, tmp_path, fsdp):
    config = configure(data, tmp_path / "out", ["train.steps=4000", "train.eval_every=0", f"train.fsdp={fsdp}"])
    launcher = torchrun(config, tmp_path)
    wait_for(launcher, lambda: lines(tmp_path / "out") >= 3)
    victim = next(process for process in ranks(launcher) if process.environ()["RANK"] == "1")
    victim.kill()
    killed = time.monotonic()
    assert launcher.wait(60) != 0
    assert time.monotonic() - killed < 25  # torchrun waits 30 s for those that do not stop by themselves
    said = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("fgaseg train: ")]
    assert len(said) == 1 and "another training process is gone" in said[0] and "to resume" in said[0]
    assert "process 0 stops after step" in said[0] and "is intact" in said[0]
