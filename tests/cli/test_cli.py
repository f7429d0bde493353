"""The commands, as typed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import CONFIGS, SHARED
from PIL import Image
from tiny import NAMES, tiny_model

import fgaseg
from fgaseg.cli import main
from fgaseg.cli.entry import parse
from fgaseg.cli.options import model_and_overrides
from fgaseg.kernels import decode_runs

DATA = SHARED / "data"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_segment_writes_a_picture_and_masks_that_cover_the_photo(model, photo, tmp_path, capsys):
    out = tmp_path / "labelled.png"
    command = ["segment", photo, "--model", model, "--classes", ", ".join(NAMES), "--out", str(out), "--json"]
    assert main([*command, "--pseudo-masks"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["size"] == [30, 40] and sum(row["classes"].values()) == pytest.approx(1)
    covered = sum(decode_runs(np.array(runs), 30, 40) for runs in row["masks"].values())
    assert (covered == 1).all()
    assert Image.open(out).width >= 40 and Image.open(row["pseudo_masks"]).width > 0


def test_switches_and_precision_of_one_run(model, photo, tmp_path, capsys, monkeypatch):
    command = ["segment", photo, "--model", model, "--classes", "cat, dog", "--out", str(tmp_path / "o.png"), "--json"]
    seen = []
    segment = fgaseg.FGASeg.segment

    def spy(self, *args):
        seen.append((self.config.inference, self.config.class_maps_budget, torch.is_autocast_enabled("cpu")))
        return segment(self, *args)

    monkeypatch.setattr(fgaseg.FGASeg, "segment", spy)
    assert main(command) == 0
    given = ["inference=windows", "--precision", "bfloat16", "class_maps_budget=0"]
    assert main([*command, *given]) == 0
    assert seen == [("whole", None, False), ("windows", 0, True)]
    assert main([*command, "inferense=windows"]) == 1 and "did you mean" in capsys.readouterr().err
    assert main([*command, "inference=[whole"]) == 1 and "not valid YAML" in capsys.readouterr().err


def test_segment_several_photos_and_compare_models(model, photo, tmp_path, capsys):
    other = tmp_path / "other"
    tiny_model(seed=1, lcs=False).save_pretrained(other)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    second = tmp_path / "second.png"
    Image.open(photo).rotate(180).save(second)
    command = ["segment", photo, str(second), "--model", model, "--names", str(names), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    alone = Image.open(tmp_path / "out" / "second_labels.png").width
    assert main([*command, "--compare", str(other)]) == 0
    assert "photo_labels.png" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "second_labels.png").width > alone  # the photo and both models' labels
    assert main([*command[:2], photo, *command[3:]]) == 1
    assert "several photos would be written to" in capsys.readouterr().err


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


MISTAKES = {
    "no model": (["segment", "PHOTO", "--model", "nowhere", "--classes", "cat"], "neither a folder"),
    "no photo": (["segment", "nothing.jpg", "--model", "MODEL", "--classes", "cat"], "no such file"),
    "empty class": (["segment", "PHOTO", "--model", "MODEL", "--classes", "cat,,dog"], "entry 1 is empty"),
    "misspelt key": (["train", "CONFIG", "train.stepz=3"], "train.steps"),
    "no device": (["segment", "PHOTO", "--model", "MODEL", "--classes", "cat", "--device", "gpu"], "cannot be used"),
    "no config": (["train", "nowhere.yaml"], "cannot be read"),
    "no data": (["eval", "MODEL"], "give --data with names of sets (fgaseg data list), commas"),
    "half of the data": (["eval", "MODEL", "--images", "X", "--names", "X"], "or, for your own data, --labels"),
    "a set that is no model": (["eval", "MODEL", "--data", "a150", "pas20"], "give one model"),
    "out is a file": (["segment", "PHOTO", "--model", "MODEL", "--classes", "cat", "--out", "CONFIG/x.png"],
                      "demo.yaml is a file; give another"),
    "out cannot be": (["segment", "PHOTO", "--model", "MODEL", "--classes", "cat", "--out", "/proc/x/y.png"],
                      "cannot be written to"),
    "no photos": (["segment", "top_k=1", "--model", "MODEL", "--classes", "cat"], "give the photos"),
    "two models": (["convert", "--model", "MODEL", "MODEL", "--out", "x"], "give one model"),
    "not an override": (["train", "CONFIG", "fast"], "'fast' is not a key=value override"),
    "no saved model": (["segment", "PHOTO", "--model", "HERE", "--classes", "cat"], "is missing: give the folder of a"),
}  # fmt: skip


@pytest.mark.parametrize("command, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_no_traceback(command, message, model, photo, capsys):
    config = str(CONFIGS / "demo.yaml")
    given = {"PHOTO": photo, "MODEL": model, "CONFIG": config, "CONFIG/x.png": f"{config}/x.png", "HERE": str(CONFIGS)}
    command = [given.get(word, word) for word in command]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.startswith(f"fgaseg {command[0]}: ")


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


def test_options_and_overrides_in_any_order():
    options = parse(["train", "c.yaml", "--restart", "train.steps=5", "--json", "model.fusion=add"])
    assert options.restart and options.json and options.words == ["train.steps=5", "model.fusion=add"]
    demo = parse(["demo", "--seed", "0,1,2", "train.steps=100"])
    assert demo.seed == [0, 1, 2] and demo.words == ["train.steps=100"]
    evaluation = parse(["eval", "top_k=4", "--data", "a150", "runs/model", "--window", "inference=whole"])
    assert model_and_overrides(evaluation.model, evaluation.words) == ("runs/model", ["top_k=4", "inference=whole"])


def test_a_file_with_an_equals_sign_in_its_name_is_a_photo(model, photo, tmp_path, monkeypatch, capsys):
    Path(photo).rename(tmp_path / "seed=1.png")
    monkeypatch.chdir(tmp_path)
    assert main(["segment", "seed=1.png", "inference=whole", "--model", model, "--classes", "cat, dog", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] == "seed=1_labels.png"


@pytest.mark.parametrize(
    "words, hint",
    [
        (["segment", "photo.jpg", "--model", "m", "--classes", "cat", "--set", "inference=windows"], "key=value"),
        (["eval", "--weights", "m", "--data", "a150"], "the model is --model"),
        (["info", "more"], "unrecognized arguments: more"),
    ],
)
def test_unknown_arguments(words, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and hint in capsys.readouterr().err


def test_help_teaches_and_info_is_machine_readable(capsys):
    examples = {"demo": "--seed 1 --json", "train": "torchrun", "eval": "--csv per_class.csv",
                "ablate": "II IV --seed 0,1,2", "segment": "--pseudo-masks",
                "convert": "--to-released", "parity": "--root recordings"}  # fmt: skip
    for command, example in examples.items():
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0 and f"  fgaseg {command} " in (text := capsys.readouterr().out) and example in text
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["torch"]


def test_python_m_fgaseg_is_the_command():
    done = subprocess.run([sys.executable, "-m", "fgaseg", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "segment" in done.stdout


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no photos at {DATA}")
def test_real_photo(model, tmp_path, capsys):
    photo = str(DATA / "msrc_v2" / "images" / "10_10_s.jpg")
    names = str(DATA / "msrc_v2" / "names.txt")
    assert main(["segment", photo, "--model", model, "--names", names, "--out", str(tmp_path / "out.png")]) == 0
    assert Image.open(tmp_path / "out.png").width >= 300
