"""`fgaseg bench` as a user runs it, on the smallest shape; and what it draws."""

import csv
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import model  # of the benchmarks
import pytest
import torch
from paths import ROOT
from PIL import Image
from rich.console import Console
from torch._dynamo.testing import CompileCounter

from fgaseg.cli import main
from fgaseg.cli.bench import show_against, show_model, show_ops
from fgaseg.model import reference
from fgaseg.reproduce import benchmarks, row_milliseconds
from fgaseg.reproduce.benchmarks import plot_model, plot_ops

ROW = {"op": "lcs_conv", "pass": "forward", "device": "a machine", "dtype": "float32", "torch": "2", "ms_p50": "1.5"}


def model_row(form, seconds, stage="all", classes="20"):
    return {"pass": "inference", "classes": classes, "batch": "1", "form": form, "stage": stage, "seconds": seconds,
            "peak_mb": "100", "needed_gb": "", "labels_changed": "0", "device": "a machine", "threads": "2",
            "torch": "2"}  # fmt: skip


def printed(show, rows):
    console = Console(width=180, record=True)
    show(rows, console)
    return console.export_text()


def test_bench_measures_and_writes(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # under it, pytest-benchmark measures nothing
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "cosine_cost_volume", "--shapes", "S8", "--json", "--out", "runs/out"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert rows == list(csv.DictReader((tmp_path / "runs" / "out.csv").open(newline="")))
    assert {row["provider"] for row in rows} >= {"reference", "torch.compile"}
    for row in rows:
        assert not row["disagreement"] and float(row["error"]) < 1e-5 and float(row["ms_p50"]) > 0
        assert row["device"] and row["torch"] and row["commit"] and float(row["copy_percent"]) > 0


@pytest.mark.parametrize("op", ["lcs", "model"])
def test_an_unknown_op_is_refused(tmp_path, capsys, op):
    assert main(["bench", "lcs_conv", op, "--out", str(tmp_path / "out")]) == 1
    assert f"no benchmark '{op}'; there are attention, class_attention, cosine_cost_volume" in capsys.readouterr().err


@pytest.mark.parametrize("op", ["lcs_conv", "model"])
def test_outside_a_clone_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys, op):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "model.py").touch()  # another project's
    monkeypatch.setattr(benchmarks, "FOLDER", tmp_path / "benchmarks")
    assert main(["bench", op, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fgaseg bench: ") and "clone the repository" in error and len(error.splitlines()) == 1


AGAINST_COLUMNS = (
    "part stage classes program precision seconds rounds gflop gflop_per_second share_of_roof error labels_agree "
    "peak_mb reason"
).split()


def against_row(**values):
    return {**dict.fromkeys(AGAINST_COLUMNS, ""), "classes": "20", "precision": "bfloat16", **values}


def test_the_table_of_programs_sets_each_beside_ours_and_names_what_is_missing():
    rows = [
        against_row(part="roof", stage="3x3 convolution", gflop_per_second="1054.8"),
        against_row(part="head", program="fgaseg", seconds="0.2", share_of_roof="0.5", labels_agree="0.9"),
        against_row(part="head", program="openvino", seconds="0.3", error="1e-3", labels_agree="0.8"),
        against_row(part="head", program="onnxruntime", reason="its CPU provider: NotImplemented"),
        against_row(
            part="whole view", stage="decoder", program="fgaseg", seconds="0.1", gflop="28", share_of_roof="0.53"
        ),
    ]
    lines = printed(show_against, rows).splitlines()
    theirs = next(line for line in lines if "openvino" in line)
    assert "1.50" in theirs and "1e-3" in theirs and "0.8" in theirs
    assert any("1054.8 (3x3 convolution)" in line for line in lines)
    assert any("onnxruntime bfloat16, head: its CPU provider" in line for line in lines)
    assert any("decoder" in line and "53" in line for line in lines)


@pytest.mark.parametrize(
    "words, said",
    [
        (["model", "--against", "tvm"], "--against tvm: is not one of onnxruntime, openvino"),
        (["lcs_conv", "--against", "openvino"], "--against: compares the whole model"),
        (["model", "--against", "openvino", "--forms", "plain"], "--forms: is not for --against"),
    ],
)
def test_what_cannot_be_compared_is_refused(words, said, capsys):
    assert main(["bench", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fgaseg bench: {said}") and len(error.splitlines()) == 1


def test_missing_programs_are_named(monkeypatch, capsys):
    found = benchmarks.importlib.util.find_spec
    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda one: None if one == "openvino" else found(one))
    assert main(["bench", "model", "--against", "openvino"]) == 1
    assert "--against needs openvino" in capsys.readouterr().err


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "NEEDED", {"json": "json", "no_such_module": "no-such-package"})
    assert main(["bench", "lcs_conv", "--out", str(tmp_path / "out")]) == 1
    assert "need no-such-package: pip install 'fgaseg[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["compiled", "compiled plain"])
def test_a_compiled_form_of_the_model_is_timed_as_it_was_compiled(form):
    """The clocks of the stages would have it compiled again while its time is taken."""
    counter = CompileCounter()
    run = torch.compile(lambda logits: reference.labels(logits, (8, 8)), backend=counter)
    logits = torch.randn(1, 3, 4, 4)
    bench = SimpleNamespace(variant=lambda form: None, step=lambda *_: lambda: run(logits))
    whole, *stages = model.measure(bench, "inference", form, 20, 1, longest=0)
    assert counter.frame_count == 1
    assert whole["stage"] == "all" and whole["rounds"] == 1 and not stages


def test_a_row_that_disagrees_has_no_time():
    assert row_milliseconds({"ms_p50": "", "device_ms": ""}) is None
    assert row_milliseconds({"ms_p50": "2", "device_ms": "0.5"}) == 0.5
    rest = dict.fromkeys(("speedup", "copy_percent", "matmul_percent", "peak_mb", "error", "torch_error"), "7")
    good = {**ROW, **rest, "shape": "S1", "provider": "cpp", "disagreement": ""}
    text = printed(show_ops, [good, {**good, "ms_p50": "", "provider": "triton", "disagreement": "error 1e-1"}])
    assert "cpp" in text and "1.5" in text and "error 1e-1" in text


def test_the_table_of_the_model_sets_each_form_beside_the_plain_one():
    rows = [model_row("plain", "6"), model_row("fast", "2"), model_row("fast", "1.25", stage="decoder")]
    lines = printed(show_model, rows).splitlines()
    fast = next(line for line in lines if "fast" in line)
    assert "3.00" in fast and "1.00" in fast and "1.25" in fast


@pytest.mark.parametrize("shapes, drawn", [(["T=1", "T=20", "K=3"], True), (["S1", "T=20 shift=6"], False)])
def test_the_plot_shows_the_sweeps(tmp_path, shapes, drawn):
    pytest.importorskip("matplotlib")
    plot_ops([{**ROW, "shape": shape, "provider": "cpp"} for shape in shapes], tmp_path / "out.png")
    assert (tmp_path / "out.png").exists() == drawn
    if drawn:
        assert min(Image.open(tmp_path / "out.png").size) > 300


def test_the_plot_of_the_model(tmp_path):
    pytest.importorskip("matplotlib")
    plot_model([model_row("plain", "6"), model_row("plain", "9", classes="150")], tmp_path / "out.png")
    assert min(Image.open(tmp_path / "out.png").size) > 300


SCRIPTS = """
import accelerations, model, torch
vision = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16, "head_width": 64}
text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
encoder = {"name": "small", "architecture": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}}
bench = model.Bench(encoder)
for passed, forms in model.FORMS.items():
    for form in forms:
        if "compiled" not in form and (passed, form) != ("windows", "plain"):  # a minute, of what inference runs too
            stages = model.stage_seconds(bench.step(passed, form, 10, 1))
            assert len(stages) > (1 if passed == "text" else 6), (passed, form, stages)
with torch.no_grad():
    rows = list(accelerations.Cases(bench, 20).all()) + list(accelerations.Cases(bench, 257).all())
for name, with_the_work, without in [*rows, *accelerations.training(bench)]:
    with torch.set_grad_enabled("training" in name or "losses" in name):
        expected, got = with_the_work(), without()
    assert got is None or accelerations.difference(got, expected) < 1e-4, name
"""


@pytest.mark.slow
def test_the_scripts_of_the_model_run():
    """With a small encoder, the passes and forms, and every row of accelerations.py; they reach into the model."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    command = [sys.executable, "-c", SCRIPTS]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


AGAINST = """
import sys, types, against, torch
from pathlib import Path
from fgaseg import FGASeg, ModelConfig
from tiny import tiny_model
against.random_model = lambda device: tiny_model(class_cap=6)
against.SIZE, against.PHOTO, against.TEXTS = 64, (40, 40), 5
rows = []
with torch.inference_mode():
    run = against.Against(sys.argv[2:], Path(sys.argv[1]), rows.append)
    run.text()
    for classes in (4, 9):
        run.views(classes)
timed = [row for row in rows if "seconds" in row and not row.get("stage")]
forms = {(row["program"], row["precision"]) for row in timed}
assert forms >= {(p, k) for p in ["fgaseg", *sys.argv[2:]] for k in ("float32",)}, forms
for row in timed:
    if row["precision"] == "float32":
        assert row.get("error", 0) < 1e-4 and row.get("labels_agree", 1) > 0.99, row
    if row["part"] in ("head", "image tower", "text tower") and row["precision"] != "float32":
        assert 1e-5 < row["error"] < 0.3, row
    if row["program"] != "reference":
        assert row["seconds"] > 0 and row["gflop"] > 0, row
stages = [row for row in rows if row.get("stage") and row["program"] == "fgaseg"]
assert {row["stage"] for row in stages} >= {"decoder", "Swin blocks", "tail"}
missing = {(row["program"], row["precision"]) for row in rows if row.get("reason")}
everything = {(p, k) for p in ["fgaseg", *sys.argv[2:]] for k in against.PRECISIONS}
assert forms | missing >= everything, everything - forms - missing
"""


@pytest.mark.slow
@pytest.mark.exhaustive  # six minutes
def test_other_programs_compute_the_same_model(tmp_path):
    programs = [name for name in benchmarks.PROGRAMS if benchmarks.importlib.util.find_spec(name)]
    for package in ("onnx", "onnxscript", *(programs or benchmarks.PROGRAMS)):
        pytest.importorskip(package)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", ROOT / "tests")))
    command = [sys.executable, "-c", AGAINST, str(tmp_path), *programs]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
