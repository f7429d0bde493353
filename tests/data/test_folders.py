"""Folders of photos and labels: what is paired, what an item holds and depends on, and what bad data says."""

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import SHARED
from PIL import Image

from fgaseg.config import DataConfig
from fgaseg.data import augmentation
from fgaseg.data.augmentation import augment
from fgaseg.data.class_names import read_names
from fgaseg.data.folders import FolderDataset, read_labels
from fgaseg.data.images import CLIP_MEAN, CLIP_STD
from fgaseg.errors import DataError, ImageError

DATA = SHARED / "data"
PLAIN = {"flip": False, "color_jitter": False, "crop": 32}


def make(root: Path, count: int = 4, size: tuple[int, int] = (40, 56), **settings: object) -> DataConfig:
    """``count`` photos whose red value is 40 times the label, void at the left edge."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "names.txt").write_text("sky\ngrass\ncat\n")
    rng = np.random.default_rng(0)
    for number in range(count):
        labels = np.kron(rng.integers(0, 3, (size[0] // 8, size[1] // 8)), np.ones((8, 8))).astype(np.uint8)
        photo = np.stack([labels * 40, np.full_like(labels, 50), np.full_like(labels, 90)], axis=-1)
        labels[:, :3] = 255
        Image.fromarray(photo).save(root / "images" / f"p{number}.png")
        Image.fromarray(labels).save(root / "labels" / f"p{number}.png")
    paths = {"images": root / "images", "labels": root / "labels", "names": root / "names.txt"}
    return DataConfig(**(paths | PLAIN | settings))


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]) * 255).round()


def test_train_item(tmp_path):
    item = FolderDataset(make(tmp_path), "train")[0]
    assert set(item) == {"pixels", "labels", "stem"} and item["stem"] == "p0"
    assert item["pixels"].shape == (3, 32, 32) and item["pixels"].dtype == torch.float32
    assert item["labels"].shape == (32, 32) and item["labels"].dtype == torch.int64
    assert set(item["labels"].unique().tolist()) <= {0, 1, 2, 255}


def test_val_item_is_the_whole_photo(tmp_path):
    data = FolderDataset(make(tmp_path), "val")
    item = data[1]
    assert set(item) == {"image", "labels", "stem"}
    np.testing.assert_array_equal(item["image"], np.asarray(Image.open(tmp_path / "images" / "p1.png")))
    np.testing.assert_array_equal(item["labels"], np.asarray(Image.open(tmp_path / "labels" / "p1.png")))
    assert item["image"].dtype == torch.uint8 and item["labels"].dtype == torch.int64
    assert data.names == ["sky", "grass", "cat"] and len(data) == 4 and data.skipped == []


def test_iterating_ends(tmp_path):
    assert len(list(FolderDataset(make(tmp_path), "val"))) == 4


@pytest.mark.parametrize("scale", [(0.4, 0.5), (1.0, 1.0), (1.5, 3.0)])
def test_labels_stay_on_their_photo(tmp_path, scale):
    """Wherever the augmented labels name a class, the photo shows that class: scale, crop, pad and flip agree."""
    data = FolderDataset(make(tmp_path, flip=True, scale=scale), "train")
    seen = 0
    for epoch in range(10):
        data.set_epoch(epoch)
        for item in data:
            red, labels = as_bytes(item["pixels"])[0], item["labels"]
            known = labels != 255
            off = (red - labels * 40).abs()[known]
            seen += int(known.sum())
            assert (off > 20).float().mean() < 0.2  # borders of the 8-pixel blocks blend
    assert seen > 10_000


def test_nothing_to_change_changes_nothing(tmp_path):
    config = make(tmp_path, size=(32, 32))
    item = FolderDataset(config, "train")[2]
    np.testing.assert_array_equal(
        as_bytes(item["pixels"])[0], np.asarray(Image.open(tmp_path / "images/p2.png"))[..., 0]
    )
    np.testing.assert_array_equal(item["labels"], np.asarray(Image.open(tmp_path / "labels/p2.png")))


def test_padding_is_grey_and_ignored(tmp_path):
    config = make(tmp_path, crop=64, short_edge=20, color_jitter=True)
    item = FolderDataset(config, "train")[0]
    assert (item["labels"][20:] == 255).all() and (item["labels"][:, 28:] == 255).all()
    assert (as_bytes(item["pixels"])[:, 20:] == 128).all() and (as_bytes(item["pixels"])[:, :, 28:] == 128).all()
    assert (item["labels"][:20, 2:28] < 3).all()


def test_flip_happens_in_half_of_the_cases(tmp_path):
    config = make(tmp_path, count=1, size=(32, 32), flip=True)
    data = FolderDataset(config, "train")
    left = 0
    for epoch in range(60):
        data.set_epoch(epoch)
        left += bool((data[0]["labels"][:, 0] == 255).all())
    assert 15 < left < 45


def test_jitter_changes_the_photo_and_never_the_labels(tmp_path):
    config = make(tmp_path, size=(32, 32))
    plain = FolderDataset(config, "train")
    jittered = FolderDataset(config.model_copy(update={"color_jitter": True}), "train")
    changed = 0
    for epoch in range(10):
        plain.set_epoch(epoch)
        jittered.set_epoch(epoch)
        for one, other in zip(plain, jittered, strict=True):
            torch.testing.assert_close(one["labels"], other["labels"], rtol=0, atol=0)
            changed += not torch.equal(one["pixels"], other["pixels"])
    assert changed > 25  # four steps, each in half of the cases


def test_colour_steps_are_those_of_ssd():
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image, real = Image.fromarray(values), values.astype(float)

    def in_hsv(change):
        pixels = (colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*rgb))) for rgb in real.reshape(-1, 3) / 255)
        return 255 * np.array(list(pixels)).reshape(8, 8, 3)

    for got, expected, close in (
        (augmentation._brightness(image, -30.0), real - 30, 1),
        (augmentation._contrast(image, 1.4), real * 1.4, 1),
        (augmentation._saturation(image, 0.6), in_hsv(lambda h, s, v: (h, s * 0.6, v)), 8),
        (augmentation._saturation(image, 1.5), in_hsv(lambda h, s, v: (h, min(s * 1.5, 1), v)), 8),
        (augmentation._hue(image, 20.0), in_hsv(lambda h, s, v: ((h + 20 / 256) % 1, s, v)), 8),
    ):
        assert np.abs(np.asarray(got) - np.clip(expected, 0, 255)).max() <= close  # HSV has 8 bits a channel
        assert np.abs(np.asarray(got) - real).max() > 2 * close


def test_item_depends_only_on_seed_epoch_and_index(tmp_path):
    config = make(tmp_path, flip=True, color_jitter=True, scale=(0.5, 2.0))
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


def test_workers_give_the_same_items_and_hear_of_the_epoch(tmp_path):
    data = FolderDataset(make(tmp_path, color_jitter=True, scale=(0.5, 2.0)), "train", seed=1)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        got = torch.cat([batch["pixels"] for batch in loader])
        torch.testing.assert_close(got, torch.stack([item["pixels"] for item in data]), rtol=0, atol=0)


def test_lists_choose_and_order_the_pairs(tmp_path):
    config = make(tmp_path)
    (tmp_path / "train.txt").write_text("p3\np0.png\n\np3\n")
    (tmp_path / "val.txt").write_text("p1\n")
    config = config.model_copy(update={"train_list": tmp_path / "train.txt", "val_list": tmp_path / "val.txt"})
    assert [stem for stem, _, _ in FolderDataset(config, "train").pairs] == ["p3", "p0"]
    assert [stem for stem, _, _ in FolderDataset(config, "val").pairs] == ["p1"]


def test_validation_may_have_its_own_folders(tmp_path):
    config, other = make(tmp_path / "a"), make(tmp_path / "b", count=2)
    config = config.model_copy(update={"val_images": other.images, "val_labels": other.labels})
    assert len(FolderDataset(config, "train")) == 4 and len(FolderDataset(config, "val")) == 2


def test_sub_folders_are_paired_by_path(tmp_path):
    config = make(tmp_path)
    for folder in ("images", "labels"):
        (tmp_path / folder / "town").mkdir()
        (tmp_path / folder / "p0.png").rename(tmp_path / folder / "town" / "p0.png")
    assert [stem for stem, _, _ in FolderDataset(config, "val").pairs] == ["p1", "p2", "p3", "town/p0"]


def test_unpaired_and_foreign_files_are_left_out_and_said(tmp_path):
    config = make(tmp_path)
    (tmp_path / "images" / "p0.png").unlink()
    (tmp_path / "labels" / "p1.png").unlink()
    (tmp_path / "images" / "notes.md").write_text("x")
    (tmp_path / "images" / ".DS_Store").write_text("x")
    with pytest.warns(UserWarning, match=r"train: 3 files left out, the first: .*notes\.md"):
        data = FolderDataset(config, "train")
    assert [stem for stem, _, _ in data.pairs] == ["p2", "p3"]
    assert len(data.skipped) == 3
    assert any("p1.png: has no label picture" in reason for reason in data.skipped)
    assert any("p0.png: has no photo" in reason for reason in data.skipped)


def test_palette_and_sixteen_bit_labels(tmp_path):
    values = np.array([[0, 1, 255], [2, 20, 7]], np.uint8)
    coloured = Image.fromarray(values).convert("P")
    coloured.putdata(values.ravel().tolist())
    coloured.putpalette(list(range(256)) * 3)
    coloured.save(tmp_path / "voc.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "voc.png"), values)
    deep = np.array([[0, 846, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        np.testing.assert_array_equal(read_labels(tmp_path / name), deep)


def test_sixteen_bit_ignore(tmp_path):
    config = make(tmp_path, count=1, size=(32, 32), ignore=65535)
    labels = np.full((32, 32), 65535, np.uint16)
    labels[4:] = 2
    Image.fromarray(labels).save(tmp_path / "labels" / "p0.png")
    assert FolderDataset(config, "val")[0]["labels"].unique().tolist() == [2, 65535]
    assert FolderDataset(config, "train")[0]["labels"].unique().tolist() == [2, 65535]


def test_label_out_of_range_names_file_value_and_range(tmp_path):
    config = make(tmp_path)
    Image.fromarray(np.full((40, 56), 3, np.uint8)).save(tmp_path / "labels" / "p2.png")
    data = FolderDataset(config, "train")
    with pytest.raises(
        DataError, match=r"p2\.png: holds label 3, .* 0 to 2 .*names\.txt.* or 255 \(ignored\): correct"
    ):
        data[2]


def test_colour_picture_as_label_says_so(tmp_path):
    config = make(tmp_path)
    Image.new("RGB", (56, 40)).save(tmp_path / "labels" / "p1.png")
    with pytest.raises(DataError, match=r"p1\.png: is a RGB picture: labels are one number per pixel"):
        FolderDataset(config, "val")[1]


def test_sizes_that_differ_name_both_files(tmp_path):
    config = make(tmp_path)
    Image.new("L", (20, 20)).save(tmp_path / "labels" / "p1.png")
    with pytest.raises(DataError, match=r"images/p1\.png and .*labels/p1\.png differ in size, 56x40 .* and 20x20"):
        FolderDataset(config, "val")[1]


@pytest.mark.parametrize("folder", ["images", "labels"])
@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n1234", "half"])
def test_unreadable_file_names_itself(tmp_path, folder, content):
    config = make(tmp_path)
    file = tmp_path / folder / "p1.png"
    file.write_bytes(file.read_bytes()[:-40] if content == "half" else content)
    with pytest.raises(ImageError, match=rf"{folder}/p1\.png: is "):
        FolderDataset(config, "train")[1]


def test_error_reaches_the_user_from_a_worker(tmp_path):
    config = make(tmp_path, count=1)
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
        ({"images": "nowhere"}, r"data\.images=.*nowhere: is missing: name a folder"),
        ({"labels": "names.txt"}, r"data\.labels=.*names\.txt: is not a folder"),
        ({"names": "nowhere.txt"}, r"nowhere\.txt: cannot be read as a names file \(No such file"),
        ({"names": "images"}, r"images: cannot be read as a names file \(Is a directory"),
        ({"train_list": "nowhere.txt"}, r"nowhere\.txt: cannot be read"),
        ({"train_list": "empty.txt"}, r"empty\.txt: is empty: list"),
        ({"train_list": "wrong.txt"}, r"wrong\.txt: lists 'p9', which has no photo in .*images: add the file or drop"),
        ({"images": "void"}, r"\(0 photos\) and .*\(4 label pictures\) have no pair.*same name"),
        ({"ignore": 2}, r"data\.ignore is 2, the label of 'cat'.*65535"),
    ],
    ids=str,
)
def test_wrong_settings_say_what_to_set(tmp_path, change, words):
    config = make(tmp_path)
    (tmp_path / "void").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.txt").write_text("p1\np9\n")
    change = {key: tmp_path / value if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(DataError, match=words):
        FolderDataset(config.model_copy(update=change), "train")


def test_listed_photo_without_labels_is_an_error(tmp_path):
    config = make(tmp_path)
    (tmp_path / "labels" / "p1.png").unlink()
    (tmp_path / "train.txt").write_text("p1\n")
    with pytest.raises(DataError, match=r"lists 'p1', which has no label picture"):
        FolderDataset(config.model_copy(update={"train_list": tmp_path / "train.txt"}), "train")


def test_two_photos_of_one_name_are_an_error(tmp_path):
    config = make(tmp_path)
    Image.new("RGB", (56, 40)).save(tmp_path / "images" / "p1.jpg")
    with pytest.raises(DataError, match=r"p1\.png and .*p1\.jpg have the same name: keep one"):
        FolderDataset(config, "train")


def test_unknown_split(tmp_path):
    with pytest.raises(DataError, match="split is 'test': give 'train' or 'val'"):
        FolderDataset(make(tmp_path), "test")


def test_names_as_text_and_json(tmp_path):
    names = ["sky", "dark green tree", "猫", "!?", "bed"]
    (tmp_path / "a.txt").write_bytes("\ufeffsky\r\ndark green tree\r\n猫\r\n!?\r\nbed \r\n\r\n".encode())
    (tmp_path / "a.json").write_text(json.dumps([*names[:-1], "bed "]))
    assert read_names(tmp_path / "a.txt") == read_names(tmp_path / "a.json") == names


def test_ten_thousand_names(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"class {n}" for n in range(10_000)))
    assert len(read_names(tmp_path / "a.txt")) == 10_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"names\.txt: holds no names: give one class name a line"),
        (b"  \n\n", r"holds no names"),
        (b"[]", r"holds no names"),
        (b"cat\ndog\ncat\n", r"names 1 and 3 are both 'cat'"),
        (b"cat\n\ndog\n", r"name 2 is empty"),
        (b"caf\xe9\n", r"not UTF-8"),
        (b'["cat", 3]', r"not a JSON list of strings"),
        (b'["cat", ', r"not valid JSON \(line 1"),
    ],
    ids=str,
)
def test_bad_names_file_says_why(tmp_path, content, words):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_names(tmp_path / "names.txt")


def test_augment_copes_with_one_pixel():
    config = DataConfig(crop=16, scale=(0.5, 2.0))
    image, labels = augment(Image.new("RGB", (1, 1)), np.zeros((1, 1), np.int64), config, np.random.default_rng(0))
    assert image.size == (16, 16) and labels.shape == (16, 16) and (labels == 0).any()


def test_augment_copes_with_a_ribbon():
    config = DataConfig(crop=16)
    image, labels = augment(Image.new("RGB", (900, 2)), np.ones((2, 900), np.int64), config, np.random.default_rng(0))
    assert image.size == (16, 16) and (labels == 1).all()


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


@pytest.mark.skipif(not (DATA / "classes").exists(), reason=f"name lists are not at {DATA / 'classes'}")
@pytest.mark.parametrize(("file", "count"), [("ade150", 150), ("ade847", 847), ("pc459", 459), ("coco", 171)])
def test_real_name_lists_load(file, count):
    assert len(read_names(DATA / "classes" / f"{file}.json")) == count
