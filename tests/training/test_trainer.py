"""Training survives everything, and it is the same training for any number of processes, workers and interruptions."""

import contextlib
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from paths import CONFIGS
from PIL import Image
from tiny import ARCHITECTURE
from torch import nn

import fgaseg.model.text_encoder
import fgaseg.training.trainer
from fgaseg import Config, FGASeg, ModelConfig
from fgaseg.config import load_config
from fgaseg.data.scenes import GROUNDS, SEEN, UNSEEN
from fgaseg.errors import CheckpointError, DataError, Interrupted, TrainingError
from fgaseg.files import complete_directory
from fgaseg.training.reporting import JsonLog
from fgaseg.training.sharding import load_optimizer_state
from fgaseg.training.trainer import choose_classes, learning_rate_factor, relabel, train
from fgaseg.vocabulary import Vocabulary
from fgaseg.weights import to_released

TINY_MODEL = {
    "encoder": {"architecture": ARCHITECTURE, "finetune": "attention"}, "image_size": 32, "hidden": 32, "heads": 2,
    "aggregation_layers": 1, "window": 4, "guidance_channels": [16, 16], "guidance_hidden": [8, 8],
    "decoder_channels": [32, 16], "p2t_heads": 2, "loss": {"lambda_align": 0.5},
}  # fmt: skip
NAMES = ["grass", "red star", "blue ring", "sky", "wooden floor", "cat"]
PICTURES = 10
FILES = ["checkpoint", "checkpoint.old", "config.yaml", "log.jsonl", "model", "summary.json"]
STEPS = 8  # with a batch of 4, more than three epochs: batches straddle their ends
LR = 1e-4  # low: Adam blows rounding up to full steps where a gradient is nearly zero


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder data set: noisy pictures of coloured stripes, most pixels of the first four ignored."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    (folder / "names.txt").write_text("\n".join(NAMES))
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (len(NAMES), 3))
    for index in range(PICTURES):
        labels = rng.integers(0, len(NAMES), 4).repeat(11)[None].repeat(40, 0)
        image = np.clip(colours[labels] + rng.normal(0, 20, (*labels.shape, 3)), 0, 255).astype(np.uint8)
        if index < 4:
            labels[: 36 - index] = 255
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Sums split over threads round differently: the same in this process as in those it starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
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


def weights(out):
    folder = complete_directory(out / "checkpoint")
    return safetensors.torch.load_file(folder / "model.safetensors")


def state(out):
    return torch.load(complete_directory(out / "checkpoint") / "state.pt", weights_only=True)


def assert_same_run(out, expected):
    """Weights, optimizer and evaluations equal to the last bit."""
    got, want = weights(out), weights(expected)
    assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)
    got, want = state(out), state(expected)
    assert got["step"] == want["step"] and got["history"] == want["history"] and got["losses"] == want["losses"]
    assert got["optimizer"].keys() == want["optimizer"].keys()
    for name, values in want["optimizer"].items():
        assert all(torch.equal(value, got["optimizer"][name][key]) for key, value in values.items())


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    torch.set_num_threads(1)
    summary = train(configure(data, out), progress=False)
    return out, summary


# --- what a run is


def test_a_run_learns_and_leaves_a_model(uninterrupted, data):
    out, summary = uninterrupted
    model = FGASeg.from_pretrained(out / "model")
    assert summary.model == str(out / "model") and summary.steps == STEPS
    trained = weights(out)
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    plain = json.loads((out / "summary.json").read_text())
    assert plain == json.loads(json.dumps(summary.dump(), allow_nan=False))
    assert [entry["step"] for entry in plain["history"]] == [4, 8]
    assert plain["history"][-1]["val"]["miou_gt"] == plain["scores"]["val"]["miou_gt"] == summary.scores["val"].miou_gt
    assert plain["scores"]["val"]["images"] == 3 and 0 < plain["trained_parameters"] < plain["parameters"]
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_loss_falls(data, tmp_path):
    losses = []
    recipe = ["train.steps=100", "train.lr=5e-4", "train.eval_every=0", "train.save_every=0"]
    config = configure(data, tmp_path, [*recipe, "data.color_jitter=false"])  # the classes are colours
    train(config, progress=False, callback=lambda event: losses.append(event.get("seg")))
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 100 and np.mean(losses[-8:]) < 0.85 * np.mean(losses[:8])


def test_only_what_should_train_does(uninterrupted):
    out, _ = uninterrupted
    torch.manual_seed(0)
    fresh = FGASeg(Config(model=TINY_MODEL).model)
    trained = weights(out)
    moved = {key for key, value in fresh.state_dict().items() if not torch.equal(value, trained[key])}
    frozen = {key for key, parameter in fresh.named_parameters() if not parameter.requires_grad}
    last = f"clip.visual.transformer.resblocks.{ARCHITECTURE['vision_cfg']['layers'] - 1}.attn.q_proj_weight"
    assert last not in frozen and last not in moved  # no gradient ever: the last block runs without attention
    assert not moved & frozen
    unmoved = {key for key, parameter in fresh.named_parameters() if parameter.requires_grad} - moved
    assert unmoved == {last}


def test_first_step_has_the_learning_rates_and_the_clipped_gradient(data, tmp_path):
    config = configure(data, tmp_path, ["train.steps=1", "train.clip_norm=0.01", "train.weight_decay=0"])
    summary = train(config, progress=False)
    torch.manual_seed(0)
    fresh, trained = FGASeg(config.model).state_dict(), weights(tmp_path)
    moved = {key: float((trained[key] - fresh[key]).abs().max()) for key in fresh if "running" not in key}
    clip = max(value for key, value in moved.items() if key.startswith("clip."))
    head = max(value for key, value in moved.items() if key.startswith("head.") and "num_batches" not in key)
    assert head == pytest.approx(LR, rel=0.01) and clip == pytest.approx(LR / 2, rel=0.05)  # Adam's first step is lr
    gradients = [values["exp_avg"] / 0.1 for values in state(tmp_path)["optimizer"].values()]
    assert torch.cat([gradient.flatten() for gradient in gradients]).norm() == pytest.approx(0.01, rel=1e-3)
    assert summary.losses["gradient_norm"] > 0.1  # the norm that is reported is the one before clipping


def test_a_finished_run_started_again_does_nothing_more(uninterrupted, data):
    out, summary = uninterrupted
    before = weights(out)
    again = train(configure(data, out), progress=False)
    assert again.scores == summary.scores and again.history == summary.history and again.losses == summary.losses
    assert all(torch.equal(value, before[key]) for key, value in weights(out).items())


def test_workers_change_nothing(uninterrupted, data, tmp_path):
    train(configure(data, tmp_path, ["data.workers=2"]), progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


def test_another_seed_is_another_run(uninterrupted, data, tmp_path):
    train(configure(data, tmp_path, ["train.seed=1"]), progress=False)
    assert state(tmp_path)["losses"] != state(uninterrupted[0])["losses"]


def test_starting_from_weights(uninterrupted, data, tmp_path):
    out, _ = uninterrupted
    config = configure(data, tmp_path, [f"train.init={out / 'model'}", "train.steps=1", "train.lr=1e-12"])
    train(config, progress=False)
    before, after = weights(out), weights(tmp_path)
    kept = [key for key in before if "running" not in key and "num_batches" not in key]
    assert all(torch.allclose(after[key], before[key], atol=1e-6) for key in kept)
    config = config.override("model.p2t_layers=0", f"train.out={tmp_path / 'other'}")
    with pytest.raises(CheckpointError, match="not in the model") as caught:
        train(config, progress=False)
    assert str(out / "model") in str(caught.value)


# --- interrupted and resumed


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


def test_killed_while_saving_and_in_a_step_ends_in_the_same_weights(uninterrupted, data, tmp_path):
    out = tmp_path / "out"
    config = configure(data, out)
    process = start(config, tmp_path)
    # a temporary checkpoint while an older one exists: the second save is under way
    kill_when(process, lambda: (out / "checkpoint").exists() and any(out.glob(".checkpoint.*.tmp")))
    assert state(out)["step"] in (2, 4)  # 4: it was renamed between our look and the signal
    process = start(config, tmp_path)
    # the line of step 5 or 6: in a step, or on the way to the next
    kill_when(process, lambda: process.stderr.readline().startswith(("step 5/", "step 6/")))
    assert state(out)["step"] < STEPS
    train(config, progress=False)
    assert_same_run(out, uninterrupted[0])
    assert not list(out.glob(".*"))  # nor does what the killed ones left behind stay


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["step", "evaluation", "save"])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(
    uninterrupted, data, tmp_path, monkeypatch, number, when
):
    config = configure(data, tmp_path)
    target = {"step": "segmentation_losses", "evaluation": "evaluate", "save": "save_training"}[when]
    original, calls = getattr(fgaseg.training.trainer, target), []

    def signalling(*args, **kwargs):
        calls.append(1)
        if len(calls) == {"step": 3, "evaluation": 1, "save": 1}[when]:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="Run the same command again") as caught:
        patch.setattr(fgaseg.training.trainer, target, signalling)
        train(config, progress=False)
    assert caught.value.signal == number and number.name in str(caught.value)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    # the step under way is finished; an evaluation under way is not, and is done after the resume
    assert state(tmp_path)["step"] == {"step": 3, "evaluation": 4, "save": 3}[when]
    assert state(tmp_path)["history"] == []
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(data, tmp_path, monkeypatch):
    # a job started in the background of a shell ignores SIGINT: give it Python's usual meaning here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config = configure(data, tmp_path)
    original, calls = fgaseg.training.trainer.segmentation_losses, []

    def impatient(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)  # in this thread, one after the other: os.kill's two may become one
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(fgaseg.training.trainer, "segmentation_losses", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False)
    assert state(tmp_path)["step"] == 2


def test_runs_outside_the_main_thread(data, tmp_path):
    """Where Python allows no signal handlers (a notebook's worker, a web server)."""
    done = []
    config = configure(data, tmp_path, ["train.steps=1"])
    thread = threading.Thread(target=lambda: done.append(train(config, progress=False)))
    thread.start()
    thread.join()
    assert done[0].steps == 1


def test_resuming_another_configuration_is_refused(uninterrupted, data):
    out, _ = uninterrupted
    before = weights(out)
    with pytest.raises(CheckpointError, match=r"train\.lr was 0\.0001, now 0\.1"):
        train(configure(data, out, ["train.lr=0.1"]), progress=False)
    with pytest.raises(CheckpointError, match="do not fit"):
        train(configure(data, out, ["model.hidden=64"]), progress=False)
    assert all(torch.equal(value, before[key]) for key, value in weights(out).items())
    train(configure(data, out, ["train.log_every=3", "data.workers=1", "train.eval_every=0"]), progress=False)


def test_starting_over_keeps_the_old_checkpoint_until_the_first_new_one(data, tmp_path, monkeypatch):
    config = configure(data, tmp_path, ["train.steps=2", "train.save_every=1"])
    train(config, progress=False)
    old = state(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fgaseg.training.trainer, "segmentation_losses", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, resume=False, progress=False)
    assert state(tmp_path)["seconds"] == old["seconds"]
    train(config.override("train.steps=1"), resume=False, progress=False)
    assert state(tmp_path)["step"] == 1


# --- what goes wrong


def nan_at(step, monkeypatch):
    original, calls = fgaseg.training.trainer.segmentation_losses, []

    def losses(*args, **kwargs):
        calls.append(1)
        found = original(*args, **kwargs)
        return {key: value * float("nan") for key, value in found.items()} if len(calls) == step else found

    monkeypatch.setattr(fgaseg.training.trainer, "segmentation_losses", losses)


def test_nan_loss_stops_with_the_step_and_keeps_the_checkpoint(uninterrupted, data, tmp_path, monkeypatch):
    config = configure(data, tmp_path)
    with monkeypatch.context() as patch:
        nan_at(4, patch)
        with pytest.raises(TrainingError) as caught:
            train(config, progress=False)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in ("step 4", "seg nan", "checkpoint of step 2", str(tmp_path), f"train.lr (now {LR})", "train.amp"):
        assert part in message
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


def test_a_real_divergence_is_caught_before_it_is_saved(data, tmp_path):
    config = configure(data, tmp_path, ["train.lr=1e30", "train.save_every=1", "model.encoder.finetune=scratch"])
    with pytest.raises(TrainingError, match="not finite"):
        train(config, progress=False)
    if (tmp_path / "checkpoint").exists():
        assert state(tmp_path)["step"] < STEPS


def test_a_gradient_that_is_not_finite_is_caught_too(data, tmp_path, monkeypatch):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    original = fgaseg.training.trainer.segmentation_losses
    monkeypatch.setattr(
        fgaseg.training.trainer,
        "segmentation_losses",
        lambda *a, **k: {key: Poison.apply(v) for key, v in original(*a, **k).items()},
    )
    with pytest.raises(TrainingError, match=r"step 1: .*gradient_norm (inf|nan).*nothing was saved yet"):
        train(configure(data, tmp_path), progress=False)
    assert not (tmp_path / "checkpoint").exists()


def test_full_disk_in_a_real_process(uninterrupted, data, tmp_path):
    """The kernel refuses to let any file grow: what a full disk looks like from inside."""
    out = tmp_path / "out"
    config = configure(data, out)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callback=lambda event: 1 / 0 if event["step"] == 3 else None)
    kept = {path.name: path.read_bytes() for path in (out / "checkpoint").iterdir()}
    limit = (1 << 20, resource.RLIM_INFINITY)
    process = start(config, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert (
        last.startswith("fgaseg train: ") and str(out / "checkpoint") in last and "intact" in last and "resume" in last
    ), errors
    assert {path.name: path.read_bytes() for path in (out / "checkpoint").iterdir()} == kept
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint",
        "config.yaml",
        "log.jsonl",
    ]  # nothing half-written
    train(config, progress=False)
    assert_same_run(out, uninterrupted[0])


def test_full_disk_at_the_very_end_loses_no_training(uninterrupted, data, tmp_path, monkeypatch):
    config = configure(data, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FGASeg, "save_pretrained", full)
        with pytest.raises(CheckpointError, match=r"No space left.*holds the finished training"):
            train(config, progress=False)
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_under_tensorboard_stops_tensorboard_only(uninterrupted, data, tmp_path, monkeypatch, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    written, write = [], RecordWriter.write

    def filling(self, record):
        written.append(record)
        if len(written) > 5:
            raise OSError(28, "No space left on device")
        write(self, record)

    monkeypatch.setattr(RecordWriter, "write", filling)
    train(configure(data, tmp_path, ["train.tensorboard=true"]))
    assert capfd.readouterr().err.count("TensorBoard stops at step") == 1
    assert_same_run(tmp_path, uninterrupted[0])


@pytest.mark.parametrize("tensorboard", ["true", "false"])
def test_a_folder_that_cannot_be_written_is_named_before_training(data, tmp_path, tensorboard):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"train\.out=.*file/run: cannot be written to: Not a directory"):
        train(configure(data, tmp_path / "file" / "run", [f"train.tensorboard={tensorboard}"]), progress=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_label_is_one_clear_error_from_any_worker(data, tmp_path, workers):
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (data / "labels").iterdir():
        Image.fromarray(np.full((40, 44), 77 if path.stem == "3" else 0, np.uint8)).save(labels / path.name)
    config = configure(data, tmp_path / "out", [f"data.labels={labels}", f"data.workers={workers}"])
    with pytest.raises(DataError, match=r"3\.png: holds label 77") as caught:
        train(config, progress=False)
    assert "Traceback" not in str(caught.value)


# --- two processes

TWO = """
import os, signal, sys, torch
torch.set_num_threads(1)
import fgaseg.training.trainer
from fgaseg.config import load_config
from fgaseg.distributed import rank, use_global_batch_norm, world_size
from fgaseg.errors import Interrupted
from fgaseg.training import train

config = load_config(sys.argv[1])
original, calls = fgaseg.training.trainer.segmentation_losses, []

def losses(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return original(*args, **kwargs)

fgaseg.training.trainer.segmentation_losses = losses
if sys.argv[2] == "first":
    try:
        train(config)
        raise SystemExit("was not interrupted")
    except Interrupted as stop:
        assert "after step 3" in str(stop), stop
        assert world_size() == 2
    raise SystemExit(0)
calls.extend([0] * 3)  # no signal this time
train(config)

torch.manual_seed(0)
norm = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
use_global_batch_norm(norm)
torch.nn.init.normal_(norm[0].weight), torch.nn.init.normal_(norm[0].bias)
everything = torch.randn(5, 3, 4, 6) * 3 + 1
mine = everything[:4] if rank() == 0 else everything[4:]
results = []
for _ in range(2):
    norm.zero_grad()
    x = mine.clone().requires_grad_()
    y = norm(x)
    (y * y.sin()).sum().backward()
    results.append((x.grad, y.detach(), norm[0].weight.grad, norm[0].bias.grad))
torch.save((results, norm.state_dict()), sys.argv[3] + f"/norm{rank()}.pt")
"""


@pytest.fixture(scope="module", params=["false", "true"], ids=["whole", "fsdp"])
def two_processes(request, data, tmp_path_factory):
    """A run of two processes, one of which is told to stop after step 3, resumed by one alone, and then by two."""
    folder = tmp_path_factory.mktemp("two")
    config = configure(data, folder / "out", ["data.workers=1", f"train.fsdp={request.param}"])
    config.save(folder / "run.yaml")
    (folder / "run.py").write_text(TWO)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(folder / "run.py"),
    ]
    for part in ("first", "last"):
        arguments = [str(folder / "run.yaml"), part, str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *arguments], env=environment, text=True, capture_output=True, timeout=300,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        if part == "first":
            with pytest.raises(ZeroDivisionError):
                train(config, progress=False, callback=lambda event: 1 / 0 if event["step"] == 7 else None)
            assert state(folder / "out")["step"] == 6
    assert "resuming" in done.stderr and "at step 6/8" in done.stderr
    return folder


def test_two_processes_then_one_then_two_equal_one(two_processes, uninterrupted):
    one, summary = uninterrupted
    two = json.loads((two_processes / "out" / "summary.json").read_text())
    assert two["processes"] == 2 and summary.processes == 1
    for key, value in summary.losses.items():  # the last step: everything before it has to be right
        assert two["losses"][key] == pytest.approx(value, rel=5e-5), key
    torch.manual_seed(0)
    initial = FGASeg(Config(model=TINY_MODEL).model).state_dict()
    got, want = weights(two_processes / "out"), weights(one)
    assert got.keys() == want.keys()
    moved = {key: (want[key] - initial[key]).double().norm() for key in want}
    apart = {key: (want[key] - got[key]).double().norm() for key in want}
    assert sum(d**2 for d in apart.values()) ** 0.5 <= 1e-4 * sum(d**2 for d in moved.values()) ** 0.5
    # what is added to every class's logit, or to every attention score of a query, has no gradient but rounding
    nothing = ("head.conv.bias", "attention.k.linear.bias", "attention.in_proj_bias")
    for key in want:
        assert key.endswith(nothing) or apart[key] <= 1e-2 * moved[key], (key, apart[key], moved[key])
    assert two["scores"]["val"]["images"] == 3 and two["scores"]["val"]["pixels"] == summary.scores["val"].pixels
    assert two["scores"]["val"]["pixel_accuracy"] == pytest.approx(summary.scores["val"].pixel_accuracy, abs=0.01)


def test_global_batch_norm_is_batch_norm_of_the_whole_batch(two_processes):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).double()
    weight, bias = nn.BatchNorm2d(3).weight, nn.BatchNorm2d(3).bias
    nn.init.normal_(weight), nn.init.normal_(bias)
    everything = (torch.randn(5, 3, 4, 6) * 3 + 1).double()
    norm.load_state_dict(norm.state_dict() | {"weight": weight.data, "bias": bias.data})
    parts = [torch.load(two_processes / f"norm{rank}.pt", weights_only=True) for rank in (0, 1)]
    for step in range(2):
        norm.zero_grad()
        x = everything.clone().requires_grad_()
        y = norm(x)
        (y * y.sin()).sum().backward()
        exact = (x.grad, y, norm.weight.grad, norm.bias.grad)
        (first, second) = (results[step] for results, _ in parts)
        got = (
            torch.cat([first[0], second[0]]),
            torch.cat([first[1], second[1]]),
            first[2] + second[2],
            first[3] + second[3],
        )
        for value, wanted in zip(got, exact, strict=True):
            torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-4)
    for _, buffers in parts:
        assert buffers["0.num_batches_tracked"] == 2
        for key in ("running_mean", "running_var"):
            torch.testing.assert_close(buffers[f"0.{key}"].double(), norm.state_dict()[key], rtol=1e-5, atol=1e-6)


SHARDED = """
import json, sys, torch
torch.set_num_threads(1)
from fgaseg.config import load_config
from fgaseg.distributed import rank
from fgaseg.training.trainer import _Training

config = load_config(sys.argv[1])
run = _Training(config, True, False, None)
run.run()
# one picture for two processes: before the next step they have not done the same
more = ["train.out=" + sys.argv[2] + "/more", "train.steps=3", "train.eval_every=1", "data.val_count=1"]
_Training(config.override(*more), True, False, None).run()
blocks = [p for n, p in run.model.clip.named_parameters() if ".attn." in n or ".mlp." in n]
moments = [run.optimizer.state[p]["exp_avg"] for p in blocks if p in run.optimizer.state]
sizes = [[sum(p.numel() for p in part), sum(p.to_local().numel() for p in part)] for part in (blocks, moments)]
json.dump(sizes, open(sys.argv[2] + f"/{rank()}.json", "w"))
"""


