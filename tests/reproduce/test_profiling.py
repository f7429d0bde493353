"""`fgaseg profile`: what every stage takes, and the operations that it needs, against counts by hand."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tiny import NAMES, pixels, tiny_model

from fgaseg.cli import main
from fgaseg.inference import prediction
from fgaseg.model import reference as plain
from fgaseg.reproduce import profile_view
from fgaseg.reproduce.profiling import (
    STAGES,
    by_stage,
    machine,
    product_rate,
    stage_gflop,
    stage_seconds,
    without_values,
)
from fgaseg.reproduce.profiling import stages as module
from fgaseg.reproduce.profiling.stages import text_gflop

OURS = {"image tower", "P2Tformer", "similarity", "guidance", "embedding and fusion", "Swin blocks", "class attention",
        "decoder", "tail", "rest"}  # fmt: skip
# sizes of the tiny model: channels C, hidden D, grid pixels N, prompts T, layers L, decoder and guidance channels
C, D, N, T, LAYERS, DECODER, GUIDES, SHARED = 32, 32, 64, len(NAMES), 2, (32, 16), (16, 16), (16, 8)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_the_stages_of_the_model_exist():
    assert not [(owner, name) for owner, name, _ in STAGES if not callable(getattr(owner, name, None))]


@torch.inference_mode()
def test_the_model_and_its_reference_have_the_same_stages(model):
    vocabulary, photo = model.encode(NAMES), pixels()

    def reference():
        return plain.labels(plain.forward(model, photo, vocabulary.embeddings), (40, 40))

    assert set(stage_seconds(lambda: prediction.label(model, photo, vocabulary, (40, 40)))) == OURS
    assert set(stage_seconds(reference)) == OURS


def test_time_in_an_inner_stage_is_that_of_the_inner_stage(monkeypatch):
    class Owner:
        def outer(self):
            self.inner()
            return "done"

        def inner(self):
            pass

    monkeypatch.setattr(module, "STAGES", ((Owner, "outer", "outside"), (Owner, "inner", "inside")))
    used = iter([100.0, 1.0, 2.0, 4.0, 8.0, 16.0])  # before; rest, outside, inside, outside again, rest again
    with by_stage(lambda: next(used)) as totals:
        assert Owner().outer() == "done"
    assert totals == {"rest": 17.0, "outside": 10.0, "inside": 4.0}


def test_functions_are_put_back_after_an_error():
    before = [getattr(owner, name) for owner, name, _ in STAGES]
    with pytest.raises(ZeroDivisionError), by_stage(time.perf_counter):
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name, _ in STAGES] == before


def counted(model, prompts=T):
    return stage_gflop(without_values(model), (1, 3, 64, 64), prompts)


def by_hand(prompts=T):
    """Multiplications of every stage of the tiny model for one view."""
    up1, up2 = D - SHARED[0], DECODER[0] - SHARED[1]  # channels of the transposed convolutions
    tokens, blocks = N + 1, 2
    local = N * D * DECODER[0] * 4 + 4 * N * 2 * 9 * DECODER[0] ** 2
    stage1 = N * D * up1 * 4 + 4 * N * 9 * (up1 * DECODER[0] + DECODER[0] ** 2)
    stage2 = 4 * N * DECODER[0] * up2 * 4 + 16 * N * 9 * (up2 * DECODER[1] + DECODER[1] ** 2)
    fusions = N * 2 * D**2 + 4 * N * 2 * DECODER[0] ** 2
    head = model_heads()
    return {
        "image tower": N * 3 * 64 * 32 + blocks * (12 * 32**2 * tokens + 2 * tokens**2 * 32)
        + 10 * 32**2 * tokens + N * 32 * C,
        "embedding and fusion": prompts * N * (2 * 49 * D + 2 * D**2),
        "Swin blocks": LAYERS * 2 * prompts * N * (12 * D**2 + 2 * 16 * D),
        "class attention": LAYERS * prompts * (N * (11 * D**2 + 2 * D * (D // head) + D) + 2 * D**2),
        "decoder": prompts * (fusions + stage1 + local + stage2 + 16 * N * 9 * DECODER[1]),
        "guidance": N * 9 * C * D + N * 32 * (4 * GUIDES[0] + 16 * GUIDES[1])
        + 4 * N * 9 * GUIDES[0] * SHARED[0] + 16 * N * 9 * GUIDES[1] * SHARED[1] + LAYERS * 4 * N * D**2
        + 4 * N * 9 * SHARED[0] * DECODER[0] + 16 * N * 9 * SHARED[1] * DECODER[1],
    }  # fmt: skip


def model_heads():
    return tiny_model().config.heads


def test_operations_are_those_counted_by_hand(model):
    gflop = counted(model)
    for stage, products in by_hand().items():
        assert gflop[stage] == pytest.approx(2e-9 * products), stage


def test_pad_tokens_and_maps_for_the_losses_are_not_counted(model):
    ordinary, padded = counted(model), counted(tiny_model(pad_classes=64))
    assert padded["class attention"] == ordinary["class attention"]
    assert sum(padded.values()) < sum(ordinary.values()) * 1.001
    without = counted(tiny_model(t2p=False))
    assert without == ordinary


def test_operations_follow_the_classes_under_the_cap():
    capped = counted(tiny_model(class_cap=3), 40)
    for stage in ("embedding and fusion", "Swin blocks", "decoder"):
        assert capped[stage] == pytest.approx(2e-9 * by_hand(3)[stage]), stage


def test_operations_of_the_text_tower(model):
    """Two blocks of 32 channels over all tokens up to the last end of text, and the projection of one."""
    prompt = model.text_encoder.templates[0].format("cat")
    tokens = int(model.encoder.text_tower.tokenizer([prompt]).argmax()) + 1
    products = 2 * (12 * 32**2 * tokens + 2 * tokens**2 * 32) + 32 * C
    assert text_gflop(without_values(model), ["cat"]) == pytest.approx(2e-9 * products)


def test_operations_are_the_same_in_bfloat16(model):
    assert counted(tiny_model().to(torch.bfloat16)) == counted(model)


def test_counting_changes_nothing(model):
    def state():
        return [(p.device, p.requires_grad, p.data_ptr()) for p in model.parameters()], model.training

    before = state()
    counted(model)
    assert state() == before and any(trained for _, trained, _ in before[0])


def test_a_pruned_model_is_timed_and_not_counted():
    found = profile_view(tiny_model(fast=True, top_k=1, loss={"aux_heads": 1}), NAMES, rounds=1, photo=(32, 32))
    assert found.whole.seconds > 0 and found.whole.gflop != found.whole.gflop
    assert found.dump()["whole"]["gflop"] is None


MEMORY = """
import torch
from fgaseg.reproduce.profiling import peak, stage_peaks, stages

