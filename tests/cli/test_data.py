"""`fgaseg data`: what is printed, and mistakes that are one line."""

import json
import shutil
from dataclasses import replace

import pytest
from rich.console import Console
from sample_data import copy_samples, needs_samples

from fgaseg.cli import main
from fgaseg.cli.data import print_prepared
from fgaseg.cli.tables import scores_table
from fgaseg.data.benchmark_sets import BENCHMARK_SETS
from fgaseg.data.preparation import prepare
from fgaseg.evaluation.scores import ClassScore, Scores


@pytest.fixture
def tree(tmp_path):
    return copy_samples(tmp_path / "datasets")


@needs_samples
def test_of_many_failures_the_first_are_shown(tree, capsys):
    for file in (tree / "ADEChallengeData2016/annotations").rglob("*.png"):
        file.write_bytes(b"")
    rows = prepare(["a150"], tree) + prepare(["a150"], tree, split="train")
    failed = sum(len(row.failed) for row in rows)
    merged = replace(rows[0], failed=rows[0].failed | rows[1].failed)
    print_prepared([merged], tree)
    printed = capsys.readouterr().out
    assert failed > 10 and printed.count(" failed: ") == 10 and f"and {failed - 10} more" in printed


@needs_samples
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
    Console().print(scores_table(Scores(1, list(table)), "of [/x]"))
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
