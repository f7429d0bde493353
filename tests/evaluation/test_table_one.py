"""`fgaseg eval` on benchmark sets: Table I, what is not comparable with it, and mistakes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import NAMES, tiny_model

import fgaseg
from fgaseg.cli import main
from fgaseg.evaluation import EvalOptions, cautions, evaluate_with_provenance, table_one, weights_hash
from fgaseg.evaluation.scores import ClassScore, Scores
from fgaseg.evaluation.table_one import PUBLISHED_TEMPLATE


class Merged:
    """A data set whose class 4 is class 3: as in pas20b, the prompts 3 and 4 are both of the class "background"."""

    classes, class_of, ignore = [*NAMES[:3], "background"], [0, 1, 2, 3, 3], 255

    def __init__(self, source):
        self.source, self.names, self.pairs = source, source.names, source.pairs

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        item = self.source[index]
        return item | {"labels": torch.where(item["labels"] == 4, 3, item["labels"])}


@pytest.fixture
def sets(folder, open_folder, monkeypatch):
    """The labelled images as every benchmark set."""

    def opened(name, root, split="val"):
        assert (Path(root), split) == (folder, "val")
        return Merged(open_folder(folder)) if name == "pas20b" else open_folder(folder)

    monkeypatch.setattr("fgaseg.data.open_set", opened)
    return folder


def run_json(capsys, *words):
    assert main(["eval", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_prompts_are_mapped_to_classes_before_counting(model, saved_model, sets, dataset, tmp_path, capsys):
    found = run_json(capsys, "--data", "pas20,pas20b", "--model", saved_model, "--root", sets, "--out", tmp_path)
    fine, coarse = (found["scores"][name]["per_class"] for name in ("pas20", "pas20b"))
    assert [row["name"] for row in coarse] == [*NAMES[:3], "background"]
    assert coarse[:3] == fine[:3]
    assert coarse[3]["predicted"] == fine[3]["predicted"] + fine[4]["predicted"] > 0
    items = [dataset[n] for n in range(12)]
    both = [(item["labels"].numpy(), model.segment(item["image"].numpy(), NAMES).labels) for item in items]
    assert coarse[3]["correct"] == sum(int(((a != 255) & (a >= 3) & (b >= 3)).sum()) for a, b in both)
    records = [found["records"][name]["record"]["data"] for name in ("pas20", "pas20b")]
    assert [(r["prompts"], r["classes"]) for r in records] == [(5, 5), (5, 4)]
    assert records[0]["names"] != records[1]["names"]


def test_table_one_as_printed_and_as_json(saved_model, sets, tmp_path, capsys):
    command = ["--data", "pas20,a150", "--model", saved_model, "--root", sets, "--out", tmp_path / "out"]
    found = run_json(capsys, *command)
    assert found["table"]["columns"] == ["A-847", "PC-459", "A-150", "PC-59", "PAS-20", "PAS-20b"]
    rows = found["table"]["rows"]
    assert rows["FGAseg B/16"] == ["12.0", "19.0", "31.4", "57.5", "95.2", None]
    assert rows["CAT-Seg L/14"][5] == "82.5"
    hashes = [None, None, found["records"]["a150"]["hash"], None, found["records"]["pas20"]["hash"], None]
    assert rows["record"] == hashes
    for name, figure in (("ours", "miou_gt"), ("ours, union", "miou_union")):
        assert rows[name][4] == f"{100 * found['scores']['pas20'][figure]:.1f}" and rows[name][0] is None
    assert main(["eval", *map(str, command)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text[text.index("Table I") :].split("In %.")[0].splitlines())) <= 80
    assert text.count(hashes[2]) == text.count(hashes[4]) == 2  # beside the figures, and in Table I
    for name, cells in rows.items():
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{name} "))
        assert line.split()[-6:] == [cell or "-" for cell in cells]
    assert [f"not comparable: {line}" in text for line in found["cautions"]] == [True] * len(found["cautions"])
    endings = [".csv", ".json", "_confusion.csv", "_confusion.png", "_images.csv"]
    written = [name + ending for name in ("a150", "pas20") for ending in endings]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == written


def test_each_reason_against_a_comparison_is_given_once(saved_model, sets, tmp_path, capsys):
    command = ["--data", "a150", "--model", saved_model, "--root", sets]
    lines = run_json(capsys, *command, "--count", 3, "--out", tmp_path / "a")["cautions"]
    for words in ("first 3 of 12", "12 images, the published set 2000", "'a photo of a {}', published with",
                  "contain all synonyms", "seen whole"):  # fmt: skip
        assert sum(words in line for line in lines) == 1, words
    as_published = ["--window", "--template", "A photo of a {} in the scene", "first_synonym=true"]
    found = run_json(capsys, *command, *as_published, "--count", 2, "--out", tmp_path / "b")
    left = [line for line in found["cautions"] if "union is" not in line]
    assert len(left) == 2 and all("images" in line for line in left)
    found = run_json(capsys, *command, "--template", "imagenet_select", "--precision", "bfloat16", "--count", 1,
                     "--out", tmp_path / "c")  # fmt: skip
    assert any("7 templates" in line for line in found["cautions"])
    assert any("bfloat16" in line for line in found["cautions"])
    record = found["records"]["a150"]["record"]
    assert (record["numerics"]["autocast"], record["numerics"]["precision"]) == ("no", "bfloat16")
    assert record["weights"] == weights_hash(fgaseg.load(saved_model))  # of what was loaded, not of what was computed


def test_a_union_figure_below_the_published_definition_is_explained(model, dataset):
    result = evaluate_with_provenance(model, dataset, "pc459", EvalOptions(count=1))
    rows = [row for row in result.scores.rows if row.labelled]
    absent = ClassScore("absent", 0, 0, 5)
    lower = replace(result, scores=Scores(1, [*rows, absent]))
    same = replace(result, scores=Scores(1, rows))
    assert any("lower by its definition alone" in line for line in cautions("pc459", lower, 5104))
    assert not any("definition" in line for line in cautions("pc459", same, 5104))


def test_every_reason_not_to_compare_is_one_line():
    def found(templates=(PUBLISHED_TEMPLATE,), gap=0.0, images=5, of_set=5, published=5, **more):
        record = {
            "data": {"images": images, "images_of_set": of_set},
            "text": {"templates": list(templates), "first_synonym": more.get("first_synonym", True)},
            "input": {"inference": more.get("inference", "windows")},
            "numerics": {"autocast": more.get("autocast", "no"), "precision": more.get("precision")},
        }
        scores = SimpleNamespace(miou_gt=0.5, miou_union=0.5 - gap / 100)
        lines = cautions("a150", SimpleNamespace(record=record, scores=scores), published)
        return [line.removeprefix("A-150: ") for line in lines]

    with_published = f"published with {PUBLISHED_TEMPLATE!r} (--template)"
    assert found() == found(gap=0.04) == found(published=None) == []
    assert found(["a {}"]) == [f"template 'a {{}}', {with_published}"]
    assert found(["a {}", "the {}"]) == [f"2 templates, the first 'a {{}}', {with_published}"]
    assert found([PUBLISHED_TEMPLATE] * 2) == [f"2 templates, the first {PUBLISHED_TEMPLATE!r}, {with_published}"]
    assert found(gap=0.06)[0].startswith("the union row is 0.1 lower by its definition alone")
    assert found(images=4) == ["scored on the first 4 of 5 images"]
    assert found(images=4, of_set=4) == ["the data has 4 images, the published set 5"]
    assert found(first_synonym=False) == [
        "prompts contain all synonyms, published with the first alone (first_synonym=true)"
    ]
    assert found(inference="whole") == ["images are seen whole, published with windows (--window)"]
    assert found(autocast="bfloat16", precision="float16") == ["computed in bfloat16, published in float32"]
    assert found(precision="float16") == ["computed in float16, published in float32"]


def test_the_published_figures_are_those_of_the_papers():
    """FGAseg's Table I, and the README of CAT-Seg's released weights."""
    rows = table_one({})
    assert {name: " ".join(cell or "-" for cell in row) for name, row in rows.items()} == {
        "FGAseg B/16": "12.0 19.0 31.4 57.5 95.2 -",
        "CAT-Seg B/16": "12.0 19.0 31.8 57.5 94.6 77.3",
        "FGAseg L/14": "16.3 23.9 37.7 63.1 96.9 -",
        "CAT-Seg L/14": "16.0 23.8 37.9 63.3 97.0 82.5",
        "ours": "- - - - - -",
        "ours, union": "- - - - - -",
        "record": "- - - - - -",
    }


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data", "a150"], "give one model"),
        (["MODEL", "--model", "MODEL", "--data", "a150"], "give one model"),
        (["MODEL", "--data", "a150", "--images", "x"], "give both --images and --labels"),
        (["MODEL", "--data", "a151"], "a151"),
        (["MODEL", "--root", "x"], "give --data"),
        (["MODEL", "--data", "a150", "--batch", "0"], "--batch 0: give 1 or more"),
        (["MODEL", "--data", "a150", "--top-k", "few"], "a number of classes, or all"),
        (["MODEL", "--data", "a150", "--root", "FOLDER", "--top-k", "3"], "needs fast: true"),
        (["MODEL", "--data", "a150", "--root", "FOLDER", "--template", "a cat"], "exactly once"),
    ],
)
def test_a_mistake_is_one_line(words, message, saved_model, sets, capsys, monkeypatch):
    if "a151" in words:
        monkeypatch.undo()
    assert main(["eval", *({"MODEL": str(saved_model), "FOLDER": str(sets)}.get(word, word) for word in words)]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_top_k_of_a_fast_model(folder, tmp_path, capsys):
    tiny_model(fast=True).save_pretrained(tmp_path / "fast")
    flags = [word for key in ("images", "labels") for word in (f"--{key}", folder / key)]
    flags += ["--names", folder / "names.txt"]
    hashes = set()
    for k in ("1", "3", "all"):
        found = run_json(capsys, tmp_path / "fast", *flags, "--top-k", k, "--count", 2)
        assert found["records"]["val"]["record"]["model"]["top_k"] == (None if k == "all" else int(k))
        hashes.add(found["records"]["val"]["hash"])
    assert len(hashes) == 3
