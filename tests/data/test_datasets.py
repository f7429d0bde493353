"""Pairs of photos and labels as items: normalisation, values without a meaning, labels that are turned."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from sample_data import make_folder

from fgaseg.data import FolderDataset
from fgaseg.data.class_names import LabelSpace
from fgaseg.data.datasets import PairDataset, upright_labels
from fgaseg.data.folders import split_folders
from fgaseg.data.label_maps import LabelMap
from fgaseg.errors import DataError


def test_items_are_normalised_as_the_encoder_asks(tmp_path):
    config = make_folder(tmp_path, size=(32, 32))
    data = FolderDataset(config, "train")
    data.normalization = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    photo = np.asarray(Image.open(config.images / "p0.png"), np.float32) / 255
    torch.testing.assert_close(data[0]["pixels"], torch.from_numpy(photo).permute(2, 0, 1))


def test_values_without_a_meaning_are_errors_or_void(tmp_path):
    config = make_folder(tmp_path, count=1)
    labels = np.array(Image.open(config.labels / "p0.png"))
    labels[3, 9] = 77
    Image.fromarray(labels).save(config.labels / "p0.png")
    data = FolderDataset(config, "val")
    with pytest.raises(DataError, match=r"p0\.png: holds label 77"):
        data.read_pair(0)
    image, read = data.read_pair(0, strict=False)
    assert image.size == (56, 40) and read[3, 9] == 255
    np.testing.assert_array_equal(np.where(labels == 77, 255, labels), read)


def test_a_set_of_pairs_by_itself(tmp_path):
    config = make_folder(tmp_path, count=2, color_jitter=True)
    pairs = [(stem, config.images / f"{stem}.png", config.labels / f"{stem}.png") for stem in ("p1", "p0")]
    space = LabelSpace(["a", "b", "c"], ["a", "b", "c"], 255, None, "names")
    data = PairDataset("two", pairs, space)
    assert [item["stem"] for item in (data[0], data[1])] == ["p1", "p0"] and (data.name, data.ignore) == ("two", 255)
    one, other, third = (PairDataset("two", pairs, space, config, *seed)[0]["pixels"] for seed in ((), (0,), (1,)))
    assert torch.equal(one, other) and not torch.equal(one, third)


def test_labels_of_another_size_than_their_photo(tmp_path):
    config = make_folder(tmp_path, count=1)
    Image.new("L", (40, 56)).save(config.labels / "p0.png")
    with pytest.raises(
        DataError, match=r"p0\.png and .*p0\.png differ in size, 56x40 \(upright\) and 40x56: every pixel"
    ):
        FolderDataset(config, "val")[0]


def test_labels_are_turned_as_their_photo_is(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg", exif=exif)
    labels = np.arange(6).reshape(2, 3)
    turned = np.rot90(labels, -1)
    for size, rotated, expected in (
        ((2, 3), None, turned), ((2, 3), True, turned), ((2, 3), False, labels), ((3, 2), None, labels),
        ((3, 2), True, labels), ((9, 9), None, labels), ((9, 9), True, labels),
    ):  # fmt: skip
        np.testing.assert_array_equal(upright_labels(labels, tmp_path / "a.jpg", size, rotated), expected)
    square, size = labels.reshape(2, 3)[:, :2], (2, 2)
    assert upright_labels(square, tmp_path / "a.jpg", size, None) is square
    np.testing.assert_array_equal(upright_labels(square, tmp_path / "a.jpg", size, True), np.rot90(square, -1))


def test_which_pairs_are_for_training_and_which_for_validation(tmp_path):
    config, other = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", count=3)
    for name, text in (("t.txt", "p0\np1\n"), ("v.txt", "p1\n")):
        (tmp_path / name).write_text(text)
    lists = {"train_list": tmp_path / "t.txt"}
    folders = {"val_images": other.images, "val_labels": other.labels}
    expected = {  # of training, of validation
        (): ("0123", "0123"), ("train_list",): ("01", "23"), ("val_list",): ("0123", "1"),
        ("train_list", "val_list"): ("01", "1"), ("folders",): ("0123", "012"),
        ("train_list", "folders"): ("01", "012"), ("folders", "val_list"): ("0123", "1"),
    }  # fmt: skip
    for keys, stems in expected.items():
        update = {key: {**lists, "val_list": tmp_path / "v.txt"}[key] for key in keys if key != "folders"}
        given = config.model_copy(update=update | (folders if "folders" in keys else {}))
        data = [FolderDataset(given, split) for split in ("train", "val")]
        assert tuple("".join(pair[0][1:] for pair in one.pairs) for one in data) == stems
        assert (data[0].augmentation is None, data[1].augmentation is None) == (False, True)
        assert data[1].name == str(other.images if "folders" in keys else config.images)
    with pytest.raises(DataError, match="FolderDataset: split is 'test': give 'train' or 'val'"):
        FolderDataset(config, "test")
    (config.images / "z.png").symlink_to(config.images / "p0.png")
    with pytest.warns(
        UserWarning, match=rf"^val: 1 files left out, the first: {config.images}/z\.png: has no label"
    ) as told:
        assert len(FolderDataset(config, "val").skipped) == 1
    assert told[0].filename == __file__


def test_folders_that_are_not_set(tmp_path):
    config = make_folder(tmp_path)
    for key in ("images", "labels"):
        with pytest.raises(
            DataError, match=rf"^data.{key} is not set: set it to a path, for example data.{key}=my_data/"
        ):
            split_folders(config.model_copy(update={key: None}), "train")
    among = config.model_copy(update={"labels": None, "label_suffix": "_mask"})
    assert split_folders(among, "train") == (config.images, config.images)


def test_a_file_is_read_rather_than_a_preset_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert LabelMap.read("camvid").origin == "the preset camvid"
    (tmp_path / "camvid").write_text("7: car\n")
    found = LabelMap.read("camvid")
    assert (found.names, found.origin) == ({7: "car"}, "camvid")
    assert LabelMap.read({7: "car", 8: "car | van"}).origin == "data.label_map"
    assert LabelMap.read({8: "car | van"}).prompts == {"car": ("car", "van")}
    with pytest.raises(DataError, match=r"none: cannot be read as a label map .*.*, or one of a150, a847, camvid"):
        LabelMap.read("none")
