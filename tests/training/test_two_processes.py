"""Two processes are the same training as one, with sharded encoders too."""

import json

import pytest
import torch
from runs import TINY_MODEL, configure, distance, fail_at, run_two_processes, state, weights
from torch import nn

from fgaseg import Config, FGASeg
from fgaseg.training import train

pytestmark = pytest.mark.slow


TWO = """
import os, signal, sys, torch
torch.set_num_threads(1)
import logging

import fgaseg.training.gradients
from fgaseg.config import load_config
from fgaseg.distributed import rank, use_global_batch_norm, world_size
from fgaseg.errors import Interrupted
from fgaseg.training import train

logging.basicConfig(level=logging.INFO, format="%(message)s")
config = load_config(sys.argv[1])
original, calls = fgaseg.training.gradients.segmentation_losses, []

def losses(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return original(*args, **kwargs)

fgaseg.training.gradients.segmentation_losses = losses
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


@pytest.fixture(
    scope="module",
    params=[pytest.param("false", id="whole"), pytest.param("true", id="fsdp", marks=pytest.mark.exhaustive)],
)
def two_processes(request, data, tmp_path_factory):
    """A run of two processes, one of which is signalled in step 3; resumed by a single process, and then by two."""
    folder = tmp_path_factory.mktemp("two")
    config = configure(data, folder / "out", ["data.workers=1", f"train.fsdp={request.param}"])
    config.save(folder / "run.yaml")
    (folder / "run.py").write_text(TWO)
    for part in ("first", "last"):
        said = run_two_processes(folder / "run.py", folder / "run.yaml", part, folder)
        if part == "first":
            with pytest.raises(ZeroDivisionError):
                train(config, progress=False, callbacks=[fail_at(7)])
            assert state(folder / "out")["step"] == 6
    assert "resuming" in said and "at step 6/8" in said
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
from fgaseg.training import Trainer

config = load_config(sys.argv[1])
run = Trainer(config, progress=False)
run.train()
# one picture for two processes: before the next step they have not done the same
more = ["train.out=" + sys.argv[2] + "/more", "train.steps=3", "train.eval_every=1", "data.val_count=1"]
Trainer(config.override(*more), progress=False).train()
blocks = [p for n, p in run.model.clip.named_parameters() if ".attn." in n or ".mlp." in n]
moments = [run.optimizer.adamw.state[p]["exp_avg"] for p in blocks if p in run.optimizer.adamw.state]
sizes = [[sum(p.numel() for p in part), sum(p.to_local().numel() for p in part)] for part in (blocks, moments)]
json.dump(sizes, open(sys.argv[2] + f"/{rank()}.json", "w"))
del run, blocks, moments  # they would keep the process group alive until the interpreter finalises
"""


@pytest.mark.parametrize("finetune", ["scratch", pytest.param("prompt", marks=pytest.mark.exhaustive)])
def test_fsdp_shards_the_encoders_and_sums_their_gradients(data, tmp_path, finetune):
    """scratch: sharded and whole parameters under one learning rate; prompt: the texts are frozen."""
    recipe = [f"model.encoder.finetune={finetune}", "train.steps=1", "train.clip_norm=0.01", "train.accumulate=2"]
    config = configure(data, tmp_path / "two", [*recipe, "train.fsdp=true", "train.eval_every=1"])
    one = train(configure(data, tmp_path / "one", [*recipe, "train.fsdp=true"]), progress=False)
    config.save(tmp_path / "run.yaml")
    (tmp_path / "run.py").write_text(SHARDED)
    run_two_processes(tmp_path / "run.py", tmp_path / "run.yaml", tmp_path)
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


KEEPING = """
import sys, torch
torch.set_num_threads(1)
from fgaseg.config import load_config
from fgaseg.training import train

train(load_config(sys.argv[1]), progress=False)
"""


@pytest.mark.parametrize("fsdp", [pytest.param("false", marks=pytest.mark.exhaustive), "true"])
def test_the_best_model_and_weighted_losses_are_those_of_one_process(data, tmp_path, fsdp):
    recipe = ["train.steps=2", "train.eval_every=1", "train.patience=2", "train.accumulate=2", f"train.fsdp={fsdp}",
              "train.schedule=constant", "model.loss.lambda_align=0",
              "model.loss.class_weights={grass: 9, cat: 0}"]  # fmt: skip
    one = train(configure(data, tmp_path / "one", recipe), progress=False)
    configure(data, tmp_path / "two", recipe).save(tmp_path / "run.yaml")
    (tmp_path / "run.py").write_text(KEEPING)
    run_two_processes(tmp_path / "run.py", tmp_path / "run.yaml")
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert two["losses"] == pytest.approx(one.losses, rel=1e-4)
    unweighted = train(configure(data, tmp_path / "plain", [*recipe, "model.loss.class_weights=null"]), progress=False)
    assert unweighted.losses["gradient_norm"] != pytest.approx(one.losses["gradient_norm"], rel=1e-2)
    scores = {entry["step"]: entry["val"]["miou_gt"] for entry in two["history"]}
    assert two["best"]["score"] == max(scores.values()) == scores[two["best"]["step"]]
    step, folder = two["best"]["step"], tmp_path / "until"
    configure(data, folder, [*recipe, f"train.steps={step}"]).save(tmp_path / "run.yaml")
    run_two_processes(tmp_path / "run.py", tmp_path / "run.yaml")
    kept, last = (FGASeg.from_pretrained(one / "model").state_dict() for one in (tmp_path / "two" / "best", folder))
    assert all(torch.equal(value, last[key]) for key, value in kept.items())
