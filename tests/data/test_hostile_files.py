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
from forked import faults
from PIL import Image

from fgaseg.data.class_names import read_names
from fgaseg.data.images import read_image
from fgaseg.data.label_formats import read_label_map, read_stored
from fgaseg.errors import FGASegError

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
    "long.txt": "x" * 2_000_000,
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
            return "" if name in text and len(text) < 1000 else f"error: {text[:300]}"
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        return "was read"

    assert dict(faults(1, judge)) == {}


def test_large_files_of_text_are_refused(tmp_path):
    file = tmp_path / "names.txt"
    with file.open("wb") as sparse:
        sparse.truncate(40 * 2**20)
    with pytest.raises(FGASegError, match=r"names\.txt.*more than 16,777,216 bytes"):
        read_names(file)
