"""Prepared benchmark sets as data sets: for training, for evaluation, from other layouts and other scripts."""

import json
import shutil

import pytest
import torch
from PIL import Image
from sample_data import FULL, damage
from tiny import tiny_config, tiny_model

from fgaseg.cli import main
from fgaseg.config import Config, DataConfig, load_config
from fgaseg.data.benchmark_sets import BENCHMARK_SETS
from fgaseg.data.checks import check
from fgaseg.data.from_config import benchmark_data_sets
from fgaseg.data.preparation import prepare
from fgaseg.data.prepared_sets import open_set
from fgaseg.errors import ConfigError, DataError, ImageError
from fgaseg.training import train

pytestmark = pytest.mark.filterwarnings("ignore:.*scores are not comparable")


def test_labels_that_other_scripts_prepared_are_accepted(tree, tmp_path):
    prepare(["a150", "pas20", "a847"], tree)
    expected = {name: [item["labels"] for item in open_set(name, tree)] for name in ("a150", "pas20", "a847")}
    for folder in ("ADEChallengeData2016/annotations", "VOCdevkit/VOC2012/SegmentationClassAug", f"{FULL}/images",
                   "VOCdevkit/VOC2012/ImageSets"):  # fmt: skip
        shutil.rmtree(tree / folder)
    for file in (tree / FULL / "annotations_detectron2/validation").iterdir():
        Image.open(file).save(file, compression=None)
    for name, labels in expected.items():
        with pytest.warns(UserWarning, match="scores are not comparable"):
            data = open_set(name, tree)
        assert all(torch.equal(item["labels"], one) for item, one in zip(data, labels, strict=True))
        [row] = prepare([name], tree)
        assert row.converted == 0 and row.already == len(labels)
        [row] = check([name], tree)
        assert row.state == "incomplete" and row.problems.keys() == {"count"}


def test_benchmark_sets_as_training_data(tree, monkeypatch):
    prepare(["coco-stuff", "a150"], tree)
    data = DataConfig(set="coco-stuff", val_set="a150", root=tree, crop=64)
    train_set, scored = benchmark_data_sets(data, seed=3)
    assert len(train_set) == 13 and list(scored) == ["a150"] and len(scored["a150"]) == 9
    item = train_set[4]
    assert item["pixels"].shape == (3, 64, 64) and item["labels"].shape == (64, 64)
    assert set(item["labels"].unique().tolist()) <= {*range(171), 255}
    again, _ = benchmark_data_sets(data, seed=3)
    assert torch.equal(again[4]["pixels"], item["pixels"])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tree))
    assert len(benchmark_data_sets(DataConfig(set="coco-stuff"))[0]) == 13
    with pytest.raises(ConfigError, match="two training sets: give one"):
        load_config(None, "data.set=coco-stuff", "data.images=photos")
    with pytest.raises(ConfigError, match="coco-stuff ignores label 255"):
        Config().override("data.set=coco-stuff", "data.ignore=254")


def test_a_damaged_prepared_label_names_itself(tree):
    prepare(["pas20"], tree)
    damage(tree / "VOCdevkit/VOC2012/annotations_detectron2/val/fcn_demo.png", 20)
    with pytest.raises(
        DataError, match=r"fcn_demo\.png: holds label 20 \(.*\), but labels are 0 to 19 \(the classes of pas20\)"
    ):
        list(open_set("pas20", tree))
    damage(tree / "VOCdevkit/VOC2012/annotations_detectron2/val/fcn_demo.png", "cut")
    with pytest.raises(ImageError, match=r"fcn_demo\.png: is truncated"):
        list(open_set("pas20", tree))


def test_a_model_trains_on_one_set_and_is_scored_on_another(tree, tmp_path):
    prepare(["coco-stuff"], tree, split="train")
    prepare(["pas20b"], tree)
    config = Config(
        model=tiny_config(), data={"set": "coco-stuff", "val_set": "pas20b", "root": tree, "crop": 32, "val_count": 1},
        train={"out": tmp_path / "run", "steps": 2, "batch": 2, "classes_per_step": 8, "tensorboard": False},
    )  # fmt: skip
    scores = train(config, progress=False).scores["pas20b"]
    assert scores.images == 1 and len(scores.rows) == 21 and scores.pixels > 0


def test_a_set_in_another_layout_is_scored_like_the_prepared_one(tree, tmp_path, capsys):
    prepare(["pas20b"], tree)
    tiny_model().save_pretrained(tmp_path / "model")
    place, command = (
        BENCHMARK_SETS["pas20b"].splits["val"],
        ["eval", "--data", "pas20b", "--model", str(tmp_path / "model")],
    )
    flags = [["--root", str(tree)], ["--images", str(tree / place.images), "--labels", str(tree / place.prepared)]]
    results = []
    for number, given in enumerate(flags):
        assert main([*command, *given, "--json", "--out", str(tmp_path / str(number))]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert len({one["records"]["pas20b"]["hash"] for one in results}) == 1
    assert results[0]["scores"] == results[1]["scores"]
    assert main([*command, *flags[1][:2]]) == 1 and "give both" in capsys.readouterr().err
    assert main([*command, *flags[1], "--root", str(tree)]) == 1 and "one set" in capsys.readouterr().err
