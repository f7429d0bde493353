"""Folders of photos and labels: what is paired, what an item holds and depends on, and what bad data says."""

import numpy as np
import pytest
import torch
from paths import SHARED
from PIL import Image
from sample_data import make_folder

from fgaseg.config import DataConfig
from fgaseg.data.folders import FolderDataset
from fgaseg.errors import DataError, ImageError

DATA = SHARED / "data"


def test_train_item(tmp_path):
    item = FolderDataset(make_folder(tmp_path), "train")[0]
    assert set(item) == {"pixels", "labels", "stem"} and item["stem"] == "p0"
    assert item["pixels"].shape == (3, 32, 32) and item["pixels"].dtype == torch.float32
    assert item["labels"].shape == (32, 32) and item["labels"].dtype == torch.int64
    assert set(item["labels"].unique().tolist()) <= {0, 1, 2, 255}


def test_val_item_is_the_whole_photo(tmp_path):
    data = FolderDataset(make_folder(tmp_path), "val")
    item = data[1]
    assert set(item) == {"image", "labels", "stem"}
    np.testing.assert_array_equal(item["image"], np.asarray(Image.open(tmp_path / "images" / "p1.png")))
    np.testing.assert_array_equal(item["labels"], np.asarray(Image.open(tmp_path / "labels" / "p1.png")))
    assert item["image"].dtype == torch.uint8 and item["labels"].dtype == torch.int64
    assert data.names == ["sky", "grass", "cat"] and len(data) == 4 and data.skipped == []


def test_iterating_ends(tmp_path):
    assert len(list(FolderDataset(make_folder(tmp_path), "val"))) == 4


def test_item_depends_only_on_seed_epoch_and_index(tmp_path):
    config = make_folder(tmp_path, flip=True, color_jitter=True, scale=(0.5, 2.0))
    first, again, other = (FolderDataset(config, "train", seed) for seed in (3, 3, 4))
    again.set_epoch(7)
    _ = again[2], torch.rand(5), np.random.rand(3)  # noqa: NPY002 - the global generators must not matter
    again.set_epoch(0)
    torch.testing.assert_close(first[1]["pixels"], again[1]["pixels"], rtol=0, atol=0)
    assert not torch.equal(first[1]["pixels"], other[1]["pixels"])
    again.set_epoch(1)
    assert not torch.equal(first[1]["pixels"], again[1]["pixels"])
    state = torch.get_rng_state()
    _ = first[0]
    assert torch.equal(state, torch.get_rng_state())


def test_workers_give_the_same_items_and_follow_set_epoch(tmp_path):
    data = FolderDataset(make_folder(tmp_path, color_jitter=True, scale=(0.5, 2.0)), "train", seed=1)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        got = torch.cat([batch["pixels"] for batch in loader])
        torch.testing.assert_close(got, torch.stack([item["pixels"] for item in data]), rtol=0, atol=0)


def test_lists_choose_and_order_the_pairs(tmp_path):
    config = make_folder(tmp_path)
    (tmp_path / "train.txt").write_text("p3\np0.png\n\np3\n")
    (tmp_path / "val.txt").write_text("p1\n")
    config = config.model_copy(update={"train_list": tmp_path / "train.txt", "val_list": tmp_path / "val.txt"})
    assert [stem for stem, _, _ in FolderDataset(config, "train").pairs] == ["p3", "p0"]
    assert [stem for stem, _, _ in FolderDataset(config, "val").pairs] == ["p1"]


def test_validation_may_have_its_own_folders(tmp_path):
    config, other = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", count=2)
    config = config.model_copy(update={"val_images": other.images, "val_labels": other.labels})
    assert len(FolderDataset(config, "train")) == 4 and len(FolderDataset(config, "val")) == 2


def test_sub_folders_are_paired_by_path(tmp_path):
    config = make_folder(tmp_path)
    for folder in ("images", "labels"):
        (tmp_path / folder / "town").mkdir()
        (tmp_path / folder / "p0.png").rename(tmp_path / folder / "town" / "p0.png")
    assert [stem for stem, _, _ in FolderDataset(config, "val").pairs] == ["p1", "p2", "p3", "town/p0"]


