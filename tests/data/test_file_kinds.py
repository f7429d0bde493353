"""Files that are no photos say in one line what they are; photos of unusual kinds keep their colours."""

import io
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageCms

from fgaseg.data import file_kinds, read_image
from fgaseg.errors import ImageError

FTYP = b"\0\0\0\x18ftyp"
FILES = {
    "a.pdf": (b"%PDF-1.7\n%...", "is a PDF: save"),
    "a.svg": (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x"/>', "is an SVG drawing"),
    "b.svg": (b"\xef\xbb\xbf  <svg/>", "is an SVG drawing"),
    "c.svg": (b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x">\n<svg/>', "is an SVG drawing"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is PostScript"),
    "page.jpg": (b"\n<!doctype HTML><html>", "is a web page"),
    "page2.jpg": (b"<html><body>404</body></html>", "is a web page"),
    "a.mp4": (FTYP + b"isom\0\0\0\0isom", "is a video: label it with `fgaseg video`"),
    "a.mov": (FTYP + b"qt  \0\0\0\0qt  ", "is a video"),
    "a.avi": (b"RIFF\0\0\0\0AVI LIST", "is a video"),
    "a.mkv": (b"\x1aE\xdf\xa3....", "is a video"),
    "a.mpg": (b"\0\0\x01\xb3" + bytes(40), "is a video"),
    "a.dcm": (bytes(128) + b"DICM", "is a DICOM file"),
    "a.h5": (b"\x89HDF\r\n\x1a\n", "is an HDF5"),
    "a.nc": (b"CDF\x01" + bytes(9), "NetCDF"),
    "a.grib": (b"GRIB" + bytes(9), "is a weather data file"),
    "a.exr": (b"\x76\x2f\x31\x01" + bytes(9), "is a high dynamic range image"),
    "a.hdr": (b"#?RADIANCE\n", "is a high dynamic range image"),
    "a.jxl": (b"\xff\x0a" + bytes(20), "is JPEG XL"),
    "a.cr3": (FTYP + b"crx ", "is a camera's raw file"),
    "a.cr2": (b"II*\0\x10\0\0\0CR\2\0", "is a camera's raw file"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201", "is a camera's raw file"),
    "a.orf": (b"IIRO\x08\0\0\0", "is a camera's raw file"),
    "a.zip": (b"PK\x03\x04" + bytes(30), "is an archive: unpack it"),
    "a.jpg.gz": (b"\x1f\x8b\x08" + bytes(30), "is an archive"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git LFS pointer.*git lfs pull"),
    "a.txt": (b"hello", "is not an image Pillow can read"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_photo_says_what_it_is(tmp_path, name):
    content, words = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=rf"{name}: .*{words}") as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_arrays_of_numpy_say_how_to_give_them(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 3), np.uint8))
    np.savez(tmp_path / "b.npz", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ImageError, match=r"a\.npy: is a NumPy array: give numpy\.load\(file\)"):
        read_image(tmp_path / "a.npy")
    with pytest.raises(ImageError, match=r"b\.npz: is an archive"):
        read_image(tmp_path / "b.npz")


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix"])
def test_heic_says_what_to_install_and_is_read_once_it_is(tmp_path, monkeypatch, brand):
    (tmp_path / "phone.heic").write_bytes(FTYP + brand + b"\0\0\0\0" + brand + bytes(40))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"phone\.heic: is a HEIC photo: pip install pillow-heif"):
        read_image(tmp_path / "phone.heic")
    calls = []
    stub = SimpleNamespace(register_heif_opener=lambda: calls.append("registered"))
    monkeypatch.setitem(sys.modules, "pillow_heif", stub)
    with pytest.raises(ImageError, match="is not an image Pillow can read"):  # these few bytes
        read_image(tmp_path / "phone.heic")
    assert calls == ["registered"]


def test_avif_says_which_pillow_reads_it(tmp_path, monkeypatch):
    if file_kinds.features.check("avif"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "a.avif")
        assert read_image(tmp_path / "a.avif").getpixel((0, 0))[0] > 240
    else:
        (tmp_path / "a.avif").write_bytes(FTYP + b"avif")
    monkeypatch.setattr(file_kinds.features, "check", lambda name: False)
    with pytest.raises(ImageError, match=r"a\.avif: is AVIF: pip install -U pillow"):
        read_image(tmp_path / "a.avif")


SMOOTH = np.dstack([*np.mgrid[40:210:5, 30:190:5].astype(np.uint8), np.full((34, 32), 90, np.uint8)])


@pytest.mark.parametrize("kind", ["jpg", "progressive.jpg", "cmyk.jpg", "cmyk.tif", "lab.tif", "ycbcr.tif",
                                  "palette.png", "palette.gif", "webp", "jp2", "bmp", "tga", "ppm", "avif", "qoi",
                                  "pcx"])  # fmt: skip
def test_every_kind_of_photo_keeps_its_colours(tmp_path, kind):
    image, options = Image.fromarray(SMOOTH), {}
    mode, _, suffix = kind.rpartition(".")
    if suffix == "avif" and not file_kinds.features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    if mode in ("cmyk", "ycbcr"):
        image = image.convert({"cmyk": "CMYK", "ycbcr": "YCbCr"}[mode])
    elif mode == "lab":
        lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(image, lab)
    elif mode == "palette":
        image = image.quantize(256)
    elif mode == "progressive":
        options["progressive"] = True
    if kind == "ycbcr.tif":
        options["compression"] = "tiff_lzw"  # Pillow 12.3 cannot read the uncompressed ones that it writes
    if suffix in ("jpg", "webp", "avif"):
        options["quality"] = 95
    image.save(tmp_path / f"a.{suffix}", **options)
    error = np.abs(np.asarray(read_image(tmp_path / f"a.{suffix}")).astype(int) - SMOOTH)
    assert error.mean() < 4, error.mean()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P"])
def test_grey_files_of_every_depth_are_grey(tmp_path, mode):
    grey = SMOOTH[..., 0]
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "a.png")
    read = np.asarray(read_image(tmp_path / "a.png"))
    assert (read[..., 0] == read[..., 1]).all() and (read[..., 1] == read[..., 2]).all()
    if mode == "1":
        assert set(np.unique(read)) == {0, 255}
    else:
        np.testing.assert_array_equal(read[..., 0], grey)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photos_of_every_format_are_turned_upright(tmp_path, suffix, orientation):
    if suffix == "avif" and not file_kinds.features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(SMOOTH).save(tmp_path / f"a.{suffix}", exif=exif)
    turned = np.rot90(SMOOTH, {3: 2, 6: -1, 8: 1}[orientation])
    read = np.asarray(read_image(tmp_path / f"a.{suffix}")).astype(int)
    assert read.shape == turned.shape and np.abs(read - turned).mean() < 5


def deep_png(values: np.ndarray, interlaced: bool) -> bytes:
    """A PNG of 16-bit RGB values, written out: Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for top, left, down, right in passes for row in values[top::down, left::right] if row.size]
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [False, True])
def test_deep_pngs_are_read_in_full_or_named(tmp_path, interlaced):
    values = np.random.default_rng(0).integers(0, 65536, (30, 41, 3), dtype=np.uint16)
    data = deep_png(values, interlaced)
    np.testing.assert_array_equal(np.asarray(read_image(io.BytesIO(data))), (values / 257).round())
    for name, content in (("half.png", data[: len(data) // 2]), ("head.png", data[:60])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=rf"{name}: is (truncated|not an image)"):
            read_image(tmp_path / name)
