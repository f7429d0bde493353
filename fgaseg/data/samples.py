"""What the samples of a photo mean: which bands are red, green and blue, which value is black and which is white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..config.view import Limit, parse_limit, wrong_bands, wrong_range
from ..errors import ImageError
from ..notes import note_once

Bands = Sequence[int]
ValueRange = tuple[Limit, Limit]

_SAMPLED = 1_000_000  # values from which percentiles are taken
_GLANCED = 100_000  # values that tell how far they are spread
_BLOCK = 4_000_000  # values that are scaled at a time
_SHARE = {8: 1 / 8, 16: 1 / 4}  # of the type's range, below which a photo is noted as dull; by bits, others as 16


@dataclass(frozen=True)
class View:
    """How samples become red, green and blue.

    bands        one band (grey) or three (red, green, blue), counted from 1; None: the first three, and transparency
                 where the source has it
    value_range  the values that become black and white, or percentiles such as ("2%", "98%") of the chosen bands
                 together; None: the range of the type

    Raises ImageError for other numbers of bands and for ranges that are empty or not understood.
    """

    bands: Bands | None = None
    value_range: ValueRange | None = None

    def __post_init__(self) -> None:
        if self.bands is not None and (why := wrong_bands(self.bands)):
            raise ImageError(f"bands {why}")
        if self.value_range is not None and (why := wrong_range(self.value_range)):
            raise ImageError(f"range {why}")

    def __bool__(self) -> bool:
        return self.bands is not None or self.value_range is not None


@dataclass(frozen=True)
class Samples:
    """The values of a photo as they are stored, of the bands that are shown.

    values         [H, W, 1] (grey) or [H, W, 3], of any real dtype
    name           of the source, for messages
    white          the value that is white; None: nothing says so
    alpha          transparency [H, W], of the same dtype; None: there is none
    premultiplied  the values are already multiplied with it
    inverted       the smallest value is white
    nodata         the value of pixels that hold none, besides NaN; None: there is no such value
    """

    values: np.ndarray
    name: str
    white: float | None
    alpha: np.ndarray | None = None
    premultiplied: bool = False
    inverted: bool = False
    nodata: float | None = None


def select(values: np.ndarray, name: str, white: float | None, view: View, alpha: int | None = None) -> Samples:
    """The bands of ``values`` [H, W, B] that are shown; ``alpha`` is the one that is transparency, counted from 0."""
    shown = choose_bands(values.shape[2], alpha, view.bands, name)
    transparency = values[..., alpha] if alpha is not None and view.bands is None else None
    return Samples(values if len(shown) == values.shape[2] and shown == sorted(shown) else values[..., shown],
                   name, white, transparency)  # fmt: skip


def white_of(dtype: np.dtype, bits: int | None = None) -> float | None:
    """The value of white in samples of a type, of which ``bits`` are used: 255, 65535, 1.0; None: unknown."""
    if dtype.kind == "f":
        return 1.0
    bits = bits or 8 * dtype.itemsize
    if dtype.kind not in "ui" or bits > 16:
        return None
    return float(2 ** (bits - (dtype.kind == "i")) - 1)


def render(samples: Samples, view: View) -> Image.Image:
    """Samples as an 8-bit RGB or grey image; transparency is laid on white. Raises ImageError naming the source."""
    values, alpha = samples.values, samples.alpha
    if alpha is not None:
        alpha = _scale(alpha, 0, samples.white or 1)
    missing = missing_pixels(values, samples.nodata)
    if missing is not None:
        no_value = "NaN" if samples.nodata is None else f"{samples.nodata:g}, the file's nodata value, or NaN"
        share = f"{missing.mean():.1%} of its pixels hold no value ({no_value})"
        note_once(("missing", no_value), f"{samples.name}: {share}: they are black")
    low, high = limits(samples, view.value_range, missing)
    colours = _scale(values, low, high)
    if samples.inverted:
        colours = 255 - colours
    if missing is not None:
        colours[missing] = 0
    return _lay_on_white(colours, alpha, samples.premultiplied)


def choose_bands(count: int, alpha: int | None, bands: Bands | None, name: str) -> list[int]:
    """The bands that are shown, counted from 0: three, or one of a photo with fewer."""
    if bands is not None:
        if max(bands) > count:
            held = f"has {count} bands" if count > 1 else "has one band"
            raise ImageError(f"{name}: {held}, and bands {_listed(bands)} are asked for: give numbers up to {count}")
        return [number - 1 for number in bands]
    colour = [number for number in range(count) if number != alpha]
    shown = colour[:3] if len(colour) >= 3 else colour[:1]
    if len(colour) > len(shown):
        used = "the first three are red, green and blue" if len(shown) == 3 else "the first is used"
        note_once(
            ("bands", count),
            f"{name}: has {count} bands, of which {used}; other ones: --bands=1,2,3 (bands=(1, 2, 3) in Python)",
        )
    return shown


def note_spread(values: np.ndarray, white: float, name: str, missing: np.ndarray | None = None) -> None:
    """Tell, once for each kind of values, that they use a small part of the range, as 12 bits in 16-bit files do."""
    least = white * _SHARE.get(8 * values.dtype.itemsize, _SHARE[16])
    some = _some(values, missing, _GLANCED)
    if some.size == 0 or (values.dtype == np.uint8 and int(some.max()) - int(some.min()) >= least):
        return
    some = _some(values, missing)
    low, high = np.percentile(some, (0.5, 99.5))
    if low == high:
        low, high = some.min(), some.max()
    spread = float(high) - float(low)
    if not 0 < spread < least:
        return
    top = float(some.max())
    if values.dtype.kind == "f":
        cure = f"0,{_rounded_up(top)}" if low >= 0 else "2%,98%"
    else:
        cure = f"0,{2 ** int(top).bit_length() - 1}" if 0 <= low <= top / 4 else "2%,98%"
    note_once(
        ("spread", str(values.dtype), cure),
        f"{name}: nearly all its values lie between {low:.6g} and {high:.6g}, {spread / white:.1%} of the range of "
        f"{values.dtype} (0 to {white:.6g}), so that the network sees almost one colour; if they mean more: "
        f"--range={cure} ({_in_python(cure)} in Python)",
    )


def limits(samples: Samples, value_range: ValueRange | None, missing: np.ndarray | None = None) -> tuple[float, float]:
    """The values that become black and white; pixels [H, W] that are missing do not count.

    Raises ImageError where nothing says which values these are.
    """
    values = samples.values
    if value_range is not None:
        return _given_limits(values, missing, samples.name, value_range)
    white = samples.white
    if values.dtype == np.uint8 and white == 255:
        return 0.0, white  # what is told of 8-bit values is told of files: in memory they may be a part of a photo
    some = values if missing is None else values[~missing]
    if some.size == 0:
        return 0.0, 1.0
    smallest, largest = float(some.min()), float(some.max())
    if white is None and 0 <= smallest and largest <= 65535:
        white = 65535.0  # 16 bits, stored as 32
    if white is None or smallest < 0 or largest > white:
        has = (
            "floating point images are in 0..1"
            if values.dtype.kind == "f"
            else f"{values.dtype} has no range of its own"
        )
        cure = "0,255" if 0 <= smallest <= largest <= 255 else f"{smallest:.6g},{largest:.6g}"
        raise ImageError(
            f"{samples.name}: {has}, and its values are {smallest:.6g} to {largest:.6g}: say which are black and "
            f"white, for example --range={cure} or --range=2%,98% ({_in_python(cure)} in Python), scale it, or "
            "save it with 8 or 16 bits"
        )
    note_spread(values, white, samples.name, missing)
    return 0.0, white


def _given_limits(
    values: np.ndarray, missing: np.ndarray | None, name: str, value_range: ValueRange
) -> tuple[float, float]:
    limits = []
    for limit in value_range:
        number, is_percentile = parse_limit(limit)
        if is_percentile:
            some = _some(values, missing)
            number = float(np.percentile(some, number)) if some.size else 0.0
        limits.append(number)
    low, high = limits
    if low > high:
        raise ImageError(f"{name}: range {_listed(value_range)} is {low:.6g} to {high:.6g} here: give other limits")
    return low, high if high > low else low + 1  # one value alone is black


def missing_pixels(values: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """The pixels [H, W] without a value: one that is not finite, or ``nodata`` in every band. None: there are none."""
    if values.dtype.kind != "f" and nodata is None:
        return None
    missing = ~np.isfinite(values).all(axis=2)
    if nodata is not None and np.isfinite(nodata):
        missing |= (values == nodata).all(axis=2)
    return missing if missing.any() else None


def _some(values: np.ndarray, missing: np.ndarray | None, count: int = _SAMPLED) -> np.ndarray:
    """About ``count`` of the values, spread evenly over the photo."""
    step = max(int((values.size / count) ** 0.5), 1)
    some = values[::step, ::step]
    return some[~missing[::step, ::step]] if missing is not None else some


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8: ``low`` and below become 0, ``high`` and above 255. In blocks of rows: whole numbers take float64."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    scaled = np.empty(values.shape, np.uint8)
    rows = max(_BLOCK // max(values[0].size, 1), 1)
    for top in range(0, len(values), rows):
        block = values[top : top + rows]
        block = block.astype(np.promote_types(block.dtype, np.float32) if block.dtype.kind == "f" else np.float64)
        block = (block - low) / (high - low)
        scaled[top : top + rows] = (np.nan_to_num(block.clip(0, 1)) * 255).round()
    return scaled


def _lay_on_white(colours: np.ndarray, alpha: np.ndarray | None, premultiplied: bool) -> Image.Image:
    if alpha is None:
        return Image.fromarray(np.ascontiguousarray(colours if colours.shape[2] == 3 else colours[..., 0]))
    if premultiplied:
        share = np.maximum(alpha, 1)[..., None].astype(np.float32) / 255
        colours = (colours / share).round().clip(0, 255).astype(np.uint8)
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    image = Image.fromarray(np.ascontiguousarray(np.dstack([colours, alpha])))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def note_graded_alpha(alpha: np.ndarray, name: str, bands: int) -> None:
    """Tell that the last of some bands is read as transparency, if most values are between the extremes.

    alpha  [H, W] of a type whose largest value, or 1.0, is opaque
    """
    opaque = 1.0 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    if ((alpha > 0) & (alpha < opaque)).mean() > 0.5:
        note_once(
            ("alpha", bands),
            f"{name}: its band {bands} is taken as transparency and laid on white; if it is something else, such as "
            "near infrared: --bands=1,2,3 (bands=(1, 2, 3) in Python)",
        )


def _rounded_up(value: float) -> str:
    """The value with two digits, rounded up."""
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return f"{np.ceil(value / step - 1e-6) * step:.6g}"  # float32 has seven digits: 0.1 is 0.10000000149


def _in_python(cure: str) -> str:
    limits = ", ".join(f'"{limit}"' if limit.endswith("%") else limit for limit in cure.split(","))
    return f"value_range=({limits})"


def _listed(values: Sequence[object]) -> str:
    return ",".join(map(str, values))
