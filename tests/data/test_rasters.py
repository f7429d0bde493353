"""Bands, types of values and pages: what becomes red, green and blue, and what is told about it."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from fgaseg.config import DataConfig
from fgaseg.data import FolderDataset, georeferenced_size, rasters, read_image
from fgaseg.errors import ConfigError, ImageError

H, W = 40, 50


@pytest.fixture(autouse=True)
def told(monkeypatch, caplog):
    """The notes of one test."""
    return caplog


def noise(*shape: int, top: int = 256, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def tiff(folder: Path, values: np.ndarray, name: str = "a.tif", **options: object) -> Path:
    tifffile.imwrite(folder / name, values, **options)
    return folder / name


def shown(source: object, **options: object) -> np.ndarray:
    return np.asarray(read_image(source, **options))


def plain_tiff(folder: Path, values: np.ndarray, extra: tuple[int, ...] | None) -> Path:
    """An uncompressed 8-bit TIFF whose ExtraSamples tag is as given, or absent."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", extrasamples=list(extra or (0,) * (values.shape[2] - 3)))
    data = bytearray(file.getvalue())
    if extra is None:  # turn the tag into a private one that nobody reads
        place = data.index((338).to_bytes(2, "little") + (3).to_bytes(2, "little"))
        data[place : place + 2] = (65000).to_bytes(2, "little")
    (folder / "plain.tif").write_bytes(data)
    return folder / "plain.tif"


# ---- bands


