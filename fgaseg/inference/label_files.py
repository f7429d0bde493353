"""Label rasters: GeoTIFFs that are written block by block, with the georeference of what they label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from .label_images import value_type
from .pictures import palette
from .places import Place
from .raster_files import CLASSES_TAG

BLOCK = 512  # side of the blocks of a file
Missing = Callable[[int, int, int, int], np.ndarray | None]


class LabelFile:
    """A GeoTIFF of labels that is written in parts of any form, where a raster is.

    Class i is the value i; pixels without a value are 255 or, with more than 255 classes, 65535, its nodata value.
    Georeference, colours and names go with it: the names as a list in a tag, and as GDAL's category names in a file
    beside it (`.aux.xml`), which QGIS shows. Only blocks that are not full yet are in memory.

    counts  pixels of every value so far, int64 [void + 1]
    """

    def __init__(
        self, path: Path, size: tuple[int, int], classes: tuple[str, ...], place: Place, missing: Missing | None = None
    ):
        """size: (height, width). missing: bool [h, w], pixels without a value in (top, left, h, w), or None."""
        import rasterio

        dtype = value_type(len(classes))
        self.void = int(np.iinfo(dtype).max)
        self.path, self.size, self.classes = path, size, classes
        self.counts = np.zeros(self.void + 1, np.int64)
        self._missing = missing
        self._blocks: dict[tuple[int, int], tuple[np.ndarray, int]] = {}
        about = {} if place.transform is None else {"transform": place.transform}
        self._file = rasterio.open(
            path, "w", driver="GTiff", width=size[1], height=size[0], count=1, dtype=dtype, nodata=self.void,
            crs=place.crs, tiled=True, blockxsize=BLOCK, blockysize=BLOCK, compress="deflate", bigtiff="if_safer",
            **about,
        )  # fmt: skip
        if place.gcps[0]:
            self._file.gcps = place.gcps
        if place.rpcs is not None:
            self._file.rpcs = place.rpcs
        colours = {number: (*colour.tolist(), 255) for number, colour in enumerate(palette(len(classes)))}
        self._file.write_colormap(1, colours)
        self._file.update_tags(**{CLASSES_TAG: json.dumps(list(classes), ensure_ascii=False)})

    def write(self, top: int, left: int, labels: np.ndarray) -> None:
        """Labels [h, w] from a row and a column on; each pixel of the raster once."""
        values = labels.astype(self._file.dtypes[0])
        missing = None if self._missing is None else self._missing(top, left, *values.shape)
        if missing is not None:
            values[missing] = self.void
        self.counts += np.bincount(values.ravel(), minlength=self.void + 1)
        bottom, right = top + values.shape[0], left + values.shape[1]
        for row in range(top // BLOCK * BLOCK, bottom, BLOCK):
            for column in range(left // BLOCK * BLOCK, right, BLOCK):
                y, x = max(row, top), max(column, left)
                self._fill(row, column, y, x, values[y - top : row + BLOCK - top, x - left : column + BLOCK - left])

    def _fill(self, row: int, column: int, y: int, x: int, values: np.ndarray) -> None:
        """Put values from y, x on into the block that begins at a row and a column, and write it once it is full."""
        from rasterio.windows import Window

        size = (min(BLOCK, self.size[0] - row), min(BLOCK, self.size[1] - column))
        block, filled = self._blocks.pop((row, column), (None, 0))
        block = np.empty(size, values.dtype) if block is None else block
        block[y - row : y - row + values.shape[0], x - column : x - column + values.shape[1]] = values
        if filled + values.size < block.size:
            self._blocks[row, column] = (block, filled + values.size)
        else:
            self._file.write(block, 1, window=Window(column, row, size[1], size[0]))

    def finish(self) -> None:
        """Close the file, read all of it back, and add the names. Raises OSError if it is not as it was written."""
        import rasterio
        from rasterio.errors import RasterioIOError

        assert not self._blocks, "pixels have no labels"
        self._file.close()
        counts = np.zeros_like(self.counts)
        try:
            with rasterio.open(self.path) as file:
                for _, window in file.block_windows(1):
                    counts += np.bincount(file.read(1, window=window).ravel(), minlength=self.void + 1)
        except RasterioIOError:
            counts[:] = -1
        if (counts != self.counts).any():  # GDAL does not tell everything that goes wrong when a file is closed
            raise OSError(f"{self.path.name}: could not be written in full: is the disk full?")
        _write_category_names(self.path, self.classes)

    def __enter__(self) -> LabelFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close a file that will not be finished, too."""
        try:
            self._file.close()
        except OSError:
            if kind is None:
                raise


def _write_category_names(path: Path, classes: tuple[str, ...]) -> None:
    """The names of the values of a raster, where GDAL keeps what a GeoTIFF has no place for; QGIS shows them."""
    root = ElementTree.Element("PAMDataset")
    names = ElementTree.SubElement(ElementTree.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for name in classes:
        ElementTree.SubElement(names, "Category").text = name
    ElementTree.ElementTree(root).write(path.with_name(path.name + ".aux.xml"), encoding="utf-8")
