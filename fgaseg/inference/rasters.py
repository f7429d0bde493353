"""Labels of rasters of any size, in bounded memory: `segment_raster`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Bands, ValueRange, View
from ..errors import UsageError, VocabularyError
from ..files import atomic_path
from ..notes import note_once
from ..progress import track
from ..vocabulary import ClassNames, Vocabulary
from .doubts import note_all_one, note_choice
from .label_files import LabelFile
from .mosaic import TilePlan, label_tiles
from .places import Place
from .polygons import SUFFIXES as POLYGON_SUFFIXES
from .polygons import require_geo, write_polygons
from .prediction import decide, evaluation_mode, input_size, label_names, view_logits
from .raster_files import RasterSource, raster_environment
from .scores import ScoreRule

SUFFIXES = (".tif", ".tiff")
COARSEST = 32  # pixels of a raster, along an axis, for one that the model sees


@dataclass(frozen=True)
class RasterLabels:
    """What `segment_raster` has written.

    path        the GeoTIFF of labels
    size        (height, width), that of the raster
    classes     the names of the values 0, 1, ..., with the background or "nothing" where they were asked for
    pixels      of every class, in that order
    void        pixels without a value in the raster, which have no label
    pixel_area  square metres of a pixel; None where the raster has no projected coordinates
    polygons    the file of polygons, if it was asked for
    """

    path: Path
    size: tuple[int, int]
    classes: tuple[str, ...]
    pixels: tuple[int, ...] = field(repr=False)
    void: int
    pixel_area: float | None
    polygons: Path | None = None

    @property
    def present(self) -> dict[str, float]:
        """Share of the labelled pixels of every class that was found, largest first."""
        labelled = sum(self.pixels)
        order = sorted(range(len(self.classes)), key=lambda number: -self.pixels[number])
        return {self.classes[number]: self.pixels[number] / labelled for number in order if self.pixels[number]}


@torch.inference_mode()
def segment_raster(
    model: Any,
    path: str | os.PathLike[str],
    names: ClassNames | Vocabulary,
    out: str | os.PathLike[str],
    *,
    bands: Bands | None = None,
    value_range: ValueRange | None = None,
    background: str | Sequence[str] | None = None,
    threshold: float | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    polygons: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> RasterLabels:
    """Label a raster of any size, tile by tile, and write a GeoTIFF of labels with its georeference.

    path      a GeoTIFF, JPEG 2000, VRT or whatever else GDAL opens, also a photo of any size
    names     class names as `FGASeg.encode` takes them, or a vocabulary made by it
    out       the .tif to write; one that exists is replaced once the new one is complete
    bands, value_range, background, threshold  as of `FGASeg.segment`. Percentiles are those of pixels spread over the
              whole raster, and the same for all tiles
    tile      pixels of the raster along a tile, which the model sees at `config.image_size`: a larger one is seen
              coarser. None: `config.image_size`, so that the model sees every pixel as it is
    overlap   pixels that a tile shares with the next at least; None: a quarter of a tile. 0: borders may be seen
    polygons  a .gpkg or .geojson to write with the outlines of the labels
    progress  show a progress bar

    Each tile is one view of the model, whatever `config.inference` says. The logits of tiles are averaged where they
    overlap, before labels are decided. Class i is the value i; 255 (65535 with more than 255 classes), the file's
    nodata value, is where the raster holds none. Memory does not grow with the raster's height.

    rasterio is needed: pip install 'fgaseg[geo]'. Raises ImageError, UsageError and VocabularyError, and OSError if the
    disk is full; nothing half-written is left then.
    """
    out, view = Path(out), View(bands, value_range)
    shapes = None if polygons is None else Path(polygons)
    _check_outputs(path, out, shapes)
    vocabulary = _vocabulary(model, names, background)
    classes, nothing = label_names(vocabulary, threshold)
    few = note_choice(vocabulary.names, nothing, ScoreRule.of(model.config).softmax, threshold)
    with raster_environment(), RasterSource(path, view) as source, evaluation_mode(model):
        plan = _plan(model, source, tile, overlap)
        if shapes is not None and (source.data.crs is None or source.data.transform.is_identity):
            raise UsageError(
                f"{source.name}: polygons need coordinates, and it has pixels only: leave polygons out, or give it a "
                "georeference first (gdalwarp, gdal_edit.py)"
            )
        size, place = (source.height, source.width), Place.of(source.data)
        with atomic_path(out) as temporary, LabelFile(temporary, size, classes, place, source.missing) as labels:
            _label(model, source, vocabulary, threshold, plan, labels, progress)
            labels.finish()
        if shapes is not None:
            _write_polygons(shapes, out, classes)
        counts = tuple(labels.counts.tolist())
        done = RasterLabels(out, size, classes, counts[: len(classes)], counts[labels.void],
                            source.pixel_area, shapes)  # fmt: skip
        _note(done, source, few)
    return done


def _vocabulary(model: Any, names: ClassNames | Vocabulary, background: str | Sequence[str] | None) -> Vocabulary:
    if isinstance(names, Vocabulary) and background is not None:
        raise VocabularyError("background: the vocabulary is made already: give the background to encode")
    return names if isinstance(names, Vocabulary) else model.encode(names, background)  # type: ignore[no-any-return]


def _note(done: RasterLabels, source: RasterSource, few: bool) -> None:
    """What is told afterwards; few: what one class alone means was told before."""
    if not source.georeferenced:
        note_once(("no georeference",), f"{source.name}: does not say where on Earth it is, and so its labels do not")
    if not few and len(done.present) == 1:
        note_all_one(next(iter(done.present)), source.name)
    if done.void == source.height * source.width:
        note_once(("all void", source.name), f"{source.name}: none of its pixels holds a value, so none has a label")


def _label(
    model: Any,
    source: RasterSource,
    vocabulary: Vocabulary,
    threshold: float | None,
    plan: TilePlan,
    labels: LabelFile,
    progress: bool,
) -> None:
    patch, size = plan.patch, plan.side * model.patch
    source.keep_rows(plan.tile + 2 * patch)  # of a tile, and those above it that get their labels with it

    def see(row: int, column: int) -> Tensor | None:
        top, left = row * patch, column * patch
        if source.is_empty(top, left, top + plan.tile, left + plan.tile):
            return None
        logits = view_logits(model, source.see(top, left, plan.tile, size), vocabulary)
        return _as_stored(logits, source.orientation)

    def decide_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
        return decide(model, logits, vocabulary, size, threshold)[0]

    def write(top: int, left: int, part: Tensor) -> None:
        labels.write(top, left, part.cpu().numpy())

    count = len(vocabulary)
    for _ in track(
        label_tiles(plan, count, see, decide_labels, write),
        "labelling",
        plan.count(count),
        unit="tiles",
        shown=progress,
    ):
        pass


def _write_polygons(path: Path, labels: Path, classes: tuple[str, ...]) -> None:
    import rasterio

    with rasterio.open(labels) as file:
        write_polygons(path, rasterio.band(file, 1), classes, file.transform, file.crs)


def _as_stored(logits: Tensor, orientation: int) -> Tensor:
    """Logits [T, n, n] of a tile that was turned upright, turned back: the inverse of that EXIF orientation."""
    if orientation in (3, 4, 7, 8):
        logits = logits.flip(1)
    if orientation in (2, 3, 6, 7):
        logits = logits.flip(2)
    return logits.mT if orientation in (5, 6, 7, 8) else logits


def _check_outputs(path: str | os.PathLike[str], out: Path, polygons: Path | None) -> None:
    """Before hours of work."""
    if polygons is not None:
        require_geo(str(polygons))
    for file, suffixes, kind in ((out, SUFFIXES, "labels are"), (polygons, POLYGON_SUFFIXES, "polygons are")):
        if file is None:
            continue
        if file.suffix.lower() not in suffixes:
            raise UsageError(f"{file}: {kind} written as {' or '.join(suffixes)}: choose one of these")
        if file.is_dir():
            raise UsageError(f"{file}: is a folder: name a file in it")
        if file.exists() and os.path.exists(path) and os.path.samefile(file, path):
            raise UsageError(f"{file}: is the raster itself, which would be lost: choose another file")


def _plan(model: Any, source: RasterSource, tile: int | None, overlap: int | None) -> TilePlan:
    """The tiles of a raster, in whole patches of the network's input. Raises UsageError."""
    if model.config.inference == "windows":
        note_once(("windows",), "tiles of a raster are seen whole: inference=windows is for photos")
    side = input_size(1, 1, model.config.image_size, model.patch)[0] // model.patch
    seen = side * model.patch
    tile = seen if tile is None else tile
    if not 1 <= tile <= COARSEST * seen:
        raise UsageError(
            f"tile: {tile} pixels, seen at {seen}: give 1 to {COARSEST * seen}; for coarser, shrink the raster first"
        )
    patch = max(round(tile / side), 1)
    if patch * side != tile:
        note_once(
            ("tile", tile),
            f"tile: {patch * side} pixels in place of {tile}: a multiple of the {side} patches of a view",
        )
    shared = side // 4 if overlap is None else ceil(overlap / patch)
    if (overlap or 0) < 0 or shared >= side:
        raise UsageError(f"overlap: {overlap} pixels, of tiles of {patch * side}: give 0 to {patch * (side - 1)}")
    return TilePlan.spread(source.height, source.width, patch, side, shared)