def test_unpaired_and_foreign_files_are_left_out_with_a_warning(tmp_path):
    config = make_folder(tmp_path)
    (tmp_path / "images" / "p0.png").unlink()
    (tmp_path / "labels" / "p1.png").unlink()
    (tmp_path / "images" / "notes.md").write_text("x")
    (tmp_path / "images" / ".DS_Store").write_text("x")
    with pytest.warns(UserWarning, match=r"train: 3 files left out, the first: .*notes\.md"):
        data = FolderDataset(config, "train")
    assert [stem for stem, _, _ in data.pairs] == ["p2", "p3"]
    assert len(data.skipped) == 3
    assert any("p1.png: has no label image" in reason for reason in data.skipped)
    assert any("p0.png: has no photo" in reason for reason in data.skipped)


def test_validation_photos_are_those_not_listed_for_training(tmp_path):
    config = make_folder(tmp_path)
    (tmp_path / "images" / "notes.md").write_text("x")
    (tmp_path / "train.txt").write_text("p1\np3\n")
    with pytest.warns(UserWarning, match="val: 1 files left out"):
        data = FolderDataset(config.model_copy(update={"train_list": tmp_path / "train.txt"}), "val")
    assert [stem for stem, _, _ in data.pairs] == ["p0", "p2"] and len(data.skipped) == 1


def test_sixteen_bit_ignore(tmp_path):
    config = make_folder(tmp_path, count=1, size=(32, 32), ignore=65535)
    labels = np.full((32, 32), 65535, np.uint16)
    labels[4:] = 2
    Image.fromarray(labels).save(tmp_path / "labels" / "p0.png")
    assert FolderDataset(config, "val")[0]["labels"].unique().tolist() == [2, 65535]
    assert FolderDataset(config, "train")[0]["labels"].unique().tolist() == [2, 65535]


def test_label_out_of_range_names_file_value_and_range(tmp_path):
    config = make_folder(tmp_path)
    Image.fromarray(np.full((40, 56), 3, np.uint8)).save(tmp_path / "labels" / "p2.png")
    data = FolderDataset(config, "train")
    with pytest.raises(
        DataError,
        match=r"p2\.png: holds label 3 \(100 % of .*\), .* 0 to 2 .*names\.txt.* or 255 \(ignored\): correct",
    ):
        data[2]


def test_colour_image_as_label_is_an_error(tmp_path):
    config = make_folder(tmp_path)
    Image.new("RGB", (56, 40), "red").save(tmp_path / "labels" / "p1.png")
    with pytest.raises(DataError, match=r"p1\.png: is a RGB image: a label image has one value per pixel"):
        FolderDataset(config, "val")[1]


def test_sizes_that_differ_name_both_files(tmp_path):
    config = make_folder(tmp_path)
    Image.new("L", (20, 20)).save(tmp_path / "labels" / "p1.png")
    with pytest.raises(DataError, match=r"images/p1\.png and .*labels/p1\.png differ in size, 56x40 .* and 20x20"):
        FolderDataset(config, "val")[1]


@pytest.mark.parametrize("folder", ["images", "labels"])
@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n1234", "half"])
def test_unreadable_file_names_itself(tmp_path, folder, content):
    config = make_folder(tmp_path)
    file = tmp_path / folder / "p1.png"
    file.write_bytes(file.read_bytes()[:-40] if content == "half" else content)
    with pytest.raises(ImageError, match=rf"{folder}/p1\.png: is "):
        FolderDataset(config, "train")[1]


