"""Damaged and oversized files of others: an error that names the file, and never the end of the process.

FGASEG_FUZZ=N tries N times as many damaged images.
"""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from forked import faults
from PIL import Image

from fgaseg.cli.photos import find_photos
from fgaseg.config import DataConfig
from fgaseg.config.reading import read_yaml
from fgaseg.data import FolderDataset
from fgaseg.data.class_names import read_names
from fgaseg.data.coco import read_coco
from fgaseg.data.images import plain_suffix, read_image
from fgaseg.data.label_formats import read_label_map, read_run_lengths, read_stored
from fgaseg.errors import FGASegError
from fgaseg.files import read_limited

FUZZ = int(os.environ.get("FGASEG_FUZZ", "1"))
NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01")


def picture(kind: str) -> bytes:
    """A small image of this kind: PIL's mode, format and options, "mode format option=value"."""
    mode, form, *options = kind.split()
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray(values[..., :3]).quantize(16)
    else:
        image = Image.fromarray(values[..., :3] if mode == "RGB" else values).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **dict(option.split("=") for option in options))
    return file.getvalue()


KINDS = (
    "RGB PNG", "RGBA PNG", "L PNG", "P PNG", "I;16 PNG", "1 PNG", "RGB JPEG", "L JPEG", "CMYK JPEG", "RGB TIFF",
    "I;16 TIFF", "RGB TIFF compression=tiff_lzw", "RGB TIFF compression=jpeg", "RGBA TIFF compression=tiff_deflate",
    "F TIFF", "P GIF", "RGB WEBP", "RGB BMP", "RGB PPM", "RGB JPEG2000",
)  # fmt: skip


def damaged(content: bytes, seed: int) -> bytes:
    """Cut, overwritten, with bytes flipped, or with a part repeated or left out; the start of a file more often."""
    random = np.random.default_rng(seed)
    data = bytearray(content)
    for _ in range(random.integers(1, 5)):
        at = int(min(random.integers(0, len(data)), random.integers(0, len(data))))
        match random.integers(0, 6):
            case 0:
                del data[max(at, 8) :]
            case 1:
                data[at : at + 4] = random.choice([np.void(n) for n in NUMBERS]).tobytes()
            case 2:
                data[at:at] = data[at : at + int(random.integers(1, 64))]
            case 3 if len(data) > 16:
                del data[at : at + int(random.integers(1, 8))]
            case _:
                data[at] ^= 1 << int(random.integers(0, 8))
        if not data:
            return b""
    return whole_png(bytes(data)) if seed % 2 else bytes(data)