@pytest.mark.parametrize("finetune", ["scratch", "prompt"])
def test_fsdp_shares_the_encoders_out_and_sums_their_gradients(data, tmp_path, finetune):
    """scratch: sharded and whole parameters under one learning rate; prompt: the texts are frozen."""
    recipe = [f"model.encoder.finetune={finetune}", "train.steps=1", "train.clip_norm=0.01", "train.accumulate=2"]
    config = configure(data, tmp_path / "two", [*recipe, "train.fsdp=true", "train.eval_every=1"])
    one = train(configure(data, tmp_path / "one", [*recipe, "train.fsdp=true"]), progress=False)
    config.save(tmp_path / "run.yaml")
    (tmp_path / "run.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(tmp_path / "run.py"), str(tmp_path / "run.yaml"), str(tmp_path)],
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True, timeout=300,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    sizes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for kind, ((all_here, kept_here), (all_there, kept_there)) in enumerate(zip(*sizes, strict=True)):
        assert all_here == all_there == kept_here + kept_there
        assert (all_here > 0) == (kind == 0 or finetune == "scratch")
        assert abs(kept_here - kept_there) <= 0.01 * all_here
    want, got = (state(tmp_path / name)["optimizer"] for name in ("one", "two"))
    assert got.keys() == want.keys()
    assert distance(*([moments[name]["exp_avg"] for name in want] for moments in (got, want))) < 1e-5
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert two["losses"] == pytest.approx(one.losses, rel=1e-5)
    assert two["trained_parameters"] == one.trained_parameters


def test_an_optimizer_state_of_other_parameters_is_refused():
    """As versions before the names of parameters were in it left it: nothing of it would fit, in silence."""
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="optimizer state of 'state', which is no parameter"):
        load_optimizer_state(model, torch.optim.AdamW(model.parameters()), {"state": {}, "param_groups": []})


@pytest.mark.parametrize("names, processes", [(7, 3), (2, 3), (1, 2), (6, 1)])
def test_every_name_is_embedded_once_in_as_many_batches_everywhere(monkeypatch, names, processes):
    """Else processes with sharded weights wait for each other for ever."""
    encoded = []

    def encode(some):
        encoded.append(some)
        return Vocabulary(tuple(some), torch.tensor([[float(name)] for name in some]))

    run = SimpleNamespace(text_trains=True, train_set=SimpleNamespace(names=[str(i) for i in range(10)]), device="cpu",
                          model=SimpleNamespace(encode=encode), _autocast=contextlib.nullcontext)  # fmt: skip
    monkeypatch.setattr(fgaseg.training.trainer, "PROMPTS_PER_BATCH", 2)
    monkeypatch.setattr(fgaseg.training.trainer, "world_size", lambda: processes)
    monkeypatch.setattr(fgaseg.training.trainer, "share_rows", lambda rows, places, total:
                        torch.zeros(total, 1).index_copy(0, places, rows))  # fmt: skip
    chosen, total, batches = torch.arange(10)[-names:], torch.zeros(names, 1), set()
    for rank in range(processes):
        monkeypatch.setattr(fgaseg.training.trainer, "rank", lambda rank=rank: rank)
        encoded.clear()
        total += fgaseg.training.trainer._Training._texts(run, chosen)
        batches.add(tuple(map(len, encoded)))
    assert len(batches) == 1 and max(batches.pop()) <= 2
    assert torch.equal(total[:, 0], chosen.float())


def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fgaseg.training.trainer, "world_size", lambda: 3)
    with pytest.raises(TrainingError, match=r"train\.batch=4 cannot be shared evenly by 3 processes"):
        train(configure(data, tmp_path), progress=False)


# --- the same steps in other pieces


def distance(got, want, zero=None):
    """The norm of the difference of two lists of tensors, as a share of the second's (or of its way from `zero`)."""
    zero = zero or [torch.zeros(())] * len(want)
    apart, moved = (sum(float((a - b).double().square().sum()) for a, b in zip(x, y, strict=True)) ** 0.5
                    for x, y in ((got, want), (want, zero)))  # fmt: skip
    return apart / moved


def test_micro_batches_equal_the_whole_batch(data, tmp_path):
    """But for BatchNorm, which sees one at a time: without the T2P branch there is none."""
    recipe = ["model.t2p=false", "train.steps=1", "train.eval_every=0"]
    for switches in ([], ["model.loss.seg=bce", "model.fast=true", "model.loss.aux_heads=3"]):
        gradients, losses = {}, {}
        for parts in (1, 2, 4):
            out = tmp_path / f"{len(switches)}-{parts}"
            config = configure(data, out, [*recipe, *switches, f"train.accumulate={parts}"])
            losses[parts] = train(config, progress=False).losses
            gradients[parts] = [values["exp_avg"] for values in state(out)["optimizer"].values()]
        for parts in (2, 4):
            assert distance(gradients[parts], gradients[1]) < 1e-5
            assert losses[parts] == pytest.approx(losses[1], rel=1e-5)


def test_micro_batches_and_batch_norm(uninterrupted, data, tmp_path):
    """With the T2P branch the align loss differs by BatchNorm's statistics; the rest is the same to first order."""
    summary = train(configure(data, tmp_path, ["train.accumulate=2"]), progress=False)
    whole = uninterrupted[1].losses
    assert summary.losses["seg"] == pytest.approx(whole["seg"], rel=0.02)
    assert summary.losses["align"] == pytest.approx(whole["align"], rel=0.2)
    assert not torch.equal(weights(tmp_path)["head.t2p.first.0.weight"],
                           weights(uninterrupted[0])["head.t2p.first.0.weight"])  # fmt: skip


def test_micro_batches_must_share_the_batch(data, tmp_path):
    with pytest.raises(TrainingError, match=r"train\.batch=4 .* 1 processes of 3 micro-batches.*multiple of 3"):
        train(configure(data, tmp_path, ["train.accumulate=3"]), progress=False)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("length, batch, start", [(10, 6, 0), (10, 6, 3), (24, 12, 0), (7, 12, 1)])
