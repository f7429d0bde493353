"""The released preset against recordings of the released code (`fgaseg parity`), and the comparison itself."""

import json

import numpy as np
import pytest
import torch
from paths import SHARED
from tiny import NAMES, pixels, tiny_model

from fgaseg.cli import main
from fgaseg.errors import CheckpointError
from fgaseg.model import ClassSelector
from fgaseg.reproduce.parity import CaseResult, StageResult, run_parity, verdict
from fgaseg.reproduce.parity.cases import compare_gradient_norms, run_case
from fgaseg.reproduce.parity.recordings import RecordedCase, Recording, Recordings
from fgaseg.reproduce.parity.selection import RecordedSelector
from fgaseg.reproduce.parity.stages import compare, compare_labels
from fgaseg.reproduce.parity.tape import Tape, taped

PARITY = SHARED / "parity"
recorded = pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recordings of the released code at {PARITY}")

CASES = [
    "common_image_side_ruleB",
    "infer_no_fast-cat-voc20-ruleB",
    "sliding_no_fast-cat-voc20-ruleB",
    "infer_no_fast-add-voc20-ruleB",
    "infer_no_fast-cat-ade847",
    "infer_fast-cat-voc20-ruleB-top1",
]  # ViT-L, training and fast with 16 classes a pixel: `fgaseg parity`


@pytest.fixture(scope="module")
def recordings():
    return Recordings(PARITY)


@recorded
@pytest.mark.parametrize("name", CASES)
def test_recorded_case(recordings, name):
    case = run_case(recordings, PARITY / f"{name}.npz")
    assert case.passed, verdict(case)
    # the README of the recordings: the released code differs from itself in float64 by up to 1e-5
    assert case.worst < 1e-5 and len(case.errors) == len(case.stages) >= 5


@recorded
def test_a_deviation_fails_the_case_and_the_command(monkeypatch, capsys):
    usual = Recordings.model

    def deviating(self, case):
        model = usual(self, case)
        model.head.p2t.value_positions = True
        return model

    monkeypatch.setattr(Recordings, "model", deviating)
    assert main(["parity", "fast-cat-voc20-ruleB-top1", "--root", str(PARITY), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    errors = {stage["name"]: stage["error"] for stage in result["cases"][0]["stages"]}
    assert not result["passed"] and errors["text_emb"] < 1e-5 < 1e-3 < errors["p2t_out"]


def test_without_recordings_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["parity", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "no recordings" in error and "fill.py" in error and "--root" in error and len(error.splitlines()) == 1
    (tmp_path / "fill.py").touch()
    with pytest.raises(CheckpointError, match=r"no recording's name contains \.npz"):
        list(run_parity(tmp_path))


# --- the comparison, without recordings


def save_recording(path, **tensors):
    """A recording of tensors, each sampled with step 3."""
    arrays = {}
    for name, x in tensors.items():
        flat = x.detach().flatten().double().numpy()
        arrays[name] = flat[::3].astype(np.float32)
        arrays[f"{name}__stride"], arrays[f"{name}__shape"] = np.array(3), np.array(x.shape)
        arrays[f"{name}__stats"] = np.array([flat.mean(), flat.std(), flat.min(), flat.max(), np.linalg.norm(flat)])
    np.savez(path, **arrays)
    return Recording(path)


@pytest.mark.parametrize(
    "name, case",
    {
        "common_image_side_ruleB": RecordedCase("common", ("no_fast_cat", "B"), "voc20", None),
        "infer_L_no_fast-cat-voc20-ruleB": RecordedCase("infer", ("L_no_fast_cat", "B"), "voc20", None),
        "infer_fast-cat-voc20-ruleB-top1": RecordedCase("infer", ("fast_cat", "B"), "voc20", 1),
        "infer_no_fast-cat-ade847": RecordedCase("infer", ("no_fast_cat", "A"), "ade847", None),
        "train_no_fast-cat-A": RecordedCase("train", ("no_fast_cat", "A"), "coco", None),
    }.items(),
)
def test_a_file_name_says_what_was_recorded(tmp_path, name, case):
    assert RecordedCase.of(tmp_path / f"{name}.npz") == case


@pytest.mark.parametrize("name", ["infer", "other_fast-cat", "infer_fast"])
def test_an_unknown_file_name_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="a recording is named like"):
        RecordedCase.of(tmp_path / f"{name}.npz")


def test_an_error_is_a_share_of_the_largest_recorded_value(tmp_path):
    x = torch.linspace(-8, 2, 60).reshape(3, 20)
    recording = save_recording(tmp_path / "a.npz", x=x)
    assert recording.error("x", x) < 1e-6
    off = x.clone()
    off[0, 0] += 4.0
    assert recording.error("x", off) == pytest.approx(0.5)
    assert recording.error("x", off, skip=1) < 1e-6
    off[0, 0] = float("nan")
    assert np.isnan(recording.error("x", off))
    with pytest.raises(ValueError, match=r"x: ours is \[20, 3\], recorded is \[3, 20\]"):
        recording.error("x", x.T)


def test_the_fill_value_of_dropped_classes_is_no_scale(tmp_path):
    x = torch.tensor([-100.0, 0, 0, 2.0, 0, 0, 1.0])
    recording = save_recording(tmp_path / "a.npz", x=x)
    off = x.clone()
    off[6] = 2.0
    assert recording.error("x", off) == pytest.approx(0.5)


def test_every_stage_of_our_model_matches_a_recording_of_itself(tmp_path):
    """Tape and stages, with the classes in another recorded order."""
    model, order = tiny_model(), torch.tensor([[3, 0, 4, 1, 2]])
    tape = Tape([order])
    with taped(tape, model), torch.no_grad():
        out = model(pixels(), model.encode(NAMES))
    stages = {
        "clip_in": pixels(),
        "logits": out.logits,
        "corr_global": out.gcs[:, None],
        "corr_local": out.lcs[:, order[0]],
        "p2t_out": tape["p2t_out"].transpose(0, 1),
        "layer0_out": tape["block0"].transpose(0, 1) if "block0" in tape else tape.volume("enter1"),
        "head": out.logits[0, order[0]][:, None],
    }
    recording = save_recording(tmp_path / "a.npz", **stages)
    results = {result.name: result.error for result in compare(recording, tape, {})}
    assert results.keys() == stages.keys() and all(error < 1e-6 for error in results.values()), results
    unknown = list(compare(save_recording(tmp_path / "b.npz", nonsense=torch.ones(4)), tape, {}))
    assert len(unknown) == 1 and not unknown[0].passed


def test_a_tensor_that_our_model_does_not_compute_is_reported_not_failed(tmp_path):
    recording = save_recording(tmp_path / "a.npz", mask_aux0=torch.ones(5, 1, 4, 4))
    result = next(compare(recording, Tape([torch.arange(5)[None]]), {}))
    assert result.error is None and result.passed and "mask_aux0" in result.note


@pytest.mark.parametrize("kept, error", [([0, 2], 0), ([0, 1], 0), ([0, 3], 1)])
def test_a_tie_may_be_broken_either_way_and_a_clear_choice_may_not(kept, error):
    scores = torch.tensor([[3.0, 2.0, 2.0 + 1e-6, 0.0]])[:, :, None, None]
    results: list[StageResult] = []
    selector = RecordedSelector(ClassSelector(), [torch.arange(4)[None], torch.tensor([kept])], results)
    assert selector.prune(scores, 2, "image").rows.tolist() == kept  # ours would be [0, 2]
    assert len(results) == 1 and (results[0].error > 0) == error
    capping = RecordedSelector(ClassSelector(), [torch.tensor([kept])], results)
    assert capping.cap(scores, 2).rows.tolist() == kept
    assert (results[1].error > 0) == error


def test_labels_are_compared_where_the_best_two_classes_are_apart(tmp_path):
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0], [1.0, 3.0, 2.0, 1.0]])[:, None]  # [T, 1, 4]; the third is a tie
    np.savez(tmp_path / "a.npz", labels=np.array([0, 0, 1, 0]))
    result = compare_labels(Recording(tmp_path / "a.npz"), "labels", scores)
    assert result.error == pytest.approx(1 / 4) and result.note == "1 tied pixels left out"


