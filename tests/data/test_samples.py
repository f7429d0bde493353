"""Stored values as colours: which of them are black and white, and what is told of dull ones."""

import numpy as np
import pytest

from fgaseg.data.samples import Samples, View, choose_bands, limits, missing_pixels, note_spread, render, white_of
from fgaseg.errors import ImageError


@pytest.fixture
def told(monkeypatch, caplog):
    """The notes of one test."""
    return caplog


DULL = {  # lowest and highest value, type, white, and the range that is proposed
    "two digits, rounded up": (0, 0.0123, np.float32, 1.0, "0,0.013"),
    "two digits as they are": (0, 0.1, np.float64, 1.0, "0,0.1"),
    "negative": (-0.01, 0.05, np.float32, 1.0, "2%,98%"),
    "far from zero": (0.5, 0.6, np.float64, 1.0, "0,0.6"),
    "12 bits of 16": (0, 4095, np.uint16, 65535.0, "0,4095"),
    "13 bits of 16": (0, 4096, np.uint16, 65535.0, "0,8191"),
    "a band of values": (8000, 12000, np.uint16, 65535.0, "2%,98%"),
    "the lower quarter begins": (2500, 10000, np.uint16, 65535.0, "0,16383"),
}


@pytest.mark.parametrize("name", DULL)
def test_dull_values_are_told_with_a_range_that_shows_them(told, name):
    low, high, dtype, white, cure = DULL[name]
    values = np.linspace(low, high, 400).astype(dtype).reshape(20, 20, 1)
    values[:2], values[-2:] = low, high  # percentiles leave out the last half in a hundred
    note_spread(values, white, "a.tif")
    assert "a.tif: nearly all its values lie between" in told.text and f"--range={cure} (" in told.text


@pytest.mark.parametrize("share, dull", [(0.24, True), (0.26, False)])
def test_values_are_dull_below_a_quarter_of_their_range(told, share, dull):
    values = np.linspace(0, share, 4000, dtype=np.float32).reshape(40, 100, 1)
    values[:1], values[-1:] = 0, share
    note_spread(values, 1.0, "a.tif")
    assert bool(told.messages) == dull


@pytest.mark.parametrize("top", [31, 32])
def test_eight_bits_are_dull_below_an_eighth(told, top):
    note_spread(np.linspace(0, top, 400).astype(np.uint8).reshape(20, 20, 1), 255.0, "a.png")
    assert bool(told.messages) == (top < 255 / 8)


def test_one_value_and_no_value_are_not_told(told):
    note_spread(np.full((4, 4, 1), 0.1, np.float32), 1.0, "a.tif")
    note_spread(np.full((4, 4, 1), np.nan, np.float32), 1.0, "a.tif", np.ones((4, 4), bool))
    assert not told.messages


def test_values_of_16_bits_in_32_have_the_range_of_16():
    assert limits(Samples(np.array([[[3], [65535]]], np.int32), "a", None), None) == (0, 65535)
    with pytest.raises(ImageError, match="a: int32 has no range of its own, and its values are 3 to 65536"):
        limits(Samples(np.array([[[3], [65536]]], np.int32), "a", None), None)
    with pytest.raises(ImageError, match="a: int32 has no range of its own, and its values are -1 to 9"):
        limits(Samples(np.array([[[-1], [9]]], np.int32), "a", None), None)


def test_a_range_of_one_value_makes_it_black():
    values = np.full((2, 2, 1), 7, np.uint16)
    assert limits(Samples(values, "a", 65535.0), ("2%", "98%")) == (7, 8)
    with pytest.raises(ImageError, match="range 9,98% is 9 to 7 here"):
        limits(Samples(values, "a", 65535.0), (9, "98%"))


def test_a_photo_without_any_value_is_black():
    values = np.full((2, 3, 1), np.nan, np.float32)
    assert limits(Samples(values, "a", 1.0), None, missing_pixels(values, None)) == (0.0, 1.0)
    assert limits(Samples(values, "a", 1.0), ("2%", "98%"), missing_pixels(values, None)) == (0.0, 1.0)
    assert np.asarray(render(Samples(values, "a", 1.0), View())).max() == 0


def test_a_pixel_is_missing_where_every_band_says_so():
    values = np.array([[[1.0, 9.0, 2.0], [9.0, 9.0, 9.0], [1.0, np.nan, 1.0], [1.0, 2.0, 3.0]]])
    assert missing_pixels(values, 9.0).tolist() == [[False, True, True, False]]
    assert missing_pixels(values, None).tolist() == [[False, False, True, False]]
    assert missing_pixels(values[:, 3:], 9.0) is None and missing_pixels(values.astype(np.int16), None) is None


def test_grey_with_transparency_is_laid_on_white():
    grey, alpha = np.full((2, 3, 1), 100, np.uint8), np.array([[0, 255, 51], [255, 0, 255]], np.uint8)
    image = np.asarray(render(Samples(grey, "a", 255.0, alpha), View()))
    expected = np.where(alpha == 0, 255, np.where(alpha == 255, 100, 100 * 0.2 + 255 * 0.8))
    np.testing.assert_allclose(image, np.repeat(expected[..., None], 3, axis=2), atol=1)


def test_colours_that_are_multiplied_with_their_transparency_are_divided_by_it():
    alpha = np.array([[0, 255, 51]], np.uint8)
    stored = np.array([[0, 100, 20]], np.uint8)[..., None].repeat(3, axis=2)  # 100 times alpha
    image = np.asarray(render(Samples(stored, "a", 255.0, alpha, premultiplied=True), View()))
    np.testing.assert_allclose(image[..., 0], [[255, 100, 224]], atol=1)


def test_white_may_be_the_smallest_value():
    values = np.array([[[0], [255], [51]]], np.uint8)
    assert np.asarray(render(Samples(values, "a", 255.0, inverted=True), View())).tolist() == [[255, 0, 204]]


@pytest.mark.parametrize(
    "dtype, bits, white",
    [("u1", None, 255), ("u2", None, 65535), ("u2", 12, 4095), ("i1", None, 127), ("i2", None, 32767),
     ("f4", None, 1), ("u4", None, None), ("i4", None, None), ("u4", 16, 65535), ("?", None, None)],
)  # fmt: skip
def test_white_is_the_largest_value_of_up_to_16_bits(dtype, bits, white):
    assert white_of(np.dtype(dtype), bits) == white


@pytest.mark.parametrize(
    "count, alpha, bands, shown",
    [(1, None, None, [0]), (2, None, None, [0]), (3, None, None, [0, 1, 2]), (4, 3, None, [0, 1, 2]),
     (4, 0, None, [1, 2, 3]), (2, 1, None, [0]), (5, None, None, [0, 1, 2]), (5, None, (5, 3, 1), [4, 2, 0])],
)  # fmt: skip
def test_three_bands_are_shown_or_one(told, count, alpha, bands, shown):
    assert choose_bands(count, alpha, bands, "a.tif") == shown
    left_out = bands is None and count - (alpha is not None) > len(shown)
    assert [f"a.tif: has {count} bands" in message for message in told.messages] == [True] * left_out


def test_a_band_that_is_not_there_is_named():
    assert choose_bands(3, None, (3,), "a.tif") == [2]
    with pytest.raises(ImageError, match="a.tif: has 3 bands, and bands 4 are asked for: give numbers up to 3"):
        choose_bands(3, None, (4,), "a.tif")
