"""Opening and decoding image files, and turning photos of every kind into the pixels that the network takes."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import ImageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_NORMALIZATION = (CLIP_MEAN, CLIP_STD)
Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean, standard deviation
PIXEL_LIMIT = 100_000_000  # larger images are refused or decoded at a reduced size

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

_OPEN_LOCK = threading.Lock()


def read_image(source: ImageSource) -> Image.Image:
    """Read an image of any kind as an upright 8-bit RGB image.

    source    a path (any format that Pillow reads; of several frames, the first), a PIL image, an array [H, W] or
              [H, W, 1 | 3 | 4], or a tensor [1 | 3 | 4, H, W] or shaped like the arrays (channels first where both
              fit). Arrays and tensors are uint8, uint16, or floating point in 0..1
    returns   PIL image of mode RGB

    The EXIF orientation is applied; 16-bit grey values are divided by 257; transparent images are composited over
    white; CMYK, palette and other colour modes are converted. Above 100 megapixels a JPEG is decoded at a half, a
    quarter or an eighth of its size, with a warning; any other format is an error. The environment variable
    FGASEG_PIXEL_LIMIT (in pixels) changes that limit. Raises ImageError naming the source if it cannot be read.
    """
    if isinstance(source, torch.Tensor):
        return _from_array(*_tensor_as_array(source))
    if isinstance(source, np.ndarray):
        return _from_array(source, f"array {source.dtype}{list(source.shape)}")
    if isinstance(source, Image.Image):
        return _to_rgb(
            source, getattr(source, "filename", "") or f"PIL image {source.mode} {source.width}x{source.height}"
        )
    if isinstance(source, str | os.PathLike):
        with open_image(source) as image:
            return _to_rgb(image, str(source))
    raise ImageError(f"{type(source).__name__} is not an image: give a path, a PIL image, an array or a tensor")


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file without decoding its pixels; size, mode and metadata are known then.

    Raises ImageError naming the file: missing, empty, unreadable, of no known format, or above the pixel limit.
    """
    file = Path(path)
    if file.is_dir():
        raise ImageError(f"{file}: is a folder, not an image: name a file in it")
    if not file.exists():
        raise ImageError(f"{file}: no such file: check the path")
    try:
        if file.stat().st_size == 0:
            raise ImageError(f"{file}: is empty (0 bytes): fetch or copy it again")
        image = _open_any_size(file)
    except PermissionError as error:
        raise ImageError(f"{file}: may not be read: change its permissions") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen types, SyntaxError and struct.error among them
        raise ImageError(
            f"{file}: is not an image Pillow can read, or its header is damaged: give a JPEG or PNG"
        ) from error
    _limit_pixels(image, str(file))
    return image


def load_pixels(image: Image.Image, name: str | os.PathLike[str]) -> None:
    """Decode the pixels of an opened image. Raises ImageError with ``name`` if the data is truncated or corrupt."""
    try:
        image.load()
    except Exception as error:  # as in open_image: every reader has its own types
        raise ImageError(f"{name}: is truncated or corrupt ({error}): fetch or copy it again") from error


def orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1, which is upright, where it has none. Raises ImageError."""
    with open_image(path) as image:
        try:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception as error:  # of a PNG the whole file is read
            raise ImageError(f"{path}: is truncated or corrupt ({error}): fetch or copy it again") from error
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


def _open_any_size(file: Path) -> Image.Image:
    """Open without Pillow's own size guard, which would refuse a JPEG before it could be read at a reduced size."""
    with _OPEN_LOCK:
        guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = guard


def _limit_pixels(image: Image.Image, name: str) -> None:
    setting = os.environ.get("FGASEG_PIXEL_LIMIT", str(PIXEL_LIMIT))
    if not setting.isdecimal():
        raise ImageError(f"environment variable FGASEG_PIXEL_LIMIT={setting!r}: give a whole number of pixels")
    limit = int(setting)
    width, height = image.size
    if width * height <= limit:
        return
    size = f"{name}: {width}x{height} is more than {limit:,} pixels"
    factor = next((n for n in (2, 4, 8) if width * height <= limit * n * n), None)
    if factor is None or not isinstance(image, JpegImageFile):
        raise ImageError(f"{size}: make it smaller, or set FGASEG_PIXEL_LIMIT={width * height} in the environment")
    image.draft(None, (width // factor, height // factor))
    warnings.warn(
        f"{size}: decoded at {image.width}x{image.height}; FGASEG_PIXEL_LIMIT in the environment changes the limit",
        stacklevel=4,
    )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name}: has no pixels ({image.width}x{image.height}): give one with at least 1x1")
    load_pixels(image, name)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_array(_as_sixteen_bit(np.asarray(image), name), name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _as_sixteen_bit(values: np.ndarray, name: str) -> np.ndarray:
    """Grey values as uint16: Pillow reads some 16-bit files as 32 bits. Floating point stays."""
    if values.dtype.kind == "f":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name}: holds grey values from {values.min()} to {values.max()}: save it with 8 or 16 bits")
    return values.astype(np.uint16)


def _tensor_as_array(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    name = f"tensor {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.permute(1, 2, 0)
    return tensor.numpy(), name


def _from_array(values: np.ndarray, name: str) -> Image.Image:
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: is not one image: give [H, W], [H, W, 3] or [H, W, 4] (tensors also [3, H, W])")
    if 0 in values.shape:
        raise ImageError(f"{name}: has no pixels: give one with at least 1x1")
    if values.dtype.kind == "f":
        values = _from_unit_range(values, name)
    elif values.dtype == np.uint16:
        values = (values / 257).round().astype(np.uint8)
    elif values.dtype != np.uint8:
        raise ImageError(f"{name}: has neither 8-bit, 16-bit nor floating point values: convert it to uint8")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(values)), name)


def _from_unit_range(values: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ImageError(f"{name}: holds NaN or infinity, first at {bad}: replace it")
    if values.min() < 0 or values.max() > 1:
        found = f"{values.min():.6g} to {values.max():.6g}"
        raise ImageError(f"{name}: floating point images are in 0..1, this one is in {found}: scale it, or pass uint8")
    return (values * 255).round().astype(np.uint8)


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
