"""Every number says how it was made, and an interrupted evaluation ends in the numbers of one that was not."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from paths import SHARED
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score
from tiny import NAMES, tiny_model

from fgaseg import FGASeg
from fgaseg.cli import main
from fgaseg.config import DataConfig
from fgaseg.data.folders import FolderDataset, read_labels
from fgaseg.errors import ResultError, UnfinishedError
from fgaseg.evaluation.evaluator import Tally, Unfinished, evaluate
from fgaseg.evaluation.records import cautions, score, short_hash, templates, weights_hash
from fgaseg.evaluation.scores import ClassScore, Confusion, Scores
from fgaseg.weights.model_files import read_weights

PHOTOS = SHARED / "data" / "protocol" / "ADEChallengeData2016"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved):
    return FGASeg.from_pretrained(saved)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of several sizes on disk."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir()
    for n in range(12):
        size = tuple(rng.integers(20, 70, 2))
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / "images" / f"{n}.png")
        labels = rng.integers(0, 6, size, np.uint8)
        Image.fromarray(np.where(labels == 5, 255, labels).astype(np.uint8)).save(root / "labels" / f"{n}.png")
    (root / "names.txt").write_text("\n".join(NAMES))
    return root


def dataset(root):
    return FolderDataset(DataConfig(images=root / "images", labels=root / "labels", names=root / "names.txt"), "val")


def flags(root):
    return [f for key in ("images", "labels") for f in (f"--{key}", str(root / key))] + [
        "--names",
        str(root / "names.txt"),
    ]


def matrix(model, data, **given):
    """The confusion matrix, out of what an interrupted evaluation would save."""
    seen = {}

    class Spy(Unfinished):
        def save_when_due(self, tally):
            seen.update(tally.tensors())

        def restore(self, tally):
            pass

    evaluate(model, data, unfinished=Spy(".", "spy", {}), **given)
    return seen


# --- the record


def test_the_hash_follows_what_decides_the_number_and_nothing_else(model, saved, folder, tmp_path):
    data = dataset(folder)
    first = score(model, data, "val", count=3)
    again = score(model, dataset(folder), "val", count=3, batch=1, out=tmp_path)
    assert first.hash == again.hash and first.free != again.free
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("images", "labels", "names.txt"):
        os.symlink(folder / name, moved / name)
    assert score(model, dataset(moved), "val", count=3).hash == first.hash
    hashes = {first.hash, score(model, data, "val", count=4).hash, score(tiny_model(seed=1), data, "val", count=3).hash}
    for switches in ({"inference": "windows"}, {"template": "{}"}, {"first_synonym": True}, {"class_cap": 4}):
        hashes.add(score(FGASeg.from_pretrained(saved, **switches), data, "val", count=3).hash)
    with torch.autocast("cpu", torch.bfloat16):
        hashes.add(score(model, data, "val", count=3).hash)
    assert len(hashes) == 8
    training = FGASeg.from_pretrained(saved, checkpointing=True, class_pooling=1)
    assert score(training, data, "val", count=3).hash == first.hash


def test_a_changed_label_stem_or_pixel_changes_the_hash_though_the_counts_agree(model, folder, tmp_path):
    data = dataset(folder)
    first = score(model, data, "val", count=2)
    data.pairs[0] = ("renamed", *data.pairs[0][1:])
    assert score(model, data, "val", count=2).hash != first.hash
    data = dataset(folder)
    labels = np.array(Image.open(data.pairs[0][2]))
    y, x = np.argwhere(labels != 255)[0]
    labels[y, x] = (labels[y, x] + 1) % 5
    Image.fromarray(labels).save(tmp_path / "other.png")
    data.pairs[0] = (*data.pairs[0][:2], tmp_path / "other.png")
    assert score(model, data, "val", count=2).hash != first.hash
    data.pairs[0] = (*data.pairs[0][:2], tmp_path / "again.png")  # the same labels in another file
    Image.fromarray(np.array(Image.open(dataset(folder).pairs[0][2]))).save(tmp_path / "again.png", compress_level=0)
    assert score(model, data, "val", count=2).hash == first.hash
    photo = np.array(Image.open(data.pairs[0][1]))
    photo[0, 0, 0] ^= 1
    Image.fromarray(photo).save(tmp_path / "photo.png")
    data.pairs[0] = (data.pairs[0][0], tmp_path / "photo.png", data.pairs[0][2])
    assert score(model, data, "val", count=2).hash != first.hash


def test_weights_are_those_of_the_file(model, saved):
    assert weights_hash(model) == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()


def test_what_is_written_is_what_was_hashed(model, folder, tmp_path):
    result = score(model, dataset(folder), "val", out=tmp_path)
    data = json.loads((tmp_path / "val.json").read_text())
    assert data["hash"] == result.hash == short_hash(data["record"])
    assert data["record"]["data"]["images"] == 12 and data["record"]["weights"] == weights_hash(model)
    assert set(data["record"]["versions"]) == {"fgaseg", "torch", "open_clip_torch"}
    assert data["scores"]["miou_gt"] == result.scores.miou_gt and (tmp_path / "val.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["val.csv", "val.json"]


def test_named_templates():
    assert len(templates("imagenet")) == 80 and len(templates("imagenet_select")) == 7
    assert all(one.count("{}") == 1 for name in ("imagenet", "imagenet_select") for one in templates(name))
    assert templates("imagenet")[3].format("cat") == open_clip.OPENAI_IMAGENET_TEMPLATES[3]("cat")
    assert templates("my {}") == "my {}"


# --- any batch, any order, any number of processes


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}")
@pytest.mark.parametrize("inference, count", [("whole", 4), ("windows", 2)])
def test_the_same_matrix_for_any_batch_and_equal_to_scikit_learn_on_photos(saved, inference, count, tmp_path):
    model = FGASeg.from_pretrained(saved, inference=inference)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {n}" for n in range(151)))
    config = DataConfig(images=PHOTOS / "images/validation", labels=PHOTOS / "annotations/validation", names=names)
    data = FolderDataset(config, "val")
    data.pairs = data.pairs[:count]
    found = {batch: matrix(model, data, batch=batch) for batch in (1, 2, 8)[: count - 1]}
    for one in found.values():
        assert all(torch.equal(one[key], found[1][key]) for key in one)
    vocabulary = model.encode(data.names)
    labels = np.concatenate([data[n]["labels"].numpy().ravel() for n in range(count)])
    predicted = np.concatenate([model.segment(data.pairs[n][1], vocabulary).labels.ravel() for n in range(count)])
    assert (found[1]["matrix"].numpy() == confusion_matrix(labels, predicted, labels=range(151))).all()
    confusion = Confusion(151)
    confusion.matrix += found[1]["matrix"]
    scores = confusion.scores(data.names)
    with np.errstate(invalid="ignore"):
        per_class = jaccard_score(labels, predicted, labels=range(151), average=None, zero_division=0)
    present, union = np.unique(labels), np.union1d(labels, predicted)
    assert scores.miou_gt == pytest.approx(per_class[present].mean()) and len(present) == scores.present
    assert scores.miou_union == pytest.approx(per_class[union].mean()) and len(union) > len(present)


def test_an_error_while_reading_ahead_comes_as_it_is_and_in_its_turn(model, folder):
    data = dataset(folder)
    data.pairs[2] = ("gone", folder / "gone.png", data.pairs[2][2])
    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        evaluate(model, data)
    assert evaluate(model, data, count=2).images == 2


def interrupted(model, data, after, **given):
    """Score so many pictures, then stop."""
    asked = iter(range(1000))
    assert score(model, data, "val", stop=lambda: next(asked) >= after, **given) is None


def test_goes_on_where_it_was_stopped(model, folder, tmp_path, monkeypatch):
    whole = score(model, dataset(folder), "val")
    interrupted(model, dataset(folder), 4, out=tmp_path)
    interrupted(model, dataset(folder), 3, out=tmp_path, batch=2)
    labelled = []
    predict = FGASeg.predict_labels
    monkeypatch.setattr(FGASeg, "predict_labels", lambda self, *a: labelled.append(1) or predict(self, *a))
    result = score(model, dataset(folder), "val", out=tmp_path)
    assert len(labelled) == 12 - 7
    assert result.scores == whole.scores and result.hash == whole.hash
    assert score(model, dataset(folder), "val", out=tmp_path).scores == whole.scores  # read, not made again
    assert len(labelled) == 5
    score(model, dataset(folder), "val", out=tmp_path, restart=True)
    assert len(labelled) == 17


def test_parts_of_several_processes_are_added_once(model, folder, tmp_path, monkeypatch):
    """Two processes were killed; a third merged their parts and was killed before it removed one of them."""
    whole, data = score(model, dataset(folder), "val"), dataset(folder)
    for rank in (0, 1):
        for name, value in (("rank", lambda rank=rank: rank), ("world_size", lambda: 2)):
            monkeypatch.setattr(f"fgaseg.evaluation.evaluator.{name}", value)
        with monkeypatch.context() as patch:
            patch.setattr(Unfinished, "restore", lambda *_: None)  # they ran at the same time
            interrupted(model, data, 3, out=tmp_path)
    parts = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert [file.name for file in sorted(parts)] == ["val.part0.safetensors", "val.part1.safetensors"]
    monkeypatch.undo()
    interrupted(model, data, 0, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["val.part0.safetensors"]
    (tmp_path / "val.part1.safetensors").write_bytes(parts[tmp_path / "val.part1.safetensors"])
    result = score(model, data, "val", out=tmp_path)
    assert result.scores == whole.scores


def test_an_error_keeps_what_was_counted(model, folder, tmp_path):
    data = dataset(folder)
    good, data.pairs[7] = data.pairs[7], ("gone", folder / "gone.png", data.pairs[7][2])
    with pytest.raises(ValueError, match="gone"):
        evaluate(model, data, unfinished=Unfinished(tmp_path, "val", {}))
    tally = Tally.empty(5, 255)
    Unfinished(tmp_path, "val", {}).restore(tally)
    assert tally.done == set(range(7))
    data.pairs[7] = good
    assert evaluate(model, data, unfinished=Unfinished(tmp_path, "val", {})) == evaluate(model, data)


def test_another_evaluation_is_refused_and_says_in_what(model, folder, tmp_path):
    interrupted(model, dataset(folder), 4, out=tmp_path)
    other = tiny_model(seed=1, template="a {}")
    with pytest.raises(UnfinishedError, match=r"text\.templates was .*a photo of a.*; weights was .*--restart"):
        score(other, dataset(folder), "val", out=tmp_path)
    label = dataset(folder).pairs[0][2]
    before = label.stat()
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        with pytest.raises(UnfinishedError, match="files was"):
            score(model, dataset(folder), "val", out=tmp_path)
    finally:
        os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    score(model, dataset(folder), "val", out=tmp_path)
    kept = (tmp_path / "val.json").read_text()
    with pytest.raises(ResultError, match=r"val\.json: is the result of another evaluation .*weights was"):
        score(other, dataset(folder), "val", out=tmp_path)
    assert (tmp_path / "val.json").read_text() == kept
    assert score(other, dataset(folder), "val", out=tmp_path, restart=True).hash != json.loads(kept)["hash"]
    (tmp_path / "val.json").write_text("{}")
    with pytest.raises(ResultError, match="move it away"):
        score(other, dataset(folder), "val", out=tmp_path)


def test_restarted_and_stopped_it_goes_on(model, folder, tmp_path):
    score(tiny_model(seed=1), dataset(folder), "val", out=tmp_path)
    interrupted(model, dataset(folder), 4, out=tmp_path, restart=True)
    assert [file.name for file in tmp_path.iterdir()] == ["val.part0.safetensors"]
    assert score(model, dataset(folder), "val", out=tmp_path).scores == score(model, dataset(folder), "val").scores


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]],
                         ids=["cut short", "one bit"])  # fmt: skip
def test_a_damaged_part_is_said_and_scored_again(model, folder, tmp_path, damage):
    interrupted(model, dataset(folder), 4, out=tmp_path)
    part = tmp_path / "val.part0.safetensors"
    part.write_bytes(damage(part.read_bytes()))
    with pytest.warns(UserWarning, match=r"part0\.safetensors: is damaged"):
        result = score(model, dataset(folder), "val", out=tmp_path)
    assert result.scores == score(model, dataset(folder), "val").scores


def test_progress_without_a_terminal_is_lines(model, folder, tmp_path, monkeypatch, capsys):
    interrupted(model, dataset(folder), 4, out=tmp_path)
    monkeypatch.setattr("fgaseg.evaluation.evaluator.SAID_SECONDS", 0.0)
    score(model, dataset(folder), "val", out=tmp_path, progress=True)
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said[0] == "going on: 4 of 12 pictures were scored before"
    assert said[1:] == [f"scored {number} of 12 pictures" for number in range(5, 13)]


SLOW = """
import sys, time
import fgaseg.evaluation.evaluator as e
from fgaseg import FGASeg
from fgaseg.weights import read_weights
from fgaseg.cli import main
label = FGASeg.predict_labels
def slow(self, *arguments):
    time.sleep(0.15)
    return label(self, *arguments)
