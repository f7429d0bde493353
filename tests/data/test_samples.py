"""Stored values as colours: which of them are black and white, and what is told of dull ones."""

import numpy as np
import pytest

from fgaseg.data import samples
from fgaseg.data.samples import (
    Samples,
    View,
    choose_bands,
    limits,
    missing_pixels,
    note_graded_alpha,
    note_spread,
    render,
    select,
    white_of,
)
from fgaseg.errors import ImageError


@pytest.fixture
def told(monkeypatch, caplog):
    """The notes of one test."""
    return caplog


DULL = {  # lowest and highest value, type, white, and the range that is proposed
    "two digits, rounded up": (0, 0.0123, np.float32, 1.0, "0,0.013"),
    "two digits as they are": (0, 0.1, np.float64, 1.0, "0,0.1"),
    "two digits as float32 has them": (0, 0.1, np.float32, 1.0, "0,0.1"),
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


def test_what_is_told_of_dull_values_is_what_nearly_all_of_them_are(told):
    note_spread(np.arange(1000, dtype=np.uint16).reshape(40, 25, 1), 65535.0, "a.tif")
    words = "a.tif: nearly all its values lie between 4.995 and 994.005, 1.5% of the range of uint16 (0 to 65535), so"
    assert words in told.text and "--range=0,1023 (value_range=(0, 1023) in Python)" in told.text
    few = np.full((40, 25, 1), 5, np.uint16)
    few[0, :4] = 9  # less than half a percent
    note_spread(few + np.uint16(2000), 65535.0, "b.tif")
    assert "b.tif: nearly all its values lie between 2005 and 2009" in told.text
    assert '--range=2%,98% (value_range=("2%", "98%") in Python)' in told.text


def test_a_single_bright_pixel_counts_in_eight_bits_alone(told):
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535)):
        values = np.linspace(0, 20, 1000).reshape(40, 25, 1).astype(dtype)
        values[3, 3] = white
        note_spread(values, white, f"{white}.png")
    assert "65535.png" in told.text and "255.png" not in told.text.replace("65535.png", "")


def test_missing_pixels_do_not_count(told):
    values = np.full((40, 25, 1), 60000, np.uint16)
    values[:20] = np.linspace(0, 4000, 500).reshape(20, 25, 1)
    note_spread(values, 65535.0, "a.tif")
    assert not told.messages
    note_spread(values, 65535.0, "a.tif", values[..., 0] == 60000)
    assert "--range=0,4095" in told.text


def test_the_range_of_the_type_is_that_of_the_bits_in_use():
    assert limits(Samples(np.array([[[0], [15]]], np.uint8), "a", 15.0), None) == (0, 15)
    assert limits(Samples(np.array([[[0], [255]]], np.uint8), "a", 255.0), None) == (0, 255)
    assert limits(Samples(np.array([[[0.0], [1.0]]]), "a", 1.0), None) == (0, 1)
    nothing = np.zeros((0, 3, 1), np.uint16), np.zeros((0, 3), bool)
    assert limits(Samples(nothing[0], "a", None), None, nothing[1]) == (0, 1)


@pytest.mark.parametrize(
    "values, white, words",
    [
        ([0, 255], 1.0, "floating point images are in 0..1, and its values are 0 to 255: .*--range=0,255 or"),
        ([0, 256], 1.0, r"--range=0,256 or --range=2%,98% \(value_range=\(0, 256\) in Python\)"),
        ([-0.5, 1], 1.0, "its values are -0.5 to 1: .*--range=-0.5,1 or"),
        ([0, 1.01], 1.0, "its values are 0 to 1.01: .*--range=0,255 or"),
    ],
)
def test_values_beyond_the_range_of_their_type_are_an_error_with_a_range(values, white, words):
    with pytest.raises(ImageError, match=f"^a: .*{words}"):
        limits(Samples(np.array([values]).astype(np.float32)[..., None], "a", white), None)


