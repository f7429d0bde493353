"""Augmentation: labels stay on their photo, what is padded is ignored, colours change as in SSD."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from sample_data import as_bytes, make_folder

from fgaseg.config import DataConfig
from fgaseg.data import augmentation
from fgaseg.data.augmentation import augment
from fgaseg.data.folders import FolderDataset


@pytest.mark.parametrize("scale", [(0.4, 0.5), (1.0, 1.0), (1.5, 3.0)])
def test_labels_stay_on_their_photo(tmp_path, scale):
    """Wherever the augmented labels name a class, the photo shows that class: scale, crop, pad and flip agree."""
    data = FolderDataset(make_folder(tmp_path, flip=True, scale=scale), "train")
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
    config = make_folder(tmp_path, size=(32, 32))
    item = FolderDataset(config, "train")[2]
    np.testing.assert_array_equal(
        as_bytes(item["pixels"])[0], np.asarray(Image.open(tmp_path / "images/p2.png"))[..., 0]
    )
    np.testing.assert_array_equal(item["labels"], np.asarray(Image.open(tmp_path / "labels/p2.png")))


def test_padding_is_grey_and_ignored(tmp_path):
    config = make_folder(tmp_path, crop=64, short_edge=20, color_jitter=True)
    item = FolderDataset(config, "train")[0]
    assert (item["labels"][20:] == 255).all() and (item["labels"][:, 28:] == 255).all()
    assert (as_bytes(item["pixels"])[:, 20:] == 128).all() and (as_bytes(item["pixels"])[:, :, 28:] == 128).all()
    assert (item["labels"][:20, 2:28] < 3).all()


@pytest.mark.parametrize("scale, short_edge, side", [(2.0, None, 32), (0.5, None, 8), (0.5, 20, 10), (1.5, 8, 12)])
def test_the_shorter_side_becomes_the_short_edge_times_the_scale(scale, short_edge, side):
    config = DataConfig(crop=16, short_edge=short_edge, scale=(scale, scale), flip=False, color_jitter=False)
    labels = np.arange(8 * 12).reshape(8, 12)
    _, out = augment(Image.new("RGB", (12, 8)), labels, config, np.random.default_rng(0))
    shown = min(side, 16), min(side * 12 // 8, 16)
    assert (out != 255).sum() == shown[0] * shown[1] and (out[: shown[0], : shown[1]] != 255).all()
    across, down = (len(np.unique(line[line != 255])) for line in (out[0], out[:, 0]))  # pixels of the photo
    assert (across, down) == pytest.approx((shown[1] * 8 / side, shown[0] * 8 / side), abs=1)


def test_flip_happens_in_half_of_the_cases(tmp_path):
    config = make_folder(tmp_path, count=1, size=(32, 32), flip=True)
    data = FolderDataset(config, "train")
    left = 0
    for epoch in range(60):
        data.set_epoch(epoch)
        left += bool((data[0]["labels"][:, 0] == 255).all())
    assert 15 < left < 45


def test_jitter_changes_the_photo_and_never_the_labels(tmp_path):
    config = make_folder(tmp_path, size=(32, 32))
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


def test_each_colour_step_is_taken_in_half_of_the_cases_within_its_range(monkeypatch):
    """Contrast comes before saturation and hue, or after them."""
    ranges = {"_brightness": (-32, 32), "_contrast": (0.5, 1.5), "_saturation": (0.5, 1.5), "_hue": (-25.6, 25.6)}
    taken = []
    for name in ranges:
        monkeypatch.setattr(augmentation, name, lambda image, by, name=name: taken[-1].update({name: by}) or image)
    rng, image = np.random.default_rng(0), Image.new("RGB", (1, 1))
    for _ in range(1000):
        taken.append({})
        augmentation._jitter_colours(image, rng)
    for name, (low, high) in ranges.items():
        amounts = [one[name] for one in taken if name in one]
        margin = (high - low) / 50
        assert 450 < len(amounts) < 550
        assert low <= min(amounts) < low + margin and high - margin < max(amounts) <= high
    orders = [list(one) for one in taken]
    assert all(order[0] == "_brightness" for order in orders if "_brightness" in order)
    assert all(
        order.index("_saturation") < order.index("_hue") for order in orders if {"_saturation", "_hue"} <= {*order}
    )
    for other in ("_saturation", "_hue"):
        both = [order for order in orders if {"_contrast", other} <= {*order}]
        assert 0.4 < np.mean([order.index("_contrast") < order.index(other) for order in both]) < 0.6


def test_augment_copes_with_one_pixel():
    config = DataConfig(crop=16, scale=(0.5, 2.0))
    image, labels = augment(Image.new("RGB", (1, 1)), np.zeros((1, 1), np.int64), config, np.random.default_rng(0))
    assert image.size == (16, 16) and labels.shape == (16, 16) and (labels == 0).any()


def test_augment_copes_with_a_ribbon():
    config = DataConfig(crop=16)
    image, labels = augment(Image.new("RGB", (900, 2)), np.ones((2, 900), np.int64), config, np.random.default_rng(0))
    assert image.size == (16, 16) and (labels == 1).all()


def test_crops_are_parts_of_the_resized_labels_and_reach_every_border():
    config = DataConfig(crop=8, short_edge=16, scale=(1.0, 1.0), flip=False, color_jitter=False)
    labels = np.arange(8 * 12).reshape(8, 12) + 1000
    resized = labels.repeat(2, axis=0).repeat(2, axis=1)  # 16 x 24
    photo = Image.fromarray(np.arange(8 * 12, dtype=np.uint8).reshape(8, 12) * 2).convert("RGB")
    places = set()
    for seed in range(600):
        image, out = augment(photo, labels, config, np.random.default_rng(seed))
        starts = np.argwhere(resized == out[0, 0]).tolist()
        found = [(y, x) for y, x in starts if np.array_equal(resized[y : y + 8, x : x + 8], out)]
        assert len(found) == 1 and image.size == (8, 8)
        places.add(found[0])
        assert np.abs(np.asarray(image)[2:6, 2:6, 1].astype(int) - (out[2:6, 2:6] - 1000) * 2).max() <= 24
    assert {y for y, _ in places} == set(range(9)) and {x for _, x in places} == set(range(17))
