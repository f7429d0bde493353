"""What several commands share: words and overrides, mistakes, help."""

import json
import subprocess
import sys

import pytest
from paths import CONFIGS

from fgaseg.cli import main
from fgaseg.cli.entry import parse
from fgaseg.cli.options import model_and_overrides


def test_options_and_overrides_in_any_order():
    options = parse(["train", "c.yaml", "--restart", "train.steps=5", "--json", "model.fusion=add"])
    assert options.restart and options.json and options.words == ["train.steps=5", "model.fusion=add"]
    demo = parse(["demo", "--seed", "0,1,2", "train.steps=100"])
    assert demo.seed == [0, 1, 2] and demo.words == ["train.steps=100"]
    evaluation = parse(["eval", "top_k=4", "--data", "a150", "runs/model", "--window", "inference=whole"])
    assert model_and_overrides(evaluation.model, evaluation.words) == ("runs/model", ["top_k=4", "inference=whole"])


@pytest.mark.parametrize(
    "words, hint",
    [
        (["segment", "photo.jpg", "--model", "m", "--classes", "cat", "--set", "inference=windows"], "key=value"),
        (["eval", "--weights", "m", "--data", "a150"], "the model is --model"),
        (["info", "more"], "unrecognized arguments: more"),
        (["demo", "--seed", "0,x"], "'0,x': give whole numbers"),
    ],
)
def test_unknown_arguments(words, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and hint in capsys.readouterr().err


MISTAKES = {
    "no model": (["segment", "PHOTO", "--model", "nowhere", "--classes", "cat"], "no model has this name, and nothing"),
    "no name": (["models", "cat-seg-b17"], "'cat-seg-b17': no model has this name; did you mean cat-seg-b16"),
    "fetch what": (["models", "--fetch"], "--fetch: name the models to fetch"),
    "no photo": (["segment", "nothing.jpg", "--model", "MODEL", "--classes", "cat"], "no such file"),
    "empty class": (["segment", "PHOTO", "--model", "MODEL", "--classes", ", ,"], "holds no name"),
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
    "no saved model": (["segment", "PHOTO", "--model", "HERE", "--classes", "cat"], "give the folder of a"),
}  # fmt: skip


@pytest.mark.parametrize("command, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_no_traceback(command, message, model, photo, capsys):
    config = str(CONFIGS / "demo.yaml")
    given = {"PHOTO": photo, "MODEL": model, "CONFIG": config, "CONFIG/x.png": f"{config}/x.png", "HERE": str(CONFIGS)}
    command = [given.get(word, word) for word in command]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.startswith(f"fgaseg {command[0]}: ")


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
