"""Every family's blocks are sharded over processes as plain CLIP's are, dense rules and evaluation included."""

import json

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from runs import run_two_processes, weights
from small_encoders import SIZES, encoder_section
from tiny import NAMES

from fgaseg import Config
from fgaseg.training import train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*validation photos are the training photos")]
RUN = """
import sys
sys.path.insert(0, sys.argv[2])
import small_encoders, torch
torch.set_num_threads(1)
from fgaseg.config import load_config
from fgaseg.training import train

train(load_config(sys.argv[1]), progress=False)
"""


@pytest.mark.parametrize("family, dense", [("EVA-02", "csa"), ("SigLIP", "value"), ("PE-Core", "qq")])
def test_two_processes_with_sharded_encoders_equal_one(family, dense, tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(rng.integers(0, 5, (40, 44), dtype=np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    config = Config(
        model={"encoder": encoder_section(family, tokenizer, dense=dense), **SIZES, "image_size": 32},
        data={"images": tmp_path / "images", "labels": tmp_path / "labels", "names": tmp_path / "names.txt",
              "crop": 32, "val_count": 1, "workers": 0},
        train={"out": tmp_path / "one", "steps": 2, "batch": 2, "warmup": 0, "tensorboard": False, "save_every": 2,
               "eval_every": 1, "lr": 1e-4, "clip_norm": None},
    )  # fmt: skip
    one = train(config, progress=False)
    two = config.override(**{"train.out": str(tmp_path / "two"), "train.fsdp": True})
    two.save(tmp_path / "run.yaml")
    (tmp_path / "run.py").write_text(RUN)
    run_two_processes(tmp_path / "run.py", tmp_path / "run.yaml", ROOT / "tests")
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["processes"] == 2
    for key, value in one.losses.items():  # of the second step: the first has to be right
        assert summary["losses"][key] == pytest.approx(value, rel=1e-3), key
    got, want = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert got.keys() == want.keys() and any(".v_proj.weight" in key for key in got)
    assert (tmp_path / "two" / "model" / "tokenizer").is_dir() == (family == "SigLIP")
    clip = [key for key in got if key.startswith("clip.") and got[key].numel() > 1]
    apart = torch.stack([(got[key] - want[key]).abs().max() for key in clip])
    assert apart.max() < 4.5e-4  # two steps of Adam, each of which rounding may turn where there is no gradient
    assert apart.median() < 1e-5
