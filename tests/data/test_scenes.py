"""Drawn scenes: the split keeps its promise, labels lie where the shapes are, and a scene depends on its seed alone."""

from pathlib import Path

import numpy as np
import pytest
import recorded_scenes
import torch
from safetensors.torch import load_file

from fgaseg.data.images import to_pixels
from fgaseg.data.scenes import (
    COLOURS,
    GROUNDS,
    NAMES,
    RAINBOW,
    SEEN,
    SHAPES,
    UNSEEN,
    SceneDataset,
    _draw_grounds,
    scene,
)


def present(labels: np.ndarray) -> set[str]:
    return {NAMES[value] for value in np.unique(labels)}


def test_a_fifth_of_the_pairs_is_unseen_and_every_part_is_seen():
    pairs = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
    assert set(SEEN) | set(UNSEEN) == pairs and not set(SEEN) & set(UNSEEN)
    assert 0.18 <= len(UNSEEN) / len(pairs) < 0.23
    for part in [*COLOURS, *SHAPES]:
        assert sum(part in name.split() for name in SEEN) >= 4
        # the rainbow holds every hue, so it is seen with every shape
        assert sum(part in name.split() for name in UNSEEN) >= (part != "rainbow")
    assert len(set(NAMES)) == len(NAMES) and len(NAMES) <= 255


AREAS = {"star": 1.4397, "ring": 3.1326, "square": 2.5088, "triangle": 1.7180, "cross": 2.0988}  # without the hole


def test_outlines_are_what_they_are_called():
    assert SHAPES.keys() == AREAS.keys()
    for name, (outline, *hole) in SHAPES.items():
        x, y = outline.T
        assert abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2 == pytest.approx(AREAS[name], abs=1e-3)
        assert len(hole) == (name == "ring")
    arms = {(round(abs(x), 2), round(abs(y), 2)) for x, y in SHAPES["cross"][0]}
    assert arms == {(0.33, 0.96), (0.33, 0.33), (0.96, 0.33)}
    assert SHAPES["star"][0][0] == pytest.approx((0, -1.08)) and SHAPES["triangle"][0][0] == pytest.approx((0, -1.15))
    assert np.abs(SHAPES["square"][0]) == pytest.approx(0.792, abs=1e-3)  # the first two point up, and it lies flat
    (outline, hole) = SHAPES["ring"]
    assert np.hypot(*outline.T) == pytest.approx(1) and np.hypot(*hole.T) == pytest.approx(0.54)


def test_scenes_look_as_they_did_when_the_demonstration_was_trained():
    """The outlines' antialiasing may differ between versions of Pillow, by far less than a pixel."""
    made = recorded_scenes.scenes()
    recorded = load_file(Path(recorded_scenes.__file__).with_name("recordings") / "scenes.safetensors")
    assert made.keys() == recorded.keys()
    for name, values in recorded.items():
        if name.endswith("labels"):
            assert (made[name] != values).float().mean() < 0.002, name
        else:
            torch.testing.assert_close(made[name], values, rtol=0, atol=0.4, msg=name)


def test_two_grounds_meet_along_a_line_that_leans_either_way():
    scenes, steep, leaning = 200, [], []
    for seed in range(scenes):
        _, labels = _draw_grounds(np.random.default_rng(seed), 48, 48, 1.0)
        if len(np.unique(labels)) == 2:
            beyond = labels == labels[-1, -1]
            down = beyond[24:].mean() - beyond[:24].mean()
            right = beyond[:, 24:].mean() - beyond[:, :24].mean()
            steep.append(abs(right) > abs(down))  # the line runs downwards
            leaning.append(min(down, right, key=abs))
    assert 0.4 < len(leaning) / scenes < 0.6 and 0.2 < np.mean(steep) < 0.4
    assert 0.35 < np.mean(np.array(leaning) > 0) < 0.65 and 0.05 < np.std(leaning) < 0.15


def test_training_never_shows_an_unseen_pair():
    data = SceneDataset("train", 300, 48)
    assert data.names == SEEN + GROUNDS
    shown = {data.names[value] for item in data for value in item["labels"].unique()}
    assert not shown & set(UNSEEN)
    assert shown == set(data.names)  # and everything else, often


def test_evaluation_splits_show_the_pairs_they_are_named_after():
    for split, allowed in (("seen", SEEN), ("unseen", UNSEEN)):
        data = SceneDataset(split, 150, 48)
        assert data.names == SEEN + UNSEEN + GROUNDS
        shown = {data.names[value] for item in data for value in item["labels"].unique()}
        assert shown == {*allowed, *GROUNDS}


def test_same_seed_same_scene_and_other_seed_other_scene():
    one, again, other = scene(5, 64, SEEN), scene([5], 64, SEEN), scene(6, 64, SEEN)
    np.testing.assert_array_equal(one[0], again[0])
    np.testing.assert_array_equal(one[1], again[1])
    assert not np.array_equal(one[0], other[0])


def test_items_depend_on_split_seed_epoch_and_index():
    def image(split="train", seed=0, epoch=0, index=0):
        data = SceneDataset(split, 4, 32, seed)
        data.set_epoch(epoch)
        return data[index]["pixels"]

    first = image()
    torch.testing.assert_close(first, image(), rtol=0, atol=0)
    for other in (image(split="seen"), image(seed=1), image(epoch=1), image(index=1)):
        assert not torch.equal(first, other)
    torch.testing.assert_close(image("seen"), image("seen", epoch=3), rtol=0, atol=0)


