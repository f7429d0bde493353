"""Training runs of a tiny model on a tiny data set, and what they leave behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import safetensors.torch
import torch
from tiny import ARCHITECTURE

import fgaseg.training.gradients
from fgaseg import Config, FGASeg
from fgaseg.files import complete_directory
from fgaseg.training.batches import BatchSampler

TINY_MODEL = {
    "encoder": {"architecture": ARCHITECTURE, "finetune": "attention"}, "image_size": 32, "hidden": 32, "heads": 2,
    "aggregation_layers": 1, "window": 4, "guidance_channels": [16, 16], "guidance_hidden": [8, 8],
    "decoder_channels": [32, 16], "p2t_heads": 2, "loss": {"lambda_align": 0.5},
}  # fmt: skip
NAMES = ["grass", "red star", "blue ring", "sky", "wooden floor", "cat"]
PICTURES = 10
STEPS = 8  # with a batch of 4, more than three epochs: batches straddle their ends
LR = 1e-4  # low: Adam blows rounding up to full steps where a gradient is nearly zero


@contextlib.contextmanager
def single_thread():
    """Sums split over threads round differently: the same in this process as in those that it starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def configure(data, out, overrides=()):
    config = Config(
        model=TINY_MODEL,
        data={"images": data / "images", "labels": data / "labels", "names": data / "names.txt", "crop": 32,
              "val_count": 3, "scale": (0.8, 1.5)},
        train={"out": out, "steps": STEPS, "batch": 4, "lr": LR, "encoder_lr_factor": 0.5, "clip_norm": None,
               "save_every": 2, "eval_every": 4, "log_every": 1, "classes_per_step": 5, "tensorboard": False},
    )  # fmt: skip
    return config.override(*overrides)


def initial():
    torch.manual_seed(0)
    return FGASeg(Config(model=TINY_MODEL).model).state_dict()


def weights(out):
    folder = complete_directory(out / "checkpoint")
    return safetensors.torch.load_file(folder / "model.safetensors")


def state(out):
    return torch.load(complete_directory(out / "checkpoint") / "state.pt", weights_only=True)


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").open()]


def lines(out):
    path = out / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def assert_same_run(out, expected):
    """Weights, optimizer and evaluations equal to the last bit."""
    got, want = weights(out), weights(expected)
    assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)
    got, want = state(out), state(expected)
    assert got["step"] == want["step"] and got["history"] == want["history"] and got["losses"] == want["losses"]
    assert got["optimizer"].keys() == want["optimizer"].keys()
    for name, values in want["optimizer"].items():
        assert all(torch.equal(value, got["optimizer"][name][key]) for key, value in values.items())


def distance(got, want, zero=None):
    """The norm of the difference of two lists of tensors, relative to that of the second (or of its change from
    `zero`)."""
    zero = zero or [torch.zeros(())] * len(want)
    apart, moved = (sum(float((a - b).double().square().sum()) for a, b in zip(x, y, strict=True)) ** 0.5
                    for x, y in ((got, want), (want, zero)))  # fmt: skip
    return apart / moved


def keys_by_step(config, length=PICTURES):
    """(epoch, index) of the samples of every step."""
    return list(BatchSampler(length, config.train, 0))


def fail_at(step):
    """A callback that breaks a run off at the log line of a step, with a ZeroDivisionError."""
    return lambda event: 1 / 0 if event["step"] == step else None


def nan_at(step, monkeypatch):
    original, calls = fgaseg.training.gradients.segmentation_losses, []

    def losses(*args, **kwargs):
        calls.append(1)
        found = original(*args, **kwargs)
        return {key: value * float("nan") for key, value in found.items()} if len(calls) == step else found

    monkeypatch.setattr(fgaseg.training.gradients, "segmentation_losses", losses)


def start(config, folder, **options):
    """The training of `config` from the command line."""
    config.save(folder / "run.yaml")
    command = [sys.executable, "-m", "fgaseg", "train", str(folder / "run.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)


def kill_when(process, seen, seconds=120):
    deadline = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


# --- two processes

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run_two_processes(script, *arguments):
    """Run a script in two processes; returns what they wrote to stderr."""
    done = subprocess.run([*TORCHRUN, str(script), *map(str, arguments)], env=os.environ | {"OMP_NUM_THREADS": "1"},
                          text=True, capture_output=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr
