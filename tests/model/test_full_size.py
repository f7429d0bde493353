"""A published checkpoint in its full size and format, with made-up weights."""

import json
import re
from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from paths import SHARED
from PIL import Image

import fgaseg
from fgaseg.cli import main
from fgaseg.model import cache_place, read_record
from fgaseg.weights import MODELS

KEYS = SHARED / "parity" / "state_dict_keys_no_fast_add.txt"
PHOTO = SHARED / "data" / "msrc_v2" / "images" / "10_10_s.jpg"
FGASEG_PARTS = r"DCDT|proj\.|transformer\.(conv2|conv_cat|corr_local|Local_align|head_auxi)"  # CAT-Seg has none


def released_file(path) -> None:
    """model_base.pth as its size implies: all weights, and Adam's moments of q, v and the head."""
    generator, weights, moments = torch.Generator().manual_seed(0), OrderedDict(), {}
    for line in KEYS.read_text().splitlines()[1:]:
        key, shape = line.split("\t")[:2]
        bare = key.removeprefix("sem_seg_head.predictor.")
        if re.match(FGASEG_PARTS, bare):
            continue
        size = [int(n) for n in re.findall(r"\d+", shape)]
        weights[key] = torch.randn(size, generator=generator) * 0.02
        if "clip_model" not in key or re.search(r"attn\.[qv]_proj", key):
            moments[len(moments)] = {"step": torch.tensor(8e4), "exp_avg": torch.zeros(size),
                                     "exp_avg_sq": torch.zeros(size)}  # fmt: skip
    torch.save({"model": weights, "optimizer": {"state": moments}, "iteration": 79999}, path)


@pytest.mark.slow
@pytest.mark.skipif(not (KEYS.exists() and PHOTO.exists()), reason=f"needs {KEYS} and {PHOTO}")
def test_cat_seg_b16_from_its_name_to_labels(hub, tmp_path, monkeypatch, capsys):
    file = tmp_path / "model_base.pth"
    released_file(file)
    digest = sha256(file.read_bytes()).hexdigest()
    assert 790e6 < file.stat().st_size < 850e6  # as the published one
    monkeypatch.setitem(MODELS, "cat-seg-b16", replace(MODELS["cat-seg-b16"], sha256=digest[:8]))
    hub.add("spaces/hamacojr/CAT-Seg-weights", {"model_base.pth": file})
    picture = tmp_path / "out.png"
    assert main(["segment", str(PHOTO), "--classes", "cow, grass, sky", "--out", str(picture), "--json"]) == 0
    out, err = capsys.readouterr()
    assert sum(json.loads(out)["classes"].values()) == pytest.approx(1) and Image.open(picture).width > 300
    assert err.count("fetching spaces/hamacojr/CAT-Seg-weights/model_base.pth") == 1
    folder = cache_place(MODELS["cat-seg-b16"])
    assert 590e6 < (folder / "model.safetensors").stat().st_size < 650e6  # a quarter less than what was fetched
    assert read_record(folder)["sha256"] == digest
    assert sum(path.stat().st_size for path in hub.home.rglob("*") if path.is_file()) < 650e6
    hub.close()
    model = fgaseg.load("cat-seg-b16")
    weights = torch.load(file, weights_only=True, mmap=True)["model"]
    theirs = weights["sem_seg_head.predictor.transformer.head.weight"]
    assert model.state_dict()["head.decoder.head.conv.weight"].equal(theirs)
    assert model.config.inference == "windows"
