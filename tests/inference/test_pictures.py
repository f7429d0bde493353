"""Drawing labels and maps: distinct and stable colours, overlays that match the labels, robust to any name or map."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgaseg.inference import pictures
from fgaseg.inference.pictures import comparison, heat, legend, overlay, palette, panel

PHOTO = Image.fromarray(np.full((30, 40, 3), 100, np.uint8))


def halves(left: int = 0, right: int = 1) -> np.ndarray:
    labels = np.full((30, 40), left)
    labels[:, 20:] = right
    return labels


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def test_colours_are_distinct_and_the_same_for_every_n():
    colours = palette(200)
    assert colours.shape == (200, 3) and colours.dtype == np.uint8
    for n in (0, 1, 23, 64, 65, 150):
        np.testing.assert_array_equal(palette(n), colours[:n])
    assert len({tuple(colour) for colour in colours}) > 195
    first = colours[:30].astype(float)
    apart = np.linalg.norm(first[:, None] - first[None], axis=-1) + 999 * np.eye(30)
    assert apart.min() > 30
    assert len(palette(10_000)) == 10_000


def test_overlay_tints_each_region_in_its_colour():
    picture = np.asarray(overlay(PHOTO, halves(), ["cat", "dog"], alpha=1.0, with_legend=False))
    np.testing.assert_array_equal(picture[15, 5], palette(2)[0])
    np.testing.assert_array_equal(picture[15, 35], palette(2)[1])
    assert (picture[:, 20] > 180).all()  # the line between them
    assert picture.shape == (30, 40, 3)


def test_overlay_draws_unlabelled_pixels_grey():
    for unlabelled in (255, -1, 2):
        picture = np.asarray(overlay(PHOTO, halves(0, unlabelled), ["cat", "dog"], with_legend=False)).astype(int)
        assert np.ptp(picture[15, 35]) <= 1 < np.ptp(picture[15, 5])


def test_overlay_accepts_every_integer_dtype_of_labels():
    expected = overlay(PHOTO, halves(), ["cat", "dog"])
    for dtype in (np.uint8, np.int16, np.int32, np.uint16):
        assert same(overlay(PHOTO, halves().astype(dtype), ["cat", "dog"]), expected)


def test_legend_names_only_the_classes_present():
    names = ["cat", "dog", "sheep"]
    strip = np.asarray(legend([halves(0, 2)], names, 300)).reshape(-1, 3)
    shown = {tuple(colour) for colour in strip}
    colours = [tuple(colour) for colour in palette(3)]
    assert colours[0] in shown and colours[2] in shown and colours[1] not in shown
    assert overlay(PHOTO, halves(), names).height > 30


def test_legend_wraps_and_limits_the_number_of_names():
    labels = np.arange(100).reshape(10, 10)
    short = legend([labels], [f"class {n}" for n in range(100)], 300, most=10)
    long = legend([labels], [f"class {n}" for n in range(100)], 300, most=40)
    assert short.width == long.width == 300 and long.height > 2 * short.height


@pytest.mark.parametrize(
    "name",
    ["猫", "собака", "naïve café", "⚽🐈", "قط", "!!!", "", " ", "a\nb\tc", "\x00\x07", "x" * 3000, "é", "\ud800"],
)
def test_no_name_breaks_a_picture(name):
    for picture in (
        overlay(PHOTO, halves(), [name, "dog"]),
        panel([[(name, PHOTO)]], heading=name),
        comparison(PHOTO, [(name, halves())], [name, "dog"]),
    ):
        assert picture.width < 1000 and picture.height < 1000


def test_a_name_that_no_font_can_draw_becomes_its_index(monkeypatch):
    monkeypatch.setattr(pictures, "FALLBACK_FONTS", ())
    drawn = legend([halves(0, 0)], ["猫" * 3, "dog"], 300)
    assert same(drawn, legend([halves(0, 0)], ["class 0", "dog"], 300))
    assert same(legend([halves(0, 0)], ["cat猫", "dog"], 300), legend([halves(0, 0)], ["cat?", "dog"], 300))


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"overlay: labels has shape \[40, 30\], the image is \[30, 40\]"):
        overlay(PHOTO, halves().T, ["cat", "dog"])
    with pytest.raises(ValueError, match=r"heat: values has shape \[2, 3, 4\]: give one map"):
        heat(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="panel: rows holds no picture"):
        panel([[]])


def test_one_pixel_photo():
    dot = Image.new("RGB", (1, 1))
    assert overlay(dot, np.zeros((1, 1), int), ["cat"]).size[0] >= 1
    assert comparison(dot, [("a", np.zeros((1, 1), int))], ["cat"]).width > 300


def test_heat_rises_evenly_from_dark_to_light():
    picture = heat(np.linspace(-3, 5, 256)[None])
    light = np.asarray(picture.convert("L"), int)[0]
    assert light[0] < 15 and light[-1] > 235
    assert (np.diff(light) >= -1).all() and np.diff(light).max() <= 6


def test_heat_sizes_limits_and_values_that_are_not_finite():
    values = np.array([[0.0, 1.0], [np.nan, -np.inf]], np.float32)
    picture = np.asarray(heat(values))
    np.testing.assert_array_equal(picture[1], np.full((2, 3), 128))
    assert picture[0, 1].astype(int).sum() > 600 > 60 > picture[0, 0].astype(int).sum()
    assert heat(values, size=(20, 30)).size == (30, 20)
    assert same(heat(np.zeros((3, 3))), heat(np.full((3, 3), 7.0)))  # constant: one colour, no division by zero
    assert not same(heat(np.zeros((3, 3)), limits=(0, 1)), heat(np.ones((3, 3)), limits=(0, 1)))
    assert heat(np.full((2, 2), np.nan)).getpixel((0, 0)) == (128, 128, 128)


def test_panel_shows_every_picture():
    red, green = Image.new("RGB", (10, 10), (255, 0, 0)), Image.new("RGB", (300, 150), (0, 255, 0))
    page = panel([[("one", red), ("two", green)], [("", red)]], cell=100, heading="both", below=green)
    pixels = np.asarray(page).reshape(-1, 3)
    assert ((pixels == (255, 0, 0)).all(axis=1)).sum() == 2 * 100 * 100
    assert ((pixels == (0, 255, 0)).all(axis=1)).sum() == 100 * 50 + 300 * 150


def test_comparison_shows_every_result():
    one = comparison(PHOTO, [("a", halves())], ["cat", "dog"])
    three = comparison(PHOTO, [("a", halves()), ("b", halves(1, 0)), ("c", halves(0, 0))], ["cat", "dog"])
    assert three.width > 1.9 * one.width
    assert comparison(PHOTO, [], ["cat"]).width > 300


def test_pictures_can_be_saved(tmp_path: Path):
    overlay(PHOTO, halves(), ["cat", "dog"]).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "RGB"