def whole_png(content: bytes) -> bytes:
    """A PNG whose checksums are right again, so that what is damaged is reached; others as they are."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    out, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        if at + 12 + length > len(content):
            break
        body = content[at + 4 : at + 8 + length]
        out += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out + content[at:])


def outcome(read, file: Path) -> str:
    try:
        result = read(file)
    except FGASegError as error:
        text = str(error)
        if file.name not in text:
            return f"an error that does not name the file: {text}"
        return "" if len(text) < 600 and "\n" not in text else f"a long error: {text[:300]}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    size = result.size if isinstance(result, Image.Image) else result.shape
    return "" if 0 not in size else f"a result of size {size}"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_are_errors_that_name_them(kind, tmp_path):
    content = picture(kind)
    file = tmp_path / f"damaged.{kind.split()[1].lower()}"
    file.write_bytes(content)
    assert outcome(read_image, file) == ""

    def judge(number: int) -> str:
        warnings.simplefilter("ignore")
        file.write_bytes(damaged(content, number))
        labels = lambda path: read_stored(path, (1, (1 << 24) + 5))  # noqa: E731
        return outcome(read_image, file) or outcome(labels, file)

    found = {number: wrong for number, wrong in faults(40 * FUZZ, judge)}
    assert found == {}


def tiff_file(bands: int, bits: int, tile: int = 0) -> bytes:
    """A TIFF of 1000 x 10 pixels that holds next to nothing: one strip, or one tile of so many pixels on a side."""
    data = zlib.compress(bytes(1000))
    place = {322: tile, 323: tile, 324: 8, 325: len(data)} if tile else {273: 8, 278: 10, 279: len(data)}
    tags = {256: 1000, 257: 10, 258: bits, 259: 8, 262: 1, 277: bands, 284: 1} | place
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("bands", "tile"), [(1, 65_536), (65_535, 0)])
def test_tiles_and_strips_are_no_larger_than_photos(bands, tile, bits, tmp_path):
    """They are decoded whole, whatever the size of the photo: four gigabytes and more, for a file of 200 bytes."""
    file = tmp_path / "bomb.tif"
    file.write_bytes(tiff_file(bands, bits, tile))
    readers = [read_image, lambda file: read_image(file, bands=(1,))]
    for read in readers if bands > 1 else [*readers, lambda file: read_stored(file, (1, 5))]:
        with pytest.raises(FGASegError, match=r"bomb\.tif: a tile( or strip with all its bands)? counts as \d+x"):
            read(file)


def test_the_picture_in_an_icon_is_not_decoded_when_it_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "1000")
    inside = io.BytesIO()
    Image.new("RGB", (64, 64)).save(inside, "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside.getvalue()), 22)  # 16 x 16, it says
    file = tmp_path / "large.ico"
    file.write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + inside.getvalue())
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(FGASegError, match=r"large\.ico"):
        read_image(file)


def test_a_gif_of_which_a_later_frame_is_damaged(tmp_path):
    file = tmp_path / "cut.gif"
    frames = [Image.new("RGB", (20, 10), (shade, 0, 0)) for shade in (0, 40, 80)]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    file.write_bytes(file.read_bytes()[:-30])
    assert read_image(file).size == (20, 10) and plain_suffix(file, (20, 10)) == ""


def test_what_does_not_fit_into_memory_is_not_called_damaged(tmp_path, monkeypatch):
    def load(self):
        raise MemoryError

    deep = np.zeros((4, 4, 3), np.uint16)
    for name in ("plain.png", "deep.png", "deep.tif"):
        (tmp_path / name).write_bytes(picture("RGB PNG") if name == "plain.png" else stored_deep(deep, name))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    monkeypatch.setattr("fgaseg.data.rasters._segments", lambda *_: load(None))
    for name in ("plain.png", "deep.png", "deep.tif"):
        with pytest.raises(FGASegError, match=rf"{name}: does not fit into memory"):
            read_image(tmp_path / name)


def stored_deep(values: np.ndarray, name: str) -> bytes:
    """RGB in 16 bits, which Pillow does not write."""
    file = io.BytesIO()
    if name.endswith(".tif"):
        tifffile.imwrite(file, values, photometric="rgb")
        return file.getvalue()
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def mat_file(name: str, shape: tuple[int, ...], written: int) -> bytes:
    """A MATLAB 5 file with a compressed matrix uint8 that says ``shape`` and holds ``written`` zeros."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    flags, sizes = struct.pack("<II", 9, 0), struct.pack(f"<{len(shape)}i", *shape)
    header = element(6, flags) + element(5, sizes) + element(1, name.encode())
    length = len(header) + 8 + int(np.prod(shape, dtype=object)) % 2**32
    compressor = zlib.compressobj(9)
    packed = compressor.compress(struct.pack("<II", 14, length % 2**32) + header)
    packed += compressor.compress(struct.pack("<II", 2, int(np.prod(shape, dtype=object)) % 2**32))
    for _ in range(written // 2**20):
        packed += compressor.compress(bytes(2**20))
    packed += compressor.compress(bytes(written % 2**20)) + compressor.flush()
    start = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM"
    return start + struct.pack("<II", 15, len(packed)) + packed


def test_a_label_map_of_mat_is_bounded(tmp_path, monkeypatch):
    """Of a bomb only the header is unpacked."""
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "1000")
    file = tmp_path / "labels.mat"
    file.write_bytes(mat_file("LabelMap", (20, 40), 800))
    assert read_label_map(file).shape == (20, 40)
    file.write_bytes(mat_file("LabelMap", (40, 40), 10))
    with pytest.raises(FGASegError, match=r"labels\.mat.*40.*40.*1,000 pixels"):
        read_label_map(file)
    file.write_bytes(mat_file("LabelMap", (2**30, 3), 10))
    with pytest.raises(FGASegError, match=r"labels\.mat.*1,000 pixels"):
        read_label_map(file)


