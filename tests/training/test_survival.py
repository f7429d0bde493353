"""Killed processes, dead workers, damaged checkpoints and unreadable pictures cost time, never the training."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
import safetensors
import torch
from test_trainer import STEPS, assert_same_run, configure, data, nan_at, one_thread, state, weights  # noqa: F401

import fgaseg.training.trainer
from fgaseg.errors import CheckpointError, ImageError, Interrupted, TrainingError
from fgaseg.training.trainer import train


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    train(configure(data, out), progress=False)
    return out


# --- two processes under torchrun


def torchrun(config, folder):
    config.save(folder / "run.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fgaseg"]
    with (folder / "stderr").open("ab") as errors:
        return subprocess.Popen([*command, "train", str(folder / "run.yaml")], stdout=errors, stderr=errors,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip


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


def lines(out):
    path = out / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(launcher, seen, seconds=90):
    deadline = time.monotonic() + seconds
    while launcher.poll() is None and not seen():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_two_processes_killed_at_random_moments_end_in_the_same_weights(data, tmp_path):  # noqa: F811
    recipe = ["train.steps=40", "train.save_every=2", "train.eval_every=0", "data.val_count=1", "data.workers=1"]
    for name in ("never", "often"):
        (tmp_path / name).mkdir()
    never = torchrun(configure(data, tmp_path / "never" / "out", recipe), tmp_path / "never")
    assert never.wait(300) == 0, (tmp_path / "never" / "stderr").read_text()

    folder, chance = tmp_path / "often", random.Random()
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
    steps = [row["step"] for row in map(json.loads, (folder / "out" / "log.jsonl").open()) if row["set"] == "train"]
    assert steps == list(range(1, 41))


@pytest.mark.parametrize("fsdp", ["false", "true"], ids=["whole", "fsdp"])
def test_a_dead_rank_stops_the_other_soon_and_with_one_message(data, tmp_path, fsdp):  # noqa: F811
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


def test_the_message_of_a_lost_process_comes_before_torchruns_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(fgaseg.training.trainer.ProcessLostError), fgaseg.training.trainer.Signals() as signals:
            raise fgaseg.training.trainer.ProcessLostError("Connection closed by peer")
        assert signal.getsignal(signal.SIGTERM) == signals._note  # noted only: the process is at its end
    finally:
        signal.signal(signal.SIGTERM, before)


# --- a loader worker


def test_a_dead_worker_is_one_message_and_a_saved_step(whole, data, tmp_path):  # noqa: F811
    config = configure(data, tmp_path, ["data.workers=2", "train.save_every=0"])

    def kill_a_worker(event):
        if event["step"] == 3:
            workers = multiprocessing.active_children()
            assert len(workers) >= 2
            for worker in workers:
                worker.kill()

    with pytest.raises(TrainingError, match=r"a loader worker died before step .*data\.workers \(now 2\)") as caught:
        train(config, progress=False, callback=kill_a_worker)
    assert len(str(caught.value).splitlines()) == 1
    assert 3 <= state(tmp_path)["step"] < STEPS  # what had been fetched was still trained on
    train(config, progress=False)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("error", [RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly"), EOFError(),
                                   ConnectionResetError(104, "Connection reset by peer")], ids=repr)  # fmt: skip
def test_every_way_that_a_dead_worker_shows_is_the_same_message(data, tmp_path, monkeypatch, error):  # noqa: F811
    """The last two: it dies while a batch passes to the trainer."""
    following = fgaseg.training.trainer._Training._next

    def dead():
        raise error
        yield

    monkeypatch.setattr(fgaseg.training.trainer._Training, "_next",
                        lambda self, batches: following(self, dead() if self.step == 3 else batches))  # fmt: skip
    with pytest.raises(TrainingError, match=r"a loader worker died before step 4 \(.*\w\): .*data\.workers"):
        train(configure(data, tmp_path, ["train.eval_every=0"]), progress=False)
    assert state(tmp_path)["step"] == 3


@pytest.mark.parametrize("worker", ["dies later", "dies first"])
def test_a_signal_to_the_trainer_and_its_workers_is_an_orderly_stop(whole, data, tmp_path, monkeypatch, worker):  # noqa: F811
    """As `timeout` and service managers send it."""
    following = fgaseg.training.trainer._Training._next

    def kill(event):
        if event["step"] == 3 and worker == "dies later":
            children = [psutil.Process(worker.pid) for worker in multiprocessing.active_children()]
            assert children
            os.kill(os.getpid(), signal.SIGTERM)
            for child in children:
                child.kill()
            while any(child.status() != psutil.STATUS_ZOMBIE for child in children):
                time.sleep(0.002)

    def dead():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")
        yield

    def first(self, batches):
        return following(self, dead() if self.step == 3 and worker == "dies first" else batches)

    config = configure(data, tmp_path, ["data.workers=1", "train.save_every=0", "train.eval_every=0"])
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step [34] of"):
        patch.setattr(fgaseg.training.trainer._Training, "_next", first)
        train(config, progress=False, callback=kill)
    train(config.override("train.eval_every=4"), progress=False)
    assert weights(tmp_path).keys() == weights(whole).keys()
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(tmp_path).items())


# --- a damaged checkpoint


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(whole, data, tmp_path, capfd):  # noqa: F811
    config = configure(data, tmp_path)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callback=lambda event: 1 / 0 if event["step"] == 5 else None)
    path = tmp_path / "checkpoint" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4  # in the last weight: nothing else would notice
    path.write_bytes(content)
    train(config)
    said = capfd.readouterr().err
    assert "model.safetensors: damaged" in said and "Resuming from the previous checkpoint" in said
    assert "at step 2/8" in said
    assert_same_run(tmp_path, whole)
    assert [row["step"] for row in log(tmp_path) if row["set"] == "val"] == [4, 8]


def test_nothing_whole_left_is_an_error(data, tmp_path):  # noqa: F811
    config = configure(data, tmp_path, ["train.steps=2", "train.eval_every=0"])
    train(config, progress=False)
    (tmp_path / "checkpoint" / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state\.pt: damaged.*no previous checkpoint.*--restart"):
        train(config, progress=False)


def test_processes_that_do_not_share_a_disk_are_told(data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(fgaseg.training.trainer, "gather_objects", lambda step: [step, 4])  # what another machine found
    with pytest.raises(CheckpointError, match=r"checkpoints of steps 0, 4; .*train\.out .*all machines share"):
        train(configure(data, tmp_path), progress=False)


def test_a_process_that_dies_before_the_first_step_is_one_message(data, tmp_path, monkeypatch):  # noqa: F811
    def gone(_):
        raise fgaseg.training.trainer.ProcessLostError("Connection closed by peer")

    monkeypatch.setattr(fgaseg.training.trainer, "gather_objects", gone)
    with pytest.raises(TrainingError, match=r"another training process is gone \(Connection closed by peer\)"):
        train(configure(data, tmp_path), progress=False)


# --- pictures that cannot be read


@pytest.fixture
def spoilt(data, tmp_path):  # noqa: F811
    """The data set with two photos cut short."""
    folder = tmp_path / "spoilt"
    (folder / "images").mkdir(parents=True)
    for path in (data / "images").iterdir():
        content = path.read_bytes()
        (folder / "images" / path.name).write_bytes(content[: len(content) // 2] if path.stem in "37" else content)
    return [f"data.images={folder / 'images'}", f"data.val_images={data / 'images'}"]


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").open()]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_is_named_and_the_steps_before_it_are_saved(data, tmp_path, spoilt, workers):  # noqa: F811
    config = configure(data, tmp_path / "out", [*spoilt, f"data.workers={workers}", "train.save_every=0"])
    with pytest.raises(ImageError, match=r"[37]\.png") as caught:
        train(config, progress=False)
    assert len(str(caught.value).splitlines()) == 1
    first = min(step for step, keys in enumerate(batches(config, 10)) if {3, 7} & {index for _, index in keys})
    assert state(tmp_path / "out")["step"] == first if first else not (tmp_path / "out" / "checkpoint").exists()


def batches(config, length):
    return list(fgaseg.training.trainer._Batches(length, config, 0))


def test_as_many_as_allowed_are_skipped_named_and_counted(data, tmp_path, spoilt, capfd):  # noqa: F811
    outs = [tmp_path / "0", tmp_path / "2"]
    for workers, out in zip((0, 2), outs, strict=True):
        config = configure(data, out, [*spoilt, f"data.workers={workers}", "train.skip_unreadable=2"])
        summary = train(config)
        said = capfd.readouterr().err
        assert said.count("skipped 1 (train.skip_unreadable=2)") == said.count("skipped 2 (") == 1
        assert "3.png" in said and "7.png" in said
        assert len(summary.skipped) == 2 and summary.dump()["skipped"] == summary.skipped
    assert_same_run(outs[1], outs[0])
    config = configure(data, tmp_path / "1", [*spoilt, "train.skip_unreadable=1"])
    with pytest.raises(TrainingError, match=r"2 pictures cannot be read and train.skip_unreadable allows 1: .*png"):
        train(config, progress=False)
    # more allowed, it goes on where it stopped and ends where the others did
    train(config.override("train.skip_unreadable=2"), progress=False)
    assert_same_run(tmp_path / "1", outs[0])


def test_the_next_readable_picture_takes_the_place(data):  # noqa: F811
    class Source:
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 5

        def __getitem__(self, index):
            if index in (1, 2, 4):
                raise ImageError(f"{index} is torn")
            return {"index": index}

    stream = fgaseg.training.trainer._Stream(Source(), 2)
    assert stream[0, 0] == {"index": 0, "skipped": {}}
    assert stream[0, 1] == {"index": 3, "skipped": {1: "1 is torn", 2: "2 is torn"}}
    assert stream[0, 4] == {"index": 0, "skipped": {4: "4 is torn"}}  # around the end
    assert isinstance(fgaseg.training.trainer._Stream(Source(), 1)[0, 1], ImageError)
    assert isinstance(fgaseg.training.trainer._Stream(Source())[0, 4], ImageError)


# --- a loss that is no number


def test_the_batch_of_a_nan_is_named_and_kept(data, tmp_path, monkeypatch):  # noqa: F811
    config = configure(data, tmp_path)
    nan_at(4, monkeypatch)
    with pytest.raises(TrainingError) as caught:
        train(config, progress=False)
    stems = [str(index) for _, index in batches(config, 10)[3]]
    assert f"the batch was {', '.join(stems)}" in str(caught.value)
    with safetensors.safe_open(tmp_path / "nan_batch.safetensors", "pt") as file:
        assert json.loads(file.metadata()["stems"]) == stems and file.metadata()["step"] == "4"
        train_set = fgaseg.data.data_sets(config)[0]
        for place, (epoch, index) in enumerate(batches(config, 10)[3]):
            train_set.set_epoch(epoch)
            assert torch.equal(file.get_tensor("pixels")[place], train_set[index]["pixels"])
            assert torch.equal(file.get_tensor("labels")[place], train_set[index]["labels"])
