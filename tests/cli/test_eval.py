"""`fgaseg eval`, as typed."""

import json
from pathlib import Path

import numpy as np
import tifffile
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


def test_bands_and_range_reach_the_photos(model, tmp_path, capsys):
    names, rng = tmp_path / "names.txt", np.random.default_rng(0)
    names.write_text("\n".join(NAMES))
    for folder in ("deep", "plain", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(rng.integers(0, 5, (30, 40), dtype=np.uint8)).save(tmp_path / "labels/a.png")
    values = rng.integers(0, 4096, (30, 40, 5), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep/a.tif", values, photometric="minisblack", planarconfig="contig")
    shown = (values[..., [3, 2, 0]] / 4095 * 255).round().astype(np.uint8)
    Image.fromarray(shown).save(tmp_path / "plain/a.png")

    def scores(folder: str, *view: str) -> dict:
        command = ["eval", model, "--images", str(tmp_path / folder), "--labels", str(tmp_path / "labels")]
        assert main([*command, "--names", str(names), "--json", *view]) == 0
        return json.loads(capsys.readouterr().out)["scores"]["val"]

    expected = scores("plain")
    assert scores("deep", "--bands", "4,3,1", "--range", "0,4095") == expected != scores("deep")
    assert main(["eval", model, "--data", "a150", "--bands", "1,2,3"]) == 1
    assert "--data names whole sets: leave --bands out" in capsys.readouterr().err


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


def test_eval_of_labels_of_other_layouts_is_that_of_plain_ones(model, tmp_path, capsys):
    rng = np.random.default_rng(2)
    folders = {name: tmp_path / name for name in ("images", "labels", "coloured", "all")}
    for folder in folders.values():
        folder.mkdir()
    colours = rng.integers(0, 256, (5, 3), np.uint8)
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(NAMES, colours.tolist(), strict=True)]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    for number in range(3):
        photo, labels = rng.integers(0, 256, (30, 40, 3), np.uint8), rng.integers(0, 5, (30, 40), np.uint8)
        for folder in ("images", "all"):
            Image.fromarray(photo).save(folders[folder] / f"{number}.png")
        Image.fromarray(labels).save(folders["labels"] / f"{number}.png")
        Image.fromarray(colours[labels]).save(folders["coloured"] / f"{number}.png")
        Image.fromarray(labels + np.uint8(1)).save(folders["all"] / f"{number}_mask.png")
    at = {name: str(folder) for name, folder in folders.items()}
    names, label_map = ["--names", str(tmp_path / "names.txt")], ["--label-map", str(tmp_path / "labelmap.txt")]
    scores = []
    for options in (
        ["--images", at["images"], "--labels", at["labels"], *names],
        ["--images", at["images"], "--labels", at["coloured"], *label_map],
        ["--images", at["images"], "--labels", at["coloured"], *label_map, *names],
        ["--images", at["all"], "--label-suffix", "_mask", *names, "--ignore", "0,255"],
    ):
        assert main(["eval", model, *options, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["scores"]["val"])
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{images: {at['images']}, labels: {at['labels']}, names: {tmp_path / 'names.txt'}}}\n")
    flags = ["--images", at["all"], "--label-suffix", "_mask", "--ignore", "0,255"]
    assert main(["eval", model, "--config", str(config), *flags, "--json"]) == 0
    scores.append(json.loads(capsys.readouterr().out)["scores"]["val"])
    assert all(one["miou_gt"] == scores[0]["miou_gt"] > 0 for one in scores)


def test_eval_refuses_labels_that_are_surely_wrong(model, tmp_path, capsys):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "names.txt").write_text("background\ncrack\n")
    Image.new("RGB", (40, 30)).save(tmp_path / "images/a.png")
    own = [str(one) for one in ("--images", tmp_path / "images", "--labels", tmp_path / "labels")]
    for values, words in (([0, 255], "only 0 and 255"), ([0, 2], "holds label 2"), ([255], "no pixel has a label")):
        labels = np.resize(np.array(values, np.uint8), (30, 40))
        Image.fromarray(labels).save(tmp_path / "labels/a.png")
        assert main(["eval", model, *own, "--names", str(tmp_path / "names.txt")]) == 1
        error = capsys.readouterr().err.strip()
        assert words in error and "labels: " in error
