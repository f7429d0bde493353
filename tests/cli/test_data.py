"""`fgaseg data`: what is printed, and mistakes that are one line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image
from sample_data import copy_samples

from fgaseg.cli import main
from fgaseg.cli.data import print_prepared
from fgaseg.cli.tables import console, scores_table
from fgaseg.data.benchmark_sets import BENCHMARK_SETS
from fgaseg.data.preparation import prepare
from fgaseg.evaluation.scores import ClassScore, Scores


@pytest.fixture
def tree(tmp_path):
    return copy_samples(tmp_path / "datasets")


def test_of_many_failures_the_first_are_shown(tree, capsys):
    for file in (tree / "ADEChallengeData2016/annotations").rglob("*.png"):
        file.write_bytes(b"")
    rows = prepare(["a150"], tree) + prepare(["a150"], tree, split="train")
    failed = sum(len(row.failed) for row in rows)
    merged = replace(rows[0], failed=rows[0].failed | rows[1].failed)
    print_prepared([merged], tree)
    printed = capsys.readouterr().out
    assert failed > 10 and printed.count(" failed: ") == 10 and f"and {failed - 10} more" in printed


def test_brackets_in_names_and_paths_are_no_markup(tree, tmp_path, capsys):
    root = tmp_path / "set [a" / "bold]"
    shutil.copytree(tree, root)
    prepare(["a150"], root)
    assert main(["data", "check", "a150", "--root", str(root), "--workers", "0", "--quick"]) == 1
    assert "[a/bold]" in "".join(capsys.readouterr().out.split())
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {number}" for number in range(150)))
    odd = tmp_path / "x[" / "images]"
    shutil.copytree(root / "ADEChallengeData2016/images/validation", odd)
    labels = root / "ADEChallengeData2016/annotations_detectron2/validation"
    own = ["--images", str(odd), "--labels", str(labels), "--names", str(names), "--workers", "0"]
    assert main(["data", "check", *own]) == 0
    table = ClassScore("car [/parked]", 1, 1, 1), ClassScore("[bold]", 1, 1, 1)
    console().print(scores_table(Scores(1, list(table)), "of [/x]"))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("car [/parked]", "[bold]", "of [/x]"))


MISTAKES = {
    "no root": (["check", "--root", "nowhere"], "root nowhere: is missing: give the folder that holds"),
    "wrong root": (["check", "--root", "EMPTY"], "holds none of coco-stuff, a150"),
    "nothing to prepare": (["prepare", "--root", "EMPTY"], "holds the labels of no benchmark set"),
    "set not there": (["prepare", "pc59", "--root", "EMPTY"], "trainval_merged.json, from trainval_merged.json (page"),
    "no such set": (["check", "ade", "--root", "EMPTY"], "'ade' is not a benchmark set: give one of coco-stuff, a150"),
    "no such split": (["prepare", "pc59", "--split", "train", "--root", "EMPTY"], "pc59 has no split 'train'"),
    "labels alone": (["check", "--labels", "EMPTY"], "--images and --labels go together"),
    "workers": (["check", "--workers", "-1"], "--workers -1: give 0"),
    "two splits": (
        ["prepare", "coco-stuff", "--images", "EMPTY", "--labels", "EMPTY"],
        "the split where it has two",
    ),
}


@pytest.mark.parametrize("command, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(command, words, tmp_path, capsys):
    assert main(["data", *(str(tmp_path) if word == "EMPTY" else word for word in command)]) == 1
    printed = capsys.readouterr().err.strip()
    assert words in printed and len(printed.splitlines()) == 1


def test_list_names_every_set_and_archive(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["data", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["set"] for row in rows if row["split"] == "val"] == list(BENCHMARK_SETS)
    assert {row["set"]: row["images"] for row in rows if row["split"] == "val"}["pc459"] == 5104
    assert main(["data", "list"]) == 0 and "ADEChallengeData2016.zip" in capsys.readouterr().out


@pytest.fixture
def masks(tmp_path):
    """Photos and _mask.png in one folder, 0 and 255."""
    folder = tmp_path / "all"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{number}.jpg")
        Image.fromarray(rng.integers(0, 2, (20, 30), np.uint8) * np.uint8(255)).save(folder / f"{number}_mask.png")
    return folder


MAP = "{0: background, 255: crack}"


def test_check_of_own_data_shows_shares_and_draws_a_picture(masks, tmp_path, capsys):
    own = ["data", "check", "--images", str(masks), "--label-suffix", "_mask", "--workers", "0"]
    picture = tmp_path / "sheet.png"
    assert main([*own, "--label-map", MAP, "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("background", "crack", "void", f"picture: {picture}", "ready"))
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.height > 5 * 100 and image.width > 600
        assert len(set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))) > 1000
    (tmp_path / "names.txt").write_text("background\ncrack\n")
    assert main([*own, "--names", str(tmp_path / "names.txt")]) == 1
    printed = capsys.readouterr().out
    assert "labels that cannot be right: 1" in printed and f"data.label_map='{MAP}'" in printed
    assert main([*own, "--label-map", "{0: sky}", "--ignore", "0,254", "--json"]) == 1
    assert "label 0 is 'sky' and cannot be ignored too" in capsys.readouterr().err
    assert main([*own, "--label-map", "{0: sky, 9: sea}", "--ignore", "254", "--json", "--picture", str(picture)]) == 1
    [row] = json.loads(capsys.readouterr().out)
    assert row["shares"]["sea"] == 0 and 0.4 < row["unnamed"]["255"] < 0.6 and len(row["warnings"]) == 1
    assert main([*own, "--label-map", "{0: sky, 9: sea}", "--ignore", "254"]) == 1
    assert "255: no name" in (printed := capsys.readouterr().out) and "never" in printed and "warning: " in printed


def test_prepare_writes_own_labels_as_plain_ones(masks, tmp_path, capsys):
    own = ["--images", str(masks), "--label-suffix", "_mask"]
    command = ["data", "prepare", *own, "--workers", "0", "--out", str(tmp_path / "mine")]
    assert main([*command, "--label-map", "{0: null, 255: crack, 7: wall}"]) == 0
    assert "6" in capsys.readouterr().out
    assert (tmp_path / "mine/names.txt").read_text() == "crack\nwall\n"
    for number in range(6):
        stored, written = (np.asarray(Image.open(file)) for file in (
            masks / f"{number}_mask.png", tmp_path / f"mine/labels/{number}.png"))  # fmt: skip
        np.testing.assert_array_equal(written, np.where(stored == 255, 0, 255))
    assert main([*command, "--label-map", "{0: null, 255: wall}"]) == 0  # written anew
    assert (tmp_path / "mine/names.txt").read_text() == "wall\n"
    (tmp_path / "names.txt").write_text("crack\n")
    few = [*command, "--names", str(tmp_path / "names.txt"), "--ignore", "0", "--label-map", "{255: crack}"]
    assert main(few) == 0  # void is 65535 inside
    assert set(np.unique(np.asarray(Image.open(tmp_path / "mine/labels/0.png"))).tolist()) == {0, 255}
    (masks / "3_mask.png").write_bytes(b"")
    assert main([*command, "--label-map", MAP, "--json"]) == 1
    [row] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["converted"] == 5 and "3_mask.png: is empty" in row["failed"]["3"]


def test_check_takes_the_data_of_a_configuration(masks, tmp_path, capsys, monkeypatch):
    text = "data: {images: ./all, label_suffix: _mask, label_map: {0: sky, 255: sea}, ignore: 254}"
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["data", "check", str(tmp_path / "mine.yaml"), "--workers", "0", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["pairs"] == 6 and set(row["shares"]) == {"sky", "sea"}
    for words in (["--images", str(masks)], ["--ignore", "3"], ["a150"]):
        assert main(["data", "check", str(tmp_path / "mine.yaml"), *words]) == 1
        assert "mine.yaml" in (printed := capsys.readouterr().err) and "one configuration" in printed
    (tmp_path / "empty.yaml").write_text("train: {steps: 3}")
    assert main(["data", "check", str(tmp_path / "empty.yaml")]) == 1 and "no data.images" in capsys.readouterr().err


OWN_MISTAKES = {
    "no out": (["prepare", "--images", "EMPTY", "--labels", "EMPTY", "--label-map", MAP], "give --out"),
    "map of a set": (["check", "a150", "--images", "E", "--labels", "E", "--label-map", MAP], "a150 has its own"),
    "no images": (["check", "--label-map", MAP], "are for your own data: give --images"),
    "no map": (["check", "--images", "EMPTY", "--label-map", "no.yaml", "--label-suffix", "_m"], "no.yaml: cannot"),
    "no picture": (["check", "--picture", "x.png"], "--picture draws your own data"),
}


@pytest.mark.parametrize("command, words", OWN_MISTAKES.values(), ids=OWN_MISTAKES)
def test_a_mistake_with_own_data_is_one_line(command, words, tmp_path, capsys):
    assert main(["data", *(str(tmp_path) if word == "EMPTY" else word for word in command)]) == 1
    printed = capsys.readouterr().err.strip()
    assert words in printed and len(printed.splitlines()) == 1


def test_a_mapping_that_is_none_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit):
        main(["data", "check", "--images", "x", "--label-map", "{0: "])
    assert "is not a mapping such as {0: background, 255: crack}" in capsys.readouterr().err


def test_check_of_photos_with_bands_and_values_of_their_own(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for folder in ("photos", "labels"):
        (tmp_path / folder).mkdir()
    values = rng.integers(-2000, 9000, (30, 40, 5)).astype(np.int16)
    turned = [(274, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "photos/a.tif", values, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(
        tmp_path / "photos/b.tif", values, photometric="minisblack", planarconfig="contig", extratags=turned
    )
    Image.fromarray(rng.integers(0, 2, (30, 40), dtype=np.uint8)).save(tmp_path / "labels/a.png")
    Image.fromarray(rng.integers(0, 2, (40, 30), dtype=np.uint8)).save(tmp_path / "labels/b.png")
    (tmp_path / "names.txt").write_text("background\nroad\n")
    command = ["data", "check", "--images", str(tmp_path / "photos"), "--labels", str(tmp_path / "labels"),
               "--names", str(tmp_path / "names.txt"), "--workers", "0"]  # fmt: skip
    assert main(command) == 1 and "value_range=(" in capsys.readouterr().out.replace("\n", "")
    assert main([*command, "--bands", "5,3,1", "--range=-2000,9000", "--picture", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").exists()