FGASeg.predict_labels, e.SAVE_SECONDS = slow, 0.0
e.Unfinished.__init__.__defaults__ = (0.0,)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_killed_it_goes_on_with_another_number_of_processes(kind, saved, folder, model, tmp_path, capsys):
    command = ["eval", str(saved), *flags(folder), "--out", str(tmp_path / "out"), "--json", "--device", "cpu"]
    run = subprocess.Popen([sys.executable, "-c", SLOW, *command], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "val.part0.safetensors").exists() and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(kind)
    error = run.communicate()[1]
    assert run.returncode == (-9 if kind == signal.SIGKILL else 128 + kind), error
    if kind != signal.SIGKILL:
        assert "run the same command again to resume" in error and "Traceback" not in error
    done = read_weights(tmp_path / "out" / "val.part0.safetensors")["done"]
    assert 0 < len(done) < 12
    if kind == signal.SIGKILL:  # two processes finish what one began
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fgaseg"]
        done = subprocess.run([*torchrun, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["records"]["val"]["free"]["processes"] == 2
    else:
        assert main(command) == 0
        found = json.loads(capsys.readouterr().out)
    whole = score(model, dataset(folder), "val")
    assert found["scores"]["val"] == whole.scores.dump() and found["records"]["val"]["hash"] == whole.hash


# --- Table I and the command


@pytest.fixture
def sets(folder, monkeypatch):
    """The pictures above as several sets: as pas20b, prompts 3 and 4 are both of class 3."""

    def opened(name, root, split="val"):
        assert (Path(root), split) == (folder, "val")
        data = dataset(folder)
        data.name = name
        if name == "pas20b":
            data.classes, data.class_of = [*NAMES[:3], "background"], [0, 1, 2, 3, 3]
            data._read_labels = lambda file: np.where((labels := read_labels(file)) == 4, 3, labels)
        return data

    monkeypatch.setattr("fgaseg.data.open_set", opened)
    return folder


def run_json(capsys, *words):
    assert main(["eval", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_prompts_are_mapped_to_classes_before_counting(model, saved, sets, tmp_path, capsys):
    found = run_json(capsys, "--data", "pas20,pas20b", "--model", saved, "--root", sets, "--out", tmp_path)
    fine, coarse = (found["scores"][name]["per_class"] for name in ("pas20", "pas20b"))
    assert [row["name"] for row in coarse] == [*NAMES[:3], "background"]
    assert coarse[:3] == fine[:3]
    assert coarse[3]["predicted"] == fine[3]["predicted"] + fine[4]["predicted"] > 0
    data = dataset(sets)
    both = [(data[n]["labels"].numpy(), model.segment(data.pairs[n][1], NAMES).labels) for n in range(12)]
    assert coarse[3]["correct"] == sum(int(((a != 255) & (a >= 3) & (b >= 3)).sum()) for a, b in both)
    records = [found["records"][name]["record"]["data"] for name in ("pas20", "pas20b")]
    assert [(r["prompts"], r["classes"]) for r in records] == [(5, 5), (5, 4)]
    assert records[0]["names"] != records[1]["names"]


def test_table_one_as_printed_and_as_json(saved, sets, tmp_path, capsys):
    command = ["--data", "pas20,a150", "--model", saved, "--root", sets, "--out", tmp_path / "out"]
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
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a150.csv", "a150.json", "pas20.csv", "pas20.json"]


def test_what_is_not_comparable_is_said_once_each(saved, sets, tmp_path, capsys):
    command = ["--data", "a150", "--model", saved, "--root", sets]
    lines = run_json(capsys, *command, "--count", 3, "--out", tmp_path / "a")["cautions"]
    for words in ("first 3 of 12", "12 pictures, the published set 2000", "'a photo of a {}', published with",
                  "all synonyms", "seen whole"):  # fmt: skip
        assert sum(words in line for line in lines) == 1, words
    as_published = ["--window", "--template", "A photo of a {} in the scene", "first_synonym=true"]
    found = run_json(capsys, *command, *as_published, "--count", 2, "--out", tmp_path / "b")
    left = [line for line in found["cautions"] if "union is" not in line]
    assert len(left) == 2 and all("pictures" in line for line in left)
    found = run_json(capsys, *command, "--template", "imagenet_select", "--precision", "bfloat16", "--count", 1,
                     "--out", tmp_path / "c")  # fmt: skip
    assert any("7 templates" in line for line in found["cautions"])
    assert any("bfloat16" in line for line in found["cautions"])
    assert found["records"]["a150"]["record"]["numerics"]["autocast"] == "torch.bfloat16"


def test_union_below_the_published_definition_is_said(model, folder):
    result = score(model, dataset(folder), "pc459", count=1)
    rows = [row for row in result.scores.rows if row.labelled]
    absent = ClassScore("absent", 0, 0, 5)
    lower = replace(result, scores=Scores(1, [*rows, absent]))
    same = replace(result, scores=Scores(1, rows))
    assert any("lower by its definition alone" in line for line in cautions("pc459", lower, 5104))
    assert not any("definition" in line for line in cautions("pc459", same, 5104))


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
def test_a_mistake_is_one_line(words, message, saved, sets, capsys, monkeypatch):
    if "a151" in words:
        monkeypatch.undo()
    assert main(["eval", *({"MODEL": str(saved), "FOLDER": str(sets)}.get(word, word) for word in words)]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_top_k_of_a_fast_model(folder, tmp_path, capsys):
    tiny_model(fast=True).save_pretrained(tmp_path / "fast")
    hashes = set()
    for k in ("1", "3", "all"):
        found = run_json(capsys, tmp_path / "fast", *flags(folder), "--top-k", k, "--count", 2)
        assert found["records"]["val"]["record"]["model"]["top_k"] == (None if k == "all" else int(k))
        hashes.add(found["records"]["val"]["hash"])
    assert len(hashes) == 3