def test_no_image_is_dropped_or_repeated_in_an_epoch(data, tmp_path, monkeypatch, processes, length, batch, start):
    config = configure(data, tmp_path, ["train.steps=30", f"train.batch={batch}"])
    monkeypatch.setattr(fgaseg.training.trainer, "world_size", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(fgaseg.training.trainer, "rank", lambda number=number: number)
        shares.append(list(fgaseg.training.trainer._Batches(length, config, start)))
    keys = [key for step in zip(*shares, strict=True) for share in step for key in share]
    assert len(keys) == (30 - start) * batch
    first = start * batch
    epochs = {epoch: [index for e, index in keys if e == epoch] for epoch in {epoch for epoch, _ in keys}}
    for epoch, indices in epochs.items():
        assert len(set(indices)) == len(indices)
        inside = epoch * length >= first and (epoch + 1) * length <= 30 * batch
        assert not inside or sorted(indices) == list(range(length))
    assert sum(len(indices) == length for indices in epochs.values()) >= 2
    monkeypatch.setattr(fgaseg.training.trainer, "world_size", lambda: 1)
    monkeypatch.setattr(fgaseg.training.trainer, "rank", lambda: 0)
    assert keys == [key for step in fgaseg.training.trainer._Batches(length, config, start) for key in step]


def test_a_micro_batch_is_the_same_pictures_for_any_number_of_processes(data, tmp_path, monkeypatch):
    config = configure(data, tmp_path, ["train.steps=3", "train.batch=12", "train.accumulate=2"])
    found = []
    for processes in (1, 2, 3):
        monkeypatch.setattr(fgaseg.training.trainer, "world_size", lambda processes=processes: processes)
        shares = []
        for number in range(processes):
            monkeypatch.setattr(fgaseg.training.trainer, "rank", lambda number=number: number)
            shares.append([np.array_split(keys, 2) for keys in fgaseg.training.trainer._Batches(10, config, 0)])
        found.append([[np.concatenate(parts).tolist() for parts in zip(*step, strict=True)]
                      for step in zip(*shares, strict=True)])  # fmt: skip
    assert found[0] == found[1] == found[2]


def initial():
    torch.manual_seed(0)
    return FGASeg(Config(model=TINY_MODEL).model).state_dict()


def test_deterministic_runs_are_equal_to_the_bit(data, tmp_path, monkeypatch):
    seen, original = [], fgaseg.training.trainer.segmentation_losses
    monkeypatch.setattr(
        fgaseg.training.trainer,
        "segmentation_losses",
        lambda *a, **k: (seen.append(torch.are_deterministic_algorithms_enabled()), original(*a, **k))[1],
    )
    for name in ("one", "two"):
        recipe = ["train.deterministic=true", "train.steps=3", "train.eval_every=0"]
        train(configure(data, tmp_path / name, recipe), progress=False)
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert seen == [True] * 6 and not torch.are_deterministic_algorithms_enabled()
    train(configure(data, tmp_path / "plain", recipe[1:]), progress=False)
    ends = (weights(tmp_path / "plain"), weights(tmp_path / "one"), initial())
    plain, one, begin = ([end[key] for key in sorted(end)] for end in ends)
    assert distance(plain, one, begin) < 1e-3


def test_deterministic_leaves_the_mode_that_it_found():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with fgaseg.training.trainer._deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_frozen_texts_are_embedded_once(data, tmp_path, monkeypatch):
    calls, embed = [], fgaseg.model.text_encoder.TextEncoder._embed
    monkeypatch.setattr(
        fgaseg.model.text_encoder.TextEncoder,
        "_embed",
        lambda self, names: (calls.append(names), embed(self, names))[1],
    )
    train(configure(data, tmp_path, ["model.encoder.finetune=none"]), progress=False)
    assert calls == [tuple(NAMES)]  # eight steps with other classes each, two evaluations


# --- warm start


def catseg(path):
    """Made-up weights in the shape that a CAT-Seg checkpoint of the tiny model has."""
    switches = {"preset": "released", "p2t_layers": 0, "t2p": False, "lcs": False, "class_cap": 256, "pad_classes": 256}
    torch.manual_seed(7)
    model = FGASeg(ModelConfig.model_validate({**TINY_MODEL, **switches}))
    theirs, _ = to_released(model.state_dict(), model.config, quick_gelu=False)
    torch.save({"model": {f"{key}": value for key, value in theirs.items()}, "iteration": 80000}, path)
    return model.state_dict()


def test_a_catseg_checkpoint_fills_what_it_has_and_the_rest_starts_fresh(data, tmp_path, capfd):
    given = catseg(tmp_path / "catseg.pth")
    config = configure(data, tmp_path / "out", [f"train.init={tmp_path / 'catseg.pth'}", "train.steps=1",
                                                "train.eval_every=0", "train.lr=1e-12"])  # fmt: skip
    with pytest.warns(UserWarning, match="QuickGELU"):
        train(config)
    said = [line for line in capfd.readouterr().err.splitlines() if "catseg.pth: " in line]
    assert len(said) == 3 and "taken from it" in said[0] and "clip.visual" in said[0]
    assert "start fresh" in said[1] and "left aside" in said[2] and "padding_tokens" in said[2]
    for part in ("head.p2t", "head.t2p", "head.lcs", "head.fuse", "head.embed_local", "head.decoder"):
        assert part in said[1], part
    fresh, got = initial(), weights(tmp_path / "out")
    for key, value in got.items():
        if "running" in key or "num_batches" in key:
            continue
        source = given if key in given else fresh
        assert torch.allclose(value, source[key], atol=1e-6), key
        assert (key in given) != key.startswith(("head.p2t", "head.t2p", "head.lcs", "head.fuse", "head.embed_local",
                                                 "head.decoder.fuse", "head.decoder.local_up")), key  # fmt: skip
    # a key that CAT-Seg does have, and that is missing, is an error; so is a shape that does not fit
    theirs = torch.load(tmp_path / "catseg.pth", weights_only=True)["model"]
    torch.save(
        {key: v for key, v in theirs.items() if not key.endswith("transformer.head.weight")}, tmp_path / "cut.pth"
    )
    for init, words in (("cut.pth", "missing from the file: head.decoder.head"), ("catseg.pth", "another shape")):
        switches = ["model.hidden=64"] if init == "catseg.pth" else []
        changed = config.override(f"train.out={tmp_path / 'no'}", f"train.init={tmp_path / init}", *switches)
        with pytest.raises(CheckpointError, match=words):
            train(changed)


# --- what is written down


def test_the_log_has_every_step_once_with_speed_and_memory(data, tmp_path):
    config = configure(data, tmp_path)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callback=lambda event: 1 / 0 if event["step"] == 7 else None)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "set": "tr')  # a line that a killed process did not finish
    train(config, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    steps = {of: [row["step"] for row in rows if row["set"] == of] for of in ("train", "val")}
    assert steps == {"train": list(range(1, 9)), "val": [4, 8]} and len(rows) == 10
    assert all(row["images_per_second"] > 0 and row["peak_memory_mb"] > 50 for row in rows)
    assert {"loss", "seg", "align", "gradient_norm", "lr"} <= rows[0].keys()
    assert next(row for row in rows if row["set"] == "val")["miou_gt"] >= 0
    train(config, progress=False)  # finished: scored once more, but no line twice
    again = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert again[:9] == rows[:9] and [row["step"] for row in again] == [row["step"] for row in rows]
    train(config.override("train.steps=1"), resume=False, progress=False)  # started over
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()] == [1, 1]