def test_a_range_is_given_in_values_or_percentiles_of_the_pixels_with_a_value():
    values = np.arange(101, dtype=np.float32).reshape(1, 101, 1)
    missing = (values > 50)[..., 0]
    assert limits(Samples(values, "a", 1.0), (3, "98%")) == (3, 98)
    assert limits(Samples(values, "a", 1.0), ("2%", "50%"), missing) == (1, 25)


def test_large_photos_are_scaled_in_blocks_of_rows(monkeypatch):
    values = np.random.default_rng(0).integers(0, 4096, (7, 5, 3), dtype=np.uint16)
    expected = np.floor(values / 4095 * 255 + 0.5)
    for block in (1, 30, 32, 10**6):
        monkeypatch.setattr(samples, "_BLOCK", block)
        shown = np.asarray(render(Samples(values, "a", 4095.0), View()))
        np.testing.assert_array_equal(shown, expected)
    wide = np.array([[[-1.0], [0.0], [0.5], [1.0], [9.0]]])
    assert np.asarray(render(Samples(wide, "a", 1.0), View(value_range=(0, 1)))).tolist() == [[0, 0, 128, 255, 255]]


def test_bands_are_shown_in_their_order_and_transparency_where_none_are_asked_for():
    values = np.arange(8, dtype=np.uint8).reshape(1, 2, 4)
    rgba = select(values, "a", 255.0, View(), 3)
    assert rgba.values.tolist() == [[[0, 1, 2], [4, 5, 6]]] and rgba.alpha.tolist() == [[3, 7]]
    some = select(values, "a", 255.0, View(bands=(4, 2, 1)), 3)
    assert some.values.tolist() == [[[3, 1, 0], [7, 5, 4]]] and some.alpha is None
    turned = select(values[..., :3], "a", 255.0, View(bands=(3, 2, 1)))
    assert turned.values.tolist() == [[[2, 1, 0], [6, 5, 4]]]
    assert select(values[..., :3], "a", 255.0, View()).values.tolist() == values[..., :3].tolist()


def test_transparency_without_a_white_is_on_or_off():
    values, alpha = np.full((1, 3, 1), 7, np.int32), np.array([[0, 1, 9]], np.int32)
    shown = np.asarray(render(Samples(values, "a", None, alpha), View(value_range=(7, 8))))
    assert shown[..., 0].tolist() == [[255, 0, 0]]
    colours = np.array([[[254, 3, 77]]], np.uint8)
    opaque = Samples(colours, "a", 255.0, np.array([[255]], np.uint8), premultiplied=True)
    assert np.asarray(render(opaque, View())).tolist() == colours.tolist()


def test_pixels_without_a_value_are_black_and_told(told):
    values = np.array([[[-9.0], [0.5], [np.nan], [1.0]]])
    shown = np.asarray(render(Samples(values, "a.tif", 1.0, nodata=-9.0), View()))
    assert shown.tolist() == [[0, 128, 0, 255]]
    assert "a.tif: 50.0% of its pixels hold no value (-9, the file's nodata value, or NaN): they are black" in told.text
    render(Samples(values[:, 1:], "b.tif", 1.0), View())
    assert "b.tif: 33.3% of its pixels hold no value (NaN): they are black" in told.text
    inverted = Samples(values[:, 1:], "c.tif", 1.0, inverted=True)
    assert np.asarray(render(inverted, View())).tolist() == [[127, 0, 0]]


@pytest.mark.parametrize("values, is_told", [
    (np.array([[0, 1, 254, 255, 255]], np.uint8), False), (np.array([[0, 1, 254, 9]], np.uint8), True),
    (np.array([[0, 1, 254, 255]], np.uint8), False), (np.array([[0, 0.5, 1.0]]), False),
    (np.array([[0.5, 0.001, 1.0]]), True), (np.array([[255, 65535, 65534]], np.uint16), True),
])  # fmt: skip
def test_a_last_band_between_the_extremes_may_be_something_else(told, values, is_told):
    note_graded_alpha(values, "a.tif", 4)
    assert ("a.tif: its band 4 is taken as transparency and laid on white" in told.text) == is_told
