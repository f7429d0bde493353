"""Labels as polygons with the names of their classes: GeoJSON and GeoPackage, region by region."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..files import atomic_path

SUFFIXES = (".geojson", ".gpkg")
LAYER = "labels"
_VERTICES = 1 << 17  # that are written at a time
_AT_A_TIME = 1 << 16  # points that are projected at a time
_LONGEST_EDGE = 64  # pixels; a straight edge in one projection is none in another
_DECIMALS = 8  # of degrees: a millimetre


def write_polygons(path: str | os.PathLike[str], source: Any, classes: Sequence[str], transform: Any, crs: Any) -> int:
    """Write the connected regions of a label map as polygons, and return how many there are.

    path       .geojson (as RFC 7946 says: longitude and latitude in WGS84) or .gpkg (in ``crs``, layer "labels")
    source     labels [H, W], any integer type, or an opened raster's band: ``rasterio.band(dataset, 1)``
    classes    the name of every value; pixels of other values, such as void, belong to no polygon
    transform  affine transformation of (column, row) to coordinates, as rasterio gives it
    crs        coordinate reference system: rasterio's, or what makes one, such as "EPSG:32633"

    A region is of pixels of one value that share edges. Each has the fields ``class``, ``value``, ``pixels`` (how
    many) and ``area_m2`` (on the ground; empty where the coordinates are none on Earth). A band is read line by line;
    memory is some 20 bytes for every corner of the regions, and 200 for those of the largest. The file is written whole
    or not at all. Raises UsageError for another suffix or missing packages, DataError without a usable CRS,
    OSError if it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: polygons are written as {' or '.join(SUFFIXES)}: choose one of these")
    require_geo(str(path))
    from pyogrio.errors import DataLayerError, DataSourceError
    from rasterio.crs import CRS

    if not crs:
        raise DataError(f"{path}: the labels have no coordinate reference system, which polygons need: assign one")
    crs = CRS.from_user_input(crs)
    ground = _Ground.of(crs, transform, tuple(source.shape))
    if ground is None and path.suffix.lower() == ".geojson":
        raise DataError(f"{path}: GeoJSON is in WGS84, and there is no way to it from {crs.to_string()}: write a .gpkg")
    with atomic_path(path) as file:
        try:
            return _write(file, regions(source, len(classes)), classes, transform, crs, ground)
        except (DataSourceError, DataLayerError) as error:
            raise OSError(f"{path}: could not be written ({error}): is the disk full?") from error


def _write(
    file: Path,
    found: Iterator[tuple[int, Any]],
    classes: Sequence[str],
    transform: Any,
    crs: Any,
    ground: _Ground | None,
) -> int:
    package = file if file.suffix.lower() == ".gpkg" else file.with_suffix(".gpkg")
    count = 0
    for number, batch in enumerate(_batches(found)):
        _append(package, batch, classes, transform, crs, ground, first=number == 0)
        count += len(batch)
    if file != package:
        _convert(package, file, crs)
        package.unlink()
    return count


def require_geo(what: str) -> None:
    """Raise UsageError, which names the extra, if a package for georeferenced files is missing."""
    try:
        import pyogrio  # noqa: F401
        import rasterio  # noqa: F401
        import shapely  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{what}: needs {error.name}: pip install 'fgaseg[geo]'") from error


def regions(source: Any, classes: int) -> Iterator[tuple[int, Any]]:
    """Value and outline (a shapely Polygon in pixels) of every connected region of values 0 to classes - 1."""
    import shapely
    from rasterio.features import shapes

    if isinstance(source, np.ndarray):
        labels, own = source.astype(np.int32), np.eye(3)
    else:  # a band is read line by line, and its outlines are in its coordinates
        labels, own = source, np.array(source.ds.transform).reshape(3, 3)
    to_pixels = np.linalg.inv(own).T[:, :2]
    for outline, value in shapes(labels, connectivity=4):
        if 0 <= value < classes:
            corners = (ring @ to_pixels[:2] + to_pixels[2] for ring in _rings(outline["coordinates"]))
            outer, *holes = (shapely.linearrings(points.round()) for points in corners)
            yield int(value), shapely.polygons(outer, holes or None)


def _rings(lists: list[Any]) -> Iterator[np.ndarray]:
    """float64 [n, 2] each. The lists of tuples are large: none is kept."""
    for number, points in enumerate(lists):
        lists[number] = None
        yield np.array(points)


