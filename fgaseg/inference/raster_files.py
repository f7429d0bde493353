"""Rasters by windows, through rasterio: what the model sees of them, and which pixels hold no value."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..data import View
from ..data.images import orientation_at_any_size
from ..data.rasters import note_pages
from ..data.samples import (
    Samples,
    choose_bands,
    limits,
    missing_pixels,
    note_graded_alpha,
    note_spread,
    render,
    white_of,
)
from ..errors import ImageError, UsageError
from ..notes import note_once
from .places import Place

CACHE_MEGABYTES = 256  # of decoded blocks that GDAL keeps; its default is a share of the machine's memory
CLASSES_TAG = "CLASS_NAMES"  # of label files: a list as JSON
_SAMPLED = 1000  # rows and columns that are read to see which values a raster holds
JPEG_MEGABYTES = 2000  # that libjpeg may take for a progressive JPEG, of which it keeps all coefficients
_ROWS_BYTES = 512_000_000  # of rows that are kept
_AT_A_TIME = 1_000_000  # pixels that are looked at for values
_COLOURS = ("red", "green", "blue")
_ENLARGING = ("merc", "webmerc", "eqc", "mill")  # PROJ's names of cylindrical projections of the whole Earth
_OTHER_COLOURS = ("cyan", "Y", "hue")  # what the first band of CMYK, YCbCr and HSL is called


@contextlib.contextmanager
def raster_environment() -> Iterator[None]:
    """In which rasterio reads and writes, with bounded memory. Raises UsageError if it is not installed."""
    try:
        import rasterio
        import rasterio.errors
    except ImportError as error:
        raise UsageError(f"rasters are read with rasterio ({error}): pip install 'fgaseg[geo]'") from None
    memory = {"GDAL_CACHEMAX": CACHE_MEGABYTES, "JPEGMEM": f"{JPEG_MEGABYTES}M"}
    with rasterio.Env(**memory), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # told in words of ours
        yield


class _Rows:
    """The last rows of a raster, over its whole width, so that what is decoded from the top on is decoded once.

    read   values [height, W, bands] of rows, by the first of them and their number
    count  rows that are kept
    """

    def __init__(self, read: Callable[[int, int], np.ndarray], count: int):
        self.read, self.count = read, count
        self.top, self.values = 0, np.empty((0, 0, 0))

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A copy of values [height, width, bands]. Rows above those that are kept begin anew."""
        bottom, end = top + height, self.top + len(self.values)
        if not self.top <= top < end:
            self.top, self.values = top, self.read(top, height)
        elif bottom > end:
            first = min(max(self.top, bottom - self.count), top)
            self.values = np.concatenate([self.values[first - self.top :], self.read(end, bottom - end)])
            self.top = first
        return self.values[top - self.top : bottom - self.top, left : left + width].copy()


