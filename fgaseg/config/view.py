"""How the bands and values of photos are named: what `data.bands`, `data.value_range` and `read_image` take."""

from __future__ import annotations

import math
from collections.abc import Sequence

Limit = float | str  # a value, or a percentile such as "2%"


def wrong_bands(bands: Sequence[int]) -> str:
    """Why these are no bands to show, or ""."""
    if len(bands) in (1, 3) and all(number >= 1 for number in bands):
        return ""
    return f"{','.join(map(str, bands))}: give one or three, counted from 1, for example 1,2,3"


def wrong_range(limits: Sequence[Limit]) -> str:
    """Why these are no values of black and white, or ""."""
    listed = ",".join(map(str, limits))
    try:
        parsed = [parse_limit(limit) for limit in limits]
    except ValueError:
        parsed = []
    if len(parsed) != 2:
        return f"{listed}: give two values, 0,4095, or percentiles, 2%,98%"
    (low, low_percentile), (high, high_percentile) = parsed
    if low_percentile == high_percentile and low >= high:
        return f"{listed}: give the smaller limit first"
    return ""


def parse_limit(limit: Limit) -> tuple[float, bool]:
    """The number, and whether it is a percentile. Raises ValueError."""
    text = str(limit).strip()
    number, is_percentile = float(text.removesuffix("%")), text.endswith("%")
    if not math.isfinite(number) or (is_percentile and not 0 <= number <= 100):
        raise ValueError(text)
    return number, is_percentile