def _batches(found: Iterable[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    """Lists of regions with not too many vertices each; at least one list, which may be empty."""
    import shapely

    batch: list[tuple[int, Any]] = []
    vertices = 0
    for region in found:
        batch.append(region)
        vertices += int(shapely.get_num_coordinates(region[1]))
        if vertices >= _VERTICES:
            yield batch
            batch, vertices = [], 0
    yield batch


@dataclass(frozen=True)
class _Ground:
    """A plane that keeps areas, around the middle of a map."""

    crs: Any
    plane: Any

    @classmethod
    def of(cls, crs: Any, transform: Any, size: tuple[int, int]) -> _Ground | None:
        """None if the coordinates cannot be told in longitude and latitude."""
        from rasterio.crs import CRS
        from rasterio.warp import transform as project

        matrix, shift = _affine(transform)
        x, y = matrix @ (size[1] / 2, size[0] / 2) + shift
        try:
            (longitude,), (latitude,) = project(crs, CRS.from_epsg(4326), [x], [y])
        except Exception:  # GDAL's own types come through
            return None
        if not (math.isfinite(longitude) and math.isfinite(latitude)):
            return None
        return cls(crs, CRS.from_proj4(f"+proj=laea +lon_0={longitude} +lat_0={latitude} +datum=WGS84 +units=m"))

    def areas(self, outlines: np.ndarray, longest: float) -> np.ndarray:
        """Square metres of polygons in the CRS, whose edges are bent where they are longer than ``longest``."""
        import shapely
        from rasterio.warp import transform as project

        def onto_plane(points: np.ndarray) -> np.ndarray:
            for start in range(0, len(points), _AT_A_TIME):  # in lists, which are large
                part = points[start : start + _AT_A_TIME]
                part[:] = np.stack(project(self.crs, self.plane, *part.T), axis=1)
            return points

        areas: np.ndarray = shapely.area(shapely.transform(shapely.segmentize(outlines, longest), onto_plane))
        return areas


def _affine(transform: Any) -> tuple[np.ndarray, np.ndarray]:
    """float64 [2, 2] and [2]."""
    values = np.array(transform, np.float64).reshape(3, 3)
    return values[:2, :2], values[:2, 2]


def _append(
    package: Path,
    batch: list[tuple[int, Any]],
    classes: Sequence[str],
    transform: Any,
    crs: Any,
    ground: _Ground | None,
    first: bool,
) -> None:
    import pyogrio.raw
    import shapely

    values = np.array([value for value, _ in batch], np.int32)
    outlines = np.array([outline for _, outline in batch], object)
    pixels = shapely.area(outlines).astype(np.int64)
    matrix, shift = _affine(transform)
    outlines = shapely.transform(outlines, lambda points: points @ matrix.T + shift)
    longest = _LONGEST_EDGE * math.hypot(*matrix[:, 0])
    areas = np.full(len(batch), np.nan) if ground is None else ground.areas(outlines, longest)
    names = np.array([classes[value] for value in values], object)
    pyogrio.raw.write(
        package,
        shapely.to_wkb(outlines),
        [names, values, pixels, areas],
        ["class", "value", "pixels", "area_m2"],
        layer=LAYER,
        driver="GPKG",
        geometry_type="Polygon",
        crs=crs.to_wkt(),
        append=not first,
    )


def _convert(package: Path, file: Path, crs: Any) -> None:
    """A GeoPackage as GeoJSON. GDAL projects it, orders the vertices, and cuts what crosses the 180th meridian."""
    import pyogrio
    import pyogrio.errors

    with pyogrio.open_arrow(package, layer=LAYER) as (about, stream):
        pyogrio.write_arrow(
            stream,
            file,
            layer=LAYER,
            driver="GeoJSON",
            geometry_name=about["geometry_name"],
            geometry_type="Unknown",
            crs=crs.to_wkt(),
            RFC7946="YES",
            COORDINATE_PRECISION=_DECIMALS,
        )
    with file.open("rb") as written:  # GDAL does not tell everything that goes wrong when a file is closed
        written.seek(-min(4, file.stat().st_size), os.SEEK_END)
        if not written.read().rstrip().endswith(b"}"):
            raise pyogrio.errors.DataSourceError("its end is missing")
