"""Opening and decoding image files, and turning photos of every kind into the pixels that the network takes."""

from __future__ import annotations

import os
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import ImageError
from .addresses import fetch, is_address
from .file_kinds import why_not_read
from .rasters import TIFF, geotiff_size, is_deep_png, no_memory, note_pages, read_deep_png, read_tiff, tiff_form
from .samples import Bands, Samples, ValueRange, View, note_graded_alpha, note_spread, render, select, white_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_NORMALIZATION = (CLIP_MEAN, CLIP_STD)
Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean, standard deviation
PIXEL_LIMIT = 100_000_000  # larger images are refused or decoded at a reduced size

ImageSource = str | os.PathLike[str] | IO[bytes] | Image.Image | np.ndarray | torch.Tensor

_OPEN_LOCK = threading.Lock()
_HEAD = 4096  # bytes that tell what a file is
_EXTRA_SAMPLES, _TILE = 338, (322, 323)  # tags
_NOT_FRAMES = ("MPO", "PSD", "ICO", "ICNS")  # formats of several pictures whose first one is the photo


def read_image(
    source: ImageSource, *, bands: Bands | None = None, value_range: ValueRange | None = None
) -> Image.Image:
    """Read an image of any kind as an upright 8-bit RGB image.

    source       a path, a web address or a binary file (any format that Pillow reads, and TIFFs with any number of
                 bands; of several pages or frames, the first), a PIL image, an array [H, W] or [H, W, B], or a tensor
                 [1 | 3 | 4, H, W] or shaped like the arrays (channels first where both fit). Four channels of arrays
                 and tensors are RGBA; uint8, uint16, or floating point in 0..1; with ``value_range`` of any real type
    bands        one band (grey) or three (red, green, blue), counted from 1, and no transparency. None: the first three
    value_range  the values that become black and white, such as (0, 4095), or percentiles of all chosen bands together,
                 ("2%", "98%"). None: the range of the type, 0..255, 0..65535 or 0..1
    returns      PIL image of mode RGB

    The EXIF orientation is applied; 16-bit values are divided by 257; transparent images are composited over white
    (transparency is what the format says is such, not any fourth band); CMYK, palette and other colour modes are
    converted; pixels of TIFFs without a value (NaN, GDAL's nodata value) are black. What was assumed is logged once:
    bands left out, pages left out, values that use a small part of their range. Above 100 megapixels a JPEG is decoded
    at a half, a quarter or an eighth of its size, with a warning; any other format is an error. The environment
    variable FGASEG_PIXEL_LIMIT (in pixels) changes that limit. Raises ImageError naming the source if it cannot be
    read.
    """
    view = View(bands, value_range)
    if isinstance(source, torch.Tensor):
        return _from_array(*_tensor_as_array(source), view)
    if isinstance(source, np.ndarray):
        return _from_array(source, f"array {source.dtype}{list(source.shape)}", view)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or f"PIL image {source.mode} {source.width}x{source.height}"
        return _to_rgb(source, name, view)
    if isinstance(source, str) and is_address(source):
        source = fetch(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with _opened(path) as file:
            return _from_file(file, path, str(source), view)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _from_file(source, source, str(getattr(source, "name", type(source).__name__)), view)
    raise ImageError(f"{type(source).__name__} is not an image: give a path, a PIL image, an array or a tensor")


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file without decoding its pixels; size, mode and metadata are known then.

    Raises ImageError naming the file: missing, empty, unreadable, of no known format, or above the pixel limit.
    """
    with _opened(Path(path)) as file:
        _refuse_others(file.read(_HEAD), str(path))
    return _open(Path(path), str(path))


def load_pixels(image: Image.Image, name: str | os.PathLike[str]) -> None:
    """Decode the pixels of an opened image. Raises ImageError with ``name`` if the data is truncated or corrupt."""
    try:
        image.load()
    except MemoryError as error:
        raise no_memory(name) from error
    except Exception as error:  # as in _open: every reader has its own types
        raise ImageError(f"{name}: is truncated or corrupt ({error}): fetch or copy it again") from error


def stored_size(path: str | os.PathLike[str]) -> tuple[tuple[int, int], bool]:
    """Width and height of an image file before it is turned upright, and whether it surely is upright as it is.

    No pixels are decoded. Raises ImageError.
    """
    if form := _tiff_form(Path(path)):
        return form[0], False
    with open_image(path) as image:
        return image.size, image.format == "PNG" and "exif" not in image.info


def orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1, which is upright, where it has none. Raises ImageError."""
    if form := _tiff_form(Path(path)):
        return form[1]
    with open_image(path) as image:
        try:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception as error:  # of a PNG the whole file is read
            raise ImageError(f"{path}: is truncated or corrupt ({error}): fetch or copy it again") from error
    return value if value in range(2, 9) else 1


def plain_suffix(path: str | os.PathLike[str], size: tuple[int, int]) -> str:
    """The usual suffix of a file that every reader decodes to the picture that ``read_image`` gives; "" if it is none.

    It is a JPEG or PNG in 8-bit grey or RGB, without transparency, upright as it is stored, and of that ``size`` (width
    and height). The file is one that ``read_image`` has read.
    """
    with _opened(Path(path)) as file:
        head = file.read(_HEAD)
    with _open_any_size(Path(path)) as image:  # not as open_image does, at a reduced size
        form, mode, stored = image.format, image.mode, image.size
        single = form in _NOT_FRAMES or _frames(image) == 1
        opaque = not image.has_transparency_data
    plain = form in ("JPEG", "MPO", "PNG") and mode in ("L", "RGB") and opaque and single and stored == size
    if not plain or is_deep_png(head) or orientation(path) != 1:
        return ""
    return ".png" if form == "PNG" else ".jpg"


def georeferenced_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Width and height of a TIFF that says where on the earth its pixels are; None for any other file.

    Raises ImageError if there is no such file.
    """
    with _opened(Path(path)) as file:
        head = file.read(_HEAD)
        file.seek(0)
        return geotiff_size(file) if head.startswith(TIFF) else None


def orientation_at_any_size(path: str | os.PathLike[str]) -> int:
    """As ``orientation``, without a limit of pixels and without decoding any; 1 for what cannot be opened."""
    try:
        if form := _tiff_form(Path(path)):
            return form[1]
        with _open_any_size(Path(path)) as image:
            if image.format == "PNG" and "exif" not in image.info:  # looking for it would decode the file
                return 1
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _open: every reader has its own types
        return 1
    return value if value in range(2, 9) else 1


def turn_upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Values [H, W] of a grid of pixels, turned as ``read_image`` turns a photo of that EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)


def _tiff_form(path: Path) -> tuple[tuple[int, int], int] | None:
    """Size and orientation of a TIFF, of which Pillow opens few; None for other files."""
    with _opened(path) as file:
        head = file.read(_HEAD)
        file.seek(0)
        return tiff_form(file) if head.startswith(TIFF) and not why_not_read(head) else None


def _opened(file: Path) -> IO[bytes]:
    if file.is_dir():
        raise ImageError(f"{file}: is a folder, not an image: name a file in it")
    if not file.exists():
        raise ImageError(f"{file}: no such file: check the path")
    if not file.is_file():  # a pipe among photos would be waited for without end
        raise ImageError(f"{file}: is no file (a pipe or a device): give a file; - reads a photo from standard input")
    try:
        return file.open("rb")
    except PermissionError as error:
        raise ImageError(f"{file}: may not be read: change its permissions") from error


def _from_file(file: IO[bytes], source: Path | IO[bytes], name: str, view: View) -> Image.Image:
    """Read an image from ``file``; Pillow opens ``source``, which is its path where it has one."""
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(0)
    _refuse_others(head, name)
    raster = None
    if head.startswith(TIFF):
        raster = read_tiff(file, name, view, partial(_refuse_large, name))
        file.seek(0)
    if raster is None:
        with _open(source, name) as image:
            if is_deep_png(head):
                raster = read_deep_png(partial(_open_any_size, source), name, view)
            if raster is None:
                return _from_pillow(image, name, view)
    upright = render(raster.samples, view)
    if raster.samples.values.dtype == np.uint8 and not view.value_range:
        note_spread(raster.samples.values, 255, name)
    upright.getexif()[ExifTags.Base.Orientation] = raster.orientation
    return ImageOps.exif_transpose(upright).convert("RGB")


def _from_pillow(image: Image.Image, name: str, view: View) -> Image.Image:
    """An opened file as RGB, and what is to be told about it."""
    if image.format not in (*_NOT_FRAMES, "TIFF"):  # the pages of a TIFF are told already
        if (frames := _frames(image)) > 1:
            note_pages(frames, name)
    rgb = _to_rgb(image, name, view)
    if not (view or _is_deep(image)):
        note_spread(np.asarray(rgb), 255, name)
    return rgb


def _frames(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # what is damaged is named when it is decoded, if it is the first
        return 1


def _refuse_others(head: bytes, name: str) -> None:
    """Raise ImageError for a file whose first bytes say that it is no image."""
    if not head:
        raise ImageError(f"{name}: is empty (0 bytes): fetch or copy it again")
    if reason := why_not_read(head):
        raise ImageError(f"{name}: {reason}")


def _open(source: Path | IO[bytes], name: str) -> Image.Image:
    try:
        image = _open_any_size(source)
    except Exception as error:  # Pillow's readers raise a dozen types, SyntaxError and struct.error among them
        raise ImageError(
            f"{name}: is not an image Pillow can read, or its header is damaged: give a JPEG or PNG"
        ) from error
    _limit_pixels(image, name)
    return image


def _open_any_size(source: Path | IO[bytes]) -> Image.Image:
    """Open without Pillow's own size guard, which would refuse a JPEG before it could be read at a reduced size.

    Icons keep it: Pillow decodes them when it opens them, and the picture inside may be larger than the icon says.
    """
    limit = pixel_limit() if _is_icon(source) else None
    with _OPEN_LOCK:
        guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = guard


def _is_icon(source: Path | IO[bytes]) -> bool:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _is_icon(file)
    source.seek(0)
    head = source.read(4)
    source.seek(0)
    return head in (b"\0\0\1\0", b"\0\0\2\0")


def pixel_limit() -> int:
    """The most pixels of a picture: 100 million, or FGASEG_PIXEL_LIMIT in the environment. Raises ImageError."""
    setting = os.environ.get("FGASEG_PIXEL_LIMIT", str(PIXEL_LIMIT))
    if not setting.isdecimal():
        raise ImageError(f"environment variable FGASEG_PIXEL_LIMIT={setting!r}: give a whole number of pixels")
    return int(setting)


def _refuse_large(name: str, width: int, height: int, what: str = "") -> None:
    limit = pixel_limit()
    if width * height > limit:
        raise ImageError(
            f"{name}: {what}{width}x{height} is more than {limit:,} pixels: label it in tiles with `fgaseg raster`, "
            f"make it smaller, or set FGASEG_PIXEL_LIMIT={width * height} in the environment"
        )


def _limit_pixels(image: Image.Image, name: str) -> None:
    if isinstance(image, TiffImageFile):
        tile = [size for tag in _TILE if isinstance(size := image.tag_v2.get(tag), int)]
        if len(tile) == 2:
            _refuse_large(name, tile[0], tile[1], "a tile counts as ")
    limit, (width, height) = pixel_limit(), image.size
    factor = next((n for n in (1, 2, 4, 8) if width * height <= limit * n * n), None)
    if factor is None or not isinstance(image, JpegImageFile):
        _refuse_large(name, width, height)
        return
    if factor == 1:
        return
    image.draft(None, (width // factor, height // factor))
    warnings.warn(
        f"{name}: {width}x{height} is more than {limit:,} pixels: decoded at {image.width}x{image.height}; "
        "FGASEG_PIXEL_LIMIT in the environment changes the limit; `fgaseg raster` labels it in tiles at its own size",
        stacklevel=5,
    )


def _to_rgb(image: Image.Image, name: str, view: View) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name}: has no pixels ({image.width}x{image.height}): give one with at least 1x1")
    load_pixels(image, name)
    if image.mode in ("P", "PA") and not image.getpalette():  # Pillow makes it black
        raise ImageError(f"{name}: is a palette image without its palette, so its colours are unknown: give it in RGB")
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else None
    marked = tags is None or _EXTRA_SAMPLES in tags  # a TIFF's fourth band is transparency where it says so
    image = ImageOps.exif_transpose(image)
    if view or _is_deep(image) or (image.mode == "RGBA" and not marked):
        return render(_samples_of(image, name, view, marked), view).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if tags is not None:
            note_graded_alpha(np.asarray(image.getchannel("A")), name, 4)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    """Whether its values are other than 8-bit ones, which is told where they are scaled."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _samples_of(image: Image.Image, name: str, view: View, marked: bool) -> Samples:
    """The samples of a PIL image: as they are, or of colour modes and palettes as RGB or RGBA."""
    if not (_is_deep(image) or image.mode in ("L", "LA", "RGB", "RGBA")):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    alpha = values.shape[2] - 1 if image.mode in ("LA", "RGBA") and marked else None
    white = 65535.0 if image.mode.startswith("I;16") else white_of(values.dtype)
    return select(values, name, white, view, alpha)


def _tensor_as_array(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    name = f"tensor {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.permute(1, 2, 0)
    return tensor.numpy(), name


def _from_array(values: np.ndarray, name: str, view: View) -> Image.Image:
    if values.ndim == 2:
        values = values[..., None]
    # bands come last: of more than four they are fewer than rows and columns, or it is another layout
    if values.ndim != 3 or values.shape[2] == 2 or (values.shape[2] > 4 and values.shape[2] >= min(values.shape[:2])):
        raise ImageError(
            f"{name}: is not one image: give [H, W], [H, W, 3] or [H, W, 4] (tensors also [3, H, W]; other bands last)"
        )
    if 0 in values.shape:
        raise ImageError(f"{name}: has no pixels: give one with at least 1x1")
    if view.value_range is None:
        _check_values(values, name)
    if values.dtype.kind not in "uif":
        raise ImageError(f"{name}: holds {values.dtype} values: convert it to uint8")
    alpha = 3 if values.shape[2] == 4 else None
    if alpha is not None and view.bands is None:
        note_graded_alpha(values[..., alpha], name, 4)
    return render(select(values, name, white_of(values.dtype), view, alpha), view).convert("RGB")


def _check_values(values: np.ndarray, name: str) -> None:
    """Without a range: NaN is more likely a mistake than a pixel without a value, and few types have a range."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            bad = np.argwhere(~np.isfinite(values))[0].tolist()
            raise ImageError(f"{name}: holds NaN or infinity, first at {bad}: replace it, or give value_range")
    elif values.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{name}: has neither 8-bit, 16-bit nor floating point values: convert it to uint8, or give value_range"
        )


def to_pixels(
    image: Image.Image | np.ndarray | torch.Tensor,
    size: tuple[int, int] | None = None,
    antialias: bool = False,
    normalization: Normalization = CLIP_NORMALIZATION,
) -> torch.Tensor:
    """Normalised pixels of an RGB image: the input of the image encoder.

    image          an RGB PIL image, or uint8 [H, W, 3]
    size           (height, width) to resize to, bilinear; None keeps the size
    antialias      off by default, as in the published evaluation protocol
    normalization  mean and standard deviation of RGB in 0..1: those of the encoder, `model.normalization`; CLIP's
    returns        float32 [3, height, width], (value / 255 - mean) / standard deviation

    Raises ImageError for other shapes and types.
    """
    values = image if isinstance(image, torch.Tensor) else torch.from_numpy(np.array(image))
    if values.dtype != torch.uint8 or values.ndim != 3 or values.shape[2] != 3:
        found = f"{str(values.dtype).removeprefix('torch.')}{list(values.shape)}"
        raise ImageError(f"to_pixels: takes uint8 [H, W, 3], not {found}: pass the image through read_image first")
    pixels = values.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format) / 255
    if size is not None and size != tuple(pixels.shape[1:]):
        pixels = torch.nn.functional.interpolate(pixels[None], size, mode="bilinear", antialias=antialias)[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    return (pixels - mean) / std