class Owner:
    def small(self):
        return torch.ones(1 << 20)

    def large(self):
        return torch.ones(1 << 26)

stages.STAGES = ((Owner, "small", "small"), (Owner, "large", "large"))
runs = ("large", "large", "small")
peaks = stage_peaks(lambda: [None for name in runs if getattr(Owner(), name)() is None], "cpu")
assert 1.5 * 2**28 > peaks["large"] > 0.95 * 2**28 and peaks["small"] < 0.5 * 2**28, peaks
assert peak(lambda: torch.ones(1 << 26), "cpu") > 0.95 * 2**28
"""


def test_memory_of_a_stage_is_what_it_needs():
    """In a process of its own: what other tests' threads allocate would count."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seconds, runs", [(0.01, 15), (1.5, 2), (30.0, 1)])
def test_slow_products_are_repeated_less(monkeypatch, seconds, runs):
    """In bfloat16, a product of the roof takes ten seconds on processors without it."""
    clock, done = [0.0], []

    def work():
        clock[0] += seconds * (1 if done else 1.1)
        done.append(1)

    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert machine._best_seconds(work, "cpu") == pytest.approx(seconds if runs > 1 else 1.1 * seconds)
    assert len(done) == runs


def test_the_roof_is_at_least_one_product(model):
    rate = product_rate("float32", "cpu")
    square = torch.randn(512, 512)
    begin = time.perf_counter()
    square @ square
    assert rate.per_second > 0.2 * 2 * 512**3 / (time.perf_counter() - begin)
    assert rate.product in ("matrix product", "3x3 convolution", "linear")


def test_a_profile_adds_up(model):
    found = profile_view(model, NAMES, rounds=2, ops=True, photo=(32, 32))
    assert {stage.stage for stage in found.stages} == OURS
    assert sum(stage.seconds for stage in found.stages) == pytest.approx(found.whole.seconds)
    assert sum(stage.gflop for stage in found.stages) == pytest.approx(found.whole.gflop)
    roof = found.machine["roof_gflop_per_second"]
    assert found.whole.share == pytest.approx(found.whole.gflop / found.whole.seconds / roof, rel=1e-2)
    assert found.ops == sorted(found.ops, key=lambda op: -op.seconds) and found.ops[0].calls > 0
    assert found.text.gflop > 0 and found.text.seconds > 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return str(folder)


def test_the_command_prints_a_table(saved, capsys):
    assert main(["profile", "--model", saved, "--classes", "3", "--rounds", "1", "--ops"]) == 0
    out = capsys.readouterr().out
    for word in ("3 classes", "roof:", "decoder", "% of roof", "whole view", "text tower", "aten::"):
        assert word in out


def test_the_command_prints_json(saved, capsys, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    words = ["--model", saved, "--names", str(tmp_path / "names.txt"), "--rounds", "1", "--json", "image_size=32"]
    assert main(["profile", *words, "--precision", "bfloat16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["precision"] == "bfloat16"
    assert found["classes"] == 2 and found["pixels"] == [1, 3, 32, 32] and found["ops"] == []
    assert {stage["stage"] for stage in found["stages"]} == OURS


@pytest.mark.parametrize(
    "words, said",
    [
        (["--classes", "0"], "--classes 0: give at least one class"),
        (["--rounds", "0"], "--rounds 0: give at least 1"),
        (["image_size=64"], "image_size=64: overrides the configuration of a model: give one as --model"),
    ],
)
def test_what_makes_no_sense_is_one_line(words, said, capsys):
    assert main(["profile", *words]) == 1
    assert capsys.readouterr().err == f"fgaseg profile: {said}\n"
