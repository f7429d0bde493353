"""`fgaseg eval`, as typed."""

import json
from pathlib import Path

import numpy as np
from paths import CONFIGS
from PIL import Image
from tiny import NAMES

from fgaseg.cli import main


def test_eval_scores_a_folder(model, photo, tmp_path, capsys):
    labels = tmp_path / "labels"
    labels.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 5, (30, 40), dtype=np.uint8)).save(labels / "photo.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    images = tmp_path / "images"
    images.mkdir()
    Path(photo).rename(images / "photo.png")
    csv = tmp_path / "rows.csv"
    command = ["eval", model, "--images", str(images), "--labels", str(labels), "--names", str(tmp_path / "names.txt")]
    assert main([*command, "--json", "--csv", str(csv)]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]["val"]
    assert 0 <= scores["miou_gt"] <= 1 and len(csv.read_text().splitlines()) >= 6
    assert main(command) == 0 and "mIoU" in capsys.readouterr().out


def test_eval_flags_win_over_the_configuration(model, photo, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{val_images: {tmp_path}, val_labels: {tmp_path}, val_list: {tmp_path}/none.txt}}\n")
    empty = tmp_path / "set #1: empty"  # neither a comment nor a mapping
    empty.mkdir()
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    flags = ["--images", str(empty), "--labels", str(empty), "--names", str(tmp_path / "names.txt")]
    assert main(["eval", model, "--config", str(config), *flags]) == 1
    error = capsys.readouterr().err
    assert "have no pair" in error and str(empty) in error


def test_eval_scores_drawn_scenes(model, capsys):
    config = str(CONFIGS / "demo.yaml")
    assert main(["eval", model, "--config", config, "--count", "2", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["scores"]) == {"seen", "unseen"}
