"""Results of georeferenced files: where on Earth their pixels are, and GeoTIFF and polygons of the labels there."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..data.images import orientation
from ..errors import DataError
from ..files import atomic_path
from ..notes import note_once
from .label_images import label_values
from .labelled import Labelled
from .pictures import palette
from .polygons import require_geo, write_polygons


@dataclass(frozen=True)
class Place:
    """What a file says of where on Earth its pixels are, as rasterio gives it.

    why   why there is no affine transformation to coordinates of a known system, with a remedy; "" if there is one
    lost  whether the file says something that its labels cannot keep
    """

    crs: Any = None
    transform: Any = None
    gcps: Any = None
    rpcs: Any = None
    why: str = ""
    lost: bool = False


def place_of(result: Labelled) -> Place:
    """Where the photo of a result is, by the file that it was read from. rasterio has to be there."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    if not os.path.isfile(result.source):
        where = f"{result.source}: is no file of this machine" if result.source else "the photo was read from no file"
        return Place(why=f"{where}, and so nothing says where on Earth it is: segment the file of a GeoTIFF")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(result.source) as file:
                transform = None if file.transform.is_identity else file.transform
                size, crs, gcps, rpcs = (file.height, file.width), file.crs, file.gcps, file.rpcs
        except RasterioError:
            return Place(why=f"{result.source}: GDAL cannot open it: segment a GeoTIFF")
    if transform is None and not gcps[0] and rpcs is None:
        return Place(why=f"{result.source}: does not say where on Earth it is: segment a georeferenced file")
    if (turned := orientation(result.source)) != 1:
        why = f"is stored turned (EXIF orientation {turned}), its labels are upright: turn its pixels first"
        return Place(why=f"{result.source}: {why}", lost=True)
    if size != result.labels.shape:
        why = (
            f"is {size[1]}x{size[0]}, its labels are {result.labels.shape[1]}x{result.labels.shape[0]}: make it smaller"
        )
        return Place(why=f"{result.source}: {why}", lost=True)
    why = ""
    if transform is None:
        why = f"{result.source}: is placed by control points or a sensor model only: rectify it first, with gdalwarp"
    elif crs is None:
        why = f"{result.source}: has no coordinate reference system: assign one, with gdal_edit.py -a_srs EPSG:..."
    return Place(crs, transform, gcps, rpcs, why)


def write_geotiff(result: Labelled, path: Path) -> None:
    """Labels as a GeoTIFF with colours, names and, if the photo's file has one, its georeference."""
    require_geo(str(path))
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    values, count = label_values(result.labels, len(result.classes)), len(result.classes)
    place = place_of(result)
    if place.lost:
        note_once(("georeference", place.why), f"{place.why}; {path} has no georeference")
    about = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "nodata": 255 if values.dtype == "uint8" else 65535,
             "height": values.shape[0], "width": values.shape[1], "crs": place.crs, "compress": "deflate",
             "bigtiff": "if_safer"}  # fmt: skip
    if place.transform is not None:
        about["transform"] = place.transform
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(temporary, "w", **about) as file:
            if place.gcps and place.gcps[0]:
                file.gcps = place.gcps
            if place.rpcs is not None:
                file.rpcs = place.rpcs
            file.write_colormap(1, {value: tuple(colour) for value, colour in enumerate(palette(count).tolist())})
            file.update_tags(CLASS_NAMES=json.dumps(result.classes, ensure_ascii=False))
            file.write(values, 1)
        write_category_names(temporary, result.classes)


def write_category_names(path: Path, classes: tuple[str, ...]) -> None:
    """The names of the values of a raster, where GDAL keeps what a GeoTIFF has no place for; QGIS shows them."""
    root = ElementTree.Element("PAMDataset")
    names = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in classes:
        ElementTree.SubElement(names, "Category").text = name
    ElementTree.ElementTree(root).write(path.with_name(path.name + ".aux.xml"), encoding="utf-8")


def write_outlines(result: Labelled, path: Path) -> None:
    """Labels as polygons. Raises DataError, which says why, if the photo's file has no usable georeference."""
    require_geo(str(path))
    place = place_of(result)
    if place.why:
        raise DataError(place.why)
    write_polygons(path, result.labels, result.classes, place.transform, place.crs)


def to_geojson(result: Labelled) -> dict[str, Any]:
    """See `Result.to_geojson`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.geojson"
        write_outlines(result, path)
        collection: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return collection
