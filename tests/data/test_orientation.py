"""How a photo lies: its orientation and its size as stored, of every kind of file, and grids turned as it is."""

import io

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps

from fgaseg.data.images import orientation, orientation_at_any_size, plain_suffix, stored_size, turn_upright
from fgaseg.errors import ImageError

GRID = np.arange(6, dtype=np.uint8).reshape(2, 3)


def turned(value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


@pytest.mark.parametrize("value", range(1, 9))
def test_grids_are_turned_as_photos_are(value):
    image = Image.fromarray(GRID)
    image.getexif()[ExifTags.Base.Orientation] = value
    np.testing.assert_array_equal(turn_upright(GRID, value), np.asarray(ImageOps.exif_transpose(image)))
    assert turn_upright(GRID, value).flags.c_contiguous


@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_orientation_of_a_file(tmp_path, suffix, value, monkeypatch):
    file = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(file, GRID, extratags=[(274, 3, 1, value, True)])
    else:
        Image.fromarray(GRID).save(file, exif=turned(value))
    meant = value if value in range(2, 9) else 1
    assert orientation(file) == orientation_at_any_size(str(file)) == meant
    assert stored_size(file) == ((3, 2), False)
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "1")
    assert orientation_at_any_size(file) == meant


def test_files_without_an_orientation(tmp_path):
    for name, upright in (("a.png", True), ("a.jpg", False), ("a.bmp", False), ("a.tif", False)):
        Image.fromarray(GRID).save(tmp_path / name)
        assert stored_size(tmp_path / name) == ((3, 2), upright)
        assert orientation(tmp_path / name) == orientation_at_any_size(tmp_path / name) == 1
    (tmp_path / "b.jpg").write_bytes(b"no image")
    for name in ("b.jpg", "none.jpg"):
        assert orientation_at_any_size(tmp_path / name) == 1
        with pytest.raises(ImageError, match=name):
            orientation(tmp_path / name)
        with pytest.raises(ImageError, match=name):
            stored_size(tmp_path / name)
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "PNG")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[:9000])
    assert stored_size(tmp_path / "half.png") == ((90, 90), True)
    with pytest.raises(ImageError, match=r"half\.png: is truncated or corrupt"):
        orientation(tmp_path / "half.png")  # it may stand at the end
    assert orientation_at_any_size(tmp_path / "half.png") == 1


def test_a_photo_with_a_second_one_is_plain_and_other_sizes_are_not(tmp_path):
    photo = Image.fromarray(np.full((20, 30, 3), 90, np.uint8))
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photo])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO" and image.n_frames == 2
    assert plain_suffix(tmp_path / "a.jpg", (30, 20)) == ".jpg"
    assert plain_suffix(tmp_path / "a.jpg", (20, 30)) == ""
    photo.save(tmp_path / "a.png", exif=turned(3))
    assert plain_suffix(tmp_path / "a.png", (30, 20)) == ""