def test_an_item_is_the_scene_of_its_split_seed_epoch_and_index():
    for number, (split, names) in enumerate({"train": SEEN + 2 * RAINBOW, "seen": SEEN, "unseen": UNSEEN}.items()):
        data = SceneDataset(split)
        data.set_epoch(3)
        epoch = 3 if split == "train" else 0
        image, labels = scene([0, number, epoch, 999], 96, names)
        item = data[len(data) - 1]
        assert item["stem"] == f"{split}-{epoch}-999"
        torch.testing.assert_close(item["pixels"], to_pixels(image), rtol=0, atol=0)
        named = [data.names[value] for value in item["labels"].unique()]
        assert sorted(named) == sorted(present(labels))
        assert data.scored == (UNSEEN if split == "unseen" else SEEN + GROUNDS)


def test_persistent_workers_follow_set_epoch():
    data = SceneDataset("train", 4, 32)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        got = torch.cat([batch["pixels"] for batch in loader])
        torch.testing.assert_close(got, torch.stack([item["pixels"] for item in data]), rtol=0, atol=0)


def test_items_have_the_form_of_the_folder_items():
    train, seen = SceneDataset("train", 2, (40, 56))[1], SceneDataset("seen", 2, (40, 56))[1]
    assert set(train) == {"pixels", "labels", "stem"} and set(seen) == {*train, "image"}
    assert train["pixels"].shape == (3, 40, 56) and train["pixels"].dtype == torch.float32
    assert train["labels"].shape == (40, 56) and train["labels"].dtype == torch.int64
    assert seen["image"].shape == (40, 56, 3) and seen["image"].dtype == torch.uint8
    assert len(list(SceneDataset("train", 3, 32))) == 3


@pytest.mark.parametrize("size", [16, 96, (24, 200), (150, 31), 224])
def test_any_size(size):
    for seed in range(10):
        image, labels = scene(seed, size, SEEN)
        assert image.dtype == labels.dtype == np.uint8
        assert image.shape[:2] == labels.shape == (size if isinstance(size, tuple) else (size, size))


def test_every_object_is_well_visible():
    """No drawn object is nearly hidden: each leaves a hundred pixels or more at 96 x 96, and every scene has one."""
    for seed in range(100):
        _, labels = scene(seed, 96, SEEN + UNSEEN)
        objects = [value for value in np.unique(labels) if NAMES[value] not in GROUNDS]
        assert objects
        for value in objects:
            assert (labels == value).sum() > 100, (seed, NAMES[value])
        assert present(labels) & set(GROUNDS)


def test_labels_lie_on_the_colour_they_name():
    """The mean hue of the pixels labelled with a colour is that colour's, so labels and image are aligned."""
    from PIL import Image

    for colour, (hue, _, _) in COLOURS.items():
        image, labels = scene(11, 128, [f"{colour} square"])
        hsv = np.asarray(Image.fromarray(image).convert("HSV"), np.float64)[labels < len(SEEN + UNSEEN)] / 255
        if colour == "rainbow":
            assert np.ptp(hsv[:, 0]) > 0.4
        elif colour == "white":
            assert hsv[:, 1].mean() < 0.25 and hsv[:, 2].mean() > 0.6
        else:
            angle = np.angle(np.exp(2j * np.pi * (hsv[:, 0] - hue)).mean()) / (2 * np.pi)
            assert abs(angle) < 0.04, colour


def test_the_hole_of_a_ring_is_ground():
    found = 0
    for seed in range(30):
        _, labels = scene(seed, 96, ["blue ring"])
        y, x = np.nonzero(labels == NAMES.index("blue ring"))
        centre = labels[round(y.mean()), round(x.mean())]
        touches = min(y.min(), x.min()) == 0 or max(y.max(), x.max()) == 95
        if np.ptp(y) < 60 and np.ptp(x) < 60 and not touches:  # a single, whole ring
            found += 1
            assert NAMES[centre] in GROUNDS
    assert found >= 3


def test_shapes_differ_in_more_than_a_few_pixels():
    """Any two shapes, at equal size and upright, cover less than 85 % in common."""
    from fgaseg.data.scenes import _mask

    masks = {shape: np.asarray(_mask(shape, 14, 0, 1, 40, (0, 0))) > 127 for shape in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            if one != other:
                both, either = (masks[one] & masks[other]).sum(), (masks[one] | masks[other]).sum()
                assert both / either < 0.85, (one, other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 8, SEEN), "size 8x8 is too small"),
        ((0, 32, []), "names holds nothing"),
        ((0, 32, ["red star", "grey star"]), r"names holds \['grey star'\]: give colour-shape pairs"),
    ],
    ids=str,
)
def test_wrong_arguments_say_why(arguments, words):
    with pytest.raises(ValueError, match=words):
        scene(*arguments)


def test_unknown_split_and_index_beyond_the_end():
    with pytest.raises(ValueError, match="split is 'test': give 'train', 'seen' or 'unseen'"):
        SceneDataset("test")
    with pytest.raises(IndexError):
        SceneDataset("train", 3)[3]