def test_gradient_norms(tmp_path):
    gradients = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1e-14])}
    total = torch.stack([g.double().norm() for g in gradients.values()]).norm().item()
    entries = {"a": [5.0, 7.0, 3.0], "b": [2e-14, 2e-14, 2e-14]}  # b is rounding error
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"total_grad_norm": total, "grads_norm_sum_first": entries}))
    assert all(result.error < 1e-12 for result in compare_gradient_norms(file, gradients))
    entries["a"][1] = 7.7
    file.write_text(json.dumps({"total_grad_norm": total, "grads_norm_sum_first": entries}))
    wrong = {result.name: result for result in compare_gradient_norms(file, gradients) if not result.passed}
    assert list(wrong) == ["gradient sums"] and "worst: a" in wrong["gradient sums"].note
    file.write_text(json.dumps({"total_grad_norm": total, "grads_norm_sum_first": {"a": entries["a"]}}))
    assert "only ours or only recorded: b" in compare_gradient_norms(file, gradients)[1].note


def test_a_case_passes_within_its_limits_only():
    def case(*stages):
        return CaseResult("x", [StageResult(*stage) for stage in stages], 1.0)

    good = case(("a", 1e-6), ("b", 5e-5), ("c", 1e-7), ("grad:d", 5e-4), ("e", None), ("f", 0.0))
    assert good.passed and (good.worst, good.worst_gradient, good.median) == (5e-5, 5e-4, 1e-6)
    assert not case(("a", 2e-4), ("b", 0.0), ("c", 0.0)).passed
    assert not case(("a", 2e-5)).passed  # the median
    assert not case(("a", float("nan")), ("b", 0.0), ("c", 0.0)).passed
    assert not case(("a", None)).passed and not case().passed
    assert "FAILS" in verdict(case(("a", 1.0))) and "passes" in verdict(good)
