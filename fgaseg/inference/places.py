"""Where on Earth the pixels of a file are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """What a file says of where on Earth its pixels are, as rasterio gives it.

    crs        coordinate reference system, or None
    transform  of (column, row) to its coordinates, or None
    gcps       ground control points and their system
    rpcs       coefficients of a sensor model, or None
    """

    crs: Any = None
    transform: Any = None
    gcps: tuple[Any, Any] = ((), None)
    rpcs: Any = None

    @classmethod
    def of(cls, data: Any) -> Place:
        """That of a data set that rasterio has opened."""
        return cls(data.crs, None if data.transform.is_identity else data.transform, data.gcps, data.rpcs)

    def __bool__(self) -> bool:
        """Whether anything is said. A system of coordinates alone says nothing."""
        return self.transform is not None or bool(self.gcps[0]) or self.rpcs is not None
