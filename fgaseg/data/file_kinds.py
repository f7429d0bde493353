"""Files that are no photos, or that need another package: told by their first bytes, with what to do about it."""

from __future__ import annotations

import re

from PIL import features

_RAW = "is a camera's raw file: develop it to a JPEG or TIFF first"
_VIDEO = "is a video: label it with `fgaseg video`, or take single frames from it, for example with ffmpeg"
_BOM = rb"\s*(?:\xef\xbb\xbf)?\s*"
_KINDS = (
    (rb"%PDF", "is a PDF: save its page as PNG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "is PostScript: save it as PNG"),
    (_BOM + rb"(?:<\?xml.*?\?>|<!--.*?-->|<!DOCTYPE svg.*?>|\s)*<svg", "is an SVG drawing: save it as PNG"),
    (_BOM + rb"<(?:!doctype html|html|head)", "is a web page, not an image: use the address of the image itself"),
    (rb"\x93NUMPY", "is a NumPy array: give numpy.load(file) to model.segment, or save it as TIFF"),
    (rb"\x89HDF|CDF[\x01\x02\x05]", "is an HDF5 or NetCDF file: save its bands as a TIFF"),
    (rb"GRIB|BUFR", "is a weather data file: save its fields as a TIFF"),
    (rb".{128}DICM", "is a DICOM file: save its pixels as a 16-bit PNG or TIFF"),
    (rb"\x76\x2f\x31\x01|#\?RADIANCE|#\?RGBE", "is a high dynamic range image: save it as PNG or TIFF"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "is JPEG XL: save it as JPEG or PNG"),
    (rb"....ftypcrx|FUJIFILMCCD-RAW|IIR[OS]|IIU\0|II.{6}HEAPCCDR|II\*\0.{4}CR", _RAW),
    (rb"....(?:ftyp|moov|mdat)|RIFF....AVI |\x1aE\xdf\xa3|OggS|FLV\x01|\0\0\x01[\xb3\xba]", _VIDEO),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ", "is an archive: unpack it"),
    (rb"version https://git-lfs", "is a git LFS pointer, not the file itself: run git lfs pull"),
)
_PATTERNS = [(re.compile(pattern, re.DOTALL | re.IGNORECASE), reason) for pattern, reason in _KINDS]
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")


def why_not_read(head: bytes) -> str:
    """What a file beginning with ``head`` is, if it is no image that can be read here, and what to do; else "".

    HEIC files are read through pillow_heif where that is installed: it is then registered with Pillow.
    """
    if head[4:8] == b"ftyp" and (head[8:12] in (*_HEIF, *_AVIF)):
        return _why_no_heif(any(brand in head[8:64] for brand in _AVIF))
    return next((reason for pattern, reason in _PATTERNS if pattern.match(head)), "")


def _why_no_heif(avif: bool) -> str:
    if avif:
        return "" if features.check("avif") else "is AVIF: pip install -U pillow, from version 11.3 on it reads these"
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found]
    except ImportError:
        return "is a HEIC photo: pip install pillow-heif, which reads it, or save it as JPEG"
    register_heif_opener()
    return ""
