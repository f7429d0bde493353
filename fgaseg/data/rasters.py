"""Files that Pillow does not read, or cuts to 8 bits: TIFFs with more bands or other types of values, 16-bit PNGs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..notes import note_once
from .samples import Samples, View, choose_bands, note_graded_alpha, select, white_of

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
SEGMENT_BANDS = 4  # a tile or strip, which is decoded whole, may hold as many values as a photo with so many
_RAW = (".3fr", ".arw", ".cr2", ".dng", ".erf", ".iiq", ".kdc", ".nef", ".nrw", ".pef", ".srw")  # TIFFs by their form
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # PhotometricInterpretation
_SENSOR = (32803, 34892)  # values of a colour filter array, or linear ones
_ALPHA = (1, 2)  # ExtraSamples: associated and unassociated
_UNSIGNED = 1  # SampleFormat
_HIGH_BYTE = 128  # of 16-bit values that use their range
_NODATA = 42113  # GDAL's tag
_ORIENTATION = 274

# what it finds wrong is told by errors; without a handler, Python would also print it
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Raster:
    """What a file holds, and the EXIF orientation in which it is stored (1: upright)."""

    samples: Samples
    orientation: int


def no_memory(name: str | os.PathLike[str]) -> ImageError:
    return ImageError(f"{name}: does not fit into memory: make it smaller, or label it in tiles with `fgaseg raster`")


def is_deep_png(head: bytes) -> bool:
    """Whether a file that begins so is a PNG with 16 bits in each of several bands."""
    return head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) > 25 and head[24] == 16 and head[25] in (2, 4, 6)


def read_deep_png(opened: Callable[[], Any], name: str, view: View) -> Raster | None:
    """All 16 bits of a PNG of which Pillow keeps 8; None where it has to do for lack of a way to the others.

    Pillow unpacks one byte of each value: the first as the file says, the second as if their order were the other.
    """
    halves, orientation = [], 1
    for order in "BL":
        with opened() as image:
            codec, extents, offset, packing = image.tile[0]
            if packing not in ("RGB;16B", "RGBA;16B") or "transparency" in image.info:
                return None
            image.tile = [(codec, extents, offset, packing[:-1] + order)]
            try:
                halves.append(np.asarray(image))
            except MemoryError as error:
                raise no_memory(name) from error
            except Exception:  # every reader of Pillow has its own types
                return None  # the plain way fails too, and says what is wrong
            orientation = image.getexif().get(_ORIENTATION, 1)
    values = halves[0].astype(np.uint16) << 8 | halves[1]
    alpha = 3 if values.shape[2] == 4 else None
    return Raster(select(values, name, 65535.0, view, alpha), orientation)


def read_tiff(file: IO[bytes], name: str, view: View, check_size: Callable[..., None]) -> Raster | None:
    """The bands of a TIFF that ``view`` asks for, in the type that they are stored in.

    check_size  called with width, height and perhaps what has these, before anything is decoded
    returns     None if Pillow reads all that is asked for: 8-bit grey and RGB, palettes, CMYK, YCbCr, LAB

    Several pages are told; where each holds one band and ``view`` names bands, they are the bands. Raises ImageError.
    """
    import tifffile

    try:
        tiff = tifffile.TiffFile(file)
        pages = _full_pages(tiff)
    except Exception:  # tifffile's own types, struct.error, ...
        return None  # Pillow says what is wrong
    with tiff:
        try:
            return _read_page(pages, tiff, file, name, view, check_size)
        except ImageError:
            raise
        except MemoryError as error:
            raise no_memory(name) from error
        except Exception as error:
            raise ImageError(f"{name}: is truncated or corrupt ({error}): fetch or copy it again") from error


def _read_page(
    pages: list[TiffPage],
    tiff: TiffFile,
    file: IO[bytes],
    name: str,
    view: View,
    check_size: Callable[..., None],
) -> Raster | None:
    _refuse_raw(pages[0], name)
    page = pages[0]
    one_band_each = (
        len(pages) > 1 and page.samplesperpixel == 1 and page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    )
    as_bands = one_band_each and view.bands is not None
    count = max(len(pages), int((tiff.imagej_metadata or {}).get("images", 1)))
    if count > 1 and not as_bands:
        note_pages(count, name, "; --bands=2 (bands=(2,) in Python) takes the second" * one_band_each)
    if page.index == 0 and not as_bands and _pillow_reads(page):
        return None
    if not page.imagewidth * page.imagelength:
        raise ImageError(f"{name}: has no pixels ({page.imagewidth}x{page.imagelength}): fetch or copy it again")
    check_size(page.imagewidth, page.imagelength)
    for one in pages if as_bands else [page]:
        _check_segment(one, check_size)
    samples = _pages_as_bands(pages, name, view) if as_bands else _page_samples(page, file, name, view)
    return Raster(samples, _orientation(page))


def _check_segment(page: TiffPage, check_size: Callable[..., None]) -> None:
    """Tiles can be far larger than the photo, and hold any number of bands."""
    width = page.tilewidth if page.is_tiled else page.imagewidth
    check_size(width, ceil(prod(page.chunks) / width / SEGMENT_BANDS), "a tile or strip with all its bands counts as ")


def tiff_form(file: IO[bytes]) -> tuple[tuple[int, int], int] | None:
    """Width and height of the page that `read_tiff` reads, and its orientation; None if it cannot be parsed."""
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            page = _full_pages(tiff)[0]
            return (page.imagewidth, page.imagelength), _orientation(page)
    except Exception:  # as in read_tiff
        return None


def geotiff_size(file: IO[bytes]) -> tuple[int, int] | None:
    """Width and height of the page that `read_tiff` reads, if the file has a georeference."""
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            page = _full_pages(tiff)[0]
            return (page.imagewidth, page.imagelength) if page.is_geotiff else None
    except Exception:  # as in read_tiff
        return None


def note_pages(count: int, name: str, cure: str = "") -> None:
    """Tell that only the first of several pages or frames is used."""
    note_once(("pages", count), f"{name}: holds {count} pages or frames, of which the first is used{cure}")


def _refuse_raw(page: Any, name: str) -> None:
    if page.is_dng or page.photometric in _SENSOR or name.lower().endswith(_RAW):
        raise ImageError(f"{name}: is a camera's raw file: develop it to a JPEG or TIFF first")


def _full_pages(tiff: TiffFile) -> list[TiffPage]:
    """The pages that are neither smaller copies nor masks of another one."""
    pages: list[Any] = list(tiff.pages)
    full = [page.aspage() for page in pages if not (page.subfiletype & 5)]  # bit 0: reduced, bit 2: a mask
    return full or [pages[0].aspage()]


def _orientation(page: TiffPage) -> int:
    value = page.tags.valueof(_ORIENTATION, 1)
    return value if value in range(2, 9) else 1


def _bits(page: TiffPage) -> set[int]:
    bits = page.bitspersample
    return set(bits) if isinstance(bits, tuple) else {bits}


def _alpha(page: TiffPage) -> int | None:
    """The band that the file marks as transparency, counted from 0."""
    first = page.samplesperpixel - len(page.extrasamples)
    return next((first + i for i, kind in enumerate(page.extrasamples) if kind in _ALPHA), None)


def _pillow_reads(page: TiffPage) -> bool:
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return True
    if page.sampleformat != _UNSIGNED or not (
        _bits(page) <= {8} or (page.samplesperpixel == 1 and max(_bits(page)) < 8)
    ):
        return False
    colours = 3 if page.photometric == _RGB else 1
    more = page.samplesperpixel - colours
    return more == 0 or (more == 1 and _alpha(page) == colours)


def _page_samples(page: TiffPage, file: IO[bytes], name: str, view: View) -> Samples:
    """Only the bands that are shown are kept in memory."""
    alpha = _alpha(page) if view.bands is None else None
    wanted = choose_bands(page.samplesperpixel, _alpha(page), view.bands, name)
    kept = wanted if alpha is None else [*wanted, alpha]
    values = _decode(page, file, kept, name, view)
    if values.dtype.kind not in "uif":
        raise ImageError(f"{name}: holds {values.dtype} values: save it as whole or floating point numbers")
    transparency = None
    if alpha is not None:
        values, transparency = values[..., :-1], values[..., -1]
        note_graded_alpha(transparency, name, alpha + 1)
    return Samples(
        values,
        name,
        255.0 if values.dtype == np.uint8 else white_of(values.dtype, max(_bits(page))),
        transparency,
        premultiplied=alpha is not None and _ALPHA[0] in page.extrasamples,
        inverted=page.photometric == _WHITE_IS_ZERO,
        nodata=_nodata(page),
    )


def _pages_as_bands(pages: list[TiffPage], name: str, view: View) -> Samples:
    wanted = choose_bands(len(pages), None, view.bands, name)
    shown = [pages[number] for number in wanted]
    first = shown[0]
    if different := next((page for page in shown if (page.shape, page.dtype) != (first.shape, first.dtype)), None):
        raise ImageError(
            f"{name}: its pages {first.index + 1} and {different.index + 1} differ in size or type, so they are not "
            "bands of one photo: choose one"
        )
    values = np.concatenate([_segments(page, [0]) for page in shown], axis=2)
    white = white_of(values.dtype, max(_bits(first)))
    return Samples(values, name, white, inverted=first.photometric == _WHITE_IS_ZERO, nodata=_nodata(first))


def _decode(page: TiffPage, file: IO[bytes], kept: list[int], name: str, view: View) -> np.ndarray:
    """Bands [H, W, len(kept)]; where tifffile lacks a decoder, as Pillow reads them if that is all that is needed."""
    try:
        return _segments(page, kept)
    except Exception as error:
        if "imagecodecs" not in str(error):
            raise
        values = None if page.index else _by_pillow(page, file, kept, view)
        if values is None:
            kind = str(getattr(page.compression, "name", page.compression))
            raise ImageError(f"{name}: is compressed with {kind}: pip install imagecodecs, which reads it") from None
        return values


def _segments(page: TiffPage, kept: list[int]) -> np.ndarray:
    """Strips and tiles one after the other: memory is that of the bands that are kept."""
    height, width = page.imagelength, page.imagewidth
    values = np.full((height, width, len(kept)), _empty(page), page.dtype)
    separate = page.planarconfig == 2 and page.samplesperpixel > 1
    # sorted: as they stand, tifffile mistakes those around a tile that was never written for adjacent ones
    for segment, (plane, _, top, left, _), _ in page.segments(maxworkers=1, sort=True):
        if segment is None:
            continue  # a tile that was never written
        part = segment[0, : height - top, : width - left]
        target = values[top : top + part.shape[0], left : left + part.shape[1]]
        if not separate:
            target[:] = part[..., kept]
        else:
            for place in (i for i, number in enumerate(kept) if number == plane):
                target[..., place] = part[..., 0]
    return values


def _by_pillow(page: TiffPage, file: IO[bytes], kept: list[int], view: View) -> np.ndarray | None:
    """None if Pillow reads neither all bits, nor the high ones of values that use them, while no range is given."""
    file.seek(0)
    try:
        with Image.open(file) as image:
            values = np.asarray(image)
    except MemoryError:
        raise
    except Exception:  # every reader of Pillow has its own types; that this one does not read it is no error
        return None
    values = values[..., None] if values.ndim == 2 else values
    if max(kept) >= values.shape[2]:
        return None
    if values.shape[2] == 1 and values.dtype != np.uint8:
        return values.astype(page.dtype)
    enough = view.value_range is None and values.dtype == np.uint8 and int(values.max()) >= _HIGH_BYTE
    return values[..., kept] if max(_bits(page)) == 8 or enough else None


def _empty(page: TiffPage) -> float:
    """The value of tiles that were never written."""
    nodata, dtype = _nodata(page) or 0.0, np.dtype(page.dtype)
    return nodata if dtype.kind == "f" or nodata == np.array(nodata).clip(0, 2**31).astype(dtype) else 0.0


def _nodata(page: TiffPage) -> float | None:
    try:
        return float(page.tags.valueof(_NODATA, ""))
    except ValueError:
        return None