class RasterSource:
    """A raster that is opened for reading by windows, in `raster_environment`. A context manager.

    name           as it was given: a path, or what else GDAL opens
    height, width  in pixels, as it is stored
    orientation    EXIF orientation of a photo, which pixels are stored in; 1: upright
    data           the opened data set of rasterio

    Raises ImageError for what is no raster, and for one whose bands or values cannot be shown.
    """

    def __init__(self, path: str | os.PathLike[str], view: View):
        self.name = str(path)
        self.data = _open(self.name)
        self._rows: _Rows | None = None
        try:
            self.height, self.width = self.data.height, self.data.width
            self._choose_bands(view)
            self._find_missing()
            self._limits = self._look_for_limits(view)
        except BaseException:
            self.data.close()
            raise

    def __enter__(self) -> RasterSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()

    @property
    def georeferenced(self) -> bool:
        """Whether the file says where on Earth it is."""
        return bool(Place.of(self.data))

    @property
    def pixel_area(self) -> float | None:
        """Square metres of a pixel; None where the coordinates are none in a plane, or not true to area."""
        crs = self.data.crs
        if crs is None or not crs.is_projected or self.data.transform.is_identity:
            return None
        if crs.to_dict().get("proj") in _ENLARGING:
            note_once(
                ("enlarging",), f"{self.name}: its projection enlarges areas far from the equator, as Mercator's does: "
                "none are given in square metres"
            )  # fmt: skip
            return None
        return float(abs(self.data.transform.determinant) * crs.linear_units_factor[1] ** 2)

    def see(self, top: int, left: int, side: int, size: int) -> Image.Image:
        """The square of `side` pixels from a row and a column on, RGB and upright, as the model is to see it.

        It is square also beyond the raster's border, behind which the raster is mirrored. size is what the model will
        resize it to: where that is less, pixels are averaged already while they are read.
        """
        height, width = min(side, self.height - top), min(side, self.width - left)
        shown = min(side, size)
        scaled = tuple(max(round(n * shown / side), 1) for n in (height, width))
        values, alpha = self._read(top, left, height, width, scaled)
        samples = self._samples(values, alpha, f"{self.name} at row {top}, column {left}")
        image = render(samples, View(None, self._limits)).convert("RGB")
        if image.size != (shown, shown):
            margin = [(0, shown - n) for n in scaled]
            image = Image.fromarray(np.pad(np.asarray(image), [*margin, (0, 0)], mode="symmetric"))
        image.getexif()[ExifTags.Base.Orientation] = self.orientation
        return ImageOps.exif_transpose(image)

    def missing(self, top: int, left: int, height: int, width: int) -> np.ndarray | None:
        """bool [height, width]: pixels without a value, for which no label is meant. None: there are none."""
        if not self._may_lack:
            return None
        values = alpha = None
        if self._values_tell or self._alpha is not None:
            values, alpha = self._read(top, left, height, width, (height, width))
        return self._lacking(values, alpha, top, left, height, width, (height, width))

    def is_empty(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether no pixel of a part of the raster holds a value; what lies beyond it does not count."""
        if not self._may_lack:
            return False
        bottom, right = min(bottom, self.height), min(right, self.width)
        step = max(_AT_A_TIME // (right - left), 1)
        for row in range(top, bottom, step):
            missing = self.missing(row, left, min(step, bottom - row), right - left)
            if missing is None or not missing.all():
                return False
        return True

    def keep_rows(self, count: int) -> None:
        """Keep the last rows that were read, if the file is stored by rows: a JPEG or PNG has no way to others."""
        values = len(self._numbers) + (self._alpha is not None)
        size = count * self.width * values * np.dtype(self.data.dtypes[self._numbers[0] - 1]).itemsize
        if self.data.block_shapes[0][1] >= self.width and size <= _ROWS_BYTES:
            self._rows = _Rows(
                lambda top, height: self._all_bands(top, 0, height, self.width, (height, self.width)), count
            )

    # --- what opening finds out

    def _choose_bands(self, view: View) -> None:
        data, kinds = self.data, [kind.name for kind in self.data.colorinterp]
        structure = data.tags(ns="IMAGE_STRUCTURE") | data.tags(1, ns="IMAGE_STRUCTURE")
        alpha = kinds.index("alpha") if "alpha" in kinds else None
        self._colours = _colours_of(data) if kinds[0] == "palette" else None
        if self._colours is not None:
            self._numbers = [1]
            self._colours = self._colours[:, choose_bands(3, None, view.bands, self.name)]
            note_once(("palette",), f"{self.name}: holds numbers of colours in a palette: it is seen in these colours")
        else:
            self._numbers = [1 + band for band in self._shown(kinds, alpha, view)]
        dtype = np.dtype(data.dtypes[self._numbers[0] - 1])
        if dtype.kind not in "uif":
            raise ImageError(f"{self.name}: holds {dtype} values: save it as whole or floating point numbers")
        self._white = 255.0 if self._colours is not None else white_of(dtype, int(structure.get("NBITS", 0)) or None)
        self._inverted = structure.get("MINISWHITE") == "YES"
        self._alpha = alpha + 1 if alpha is not None and view.bands is None else None
        self._premultiplied = self._alpha is not None and (
            data.tags(self._alpha, ns="IMAGE_STRUCTURE").get("ALPHA") == "PREMULTIPLIED"
        )
        self.orientation = 1 if self.georeferenced else orientation_at_any_size(self.name)
        if self.orientation != 1:
            note_once(
                ("orientation",),
                f"{self.name}: its pixels are stored turned (EXIF orientation {self.orientation}): the model sees it "
                "upright, and labels lie as the pixels are stored, where GDAL and QGIS show them",
            )

    def _shown(self, kinds: list[str], alpha: int | None, view: View) -> list[int]:
        """The bands that are shown, counted from 0: red, green and blue wherever the file says that they are."""
        if view.bands is None and kinds[0] in _OTHER_COLOURS:
            raise ImageError(f"{self.name}: its bands are {', '.join(kinds)}: convert it to RGB, or choose bands")
        named = [kinds.index(colour) for colour in _COLOURS if colour in kinds]
        if view.bands is not None or len(named) < 3 or named == [0, 1, 2]:
            return choose_bands(self.data.count, alpha, view.bands, self.name)
        listed = ",".join(str(band + 1) for band in named)
        note_once(("named", listed), f"{self.name}: its bands {listed} are red, green and blue, as the file says")
        return named

    def _find_missing(self) -> None:
        """Where it is told from that pixels hold no value."""
        from rasterio.enums import MaskFlags

        self._nodata: float | None = self.data.nodatavals[self._numbers[0] - 1]
        floating = np.dtype(self.data.dtypes[self._numbers[0] - 1]).kind == "f"
        self._values_tell = floating or self._nodata is not None
        self._masked = self.data.mask_flag_enums[self._numbers[0] - 1] == [MaskFlags.per_dataset]
        self._may_lack = self._values_tell or self._masked or self._alpha is not None

    def _look_for_limits(self, view: View) -> tuple[float, float]:
        """The values that become black and white, the same in all tiles: from pixels spread over the whole raster."""
        whole, size = (0, 0, self.height, self.width), (min(self.height, _SAMPLED), min(self.width, _SAMPLED))
        values, alpha = self._read(*whole, size, average=False)
        missing = self._lacking(values, alpha, *whole, size)
        samples = self._samples(values, alpha, self.name)
        if self._alpha is not None and alpha is not None:
            note_graded_alpha(alpha, self.name, self._alpha)
        percentiles = any(isinstance(limit, str) for limit in view.value_range or ())
        if samples.values.dtype == np.uint8 and self._white == 255 and view.value_range is None:
            note_spread(samples.values, 255.0, self.name, missing)
        elif missing is not None and missing.all() and (percentiles or view.value_range is None):
            raise ImageError(
                f"{self.name}: holds no value at any of {missing.size:,} pixels spread over it, so that nothing says "
                "which values are black and white: give a range of numbers, or another raster"
            )
        low, high = limits(samples, view.value_range, missing)
        render(samples, View(None, (low, high)))  # tells of pixels without a value, how many of the whole they are
        if percentiles:
            note_once(
                ("percentiles", self.name),
                f"{self.name}: {low:.6g} is black and {high:.6g} white in all of it: percentiles of "
                f"{size[0]}x{size[1]} pixels spread over it",
            )
        return low, high

    # --- reading

    def _read(
        self, top: int, left: int, height: int, width: int, size: tuple[int, ...], average: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Values [h, w, bands that are shown] and transparency [h, w] of a window, at a size (h, w)."""
        if self._rows is not None and size == (height, width):
            values = self._rows.window(top, left, height, width)
        else:
            values = self._all_bands(top, left, height, width, size, average)
        return (values, None) if self._alpha is None else (values[..., :-1], values[..., -1])

    def _all_bands(
        self, top: int, left: int, height: int, width: int, size: tuple[int, ...], average: bool = True
    ) -> np.ndarray:
        numbers = self._numbers if self._alpha is None else [*self._numbers, self._alpha]
        return self._bands(numbers, top, left, height, width, size, average)

    def _bands(
        self, numbers: list[int], top: int, left: int, height: int, width: int, size: tuple[int, ...],
        average: bool = True,
    ) -> np.ndarray:  # fmt: skip
        from rasterio.enums import Resampling
        from rasterio.errors import RasterioIOError
        from rasterio.windows import Window

        mixed = average and self._colours is None  # numbers of colours have no mean
        try:
            values = self.data.read(
                numbers, window=Window(left, top, width, height), out_shape=(len(numbers), *size),
                resampling=Resampling.average if mixed else Resampling.nearest,
            )  # fmt: skip
        except RasterioIOError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ImageError(f"{self.name}: is damaged or cannot be read ({reason}): fetch or copy it again") from error
        return np.moveaxis(values, 0, -1)

    def _samples(self, values: np.ndarray, alpha: np.ndarray | None, name: str) -> Samples:
        if self._colours is not None:
            missing = missing_pixels(values, self._nodata)
            colours = self._colours[np.minimum(values[..., 0], len(self._colours) - 1)]
            if missing is not None:
                colours[missing] = 0
            return Samples(colours, name, self._white, alpha)
        return Samples(values, name, self._white, alpha, self._premultiplied, self._inverted, self._nodata)

    def _lacking(
        self, values: np.ndarray | None, alpha: np.ndarray | None, top: int, left: int, height: int, width: int,
        size: tuple[int, ...],
    ) -> np.ndarray | None:  # fmt: skip
        """bool [h, w] of pixels without a value in what was read at a size (h, w); None: there are none."""
        from rasterio.windows import Window

        missing = None if values is None else missing_pixels(values, self._nodata)
        others = [] if alpha is None else [alpha == 0]
        if self._masked:
            window = Window(left, top, width, height)
            others.append(self.data.read_masks(self._numbers[0], window=window, out_shape=size) == 0)
        for other in others:
            missing = other if missing is None else missing | other
        return missing


def _open(name: str) -> Any:
    import rasterio
    from rasterio.errors import RasterioError

    try:
        data = rasterio.open(name)
    except (RasterioError, OSError) as error:
        if "://" not in name and not name.startswith("/vsi") and not Path(name).exists():
            raise ImageError(f"{name}: no such file: check the path") from None
        if Path(name).is_dir():
            raise ImageError(f"{name}: is a folder: name a file in it, or join them with gdalbuildvrt") from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ImageError(f"{name}: is no raster that GDAL can open ({reason})") from error
    if data.count == 0:
        parts = ", ".join(data.subdatasets[:3]) + (", ..." if len(data.subdatasets) > 3 else "")
        data.close()
        raise ImageError(f"{name}: holds several rasters: give one of them" + (f": {parts}" if parts else ""))
    if CLASSES_TAG in data.tags():
        data.close()
        raise ImageError(f"{name}: holds labels that were written here: give the raster that they were made from")
    if len(data.subdatasets) > 1:
        note_pages(len(data.subdatasets), name)
    return data


def _colours_of(data: Any) -> np.ndarray:
    """uint8 [N, 3], the palette of a raster."""
    entries = data.colormap(1)
    colours = np.zeros((max(entries) + 1, 3), np.uint8)
    for number, colour in entries.items():
        colours[number] = colour[:3]
    return colours