def test_damaged_mat_files_are_errors_that_name_them(tmp_path):
    content, file = mat_file("LabelMap", (20, 40), 800), tmp_path / "labels.mat"

    def judge(number: int) -> str:
        file.write_bytes(damaged(content, number))
        return outcome(read_label_map, file)

    assert dict(faults(60 * FUZZ, judge)) == {}


BOMBS = {
    "deep.json": "[" * 100_000,
    "closed.json": "[" * 50_000 + "]" * 50_000,
    "deep.yaml": "- " * 20_000 + "a",
    "flow.yaml": "[" * 20_000 + "a",
    "aliases.yaml": "a0: &a0 [x, y]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
    "literal.txt": "[" + "-" * 50_000 + "1]",
    "nul.txt": "cat\0dog\n",
    "number.json": "[" + "9" * 10_000 + "]",
    "integer.yaml": "- " + "9" * 10_000,
    "digits.csv": f"id,name\n{'9' * 5_000},cat",
    "digits.pbtxt": f"item {{ id: {'9' * 5_000} name: 'cat' }}",
    "large.json": '{"4294967296": "black"}',  # one more, and it would count as a colour
    "long.txt": "x" * 2_000_000,
    "long.json": f'["{"x" * 200_000}", "cat"]',
    "long.csv": f"id,name\n1,{'x' * 200_000}",
    "key.json": f'{{"{"x" * 200_000}": 1}}',
    "line.txt": '"a, ' * 200_000,
    "unseen.txt": "cat\n\u200b\u2060\n",
    "tag.yaml": '- !!int ""',
    "truth.yaml": "- !!bool x",
    "time.yaml": "- !!timestamp x",
    "key.yaml": "? [a, b]\n: cat",
    "list.txt": "{[1]: 2}",
    "set.txt": "{1, 'a'}",
    "quote.csv": 'id,name\n1,"cat\n2,dog\n',
    # within seconds, where time would grow with the square of the length
    "keys.json": "{" + ", ".join(f'"k{number % 199_999}": 1' for number in range(200_000)) + "}",
    "gaps.txt": ("a" + " " * 3_900 + "//\n") * 300 + "b\0\n",
    "separators.txt": ("a" + " ," * 1_900 + "x\n") * 300 + "b\0\n",
    "numbers.txt": ("a" + " 1" * 1_900 + "x\n") * 300 + "b\0\n",
    "brackets.txt": ("(1" + "\t" * 3_900 + "x\n") * 300 + "b\0\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_names_that_nobody_should_read_are_one_error(name, tmp_path):
    file = tmp_path / name
    file.write_text(BOMBS[name])

    def judge(_: int) -> str:
        try:
            read_names(file)
        except FGASegError as error:
            text = str(error)
            return "" if name in text and len(text) < 2000 else f"error: {text[:300]}"
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        return "was read"

    assert dict(faults(1, judge)) == {}


def one_photo(file: Path) -> None:
    (photo,) = find_photos([f"@{file}"])
    raise FGASegError(photo.error)


def split(file: Path) -> None:
    folder, names = file.parent, file.with_name("names.txt")
    FolderDataset(DataConfig(images=folder, labels=folder, names=names, val_list=file), "val")


TEXT, ANNOTATIONS = "16,777,216", "4,294,967,296"
LIMITED = {
    "names": (read_names, TEXT),
    "a configuration": (read_yaml, TEXT),
    "a list of photos": (one_photo, TEXT),
    "a split": (split, TEXT),
    "annotations of COCO": (read_coco, ANNOTATIONS),
    "annotations of PASCAL in Detail": (read_run_lengths, ANNOTATIONS),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIMITED)
def test_files_of_text_are_bounded(kind, tmp_path):
    """One byte more is refused without reading it: the files have no blocks on the disk."""
    read, limit = LIMITED[kind]
    file = tmp_path / "large.json"  # of any kind: the content is not looked at
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "names.txt").write_text("cat")
    with file.open("wb") as sparse:
        sparse.truncate(int(limit.replace(",", "")) + 1)
    with pytest.raises(FGASegError, match=rf"large\.json.*more than {limit} bytes") as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_what_has_no_size_is_bounded_too():
    with pytest.raises(OSError, match=f"more than {TEXT} bytes"):
        read_limited("/dev/zero")
