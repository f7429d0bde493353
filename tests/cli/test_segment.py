"""`fgaseg segment`, as typed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import SHARED
from PIL import Image
from tiny import NAMES, tiny_model

import fgaseg
import fgaseg.model.prompts
from fgaseg.cli import main
from fgaseg.kernels import decode_runs

DATA = SHARED / "data"


def test_segment_writes_a_picture_and_masks_that_cover_the_photo(model, photo, tmp_path, capsys):
    out = tmp_path / "labelled.png"
    command = ["segment", photo, "--model", model, "--classes", ", ".join(NAMES), "--out", str(out), "--json"]
    assert main([*command, "--pseudo-masks"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["size"] == [30, 40] and sum(row["classes"].values()) == pytest.approx(1)
    covered = sum(decode_runs(np.array(runs), 30, 40) for runs in row["masks"].values())
    assert (covered == 1).all()
    assert Image.open(out).width >= 40 and Image.open(row["pseudo_masks"]).width > 0


@pytest.mark.parametrize("threshold", ["0.25", "0.999"])
def test_pseudo_masks_where_nothing_is_found(model, photo, tmp_path, threshold):
    command = ["segment", photo, "--model", model, "--classes", ", ".join(NAMES), "--out", str(tmp_path / "out.png")]
    assert main([*command, "--pseudo-masks", "--threshold", threshold, "--background", "wall, sky"]) == 0
    assert main([*command, "--pseudo-masks", "--threshold", threshold]) == 0
    assert Image.open(tmp_path / "out_masks.png").width > 0


def test_switches_and_precision_of_one_run(model, photo, tmp_path, capsys, monkeypatch):
    command = ["segment", photo, "--model", model, "--classes", "cat, dog", "--out", str(tmp_path / "o.png"), "--json"]
    seen = []
    segment = fgaseg.FGASeg.segment

    def spy(self, *args, **options):
        weight = self.head.fuse.linear.weight
        seen.append((self.config.inference, self.config.class_maps_budget, self.precision, weight.dtype))
        return segment(self, *args, **options)

    monkeypatch.setattr(fgaseg.FGASeg, "segment", spy)
    assert main(command) == 0
    given = ["inference=windows", "--precision", "bfloat16", "class_maps_budget=0"]
    assert main([*command, *given]) == 0
    assert seen == [("whole", None, "float32", torch.float32), ("windows", 0, "bfloat16", torch.bfloat16)]
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
    assert main([*command[:2], photo, *command[3:]]) == 0  # the same photo twice
    assert capsys.readouterr().out.count("photo.png: ") == 1


def test_a_file_with_an_equals_sign_in_its_name_is_a_photo(model, photo, tmp_path, monkeypatch, capsys):
    Path(photo).rename(tmp_path / "seed=1.png")
    monkeypatch.chdir(tmp_path)
    assert main(["segment", "seed=1.png", "inference=whole", "--model", model, "--classes", "cat, dog", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] == "seed=1_labels.png"


SKY = '{"vehicle": ["car", "van"], "sky": ["sky"]}'
TYPED = {
    "cat, dog": ["cat", "dog"],
    "cat; dog": ["cat", "dog"],
    "cat. dog.": ["cat", "dog"],
    "'cat, kitten', dog": ["cat, kitten", "dog"],
    "car | automobile | van, person, sky": ["car", "person", "sky"],
    SKY: ["vehicle", "sky"],
}
FILES = {
    "names.txt": ("1: cat\n0: dog\n", ["dog", "cat"]),
    "coco.json": ('{"categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}]}', ["cat", "dog"]),
    "yolo.yaml": ("nc: 2\nnames: [cat, dog]\n", ["cat", "dog"]),
    "names.csv": ("id,name\n0,unlabeled\n1,cat\n2,dog\n", ["cat", "dog"]),
    "synonyms.yaml": ("vehicle: [car, van]\nsky: sky | clouds\n", ["vehicle", "sky"]),
    "labelmap.txt": ("cat:1,2,3::\ndog:4,5,6::\n", ["cat", "dog"]),
}


def segmented(arguments, monkeypatch):
    """The exit status, and the classes of the result."""
    seen, segment = [], fgaseg.FGASeg.segment

    def spy(self, *args, **options):
        seen.append(segment(self, *args))
        return seen[-1]

    monkeypatch.setattr(fgaseg.FGASeg, "segment", spy)
    return main(["segment", *arguments]), [list(one.classes) for one in seen]


@pytest.mark.parametrize("text", TYPED)
def test_names_as_people_type_them(model, photo, tmp_path, monkeypatch, text):
    out = str(tmp_path / "o.png")
    assert segmented([photo, "--model", model, "--classes", text, "--out", out], monkeypatch) == (0, [TYPED[text]])


@pytest.mark.parametrize("file", FILES)
def test_names_of_other_tools(model, photo, tmp_path, monkeypatch, file):
    text, classes = FILES[file]
    (tmp_path / file).write_text(text)
    command = [photo, "--model", model, "--names", str(tmp_path / file), "--out", str(tmp_path / "o.png")]
    assert segmented([*command, "--pseudo-masks"], monkeypatch) == (0, [classes])


def test_what_is_told_of_names_is_told_once(model, photo, tmp_path, capsys, monkeypatch):
    command = ["segment", photo, "--model", model, "--out", str(tmp_path / "o.png"), "--compare", model]
    assert main([*command, "--classes", "orange_star; Water; water; 猫"]) == 0
    told = capsys.readouterr().err
    for words in ("read as 4 classes", "'orange_star' as 'orange star'", "'water' is 'Water'", "hardly knows '猫'"):
        assert told.count(words) == 1  # though there are two models
    for file in ("names.txt", "classes.JSON", "a/b.yaml"):
        assert main([*command, "--classes", file]) == 1 and "give it as --names" in capsys.readouterr().err
    assert main([*command, "--classes", "cat: dog"]) == 1 and "'cat: dog' looks like more" in capsys.readouterr().err
    assert main([*command, "--classes", ", "]) == 1 and "holds no name" in capsys.readouterr().err


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no photos at {DATA}")
def test_real_photo(model, tmp_path, capsys):
    photo = str(DATA / "msrc_v2" / "images" / "10_10_s.jpg")
    names = str(DATA / "msrc_v2" / "names.txt")
    assert main(["segment", photo, "--model", model, "--names", names, "--out", str(tmp_path / "out.png")]) == 0
    assert Image.open(tmp_path / "out.png").width >= 300


@pytest.mark.parametrize(
    ("options", "classes", "background", "threshold"),
    [(["--background", "other"], ("cat", "dog", "other"), 2, None),
     (["--background", "wall, sky | clouds; ground"], ("cat", "dog", "background"), 2, None),
     (["--background", "Stuff", "--threshold", "0.4"], ("cat", "dog", "background"), 2, 0.4),
     (["--background", "dog"], ("cat", "dog"), 1, None),
     (["--threshold", "0.9"], ("cat", "dog", "nothing"), 2, 0.9)],
)  # fmt: skip
def test_background_and_threshold(model, photo, tmp_path, monkeypatch, options, classes, background, threshold):
    results, segment = [], fgaseg.FGASeg.segment

    def spy(self, *args, **given):
        results.append((segment(self, *args, **given), given.get("threshold")))
        return results[-1][0]

    monkeypatch.setattr(fgaseg.FGASeg, "segment", spy)
    out = ["--out", str(tmp_path / "o.png")]
    assert main(["segment", photo, "--model", model, "--classes", "cat, dog", *options, *out]) == 0
    ((result, given),) = results
    assert (result.classes, result.nothing, given) == (classes, background, threshold)


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--threshold", "50"], "--threshold 50: is a probability"), (["--threshold", "0"], "between 0 and 1"),
     (["--threshold", "nan"], "between 0 and 1"), (["--background", " "], "--background")],
)  # fmt: skip
def test_wrong_backgrounds_and_thresholds_are_one_line(model, photo, capsys, options, text):
    assert main(["segment", photo, "--model", model, "--classes", "cat, dog", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
