"""Results of georeferenced files: GeoTIFF and polygons of the labels, where on Earth their pixels are."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ..data.images import orientation
from ..errors import DataError
from ..files import atomic_path
from ..notes import note_once
from .label_files import LabelFile
from .label_images import label_values
from .labelled import Labelled
from .places import Place
from .polygons import require_geo, write_polygons
from .raster_files import raster_environment


class _Found(NamedTuple):
    """place: where the labels are. why: they are not at known coordinates. lost: though their file is somewhere."""

    place: Place
    why: str = ""
    lost: bool = False


def _find_place(result: Labelled) -> _Found:
    """By the file that the photo was read from."""
    import rasterio
    from rasterio.errors import RasterioError

    source = result.source
    if not os.path.isfile(source):
        where = f"{source}: is no file of this machine" if source else "the photo was read from no file"
        return _Found(Place(), f"{where}, and so nothing says where on Earth it is: segment the file of a GeoTIFF")
    try:
        with rasterio.open(source) as file:
            place, size = Place.of(file), (file.height, file.width)
    except RasterioError:
        return _Found(Place(), f"{source}: GDAL cannot open it: segment a GeoTIFF")
    if not place:
        return _Found(Place(), f"{source}: does not say where on Earth it is: segment a georeferenced file")
    if (turned := orientation(source)) != 1:
        why = f"is stored turned (EXIF orientation {turned}), its labels are upright: turn its pixels first"
        return _Found(Place(), f"{source}: {why}", lost=True)
    if size != result.labels.shape:
        height, width = result.labels.shape
        why = f"is {size[1]}x{size[0]}, its labels are {width}x{height}: label the file as it is"
        return _Found(Place(), f"{source}: {why}", lost=True)
    if place.transform is None:
        return _Found(place, f"{source}: is placed by control points or a sensor model only: use gdalwarp on it first")
    if place.crs is None:
        return _Found(place, f"{source}: has no coordinate reference system: give it one, with gdal_edit.py -a_srs")
    return _Found(place)


def write_geotiff(result: Labelled, path: Path) -> None:
    """Labels as a GeoTIFF with colours, names and, if the photo's file has one, its georeference."""
    values = label_values(result.labels, len(result.classes))
    require_geo(str(path))
    with raster_environment():
        found = _find_place(result)
        if found.lost:
            note_once(("georeference", found.why), f"{found.why}; {path} has no georeference")
        with (
            atomic_path(path) as temporary,
            LabelFile(temporary, values.shape, result.classes, found.place) as file,
        ):
            file.write(0, 0, values)
            file.finish()


def write_outlines(result: Labelled, path: Path) -> None:
    """Labels as polygons. Raises DataError, which says why, if the photo's file has no usable georeference."""
    require_geo(str(path))
    with raster_environment():
        found = _find_place(result)
        if found.why:
            raise DataError(found.why)
        write_polygons(path, result.labels, result.classes, found.place.transform, found.place.crs)


def to_geojson(result: Labelled) -> dict[str, Any]:
    """See `Result.to_geojson`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.geojson"
        write_outlines(result, path)
        collection: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return collection