@pytest.mark.parametrize("extra", [(0,), None], ids=["unspecified", "no tag"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_band_that_is_not_marked_is_no_transparency(tmp_path, told, extra, dtype):
    values = noise(H, W, 4, top=np.iinfo(dtype).max, dtype=dtype)
    file = plain_tiff(tmp_path, values, extra)
    expected = values[..., :3] if dtype == np.uint8 else (values[..., :3] / 257).round()
    np.testing.assert_array_equal(shown(file), expected)
    assert "has 4 bands, of which the first three" in told.text and "--bands=1,2,3" in told.text
    if dtype == np.uint8:
        np.testing.assert_array_equal(shown(Image.open(file)), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_that_a_tiff_marks_is_laid_on_white(tmp_path, told, mode):
    values = noise(H, W, len(mode))
    values[..., -1] = np.where(values[..., -1] > 100, 255, 0)
    Image.fromarray(values, mode).save(tmp_path / "a.tif")
    clear = values[..., -1] == 0
    assert (shown(tmp_path / "a.tif")[clear] == 255).all() and not told.messages
    np.testing.assert_array_equal(shown(tmp_path / "a.tif")[~clear][:, 0], values[~clear][:, 0])


def test_sixteen_bit_transparency_is_laid_on_white_too(tmp_path):
    values = noise(H, W, 4, top=65536, dtype=np.uint16)
    values[:20, :, 3], values[20:, :, 3] = 0, 65535
    image = shown(tiff(tmp_path, values, photometric="rgb", extrasamples=["unassalpha"]))
    assert (image[:20] == 255).all()
    np.testing.assert_array_equal(image[20:], (values[20:, :, :3] / 257).round())
    values[..., 3] = 32768
    values[..., :3] = 16384  # premultiplied with one half: the colour is one half
    image = shown(tiff(tmp_path, values, photometric="rgb", extrasamples=["assocalpha"]))
    np.testing.assert_allclose(image, (128 + 255) // 2, atol=1)


@pytest.mark.parametrize("source", ["tiff", "array", "tensor"])
def test_near_infrared_that_a_file_calls_transparency_is_told(tmp_path, told, source):
    values = noise(H, W, 4)
    if source == "tiff":
        given = tiff(tmp_path, values, photometric="rgb", extrasamples=["unassalpha"])
    else:
        given = values if source == "array" else torch.from_numpy(values).permute(2, 0, 1)
    assert (shown(given) >= values[..., :3]).all() and (shown(given) > values[..., :3]).any()
    assert told.text.count("band 4 is taken as transparency") == 1 and "bands=(1, 2, 3)" in told.text
    np.testing.assert_array_equal(shown(given, bands=(1, 2, 3)), values[..., :3])
    np.testing.assert_array_equal(shown(given, bands=[4]), np.repeat(values[..., 3:], 3, axis=2))


LAYOUTS = {
    "contiguous": {"planarconfig": "contig"},
    "separate": {"planarconfig": "separate"},
    "tiles": {"planarconfig": "contig", "tile": (16, 16)},
    "separate tiles": {"planarconfig": "separate", "tile": (16, 32)},
    "deflate": {"planarconfig": "contig", "compression": "zlib", "predictor": True, "rowsperstrip": 7},
    "big": {"planarconfig": "contig", "bigtiff": True},
    "big endian": {"planarconfig": "separate", "byteorder": ">"},
    "lzw": {"planarconfig": "contig", "compression": "lzw"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("count", [5, 8, 13])
def test_bands_of_every_layout_are_chosen_by_number(tmp_path, told, layout, count):
    if layout.get("compression") == "lzw":
        pytest.importorskip("imagecodecs")
    values = noise(H, W, count, top=65536, dtype=np.uint16)
    stored = np.moveaxis(values, -1, 0) if layout["planarconfig"] == "separate" else values
    file = tiff(tmp_path, stored, photometric="minisblack", **layout)
    with tifffile.TiffFile(file) as written:
        assert written.pages[0].samplesperpixel == count and len(written.pages) == 1
    expected = (values / 257).round()
    np.testing.assert_array_equal(shown(file), expected[..., :3])
    assert told.text.count(f"has {count} bands") == 1
    np.testing.assert_array_equal(shown(file, bands=(5, 3, 2)), expected[..., [4, 2, 1]])
    np.testing.assert_array_equal(shown(file, bands=(count,)), np.repeat(expected[..., -1:], 3, axis=2))
    with pytest.raises(ImageError, match=rf"a\.tif: has {count} bands, and bands 1,2,{count + 1} are asked for"):
        read_image(file, bands=(1, 2, count + 1))


def test_bands_of_photos_that_have_three(tmp_path):
    values = noise(H, W, 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.png")
    palette = Image.fromarray(values).convert("P")
    palette.save(tmp_path / "palette.png")
    for source, expected in {
        tmp_path / "a.png": values,
        tmp_path / "palette.png": np.asarray(palette.convert("RGB")),
    }.items():
        np.testing.assert_array_equal(shown(source, bands=(3, 2, 1)), expected[..., ::-1])
    np.testing.assert_array_equal(shown(values, bands=(2, 2, 1)), values[..., [1, 1, 0]])
    with pytest.raises(ImageError, match=r"grey\.png: has one band, and bands 1,2,3"):
        read_image(tmp_path / "grey.png", bands=(1, 2, 3))
    for wrong in ((), (1, 2), (0, 1, 2), (1, 2, 3, 4)):
        with pytest.raises(ImageError, match="give one or three, counted from 1"):
            read_image(values, bands=wrong)


def test_two_bands_show_the_first(tmp_path, told):
    values = noise(H, W, 2)
    file = tiff(tmp_path, values, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(shown(file), np.repeat(values[..., :1], 3, axis=2))
    assert "has 2 bands, of which the first is used" in told.text


def test_arrays_with_more_bands_have_them_last(told):
    values = noise(H, W, 7)
    np.testing.assert_array_equal(shown(values), values[..., :3])
    assert "array uint8[40, 50, 7]: has 7 bands" in told.text
    np.testing.assert_array_equal(shown(values, bands=(7, 6, 1)), values[..., [6, 5, 0]])
    with pytest.raises(ImageError, match=r"\[7, 40, 50\]: is not one image.*bands last"):
        read_image(np.moveaxis(values, -1, 0))


# ---- values


@pytest.mark.parametrize(
    "options",
    [{}, {"photometric": "rgb"}, {"photometric": "miniswhite"}, {"tile": (16, 16)}],
    ids=["grey", "rgb", "white is zero", "tiles"],
)
def test_sixteen_bits_of_a_tiff_are_scaled_by_257(tmp_path, told, options):
    values = noise(H, W, *([3] if options.get("photometric") == "rgb" else []), top=65536, dtype=np.uint16)
    expected = (values / 257).round()
    if options.get("photometric") == "miniswhite":
        expected = 255 - expected
    image = shown(tiff(tmp_path, values, **options))
    np.testing.assert_array_equal(image, expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2))
    assert not told.messages


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_all_sixteen_bits_of_a_colour_png_are_read(tmp_path, told, kind):
    codecs = pytest.importorskip("imagecodecs")
    values = noise(H, W, len(kind), top=65536, dtype=np.uint16)
    if kind == "RGBA":
        values[:20, :, 3], values[20:, :, 3] = 0, 65535
    (tmp_path / "deep.png").write_bytes(codecs.png_encode(values))
    image = shown(tmp_path / "deep.png")
    expected = (values[..., :3] / 257).round()
    if kind == "RGBA":
        expected[:20] = 255
    np.testing.assert_array_equal(image, expected)
    assert not told.messages
    low = np.ascontiguousarray(values[..., :3] // 16)
    (tmp_path / "low.png").write_bytes(codecs.png_encode(low))
    assert shown(tmp_path / "low.png").max() == 16 and "--range=0,4095" in told.text
    np.testing.assert_array_equal(shown(tmp_path / "low.png", value_range=(0, 4095)), (low / 4095 * 255).round())


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_few_bits_in_a_wide_type_are_told_and_cured(tmp_path, told, bits):
    top = 2**bits - 1
    values = noise(H, W, top=top + 1, dtype=np.uint16)
    values[0, 0] = top
    Image.fromarray(values).save(tmp_path / "scan.png")
    for source in (tmp_path / "scan.png", tiff(tmp_path, values), values):
        assert shown(source).max() == round(top / 257)
        np.testing.assert_array_equal(shown(source, value_range=(0, top))[..., 0], (values / top * 255).round())
    assert told.text.count(f"--range=0,{top}") == 1 and "% of the range of uint16" in told.text


def test_eight_bits_of_which_few_are_used_are_told(tmp_path, told):
    Image.fromarray(noise(H, W, top=21)).save(tmp_path / "labels.png")
    assert shown(tmp_path / "labels.png").max() == 20
    read_image(noise(H, W, top=21))  # in memory it may be a part of something
    assert len(told.messages) == 1
    assert "labels.png: nearly all its values lie between 0 and 20" in told.text and "--range=0,31" in told.text


@pytest.mark.parametrize("top", [64, 200, 256])
def test_ordinary_dark_and_flat_photos_are_not(tmp_path, told, top):
    Image.fromarray(noise(H, W, 3, top=top)).save(tmp_path / "photo.png")
    Image.new("RGB", (W, H), "black").save(tmp_path / "black.png")
    shown(tmp_path / "photo.png"), shown(tmp_path / "black.png")
    assert not told.messages


def test_a_bright_spot_does_not_hide_that_the_rest_is_dark(told):
    values = noise(H, W, top=4096, dtype=np.uint16)
    values[3, 3] = 65535
    read_image(values)
    assert "of the range of uint16" in told.text


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("where", ["tiff", "array"])
def test_signed_wide_and_float_values_need_a_range(tmp_path, dtype, where):
    values = (noise(H, W, 3, top=3000, dtype=np.int64) - (0 if dtype == np.uint32 else 1000)).astype(dtype)
    if dtype == np.uint32:
        values *= 100
    source = values if where == "array" else tiff(tmp_path, values, photometric="rgb")
    low, high = float(values.min()), float(values.max())
    with pytest.raises(ImageError, match=r"a\.tif|array .*value_range"):
        read_image(source)
    if where == "tiff":
        with pytest.raises(ImageError, match=rf"a\.tif: .*its values are {low:.6g} to {high:.6g}.*--range={low:.6g},"):
            read_image(source)
    expected = ((values.astype(float) - low) / (high - low) * 255).round()
    np.testing.assert_allclose(shown(source, value_range=(low, high)), expected, atol=1e-9)


def test_signed_values_that_are_not_negative_have_the_range_of_their_type(tmp_path):
    values = noise(H, W, top=32768, dtype=np.int16)
    np.testing.assert_array_equal(shown(tiff(tmp_path, values))[..., 0], (values / 32767 * 255).round())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_percentiles_are_those_of_the_chosen_bands_together(tmp_path, dtype):
    values = noise(H, W, 4, top=200).astype(dtype)
    values[..., 3] *= 100 if dtype != np.uint8 else 1
    if dtype == np.float32:
        values -= 100
    file = tiff(tmp_path, values, photometric="minisblack", planarconfig="contig")
    low, high = np.percentile(values[..., :3], (2, 98))
    expected = ((values[..., :3].astype(float) - low) / (high - low)).clip(0, 1) * 255
    image = shown(file, bands=(1, 2, 3), value_range=("2%", "98%"))
    np.testing.assert_allclose(image, expected, atol=0.51)
    mixed = shown(file, bands=(1, 2, 3), value_range=(low, "98%"))
    np.testing.assert_array_equal(mixed, image)


@pytest.mark.parametrize("limits", [(5, 5), (9, 1), ("98%", "2%"), ("101%", 3), ("a", 3), (0, 1, 2), (0, float("nan"))])
def test_ranges_that_are_none_say_so(limits):
    with pytest.raises(ImageError, match="range"):
        read_image(noise(H, W), value_range=limits)


@pytest.mark.parametrize("hole", ["NaN", "infinity", "nodata", "nodata of whole numbers"])
def test_pixels_without_a_value_are_black_and_told(tmp_path, told, hole):
    values = np.linspace(0.2, 1, H * W, dtype=np.float32).reshape(H, W)
    options = {"nodata": {"extratags": [(42113, "s", 0, "-9999", True)]}}.get(hole, {})
    if hole == "nodata of whole numbers":
        values = (values * 65000).astype(np.uint16)
        options = {"extratags": [(42113, "s", 0, "65535", True)]}
    value = {"NaN": np.nan, "infinity": np.inf, "nodata": -9999}.get(hole, 65535)
    holed = values.copy()
    holed[:10] = value
    image, whole = shown(tiff(tmp_path, holed, **options)), shown(tiff(tmp_path, values, "whole.tif"))
    assert (image[:10] == 0).all() and "25.0% of its pixels hold no value" in told.text
    np.testing.assert_array_equal(image[10:], whole[10:])
    stretched = shown(tmp_path / "a.tif", value_range=("0%", "100%"))
    assert stretched[10, 0, 0] == 0 and stretched[-1, -1, 0] == 255  # the hole is none of the values


def test_complex_values_say_so(tmp_path):
    with pytest.raises(ImageError, match=r"a\.tif: holds complex64 values: save it as"):
        read_image(tiff(tmp_path, np.ones((H, W), np.complex64)))


# ---- files


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_of_any_kind_is_turned_upright(tmp_path, orientation):
    """As Pillow turns the 8-bit one."""
    values = noise(H, W, 3)
    tag = [(274, "H", 1, orientation, True)]
    plain = tiff(tmp_path, values, "plain.tif", photometric="rgb", extratags=tag)
    deep = tiff(tmp_path, values * np.uint16(257), "deep.tif", photometric="rgb", extratags=tag)
    np.testing.assert_array_equal(shown(deep), shown(plain))
    assert shown(deep).shape[:2] == ((H, W) if orientation < 5 else (W, H))


@pytest.mark.parametrize("kind", ["tif", "gif", "webp", "png"])
def test_the_first_of_several_pages_is_used_and_they_are_counted(tmp_path, told, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime", "white")]
    frames[0].save(
        tmp_path / f"a.{kind}",
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "webp" else {}),
    )
    assert read_image(tmp_path / f"a.{kind}").getpixel((0, 0)) == (255, 0, 0)
    assert f"a.{kind}: holds 4 pages or frames, of which the first is used" in told.text


def test_pages_that_hold_one_band_each_can_be_chosen_as_bands(tmp_path, told):
    values = noise(5, H, W)
    file = tiff(tmp_path, values, photometric="minisblack")
    np.testing.assert_array_equal(shown(file)[..., 0], values[0])
    assert "holds 5 pages" in told.text and "bands=(2,)" in told.text
    np.testing.assert_array_equal(shown(file, bands=(5, 1, 2)), np.moveaxis(values[[4, 0, 1]], 0, -1))
    np.testing.assert_array_equal(shown(file, bands=(3,))[..., 1], values[2])


def test_pages_of_palettes_are_no_bands(tmp_path, told):
    frames = [Image.fromarray(noise(H, W, 3, seed=seed)).quantize(200) for seed in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    expected = np.asarray(frames[0].convert("RGB"))
    np.testing.assert_array_equal(shown(tmp_path / "a.tif"), expected)
    np.testing.assert_array_equal(shown(tmp_path / "a.tif", bands=(3, 2, 1)), expected[..., ::-1])
    assert "holds 3 pages" in told.text and "takes the second" not in told.text


def test_smaller_copies_and_masks_are_no_pages(tmp_path, told):
    values = noise(H, W, 3, top=65536, dtype=np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(values, photometric="rgb")
        file.write(values[..., 0] > 9, subfiletype=4)
    np.testing.assert_array_equal(shown(tmp_path / "a.tif"), (values / 257).round())
    assert not told.messages


def test_camera_raw_files_say_so_instead_of_showing_their_thumbnail(tmp_path):
    tifffile.imwrite(tmp_path / "a.nef", noise(H, W, 3), photometric="rgb")
    tifffile.imwrite(
        tmp_path / "b.tif", noise(H, W, 3), photometric="rgb", extratags=[(50706, "B", 4, b"\1\4\0\0", True)]
    )
    for name in ("a.nef", "b.tif"):
        with pytest.raises(ImageError, match=rf"{name}: is a camera's raw file: develop it"):
            read_image(tmp_path / name)


def test_without_the_decoders_of_imagecodecs(tmp_path, monkeypatch):
    pytest.importorskip("imagecodecs")
    values = noise(H, W, 3, top=65536, dtype=np.uint16)
    deep = tiff(tmp_path, values, photometric="rgb", compression="lzw")
    many = tiff(tmp_path, noise(H, W, 6, dtype=np.uint16), "many.tif", planarconfig="contig", photometric="minisblack",
                compression="lzw")  # fmt: skip
    nir = tiff(tmp_path, noise(H, W, 4), "nir.tif", photometric="rgb", extrasamples=["unspecified"], compression="lzw")
    grey = tiff(tmp_path, values[..., 0], "grey.tif", compression="lzw")

    def no_codec(page, kept):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(rasters, "_segments", no_codec)
    np.testing.assert_array_equal(shown(grey)[..., 0], (values[..., 0] / 257).round())
    assert np.abs(shown(deep) - (values / 257)).max() <= 1.01  # the high byte
    np.testing.assert_array_equal(shown(nir), noise(H, W, 4)[..., :3])
    for file, options in ((many, {}), (deep, {"value_range": (0, 4095)}), (nir, {"bands": (4, 2, 1)})):
        with pytest.raises(ImageError, match=r"\.tif: is compressed with LZW: pip install imagecodecs"):
            read_image(file, **options)


def test_damaged_and_large_tiffs_name_themselves(tmp_path, monkeypatch):
    file = tiff(tmp_path, noise(H, W, 5, top=65536, dtype=np.uint16), photometric="minisblack", planarconfig="contig")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"a\.tif: is (truncated|not an image)"):
        read_image(file)
    file.write_bytes(data)
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "1999")
    with pytest.raises(ImageError, match=r"a\.tif: 50x40 is more than 1,999 pixels.*FGASEG_PIXEL_LIMIT=2000"):
        read_image(file)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["tif", "deep", "tiles", "pages", "gif", "webp", "jpg"])
def test_damage_anywhere_is_an_image_or_one_line(kind):
    file, rng = io.BytesIO(), np.random.default_rng(0)
    if kind in ("tif", "gif", "webp", "jpg"):
        image = Image.fromarray(noise(H, W, 3))
        frames = {"save_all": True, "append_images": [image.rotate(90)] * 2} if kind == "gif" else {}
        image.save(file, {"tif": "TIFF", "jpg": "JPEG"}.get(kind, kind.upper()), **frames)
    elif kind == "pages":
        tifffile.imwrite(file, noise(3, H, W), photometric="minisblack")
    else:
        options = {"tile": (16, 16)} if kind == "tiles" else {"compression": "zlib", "predictor": True}
        tifffile.imwrite(file, noise(H, W, 3, top=65536, dtype=np.uint16), photometric="rgb", **options)
    whole = np.frombuffer(file.getvalue(), np.uint8)
    for number in range(60):
        damaged = whole.copy()
        damaged[rng.integers(0, (200, len(whole))[number % 2], 4)] = rng.integers(0, 256, 4)
        damaged = damaged[: rng.integers(1, len(whole)) if number % 3 == 0 else None]
        try:
            image = read_image(io.BytesIO(damaged.tobytes()), bands=(1, 2, 3) if number % 5 == 0 else None)
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            assert image.mode == "RGB"


def test_binary_files_are_read_as_paths_are(tmp_path):
    file = tiff(tmp_path, noise(H, W, 3, top=65536, dtype=np.uint16), photometric="rgb")
    Image.fromarray(noise(H, W, 3)).save(tmp_path / "a.png")
    for path in (file, tmp_path / "a.png"):
        np.testing.assert_array_equal(shown(io.BytesIO(path.read_bytes())), shown(path))
        with path.open("rb") as handle:
            np.testing.assert_array_equal(shown(handle), shown(path))
    with pytest.raises(ImageError, match="BytesIO: is empty"):
        read_image(io.BytesIO())


def test_a_note_is_told_once_for_all_files_of_a_kind(tmp_path, told):
    for number in range(3):
        read_image(tiff(tmp_path, noise(H, W, 5, seed=number), f"{number}.tif", photometric="minisblack",
                        planarconfig="contig"))  # fmt: skip
    assert len(told.messages) == 1 and "0.tif" in told.text


# ---- data sets


def test_bands_and_range_of_a_configuration_reach_training_and_validation(tmp_path):
    values = noise(H, W, 5, top=4096, dtype=np.uint16)
    for folder in ("photos", "labels"):
        (tmp_path / folder).mkdir()
    tiff(tmp_path / "photos", values, photometric="minisblack", planarconfig="contig")
    Image.fromarray(noise(H, W, top=2)).save(tmp_path / "labels/a.png")
    (tmp_path / "names.txt").write_text("a\nb\n")
    config = DataConfig(images=tmp_path / "photos", labels=tmp_path / "labels", names=tmp_path / "names.txt",
                        bands=(5, 3, 1), value_range=(0, 4095))  # fmt: skip
    expected = (values[..., [4, 2, 0]] / 4095 * 255).round()
    np.testing.assert_array_equal(FolderDataset(config, "val")[0]["image"], expected)
    plain = config.override(crop=40, flip=False, color_jitter=False, short_edge=40)
    mean = FolderDataset(plain, "train")[0]["pixels"].mean((1, 2))
    dark = FolderDataset(plain.override(value_range=None), "train")[0]["pixels"].mean((1, 2))
    assert (mean > dark + 1).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bands": [1, 2]}, "bands: 1,2: give one or three"),
        ({"value_range": [5, 1]}, "value_range: 5.*1.*: give the smaller limit first"),
        ({"value_range": ["2%", "two"]}, "value_range: 2%,two: give two values"),
        ({"value_range": ["2%", "198%"]}, "give two values"),
    ],
)
def test_wrong_bands_and_ranges_of_a_configuration_are_one_line(values, words):
    with pytest.raises(ConfigError, match=words):
        DataConfig.read(values, "test")
    right = DataConfig.read({"bands": [4, 3, 2], "value_range": ["2%", 9000]}, "test")
    assert DataConfig.from_json(right.to_json(), "test") == right and right.value_range == ("2%", 9000)


def test_only_a_tiff_with_a_georeference_has_a_size_on_the_earth(tmp_path):
    values = np.zeros((6, 9), np.uint8)
    keys = (1, 1, 0, 1, 1024, 0, 1, 1)  # GeoKeyDirectory: version and one key
    tags = [(33550, "d", 3, (1.0, 1.0, 0.0), True), (33922, "d", 6, (0.0,) * 6, True), (34735, "H", 8, keys, True)]
    tifffile.imwrite(tmp_path / "map.tif", values, extratags=tags)
    tifffile.imwrite(tmp_path / "plain.tif", values)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "map.tif").read_bytes()[:20])
    Image.fromarray(values).save(tmp_path / "a.png")
    sizes = [georeferenced_size(tmp_path / name) for name in ("map.tif", "plain.tif", "cut.tif", "a.png")]
    assert sizes == [(9, 6), None, None, None]


def without_tiles(file: Path, *numbers: int) -> Path:
    """As programs write a map of which they have only parts: some tiles have no place and no size."""
    with tifffile.TiffFile(file) as read:
        page = read.pages[0]
        tags = [page.tags[324], page.tags[325]]
        places = [(tag.valueoffset, tag.valuebytecount // tag.count) for tag in tags]
    data = bytearray(file.read_bytes())
    for start, size in places:
        for number in numbers:
            data[start + number * size : start + (number + 1) * size] = bytes(size)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    "nodata, told_share", [(None, ""), ("7", "25.6% of its pixels hold no value (7,"), ("-9999", "")]
)
def test_tiles_that_were_never_written_hold_the_files_nodata_value(tmp_path, told, nodata, told_share):
    values = noise(H, W, top=60000, dtype=np.uint16) + np.uint16(20)
    tags = {"extratags": [(42113, "s", 0, nodata, True)]} if nodata else {}
    file = without_tiles(tiff(tmp_path, values, tile=(16, 16), **tags), 0, 5)  # 16 x 16 each of 40 x 50
    expected = (values / 257).round()
    expected[:16, :16] = expected[16:32, 16:32] = 0
    np.testing.assert_array_equal(shown(file)[..., 0], expected)
    assert told_share in told.text and ("hold no value" in told.text) == bool(told_share)


def test_unwritten_tiles_of_floating_point_files(tmp_path, told):
    values = np.linspace(0.1, 1, H * W, dtype=np.float32).reshape(H, W)
    for nodata in ("nan", "-9999"):
        file = tiff(tmp_path, values, f"{nodata}.tif", tile=(16, 16), extratags=[(42113, "s", 0, nodata, True)])
        image = shown(without_tiles(file, 1))
        assert (image[:16, 16:32] == 0).all() and image[16:].min() > 0
    assert told.text.count("12.8% of its pixels hold no value") == 2


def test_pages_that_are_no_bands_of_one_photo(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for values in (noise(H, W), noise(H, W), noise(H, W, dtype=np.uint16), noise(H, W + 1)):
            file.write(values, photometric="minisblack")
    np.testing.assert_array_equal(shown(tmp_path / "a.tif", bands=(2, 1, 2))[..., 1], noise(H, W))
    for bands, pages in (((1, 2, 3), "1 and 3"), ((2, 1, 4), "2 and 4"), ((3, 1, 2), "3 and 1")):
        with pytest.raises(
            ImageError, match=rf"a\.tif: its pages {pages} differ in size or type, so they are not bands"
        ):
            read_image(tmp_path / "a.tif", bands=bands)
    with pytest.raises(ImageError, match="has 4 bands, and bands 5 are asked for"):
        read_image(tmp_path / "a.tif", bands=(5,))


def test_pages_where_black_is_the_largest_value(tmp_path):
    values = noise(3, H, W, top=65536, dtype=np.uint16)
    file = tiff(tmp_path, values, photometric="miniswhite", extratags=[(274, "H", 1, 3, True)])
    expected = 255 - (values / 257).round()
    np.testing.assert_array_equal(shown(file, bands=(2,))[..., 0], expected[1][::-1, ::-1])


def test_a_stack_of_imagej_is_counted(tmp_path, told):
    values = noise(5, H, W, top=65536, dtype=np.uint16)
    np.testing.assert_array_equal(shown(tiff(tmp_path, values, imagej=True))[..., 0], (values[0] / 257).round())
    assert "a.tif: holds 5 pages or frames" in told.text


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LAB"])
def test_tiffs_that_pillow_reads_are_read_as_it_does(tmp_path, told, mode):
    image = Image.fromarray(noise(H, W, 3))
    image = Image.new("LAB", (W, H), (90, 130, 150)) if mode == "LAB" else image.convert(mode)
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(shown(tmp_path / "a.tif"), np.asarray(Image.open(tmp_path / "a.tif").convert("RGB")))
    assert not told.messages or mode == "LAB"