def test_error_reaches_the_user_from_a_worker(tmp_path):
    config = make_folder(tmp_path, count=1)
    (tmp_path / "images" / "p0.png").write_bytes(b"")
    items = iter(torch.utils.data.DataLoader(FolderDataset(config, "train"), num_workers=1))
    with pytest.raises(ImageError, match=r"p0\.png: is empty"):
        next(items)
    assert next(items, None) is None  # also lets the worker end at once


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": None}, r"data\.images is not set: set it"),
        ({"labels": None}, r"data\.labels is not set"),
        ({"names": None}, r"data\.names is not set"),
        ({"images": "nowhere"}, r"nowhere: is missing: name a folder of photos"),
        ({"labels": "names.txt"}, r"names\.txt: is not a folder: name a folder of label images"),
        ({"names": "nowhere.txt"}, r"nowhere\.txt: cannot be read as a names file \(No such file"),
        ({"names": "images"}, r"images: cannot be read as a names file \(Is a directory"),
        ({"train_list": "nowhere.txt"}, r"nowhere\.txt: cannot be read"),
        ({"train_list": "empty.txt"}, r"empty\.txt: is empty: list"),
        (
            {"train_list": "wrong.txt"},
            r"wrong\.txt: lists 'p9', which has no photo in .*images: add the file or",
        ),
        ({"images": "void"}, r"\(0 photos\) and .*\(4 label images\) have no pair.*same name"),
        ({"ignore": 2}, r"names\.txt: label 2 is 'cat' and cannot be ignored too: set data\.ignore .*65535"),
    ],
    ids=str,
)
def test_wrong_settings_say_what_to_set(tmp_path, change, words):
    config = make_folder(tmp_path)
    (tmp_path / "void").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.txt").write_text("p1\np9\n")
    change = {key: tmp_path / value if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(DataError, match=words):
        FolderDataset(config.model_copy(update=change), "train")


def test_listed_photo_without_labels_is_an_error(tmp_path):
    config = make_folder(tmp_path)
    (tmp_path / "labels" / "p1.png").unlink()
    (tmp_path / "train.txt").write_text("p1\n")
    with pytest.raises(DataError, match=r"lists 'p1', which has no label image"):
        FolderDataset(config.model_copy(update={"train_list": tmp_path / "train.txt"}), "train")


def test_two_photos_of_one_name_are_an_error(tmp_path):
    config = make_folder(tmp_path)
    Image.new("RGB", (56, 40)).save(tmp_path / "images" / "p1.jpg")
    with pytest.raises(DataError, match=r"p1\.png and .*p1\.jpg have the same name: keep one"):
        FolderDataset(config, "train")


def test_unknown_split(tmp_path):
    with pytest.raises(DataError, match="split is 'test': give 'train' or 'val'"):
        FolderDataset(make_folder(tmp_path), "test")


@pytest.mark.skipif(not (DATA / "msrc_v2").exists(), reason=f"real photos are not at {DATA / 'msrc_v2'}")
def test_real_photos_load():
    root = DATA / "msrc_v2"
    config = DataConfig(
        images=root / "images",
        labels=root / "labels",
        names=root / "names.txt",
        train_list=root / "train.txt",
        val_list=root / "val.txt",
        crop=96,
        scale=(0.5, 2.0),
    )
    train, val = FolderDataset(config, "train"), FolderDataset(config, "val")
    assert (len(train), len(val), len(train.names)) == (441, 150, 23)
    assert not {stem for stem, _, _ in train.pairs} & {stem for stem, _, _ in val.pairs}
    for index in range(0, 441, 40):
        item = train[index]
        assert item["pixels"].shape == (3, 96, 96) and torch.isfinite(item["pixels"]).all()
    found = {int(label) for index in range(0, 150, 5) for label in val[index]["labels"].unique()}
    assert found <= {*range(23), 255} and len(found) > 15


@pytest.mark.skipif(not (DATA / "protocol").exists(), reason=f"real label files are not at {DATA / 'protocol'}")
def test_real_palette_labels_load(tmp_path):
    root = DATA / "protocol" / "VOCdevkit" / "VOC2012"
    (tmp_path / "names.txt").write_text("\n".join(f"class {n}" for n in range(21)))
    config = DataConfig(images=root / "JPEGImages", labels=root / "SegmentationClassAug", names=tmp_path / "names.txt")
    data = FolderDataset(config, "val")
    assert len(data) == 4
    for item in data:
        assert item["image"].shape[:2] == item["labels"].shape
