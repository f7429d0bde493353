"""Panoramas are seen in tiles along their long side; every other photo as it always was."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, tiny_model

from fgaseg.inference import panoramas, prediction
from fgaseg.inference.panoramas import tiles


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Blobs rather than noise, so that neighbouring pixels agree."""
    small = np.random.default_rng(seed).integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("length", [241, 300, 1000, 3000, 30_001])
@pytest.mark.parametrize("breadth", [1, 3, 47, 60])
@pytest.mark.parametrize("shortest", [32, 96])
def test_tiles_cover_the_photo_and_each_pixel_has_context_on_both_sides(length, breadth, shortest):
    found = tiles(length, breadth, shortest)
    size = found[0].stop - found[0].start
    assert all(tile.stop - tile.start == size for tile in found)
    assert found[0].start == found[0].first == 0 and found[-1].stop == found[-1].last == length
    for before, after in pairwise(found):
        assert before.last == after.first
        assert before.stop - before.last >= size // 8 - 1 and after.first - after.start >= size // 8 - 1
    assert size == min(max(2 * breadth, shortest), length)
    assert len(found) <= length / (0.75 * size) + 1


@pytest.mark.parametrize("size", [(30, 120), (120, 30), (40, 50), (1, 1), (1, 4), (8, 32)])
def test_a_photo_up_to_four_times_as_long_as_broad_is_seen_whole(size):
    model, photo = tiny_model(), picture(*size)
    result, vocabulary = model.segment(photo, NAMES), model.encode(NAMES)
    with torch.inference_mode():
        labels, scores = prediction.label(model, prediction._whole(model, photo), vocabulary, size)
    np.testing.assert_array_equal(result.labels, labels[0].numpy())
    np.testing.assert_array_equal(result.scores, scores[0].numpy())


@pytest.mark.parametrize("size", [(20, 400), (400, 20), (30, 150), (3, 200)], ids=str)
def test_every_tile_of_a_panorama_is_labelled_as_the_crop_is(size):
    model, photo = tiny_model(), picture(*size)
    result = model.segment(photo, NAMES)
    assert result.labels.shape == result.scores.shape == size
    wide = size[1] > size[0]
    found = tiles(max(size), min(size), 4 * 64 // 8)
    assert len(found) > 1
    for tile in found:
        box = (tile.start, 0, tile.stop, size[0]) if wide else (0, tile.start, size[1], tile.stop)
        with torch.inference_mode():
            view = prediction._whole(model, photo.crop(box))
            labels, scores = prediction.label(model, view, model.encode(NAMES), (box[3] - box[1], box[2] - box[0]))
        kept, there = slice(tile.first - tile.start, tile.last - tile.start), slice(tile.first, tile.last)
        where, from_ = ((slice(None), there), (slice(None), kept)) if wide else ((there,), (kept,))
        np.testing.assert_array_equal(result.labels[where], labels[0].numpy()[from_])
        np.testing.assert_array_equal(result.scores[where], scores[0].numpy()[from_])


def test_the_view_of_a_tile_keeps_the_short_side():
    for height, width in ((60, 3000), (50, 400), (200, 5000)):
        tile = tiles(width, height, 96)[0]
        assert prediction.input_size(height, tile.stop - tile.start, 384, 16)[0] == 384
    assert panoramas.TILE_ASPECT < prediction.LONGEST_ASPECT


def test_that_windows_squash_a_panorama_is_told_once(monkeypatch, caplog):
    model = tiny_model(inference="windows")
    model.segment(picture(20, 30), NAMES)
    assert "squashed" not in caplog.text
    for _ in range(2):
        model.segment(picture(10, 60), NAMES)
    assert caplog.text.count("60x10 is squashed to a square") == 1 and "inference=whole" in caplog.text
