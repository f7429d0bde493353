"""Every family's blocks are sharded over processes as plain CLIP's are, dense rules and evaluation included."""

import json

import numpy as np
import pytest
import torch
from own_encoder import Words
from paths import ROOT
from PIL import Image
from runs import run_two_processes, weights
from small_encoders import SIZES, encoder_section
from tiny import NAMES

from fgaseg import Config
from fgaseg.model.encoders import registry
from fgaseg.training import train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*validation photos are the training photos")]
RUN = """
import sys
sys.path.insert(0, sys.argv[2])
import fgaseg, own_encoder, small_encoders, torch
torch.set_num_threads(1)
fgaseg.register_encoder("words", own_encoder.Words)
from fgaseg.config import load_config
from fgaseg.training import train

train(load_config(sys.argv[1]), progress=False)
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(rng.integers(0, 5, (40, 44), dtype=np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path


def one_and_two(encoder, folder):
    """Losses of the second step and weights of a run of one process, and of one of two."""
    config = Config(
        model={"encoder": encoder, **SIZES, "image_size": 32},
        data={"images": folder / "images", "labels": folder / "labels", "names": folder / "names.txt", "crop": 32,
              "val_count": 1, "workers": 0},
        train={"out": folder / "one", "steps": 2, "batch": 2, "warmup": 0, "tensorboard": False, "save_every": 2,
               "eval_every": 1, "lr": 1e-4, "clip_norm": None},
    )  # fmt: skip
    one = train(config, progress=False)
    two = config.override(**{"train.out": str(folder / "two"), "train.fsdp": True})
    two.save(folder / "run.yaml")
    (folder / "run.py").write_text(RUN)
    run_two_processes(folder / "run.py", folder / "run.yaml", ROOT / "tests")
    summary = json.loads((folder / "two" / "summary.json").read_text())
    assert summary["processes"] == 2
    for key, value in one.losses.items():  # of the second step: the first has to be right
        assert summary["losses"][key] == pytest.approx(value, rel=1e-3), key
    got, want = weights(folder / "two"), weights(folder / "one")
    assert got.keys() == want.keys()
    clip = [key for key in got if key.startswith("clip.") and got[key].numel() > 1]
    apart = torch.stack([(got[key] - want[key]).abs().max() for key in clip])
    assert apart.max() < 4.5e-4  # two steps of Adam, each of which rounding may turn where there is no gradient
    assert apart.median() < 1e-5
    return got


@pytest.mark.parametrize(
    "family, dense",
    [
        ("SigLIP", "value"),
        pytest.param("EVA-02", "csa", marks=pytest.mark.exhaustive),
        pytest.param("PE-Core", "qq", marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_with_sharded_encoders_equal_one(family, dense, tokenizer, folder):
    got = one_and_two(encoder_section(family, tokenizer, dense=dense), folder)
    assert any(".v_proj.weight" in key for key in got)
    assert (folder / "two" / "model" / "tokenizer").is_dir() == (family == "SigLIP")


def test_an_encoder_of_ones_own_is_left_whole(folder, monkeypatch):
    monkeypatch.setattr(registry, "_factories", {"words": Words})
    assert "clip.words.weight" in one_and_two("words", folder)
