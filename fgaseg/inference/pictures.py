"""Drawing labels and maps: class colours, overlays with a legend, heat maps, and panels of several pictures."""

from __future__ import annotations

import bisect
import functools
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK, _PAPER, UNLABELLED = (32, 34, 38), (255, 255, 255), (128, 128, 128)
_GOLDEN_ANGLE = 137.50776
_CHOSEN = 64  # colours that maximise their distance; later ones follow the golden angle
# Tried for scripts that Pillow's own font lacks; a machine may have any of them.
FALLBACK_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc")


def _oklch_to_rgb(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sRGB [..., 3] and OKLab [..., 3] of OKLCH colours, hue in degrees (B. Ottosson, 2020).

    sRGB values outside 0..1 are out of gamut.
    """
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    lms = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    linear = lms**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)
    return rgb, np.stack([lightness, a, b], axis=-1)


def _to_bytes(rgb: np.ndarray) -> np.ndarray:
    return (np.clip(rgb, 0, 1) * 255).round().astype(np.uint8)


@functools.cache
def _chosen_colours() -> np.ndarray:
    """uint8 [_CHOSEN, 3]: bright colours, each the candidate farthest in OKLab from all before it."""
    grid = np.meshgrid([0.5, 0.62, 0.74, 0.86], [0.08, 0.13, 0.18], np.arange(0, 360, 7.5), indexing="ij")
    rgb, lab = _oklch_to_rgb(*(values.ravel() for values in grid))
    inside = ((rgb >= 0) & (rgb <= 1)).all(axis=1)
    rgb, lab = rgb[inside], lab[inside] * (0.8, 1, 1)  # hue and chroma count a little more than lightness
    picks = [int(np.argmin(np.abs(lab - (0.8 * 0.62, -0.05, -0.12)).sum(axis=1)))]  # the first is a blue
    distance = np.full(len(lab), np.inf)
    for _ in range(_CHOSEN - 1):
        distance = np.minimum(distance, np.linalg.norm(lab - lab[picks[-1]], axis=1))
        picks.append(int(distance.argmax()))
    return _to_bytes(rgb[picks])


def palette(n: int) -> np.ndarray:
    """The colours of classes 0 to n - 1, uint8 [n, 3]. Colour i is the same for every n; the first differ the most."""
    later = np.arange(_CHOSEN, max(n, _CHOSEN))
    lightness, chroma = 0.5 + 0.36 * (later * 0.6180340 % 1), 0.08 + 0.05 * (later * 0.7548777 % 1)
    rgb, _ = _oklch_to_rgb(lightness, chroma, later * _GOLDEN_ANGLE)
    return np.concatenate([_chosen_colours(), _to_bytes(rgb)])[:n]


@functools.cache
def _ramp() -> np.ndarray:
    """uint8 [256, 3], from dark violet through red to pale yellow in equal steps of lightness."""
    t = np.linspace(0, 1, 256)
    chroma = np.interp(t, [0, 0.2, 0.45, 0.7, 0.85, 1], [0.03, 0.12, 0.17, 0.15, 0.13, 0.06])
    hue = np.interp(t, [0, 0.2, 0.45, 0.7, 1], [285, 300, 375, 415, 468])
    rgb, _ = _oklch_to_rgb(0.13 + 0.85 * t, chroma, hue)
    return _to_bytes(rgb)


def heat(
    values: np.ndarray, size: tuple[int, int] | None = None, limits: tuple[float, float] | None = None
) -> Image.Image:
    """A map in false colours, from dark violet (low) to pale yellow (high), such as the pseudo-masks of Fig. 6.

    values    [h, w], any numeric dtype; NaN and infinity (a dropped class) are grey
    size      (height, width) of the picture, resized bilinearly before colouring; None: one pixel per value
    limits    the values drawn in the lowest and the highest colour; None: minimum and maximum of the map
    Raises ValueError if `values` is not one non-empty map.
    """
    data = np.asarray(values, np.float32)
    if data.ndim != 2 or 0 in data.shape:
        raise ValueError(f"heat: values has shape {list(data.shape)}: give one map, [h, w]")
    finite = np.isfinite(data)
    known = data[finite]
    low, high = limits or ((float(known.min()), float(known.max())) if known.size else (0.0, 0.0))
    unit = np.where(finite, (data - low) / (high - low) if high > low else 0.5, 0.0).astype(np.float32)
    if size is not None:
        unit = np.asarray(Image.fromarray(unit).resize(size[::-1], Image.Resampling.BILINEAR))
        finite = np.asarray(Image.fromarray(finite).resize(size[::-1], Image.Resampling.NEAREST))
    picture = _ramp()[(np.clip(unit, 0, 1) * 255).round().astype(np.intp)]
    return Image.fromarray(np.where(finite[..., None], picture, np.uint8(UNLABELLED[0])))


def overlay(
    image: Image.Image, labels: np.ndarray, names: Sequence[str], alpha: float = 0.7, with_legend: bool = True
) -> Image.Image:
    """The photo in greyscale, tinted with the colours of its classes, with light lines between regions.

    image        RGB
    labels       [H, W], integers, indices into names; any other value (255, -1) is unlabelled and drawn grey
    alpha        opacity of the colours, 0 to 1
    with_legend  add a legend below; without it the result has the photo's size
    Raises ValueError if labels and photo differ in size.
    """
    labels = np.asarray(labels)
    if labels.shape != (image.height, image.width):
        raise ValueError(f"overlay: labels has shape {list(labels.shape)}, the image is {[image.height, image.width]}")
    tinted = Image.fromarray(_tint(np.asarray(image.convert("RGB")), labels, len(names), alpha))
    if not with_legend:
        return tinted
    strip = legend([labels], names, max(tinted.width, 240))
    picture = Image.new("RGB", (strip.width, tinted.height + strip.height), _PAPER)
    picture.paste(tinted, ((strip.width - tinted.width) // 2, 0))
    picture.paste(strip, (0, tinted.height))
    return picture


def _tint(photo: np.ndarray, labels: np.ndarray, classes: int, alpha: float) -> np.ndarray:
    """uint8 [H, W, 3] of a photo uint8 [H, W, 3] and labels [H, W]."""
    known = (labels >= 0) & (labels < classes)
    index = np.where(known, labels, classes).astype(np.intp)
    colours = np.concatenate([palette(classes), np.array([UNLABELLED], np.uint8)]).astype(np.float32)[index]
    # The photo's hue is dropped: a red flower tinted blue has to look like the legend's blue, not purple.
    grey = (photo @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    tinted = grey + np.float32(alpha) * (colours - grey)
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= index[:, 1:] != index[:, :-1]
    edge[1:] |= index[1:] != index[:-1]
    tinted[edge] = 0.25 * tinted[edge] + 0.75 * 255
    return tinted.round().astype(np.uint8)


def _by_area(maps: Sequence[np.ndarray], classes: int) -> list[int]:
    """Indices of the classes present in any of the label maps, the largest area first."""
    values = np.concatenate([np.zeros(0, np.int64), *(np.asarray(labels).ravel() for labels in maps)])
    area = np.bincount(values[(values >= 0) & (values < classes)].astype(np.intp), minlength=classes)
    return [int(index) for index in np.argsort(-area, kind="stable") if area[index]]


def legend(
    maps: Sequence[np.ndarray], names: Sequence[str], width: int, most: int = 40, size: int | None = None
) -> Image.Image:
    """A strip with the colours and names of the classes present in any of the label maps, the largest area first.

    maps      label maps [H, W], as in ``overlay``
    width     of the strip in pixels; its height follows from the number of lines
    most      number of names shown; of the others only their number is given
    size      font size in pixels; None: chosen by the width
    """
    present = _by_area(maps, len(names))
    size = size or min(max(12, width // 50), 18)
    colours = palette(len(names))
    entries = [(tuple(int(v) for v in colours[i]), *_drawable(names[i], i, size)) for i in present[:most]]
    if len(present) > most:
        entries.append((_PAPER, f"and {len(present) - most} more", _font(size)))
    line_height, swatch, gap, margin = round(size * 1.7), round(size * 0.95), round(size * 0.45), size // 2
    x, y, placed = margin, margin, []
    for colour, text, font in entries:
        text = _shorten(text, font, width - swatch - 2 * size)
        entry_width = swatch + gap + round(font.getlength(text))
        if x > margin and x + entry_width > width - margin:
            x, y = margin, y + line_height
        placed.append((x, y, colour, text, font))
        x += entry_width + size
    strip = Image.new("RGB", (width, y + line_height if placed else 0), _PAPER)
    draw = ImageDraw.Draw(strip)
    for x, y, colour, text, font in placed:
        draw.rounded_rectangle((x, y, x + swatch, y + swatch), radius=swatch // 4, fill=colour)
        draw.text((x + swatch + gap, y + swatch / 2), text, fill=_INK, font=font, anchor="lm")
    return strip


_Font = ImageFont.FreeTypeFont


@functools.cache
def _font(size: int, name: str | None = None) -> _Font:
    font = ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which draws the text: install Pillow from its wheel")
    return font


@functools.cache
def _has_glyph(font: _Font, character: str) -> bool:
    """Whether the font can draw the character: if not, it draws the same box as for a code point that no font has."""
    missing = font.getmask("\U0010fffe")
    drawn = font.getmask(character)
    return character.isspace() or drawn.size != missing.size or bytes(drawn) != bytes(missing)


def _drawable(text: str, index: int | None, size: int) -> tuple[str, _Font]:
    """The text and a font that can draw it.

    Characters that no available font can draw lose their accents, then become "?". If that leaves little of the text,
    it becomes "class <index>", unless `index` is None.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    font = _font(size)
    if all(_has_glyph(font, c) for c in text):
        return text, font
    for name in FALLBACK_FONTS:
        try:
            other = _font(size, name)
        except OSError:  # this machine does not have it
            continue
        if all(_has_glyph(other, c) for c in text):
            return text, other
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    shown = "".join(c if _has_glyph(font, c) else "?" for c in plain)
    if index is not None and shown.count("?") * 2 > len(shown):
        shown = f"class {index}"
    return shown, font


def _shorten(text: str, font: _Font, width: int) -> str:
    """The text, cut off with "..." if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    keep = bisect.bisect_right(range(len(text)), width, key=lambda n: math.ceil(font.getlength(text[:n] + "...")))
    return text[: max(keep - 1, 0)].rstrip() + "..."


def panel(
    rows: Sequence[Sequence[tuple[str, Image.Image]]],
    cell: int = 240,
    heading: str = "",
    below: Image.Image | None = None,
) -> Image.Image:
    """Pictures in a grid, each below its title.

    rows      rows of (title, picture), of any length; a row whose titles are all empty reserves no space for them
    cell      width of each picture in pixels; its height keeps its aspect ratio
    heading   a line of text above everything
    below     a picture below everything, of any size, such as a ``legend``
    Raises ValueError if there is no picture.
    """
    size, gap = max(12, cell // 15), max(6, cell // 24)
    scaled = [[(title, _fit(picture, cell)) for title, picture in row] for row in rows]
    if not any(scaled):
        raise ValueError("panel: rows holds no picture: give at least one (title, picture)")
    titles = [round(size * 1.6) if any(title for title, _ in row) else 0 for row in scaled]
    heights = [max((picture.height for _, picture in row), default=0) for row in scaled]
    width = max(len(row) for row in scaled) * (cell + gap) + gap
    width = max(width, below.width + 2 * gap) if below else width
    top = round(size * 2.2) if heading else gap
    bottom = below.height + gap if below else 0
    page = Image.new("RGB", (width, top + sum(titles) + sum(heights) + gap * len(scaled) + bottom), _PAPER)
    draw = ImageDraw.Draw(page)
    if heading:
        text, font = _drawable(heading, None, round(size * 1.25))
        draw.text((gap, top / 2), _shorten(text, font, width - 2 * gap), fill=_INK, font=font, anchor="lm")
    for row, title_height, height in zip(scaled, titles, heights, strict=True):
        for column, (title, picture) in enumerate(row):
            left = gap + column * (cell + gap)
            text, font = _drawable(title, None, size)
            draw.text((left, top + title_height * 0.45), _shorten(text, font, cell), fill=_INK, font=font, anchor="lm")
            page.paste(picture, (left + (cell - picture.width) // 2, top + title_height))
        top += title_height + height + gap
    if below:
        page.paste(below, (gap, top))
    return page


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    """The picture scaled to a width of ``cell``, or to a height of twice that if it would be higher."""
    factor = min(cell / picture.width, 2 * cell / picture.height)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def comparison(
    photo: Image.Image, results: Sequence[tuple[str, np.ndarray]], names: Sequence[str], cell: int = 300
) -> Image.Image:
    """A photo beside several labellings of it, with one legend for all (paper, Fig. 7).

    results   (title, labels [H, W]), for example the ground truth and the labels of two models; as in ``overlay``
    names     the class names that all labels index
    cell      width of each picture in pixels
    """
    pictures = [(title, overlay(photo, labels, names, with_legend=False)) for title, labels in results]
    gap = max(6, cell // 24)
    width = (len(pictures) + 1) * (cell + gap) - gap
    strip = legend([labels for _, labels in results], names, width)
    return panel([[("photo", photo), *pictures]], cell, below=strip)


def confusion_picture(matrix: np.ndarray, names: Sequence[str], most: int = 40) -> Image.Image:
    """A confusion matrix as a table of percentages: what the pixels of each class were predicted as.

    matrix   [T, T] pixels, rows are the classes of the ground truth, columns those of the prediction
    names    [T]
    most     classes that are shown: those with the most pixels in ground truth and prediction, in the order of `names`

    A row is divided by all pixels of its class, also those predicted as a class that is not shown; it is grey where the
    class is not in the ground truth.
    """
    totals = matrix.sum(0) + matrix.sum(1)
    occurring = np.flatnonzero(totals)
    kept = np.sort(occurring[np.argsort(-totals[occurring], kind="stable")[:most]])
    labelled = matrix.sum(1)[kept, None]
    shares = np.where(labelled, matrix[np.ix_(kept, kept)] / np.maximum(labelled, 1), np.nan)
    cell, size, gap = 30, 12, 8
    texts = [_drawable(names[index], int(index), size) for index in kept]
    texts = [(_shorten(text, font, 200), font) for text, font in texts]
    margin = gap * 2 + max([round(font.getlength(text)) for text, font in texts], default=0)
    said = "% of the pixels of each class (rows) predicted as (columns)"
    if len(kept) < len(occurring):
        said += f"; {len(kept)} of {len(occurring)} classes"
    width = max(margin + cell * len(kept) + gap, round(_font(size).getlength(said)) + 2 * gap)
    page = Image.new("RGB", (width, 3 * size + margin + cell * len(kept) + gap), _PAPER)
    top = 3 * size + margin
    draw = ImageDraw.Draw(page)
    draw.text((gap, 1.5 * size), said, fill=_INK, font=_font(size), anchor="lm")
    for number, (text, font) in enumerate(texts):
        middle = number * cell + cell // 2
        draw.text((margin - gap, top + middle), text, fill=_INK, font=font, anchor="rm")
        upright = Image.new("RGB", (margin - gap, cell), _PAPER)
        ImageDraw.Draw(upright).text((0, cell / 2), text, fill=_INK, font=font, anchor="lm")
        page.paste(upright.rotate(90, expand=True), (margin + number * cell, 3 * size))
    if len(kept):
        cells = heat(shares, limits=(0.0, 1.0)).resize((cell * len(kept),) * 2, Image.Resampling.NEAREST)
        page.paste(cells, (margin, top))
    for row, column in np.argwhere(shares >= 0.005):
        ink = _INK if shares[row, column] > 0.6 else _PAPER  # the ramp is light at its upper end
        place = (margin + column * cell + cell / 2, top + row * cell + cell / 2)
        draw.text(place, f"{100 * shares[row, column]:.0f}", fill=ink, font=_font(size), anchor="mm")
    return page


def contact_sheet(
    samples: Sequence[tuple[str, Image.Image, np.ndarray]], names: Sequence[str], cell: int = 300
) -> Image.Image:
    """Photos and, beside each, its labels drawn over it, with one legend for all.

    samples   (title, RGB photo, labels [H, W] as in ``overlay``)
    names     the class names that all labels index
    cell      width of each picture in pixels
    """
    rows = [
        [(title, photo), ("", overlay(photo, labels, names, with_legend=False))] for title, photo, labels in samples
    ]
    strip = legend([labels for _, _, labels in samples], names, 2 * cell + max(6, cell // 24))
    return panel(rows, cell, below=strip)