def test_means_are_over_the_steps_that_had_the_value():
    means = fgaseg.training.trainer._Means()
    means.add({"loss": 1.0})  # fp16: the gradient was infinite, the step skipped
    means.add({"loss": 3.0, "gradient_norm": 5.0})
    assert means.values() == {"loss": 2.0, "gradient_norm": 5.0}


def test_a_picture_that_cannot_be_drawn_is_told_and_training_goes_on(uninterrupted, data, tmp_path, monkeypatch, capfd):
    def failing(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(fgaseg.training.trainer, "picture", failing)
    train(configure(data, tmp_path, ["train.tensorboard=true"]))
    assert capfd.readouterr().err.count("no picture 0 of val at step") == 2
    assert_same_run(tmp_path, uninterrupted[0])


def test_a_picture_that_cannot_be_drawn_ends_a_sharded_training(data, tmp_path, monkeypatch):
    """One process has left a block half-way: the next step would wait for ever."""

    def failing(*_):
        raise RuntimeError("out of memory")

    run = fgaseg.training.trainer._Training(configure(data, tmp_path, ["train.tensorboard=true"]), True, False, None)
    monkeypatch.setattr(fgaseg.training.trainer, "picture", failing)
    run.sharded = True
    with pytest.raises(RuntimeError, match="out of memory"):
        run.run()


def test_a_full_disk_under_the_log_leaves_whole_lines(tmp_path, monkeypatch):
    log = JsonLog(tmp_path / "log.jsonl", 0, ())
    log.add({"step": 1, "set": "train", "loss": float("nan")})
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, line: write(fd, line[:5]))
    with pytest.raises(OSError, match="No space"):
        log.add({"step": 2, "set": "train"})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "set": "train", "loss": None}


def test_pictures_of_fixed_validation_items(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(configure(data, tmp_path, ["train.tensorboard=true", "train.steps=4", "train.eval_every=2"]), progress=False)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    assert accumulator.Tags()["images"] == ["val/0", "val/1"]
    pictures = accumulator.Images("val/0")
    assert [event.step for event in pictures] == [2, 4]
    picture = Image.open(io.BytesIO(pictures[0].encoded_image_string))
    assert picture.width > 5 * 240  # photo, labels, prediction, S_g, S_l
    assert {"train/images_per_second", "train/peak_memory_mb"} <= set(accumulator.Tags()["scalars"])


# --- the recipes


PROTOCOL = {  # shared/spec/protocol.md, "Training"
    "lr": 2e-4, "encoder_lr_factor": 0.01, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 0, "steps": 80_000,
    "batch": 8, "clip_norm": 0.01, "amp": "no", "eval_every": 5000, "classes_per_step": None, "accumulate": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, different, side",
    [
        ("vitb16", {}, 384),
        ("vitl14", {}, 336),
        *((f"released_{mode}", {"eval_every": 2000}, 384) for mode in ("fast_cat", "fast_add", "no_fast_add")),
        ("released_no_fast_cat", {"eval_every": 2000, "batch": 2}, 384),
    ],
)
def test_recipes_are_the_protocols(name, different, side):
    config = load_config(CONFIGS / f"{name}.yaml")
    recipe = config.train.dump()
    assert {key: recipe[key] for key in PROTOCOL} == PROTOCOL | different
    data = config.data
    assert (data.crop, data.short_edge or data.crop, data.scale) == (384, 384, (1, 1))
    assert data.flip and data.color_jitter and data.ignore == 255
    assert (config.train.image_size or data.crop) == config.model.image_size == side
    assert config.model.encoder.finetune == "attention" and config.model.encoder.pretrained == "openai"
    assert config.train.out.name == name
    if name.startswith("released"):
        assert config.model.preset == "released"
        assert name == f"released_{'fast' if config.model.fast else 'no_fast'}_{config.model.fusion}"
    else:
        assert config.model == ModelConfig(encoder=config.model.encoder, image_size=side)


def test_norms_and_embeddings_do_not_decay():
    torch.manual_seed(0)
    model = FGASeg(Config(model=TINY_MODEL | {"encoder": {"architecture": ARCHITECTURE, "finetune": "scratch"}}).model)
    groups = model.parameter_groups(2e-4, 0.01, 1e-4)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    norms = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d | nn.Embedding
    plain = [p for m in model.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)]
    assert plain and all(decay[id(p)] == 0 for p in plain)
    assert decay[id(model.clip.positional_embedding)] == decay[id(model.clip.visual.positional_embedding)] == 0
    spared = {id(p) for p in plain}
    rest = [p for n, p in model.named_parameters() if p.requires_grad and "embedding" not in n and id(p) not in spared]
    assert id(model.head.p2t.gamma) in map(id, rest) and all(decay[id(p)] == 1e-4 for p in rest)
    for name, p in model.named_parameters():
        assert not p.requires_grad or rate[id(p)] == pytest.approx(2e-6 if name.startswith("clip.") else 2e-4)


