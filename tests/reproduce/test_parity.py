"""The released preset against recordings of the released code: `fgaseg parity`."""

import json

import pytest
import torch
from paths import SHARED

import fgaseg.model.head
import fgaseg.reproduce.parity as parity
from fgaseg.cli import main
from fgaseg.kernels import topk_classes

PARITY = SHARED / "parity"
recorded = pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recordings of the released code at {PARITY}")


def test_a_tie_may_be_broken_either_way_and_a_clear_choice_may_not():
    scores = torch.tensor([[3.0, 2.0, 2.0 + 1e-6, 0.0]])[:, :, None, None]
    ours = topk_classes(scores, 2)
    assert ours.rows.tolist() == [0, 2]
    for kept, error in (([0, 2], 0), ([0, 1], 0), ([0, 3], 1)):
        stages: list[parity.Stage] = []
        levels = [torch.arange(4)[None], torch.tensor([kept])]
        with parity.recorded_choices(levels, stages):
            assert fgaseg.model.head.topk_classes(scores, 2, "image").rows.tolist() == kept
        assert len(stages) == 1 and (stages[0].error > 0) == error
    assert fgaseg.model.head.topk_classes is topk_classes


@pytest.fixture(scope="module")
def root():
    return parity.Root(PARITY, torch.float32)


CASES = [
    "common_image_side_ruleB",
    "infer_no_fast-cat-voc20-ruleB",
    "sliding_no_fast-cat-voc20-ruleB",
    "infer_no_fast-add-voc20-ruleB",
    "infer_no_fast-cat-ade847",
    "infer_fast-cat-voc20-ruleB-top1",
]  # ViT-L, training and fast with 16 classes a pixel: `fgaseg parity`


@recorded
@pytest.mark.parametrize("name", CASES)
def test_recorded_case(root, name):
    case = parity.run_case(root, PARITY / f"{name}.npz")
    assert case.passed, parity.verdict(case)
    # the README of the recordings: the released code differs from itself in float64 by up to 1e-5
    assert case.worst < 1e-5 and len(case.errors) == len(case.stages) >= 5


@recorded
def test_a_deviation_fails_the_case_and_the_command(root, monkeypatch, capsys):
    whole = root.model

    def deviating(described):
        model = whole(described)
        model.head.p2t.value_positions = True
        return model

    monkeypatch.setattr(root, "model", deviating)
    monkeypatch.setattr(parity, "Root", lambda *_: root)
    assert main(["parity", "fast-cat-voc20-ruleB-top1", "--root", str(PARITY), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    errors = {stage["name"]: stage["error"] for stage in result["cases"][0]["stages"]}
    assert not result["passed"] and errors["text_emb"] < 1e-5 < 1e-3 < errors["p2t_out"]


def test_parity_without_recordings_says_so(tmp_path, capsys):
    assert main(["parity", "--root", str(tmp_path)]) == 1
    assert "no recordings" in capsys.readouterr().err
