"""Every kind of image becomes upright 8-bit RGB, or one error that names it and says what to do."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import SHARED
from PIL import ExifTags, Image

from fgaseg.data.images import CLIP_MEAN, CLIP_STD, pixel_limit, plain_suffix, read_image, to_pixels
from fgaseg.errors import ImageError

MSRC = SHARED / "data" / "msrc_v2"


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * x, 12 * y, 255 - 8 * x], axis=-1).clip(0, 255).astype(np.uint8)


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def png_head(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_rgb_file_path_string_and_pil_give_the_same(tmp_path):
    file = saved(tmp_path, Image.fromarray(gradient()), "a.png")
    for source in (file, str(file), Image.open(file), Image.fromarray(gradient())):
        image = read_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), gradient())


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_colour_modes_are_converted(tmp_path, mode):
    rgb = Image.fromarray(gradient())
    if mode == "LAB":
        image = Image.new("LAB", (30, 20), (128, 128, 128))
        expected = np.asarray(image.convert("RGB"))
    else:
        image = rgb.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    read = read_image(image)
    assert read.mode == "RGB" and read.size == (30, 20)
    np.testing.assert_array_equal(np.asarray(read), expected)


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = Image.new("RGB", (32, 32), (220, 30, 30)).convert("CMYK")
    r, g, b = np.asarray(read_image(saved(tmp_path, red, "cmyk.jpg", quality=95)))[16, 16]
    assert r > 180 and g < 80 and b < 80


def test_sixteen_bit_grey_is_scaled_by_257(tmp_path):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    file = saved(tmp_path, Image.fromarray(values), "deep.png")
    for source in (file, values, Image.open(file), torch.from_numpy(values)):
        np.testing.assert_array_equal(np.asarray(read_image(source))[..., 1], np.arange(256).reshape(16, 16))


def test_thirty_two_bit_grey_beyond_sixteen_bits_is_an_error():
    image = Image.fromarray(np.full((4, 4), 70000, np.int32))
    with pytest.raises(ImageError, match=r"70000.*8 or 16 bits"):
        read_image(image)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":
        image = image.convert("RGB").convert("P")
        image.info["transparency"] = image.getpixel((6, 4))
        image.putpixel((0, 0), 5 if image.getpixel((6, 4)) != 5 else 6)
        file = saved(tmp_path, image, "p.png", transparency=image.info["transparency"])
    else:
        file = saved(tmp_path, image.convert(mode), "a.png")
    assert read_image(file).getpixel((6, 4)) == (255, 255, 255)
    half = np.zeros((2, 2, 4), np.uint8)
    half[..., 3] = 128
    np.testing.assert_allclose(np.asarray(read_image(half)), 127, atol=1)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    file = saved(tmp_path, Image.fromarray(gradient()), "phone.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(file)), np.rot90(gradient(), -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_photo(tmp_path):
    file = saved(tmp_path, Image.fromarray(gradient()), "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\x00\x05abc")
    assert read_image(file).size == (30, 20)


def test_one_pixel_is_an_image(tmp_path):
    file = saved(tmp_path, Image.new("RGB", (1, 1), (9, 8, 7)), "dot.png")
    assert read_image(file).getpixel((0, 0)) == (9, 8, 7)
    assert to_pixels(read_image(file), (32, 16)).shape == (3, 32, 16)


def test_arrays_and_tensors_in_every_layout():
    rgb, grey = gradient(), gradient()[..., 0]
    grey_rgb = np.repeat(grey[..., None], 3, axis=2)
    unit = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
    opaque = np.dstack([rgb, np.full_like(grey, 255)])
    same = [rgb, rgb[..., ::-1][..., ::-1], rgb / 255, (rgb / 255).astype(np.float32), opaque]
    same += [torch.from_numpy(rgb), unit, unit.double(), unit.permute(1, 2, 0), unit.requires_grad_()]
    for source in same:
        np.testing.assert_array_equal(np.asarray(read_image(source)), rgb)
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(np.asarray(read_image(source)), grey_rgb)
    assert np.abs(np.asarray(read_image(unit.detach().bfloat16())).astype(int) - rgb).max() <= 1


def with_nan() -> np.ndarray:
    values = np.zeros((5, 6, 3), np.float32)
    values[2, 3, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (with_nan(), r"array float32\[5, 6, 3\].*NaN.*\[2, 3, 1\].*replace"),
        (torch.full((3, 4, 4), float("inf")), r"tensor float32\[3, 4, 4\].*infinity"),
        (gradient().astype(np.float32), r"0\.\.1.*0 to 255.*scale it"),
        (np.full((4, 4), -0.5), r"-0\.5.*scale it"),
        (gradient().astype(np.int64), r"int64.*convert it to uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\[4, 4, 2\].*give \[H, W\]"),
        (np.zeros((1, 3, 4, 4), np.uint8), r"is not one image"),
        (np.zeros((0, 4, 3), np.uint8), r"no pixels"),
        (Image.new("RGB", (0, 3)), r"no pixels"),
        (b"bytes", r"bytes is not an image: give a path"),
        (None, r"NoneType is not an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_unusable_values_say_why(source, words):
    with pytest.raises(ImageError, match=words):
        read_image(source)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_truncated_file_names_itself(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    file = saved(tmp_path, Image.fromarray(noise), f"half.{suffix}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"half\.{suffix}: .*(truncated|damaged)"):
        read_image(file)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jpg", b"", r"empty\.jpg: is empty \(0 bytes\).*again"),
        ("notes.jpg", b"not a picture at all\n", r"notes\.jpg: is not an image.*give a JPEG or PNG"),
        ("corrupt.png", b"\x89PNG\r\n\x1a\n" + bytes(100), r"corrupt\.png: is not an image.*damaged"),
        ("few.png", png_head(50, 50), r"few\.png: is truncated or corrupt.*again"),
    ],
)
def test_broken_file_names_itself(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / name)


def test_a_palette_that_is_missing_is_reported(tmp_path):
    file = saved(tmp_path, Image.fromarray(gradient()).quantize(8), "numbers.png")
    content = file.read_bytes()
    start = content.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">I", content, start)
    file.write_bytes(content[:start] + content[start + 12 + length :])
    for source, name in ((file, r"numbers\.png"), (Image.new("P", (2, 2)), "PIL image P 2x2")):
        with pytest.raises(ImageError, match=f"{name}: is a palette image without its palette.*in RGB"):
            read_image(source)


def test_folder_and_missing_file_are_reported(tmp_path):
    with pytest.raises(ImageError, match="is a folder, not an image"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match=r"nowhere\.jpg: no such file: check the path"):
        read_image(tmp_path / "nowhere.jpg")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read every file")
def test_forbidden_file_is_reported(tmp_path):
    file = saved(tmp_path, Image.new("RGB", (2, 2)), "secret.png")
    file.chmod(0)
    with pytest.raises(ImageError, match=r"secret\.png: may not be read"):
        read_image(file)


def test_hundred_megapixel_jpeg_is_decoded_smaller_with_a_warning(tmp_path):
    file = saved(tmp_path, Image.new("L", (10_400, 10_000), 90), "huge.jpg")
    with pytest.warns(UserWarning, match=r"huge\.jpg: 10400x10000 .* decoded at 5200x5000"):
        image = read_image(file)
    assert image.size == (5200, 5000) and image.getpixel((100, 100)) == (90, 90, 90)


@pytest.mark.parametrize("side", [10_100, 60_000])  # just beyond our limit, and beyond where Pillow refuses to open
def test_hundred_megapixel_png_is_an_error_before_it_is_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_head(side, side))
    with pytest.raises(ImageError, match=rf"bomb\.png: {side}x{side} .*FGASEG_PIXEL_LIMIT={side * side}"):
        read_image(tmp_path / "bomb.png")
    assert Image.MAX_IMAGE_PIXELS is not None


def test_pixel_limit_can_be_moved(tmp_path, monkeypatch):
    file = saved(tmp_path, Image.fromarray(gradient()), "a.png")
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "599")
    with pytest.raises(ImageError, match="30x20 is more than 599 pixels: label it in tiles with `fgaseg raster`"):
        read_image(file)
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "600")
    assert read_image(file).size == (30, 20)
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "many")
    with pytest.raises(ImageError, match=r"FGASEG_PIXEL_LIMIT='many'.*whole number"):
        read_image(file)


def test_jpeg_beyond_an_eighth_is_an_error(tmp_path, monkeypatch):
    file = saved(tmp_path, Image.new("RGB", (800, 800)), "a.jpg")
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "9999")  # an eighth would be 100x100
    with pytest.raises(ImageError, match="make it smaller"):
        read_image(file)
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "10000")
    with pytest.warns(UserWarning, match="100x100"):
        assert read_image(file).size == (100, 100)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    file = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(file).getpixel((0, 0)) == (255, 0, 0)


def test_pixels_are_clip_normalised():
    image = gradient()
    expected = (image / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    for source in (image, Image.fromarray(image), torch.from_numpy(image)):
        pixels = to_pixels(source)
        assert pixels.dtype == torch.float32 and pixels.is_contiguous()
        np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_pixels_are_resized_bilinearly_without_antialias_by_default():
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::8] = 255
    plain, smooth = to_pixels(stripes, (8, 16)), to_pixels(stripes, (8, 16), antialias=True)
    assert plain[0].std() < 1e-6 < 0.1 < smooth[0].std()  # it samples between columns 1 and 2 of every four: no stripe
    expected = torch.nn.functional.interpolate(to_pixels(gradient())[None], (7, 50), mode="bilinear")[0]
    torch.testing.assert_close(to_pixels(gradient(), (7, 50)), expected)


def test_to_pixels_refuses_other_types_and_shapes():
    with pytest.raises(ImageError, match=r"to_pixels: takes uint8 \[H, W, 3\], not float32\[3, 4, 4\].*read_image"):
        to_pixels(torch.zeros(3, 4, 4))


def test_file_is_closed_after_reading(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, "PNG")
    file = tmp_path / "a.png"
    file.write_bytes(buffer.getvalue())
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip(reason="needs /proc to count open files")
    before = len(list(descriptors.iterdir()))
    images = [read_image(file) for _ in range(5)]
    assert len(list(descriptors.iterdir())) == before and len(images) == 5


@pytest.mark.skipif(not MSRC.exists(), reason=f"real photos are not at {MSRC}")
def test_real_photos_are_read():
    files = sorted((MSRC / "images").iterdir())[::20]
    assert len(files) > 10
    for file in files:
        with Image.open(file) as image:
            assert read_image(file).size == image.size
        assert np.asarray(read_image(file)).std() > 5


def test_a_file_that_every_reader_decodes_alike_has_its_usual_suffix(tmp_path, monkeypatch):
    rgb, turned = Image.fromarray(gradient()), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    half = rgb.copy()
    half.putalpha(90)
    deep = Image.fromarray((np.arange(600, dtype=np.uint16) * 100).reshape(20, 30))
    plain = {"a.jpe": ".jpg", "b.png": ".png", "c.tif": "", "d.webp": "", "grey.png": ".png", "turned.jpg": "",
             "half.png": "", "palette.png": "", "deep.png": "", "cmyk.jpg": ""}  # fmt: skip
    saved(tmp_path, rgb, "a.jpe", format="JPEG")
    for name in ("b.png", "c.tif", "d.webp"):
        saved(tmp_path, rgb, name)
    for name, image in {"grey.png": rgb.convert("L"), "half.png": half, "palette.png": rgb.quantize(8),
                        "deep.png": deep, "cmyk.jpg": rgb.convert("CMYK")}.items():  # fmt: skip
        saved(tmp_path, image, name)
    saved(tmp_path, rgb, "turned.jpg", exif=turned)
    assert {name: plain_suffix(tmp_path / name, (30, 20)) for name in plain} == plain
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "599")
    with pytest.warns(UserWarning, match="decoded at 15x10"):
        size = read_image(tmp_path / "a.jpe").size
    assert plain_suffix(tmp_path / "a.jpe", size) == ""
    frames = [rgb, rgb.rotate(90)]
    saved(tmp_path, frames[0], "moves.png", save_all=True, append_images=frames[1:])
    assert plain_suffix(tmp_path / "moves.png", (30, 20)) == ""


def test_mean_and_deviation_are_those_of_clip():
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    assert (CLIP_MEAN, CLIP_STD) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def test_a_hundred_million_pixels_are_not_too_many(monkeypatch):
    monkeypatch.delenv("FGASEG_PIXEL_LIMIT", raising=False)
    assert pixel_limit() == 100_000_000
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "0x5")
    with pytest.raises(ImageError, match="FGASEG_PIXEL_LIMIT='0x5': give a whole number of pixels"):
        pixel_limit()


class OneWay:
    """What can be read and not turned back."""

    name = "photo"

    def read(self, size=-1):
        return b""


def test_binary_files_are_read_from_their_beginning_under_their_name(tmp_path):
    for kind in ("PNG", "TIFF", "ICO"):
        Image.fromarray(gradient(16, 16)).save(buffer := io.BytesIO(), kind)
        buffer.read(9)
        np.testing.assert_array_equal(np.asarray(read_image(buffer)), gradient(16, 16))
    broken = io.BytesIO(b"no picture")
    with pytest.raises(ImageError, match="^BytesIO: is not an image"):
        read_image(broken)
    broken.name = "a.png"
    with pytest.raises(ImageError, match=r"^a\.png: is not an image"):
        read_image(broken)
    with pytest.raises(ImageError, match="OneWay is not an image: give a path"):
        read_image(OneWay())


def test_pil_images_are_named_by_their_file_or_their_form(tmp_path):
    with pytest.raises(ImageError, match=r"^PIL image RGB 0x3: has no pixels \(0x3\): give one with at least 1x1"):
        read_image(Image.new("RGB", (0, 3)))
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    file = saved(tmp_path, Image.fromarray(noise), "half.png")
    file.write_bytes(file.read_bytes()[:5000])
    with Image.open(file) as image, pytest.raises(ImageError, match=rf"^{file}: is truncated or corrupt"):
        read_image(image)


def test_dull_files_are_told_and_dull_images_in_memory_are_not(tmp_path, caplog):
    dull = Image.fromarray(gradient() // 16)
    read_image(dull), read_image(np.asarray(dull))
    read_image(saved(tmp_path, dull, "seen.png"), value_range=(0, 15))
    read_image(saved(tmp_path, dull, "one.png"), bands=(1,))
    assert not caplog.messages
    read_image(saved(tmp_path, dull, "dull.png"))
    assert "dull.png: nearly all its values lie between" in caplog.text and "uint8 (0 to 255)" in caplog.text


def test_frames_are_told_where_they_are_no_versions_of_one_photo(tmp_path, caplog):
    frames = [Image.fromarray(gradient()), Image.fromarray(gradient()[::-1])]
    read_image(saved(tmp_path, frames[0], "b.jpg", format="MPO", save_all=True, append_images=frames[1:]))
    read_image(saved(tmp_path, frames[0], "one.gif"))
    assert not caplog.messages
    read_image(saved(tmp_path, frames[0], "a.webp", lossless=True, save_all=True, append_images=frames[1:]))
    assert caplog.messages == [f"{tmp_path}/a.webp: holds 2 pages or frames, of which the first is used"]


@pytest.mark.parametrize("shape, size", [
    ((3, 5), (5, 3)), ((1, 5), (5, 1)), ((4, 6, 8), (8, 6)), ((1, 6, 8), (8, 6)), ((6, 8, 1), (8, 6)),
    ((6, 8, 4), (8, 6)), ((3, 3, 4), (4, 3)), ((6, 8, 5), (8, 6)), ((2, 5, 3), (5, 2)),
])  # fmt: skip
def test_layouts_of_tensors(shape, size):
    assert read_image(torch.zeros(shape, dtype=torch.uint8)).size == size


@pytest.mark.parametrize("shape", [(4, 100, 6), (5, 5, 5), (100, 5, 5), (2, 2, 2), (4,), (2, 5, 6, 3)])
def test_layouts_that_are_not_one_image(shape):
    with pytest.raises(ImageError, match=r"is not one image: give \[H, W\], \[H, W, 3\] or \[H, W, 4\]"):
        read_image(np.zeros(shape, np.uint8))


def test_small_arrays_of_four_channels_have_transparency(caplog):
    values = np.zeros((3, 3, 4), np.uint8)
    assert np.asarray(read_image(values)).min() == 255
    assert np.asarray(read_image(values, bands=(1, 2, 3))).max() == 0 and not caplog.messages
    values[..., 3] = 90
    read_image(values)
    assert "array uint8[3, 3, 4]: its band 4 is taken as transparency and laid on white" in caplog.text


def test_values_of_other_types_need_a_range():
    for dtype in (np.int8, np.int16, np.uint32):
        values = np.array([[0, 50, 100]], dtype)
        with pytest.raises(ImageError, match=f"array {np.dtype(dtype)}.* has neither 8-bit, 16-bit nor floating point"):
            read_image(values)
        assert np.asarray(read_image(values, value_range=(0, 100)))[0, :, 0].tolist() == [0, 128, 255]
    holes = np.array([[0.0, np.nan, 1.0]])
    assert np.asarray(read_image(holes, value_range=(0, 1)))[0, :, 0].tolist() == [0, 0, 255]
    with pytest.raises(ImageError, match="holds bool values: convert it to uint8"):
        read_image(np.zeros((2, 2), bool), value_range=(0, 1))


def test_bands_and_ranges_of_images_in_every_mode():
    image = Image.merge("RGBA", [Image.new("L", (2, 2), value) for value in (10, 20, 30, 40)])
    for mode in ("RGB", "RGBA"):
        assert read_image(image.convert(mode), bands=(3,)).getpixel((0, 0)) == (30, 30, 30)
    assert read_image(image, bands=(4, 1, 2)).getpixel((0, 0)) == (40, 10, 20)
    assert read_image(image.convert("RGB").convert("P"), bands=(2,)).mode == "RGB"
    clear = Image.new("P", (2, 2), 3)
    clear.putpalette([10, 20, 30] * 4)
    clear.info["transparency"] = 3
    assert read_image(clear, value_range=(0, 255)).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((2, 2), 257 * 9, np.uint16))
    assert read_image(deep, value_range=(0, 65535)).getpixel((0, 0)) == (9, 9, 9)
    grey = Image.merge("LA", [Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 255)])
    assert read_image(grey, value_range=(0, 20)).getpixel((0, 0)) == (128, 128, 128)