def test_large_crops_are_seen_small_and_judged_large(data, tmp_path, monkeypatch):
    seen, original = [], fgaseg.training.trainer.segmentation_losses
    forward = FGASeg.forward
    monkeypatch.setattr(FGASeg, "forward", lambda self, x, v: (seen.append(x.shape), forward(self, x, v))[1])
    monkeypatch.setattr(
        fgaseg.training.trainer,
        "segmentation_losses",
        lambda out, labels, *a, **k: (seen.append(labels.shape), original(out, labels, *a, **k))[1],
    )
    train(configure(data, tmp_path, ["train.steps=1", "train.eval_every=0", "train.image_size=24"]), progress=False)
    assert seen[:2] == [(4, 3, 24, 24), (4, 32, 32)]


# --- the pieces


def test_vocabulary_of_a_step():
    present = torch.zeros(100, dtype=torch.bool)
    present[[3, 50, 99]] = True
    chosen = choose_classes(present, 10, seed=0, step=5)
    assert len(chosen) == 10 == len(set(chosen.tolist())) and {3, 50, 99} <= set(chosen.tolist())
    assert (chosen.diff() > 0).all()
    assert torch.equal(chosen, choose_classes(present, 10, seed=0, step=5))
    assert not torch.equal(chosen, choose_classes(present, 10, seed=0, step=6))
    assert choose_classes(present, 2, seed=0, step=5).tolist() == [3, 50, 99]  # what is present is never left out
    assert choose_classes(present, None, seed=0, step=5).tolist() == list(range(100))
    assert choose_classes(present, 1000, seed=0, step=5).tolist() == list(range(100))
    drawn = torch.cat([choose_classes(present, 10, seed=0, step=step) for step in range(300)]).bincount(minlength=100)
    assert drawn.min() > 0  # every class takes part in time


def test_labels_follow_the_vocabulary():
    labels = torch.tensor([[3, 50, 99, 255, 7]])
    assert relabel(labels, torch.tensor([3, 20, 50, 99]), 100, 255).tolist() == [[0, 2, 3, 255, 255]]
    assert relabel(torch.tensor([299, 300, 65535]), torch.tensor([299, 300]), 400, 65535).tolist() == [0, 1, 65535]


def test_learning_rate(data, tmp_path):
    config = configure(data, tmp_path, ["train.steps=10", "train.warmup=2"])
    factors = [learning_rate_factor(step, config) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors[10] == pytest.approx(0, abs=1e-12)
    assert factors[6] == pytest.approx(0.5) and factors[2:] == sorted(factors[2:], reverse=True)
    assert learning_rate_factor(9, config.override("train.schedule=constant")) == 1


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_and_resumes(data, tmp_path, amp):
    config = configure(data, tmp_path / "whole", [f"train.amp={amp}", "train.steps=3", "train.eval_every=0"])
    summary = train(config, progress=False)
    assert math.isfinite(summary.losses["loss"])
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(tmp_path / "whole").values())
    config = config.override(f"train.out={tmp_path / 'parts'}")
    with pytest.raises(ZeroDivisionError):
        train(config, progress=False, callback=lambda event: 1 / 0 if event["step"] == 3 else None)
    assert state(tmp_path / "parts")["step"] == 2
    train(config, progress=False)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_scoring_that_fails_loses_no_training(uninterrupted, data, tmp_path, monkeypatch):
    config = configure(data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fgaseg.training.trainer, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, progress=False)
    assert state(tmp_path)["step"] == 4
    train(config, progress=False)
    assert_same_run(tmp_path, uninterrupted[0])


def test_lines_callback_and_tensorboard(data, tmp_path, capfd):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = []
    config = configure(data, tmp_path, ["train.tensorboard=true", "train.steps=4", "train.log_every=2"])
    train(config, callback=events.append)
    captured = capfd.readouterr()
    assert captured.out == ""  # stdout is for programs
    lines = [line for line in captured.err.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["2/4", "4/4", "4/4"]
    assert "loss" in lines[0] and "images/s" in lines[0] and "left" in lines[0] and "mIoU" in lines[2]
    rates = [LR * learning_rate_factor(step - 1, config) for step in (2, 4)]
    assert [event["lr"] for event in events[:2]] == pytest.approx(rates)
    assert [event["step"] for event in events] == [2, 4, 4] and events[2]["val"]["miou_gt"] >= 0
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert {"train/loss", "train/seg", "train/align", "train/lr", "val/miou_gt"} <= set(accumulator.Tags()["scalars"])
    assert [event.step for event in accumulator.Scalars("train/loss")] == [2, 4]


def test_scenes_are_scored_seen_and_unseen(tmp_path):
    config = Config(model=TINY_MODEL, data={"scenes": True, "crop": 32, "val_count": 2},
                    train={"out": tmp_path, "steps": 1, "batch": 2, "tensorboard": False})  # fmt: skip
    summary = train(config, progress=False)
    assert {name: scores.images for name, scores in summary.scores.items()} == {"seen": 2, "unseen": 2}
    assert [row.name for row in summary.scores["unseen"].rows] == UNSEEN
    assert {row.name for row in summary.scores["seen"].rows} == {*SEEN, *GROUNDS}
