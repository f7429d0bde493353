"""Labels that are wrong end a run before its first step."""

import numpy as np
import pytest
import torch
from PIL import Image
from runs import configure, log

from fgaseg.data import data_sets
from fgaseg.errors import CheckpointError, DataError, ImageError
from fgaseg.training import label_check, train

pytestmark = pytest.mark.filterwarnings("ignore:.*validation photos are the training photos")


@pytest.fixture
def validation(data, tmp_path):
    """Validation folders of three photos, and a function that writes their labels."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()

    def write(number, labels):
        file = tmp_path / f"labels/{number}.png"
        Image.fromarray(np.resize(np.array(labels, np.uint8), (40, 44))).save(file)
        return file

    for number in range(3):
        (tmp_path / f"images/{number}.png").write_bytes((data / f"images/{number}.png").read_bytes())
        write(number, [0, 1, 255])
    return write, [f"data.val_images={tmp_path / 'images'}", f"data.val_labels={tmp_path / 'labels'}"]


WRONG = {
    "out of range": ([0, 77], DataError, r"validation labels: .*2\.png: holds label 77 \(17 % of the pixels\)"),
    "one more than names": ([0, 6], DataError, r"2\.png: holds label 6 .*Likely cause: 0 is one value more"),
    "another size": (None, DataError, r"2\.png is 44x40 \(upright\), .*2\.png is 4x4"),
    "cut": (b"", ImageError, r"2\.png: is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_validation_labels_are_read_before_the_first_step(name, data, tmp_path, validation):
    values, error, words = WRONG[name]
    write, keys = validation
    if values is None:
        Image.new("L", (4, 4)).save(write(2, [0]))
    elif values == b"":
        write(2, [0]).write_bytes(b"")
    else:
        write(2, values)
    config = configure(data, tmp_path / "out", [*keys, "train.eval_every=0"])
    with pytest.raises(error, match=words):
        train(config, progress=False)
    assert not (tmp_path / "out/log.jsonl").exists() and not (tmp_path / "out/checkpoint").exists()
    train(config.override("data.val_count=2", "train.steps=1"), progress=False)  # it is not among those scored


@pytest.mark.parametrize("values", [[0, 255], [0], [4, 255]])
def test_labels_that_teach_one_class_are_refused(values, data, tmp_path):
    (tmp_path / "labels").mkdir()
    for file in (data / "labels").iterdir():
        Image.fromarray(np.resize(np.array(values, np.uint8), (40, 44))).save(tmp_path / "labels" / file.name)
    config = configure(data, tmp_path / "out", [f"data.labels={tmp_path / 'labels'}"])
    with pytest.raises(DataError, match=r"training labels: (labels hold only 0 and 255|'\w.*' is the only class)"):
        train(config, progress=False)


def test_a_train_list_of_every_photo_is_refused_before_training(data, tmp_path):
    (tmp_path / "all.txt").write_text("".join(f"{number}\n" for number in range(10)))
    config = configure(data, tmp_path / "out", [f"data.train_list={tmp_path / 'all.txt'}"])
    with pytest.raises(DataError, match=r"all\.txt: lists all 10 photos .* none is left to validate on"):
        train(config, progress=False)


def test_shares_are_logged_once(data, tmp_path, caplog):
    caplog.set_level("INFO", "fgaseg")
    train(configure(data, tmp_path / "out", ["train.steps=1"]), progress=False)
    said = [line for line in caplog.text.splitlines() if "label files: " in line]
    assert len(said) == 2 and "training labels: 10 label files: " in said[0] and "validation labels: 3 " in said[1]
    assert log(tmp_path / "out")


def test_the_first_process_looks_at_folders_alone(data, tmp_path, monkeypatch):
    """A second at the labels of training, and at all those of validation that are scored."""
    train_set, val_sets = data_sets(configure(data, tmp_path))
    said, device = [], torch.device("cpu")
    monkeypatch.setattr(label_check, "check_labels", lambda *given, **options: said.append((given, options)))
    label_check.check_before_training(train_set, val_sets | {"a150": object()}, 7, device, True)
    label_check.check_before_training(object(), val_sets, None, device, False)
    validation = (val_sets["val"], "validation labels")
    assert said == [
        ((train_set, "training labels"), {"seconds": 1.0, "training": True}),
        (validation, {"count": 7, "progress": True}),
        (validation, {"count": None, "progress": False}),
    ]
    monkeypatch.setattr(label_check, "rank", lambda: 1)
    label_check.check_before_training(train_set, val_sets, 7, device, True)
    assert len(said) == 3
    monkeypatch.setattr(label_check, "any_process", lambda failed, _: not failed)  # what the first process says
    with pytest.raises(DataError, match="the labels cannot be used; the message of the main process says why"):
        label_check.check_before_training(train_set, val_sets, 7, device, True)


def test_a_run_is_not_resumed_with_another_label_map(data, tmp_path):
    numbers = dict(enumerate((data / "names.txt").read_text().split("\n")))
    for name, entries in (("first", numbers), ("moved", numbers), ("other", numbers | {0: numbers[1], 1: numbers[0]})):
        (tmp_path / f"{name}.yaml").write_text("".join(f"{value}: {text}\n" for value, text in entries.items()))
    keys = ["train.steps=2", "train.save_every=1"]
    config = configure(data, tmp_path / "out", [*keys, f"data.label_map={tmp_path / 'first.yaml'}"])
    train(config, progress=False)
    train(config.override(f"data.label_map={tmp_path / 'moved.yaml'}"), progress=False)
    with pytest.raises(CheckpointError, match=r"data\.label_map or data\.ignore gave the values .* other meanings"):
        train(config.override(f"data.label_map={tmp_path / 'other.yaml'}"), progress=False)
    with pytest.raises(CheckpointError, match="other meanings"):
        train(config.override("data.label_map=null"), progress=False)
