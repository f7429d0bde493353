"""COCO annotations as labels: polygons, run lengths, and panoptic PNGs with their JSON file."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..files import ANNOTATION_LIMIT, read_limited
from .images import PIXEL_LIMIT, load_pixels, open_image
from .label_formats import UNPAINTED, WRONG_CONTENT, decode_mask

LONGEST_OUTLINE = 10_000_000  # pixels around a polygon, for which pycocotools takes 40 bytes each


@dataclass(frozen=True)
class CocoLabels:
    """The labels of one photo in a COCO file.

    file         the JSON file
    photo        the name of the photo in it
    annotations  (segmentation, category id) in the order of the file
    panoptic     the PNG of segment ids, and the category id of each; None: there are annotations instead
    """

    file: Path
    photo: str
    height: int
    width: int
    annotations: Sequence[tuple[Any, int]] = ()
    panoptic: tuple[Path, Mapping[int, int]] | None = None

    def __str__(self) -> str:
        return f"{self.file}, {self.photo}"

    def __deepcopy__(self, memo: object) -> CocoLabels:
        return self  # immutable: the threads of a data loader may share it, however many polygons there are

    @property
    def files(self) -> list[Path]:
        """The files that the labels come from."""
        return [self.file, self.panoptic[0]] if self.panoptic else [self.file]

    def paint(self) -> tuple[np.ndarray, int]:
        """Category ids int64 [H, W], UNPAINTED where there are none, and the number of pixels of several categories.

        As in COCO's own conversion of instances, a later annotation covers the earlier ones. Raises DataError naming
        file and photo.
        """
        if min(self.height, self.width) < 1 or self.height * self.width > PIXEL_LIMIT:
            raise DataError(f"{self}: a photo cannot be {self.height} high and {self.width} wide")
        if self.panoptic is not None:
            return self._paint_segments(*self.panoptic), 0
        values = np.full((self.height, self.width), UNPAINTED, np.int64)
        several = np.zeros(values.shape, bool)
        for segmentation, category in self.annotations:
            inside = self._mask(segmentation, category)
            several |= inside & (values != UNPAINTED) & (values != category)
            values[inside] = category
        return values, int(several.sum())

    def _mask(self, segmentation: Any, category: int) -> np.ndarray:
        """bool [H, W] of polygons or run lengths."""
        try:
            if isinstance(segmentation, dict):
                return decode_mask(segmentation, self.height, self.width)
            return self._inside(segmentation if isinstance(segmentation[0], list | tuple) else [segmentation])
        except Exception as error:  # pycocotools raises a bare Exception for what it cannot read
            raise DataError(f"{self}: a segmentation of category {category} is damaged ({error})") from error

    def _inside(self, polygons: Sequence[Sequence[float]]) -> np.ndarray:
        """bool [H, W] of the pixels that are in one of the polygons."""
        from pycocotools import mask as masks  # type: ignore[import-untyped]

        if any(len(polygon) % 2 for polygon in polygons):
            raise ValueError("a polygon has an odd number of coordinates")
        polygons = [polygon for polygon in polygons if len(polygon) >= 6]  # two points have no area
        if not polygons:
            return np.zeros((self.height, self.width), bool)
        for polygon in polygons:
            points = np.array(polygon, np.float64).reshape(-1, 2)
            if not np.isfinite(points).all():
                raise ValueError("a polygon has a coordinate that is not finite")
            if (length := np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum()) > LONGEST_OUTLINE:
                raise ValueError(f"the outline of a polygon is {length:g} pixels long")
        runs = masks.merge(masks.frPyObjects(polygons, self.height, self.width))
        return masks.decode(runs).astype(bool)  # type: ignore[no-any-return]

    def _paint_segments(self, file: Path, categories: Mapping[int, int]) -> np.ndarray:
        with open_image(file) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise DataError(f"{file}: is a {image.mode} image: panoptic PNGs are RGB, with ids R + 256 G + 65536 B")
            load_pixels(image, file)
            parts = np.asarray(image.convert("RGB")).astype(np.int64)
        ids = parts @ np.array([1, 256, 65536])
        known = {0: UNPAINTED, **categories}
        found, places = np.unique(ids, return_inverse=True)
        for one in found.tolist():
            if one not in known:
                raise DataError(f"{file}: has the segment id {one}, which {self.file} does not list for {self.photo}")
        return np.array([known[one] for one in found.tolist()], np.int64)[places].reshape(ids.shape)


@dataclass(frozen=True)
class CocoFile:
    """A JSON file of COCO annotations.

    file        the JSON file
    categories  the name of each category id, in the order of the file
    photos      the labels of each photo, by its path in the file without suffix
    """

    file: Path
    categories: dict[int, str]
    photos: dict[str, CocoLabels] = field(repr=False)


def read_coco(file: Path) -> CocoFile:
    """Read a JSON file of COCO annotations: instances or stuff with polygons or run lengths, or panoptic segments.

    The PNGs of panoptic segments are looked for in the folder of the same name beside the file, and in the file's own.
    Raises DataError naming the file: unreadable, not of this format, boxes without segmentation, or PNGs not found.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}): give a JSON file of COCO annotations") from error
    return _read(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)  # training and validation often share one file
def _read(file: Path, _modified: int, _size: int) -> CocoFile:
    try:
        data = json.loads(read_limited(file, ANNOTATION_LIMIT))
        if not isinstance(data, dict) or not {"images", "annotations", "categories"} <= data.keys():
            raise DataError(
                f"{file}: has no images, annotations and categories: give COCO annotations, or a folder of label images"
            )
        categories = {int(one["id"]): str(one["name"]).strip() for one in data["categories"]}
        if any("segments_info" in one for one in data["annotations"]):
            found = _panoptic(file, data)
        else:
            found = _annotated(file, data)
    except WRONG_CONTENT as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file}: is not a file of COCO annotations ({type(error).__name__}: {error}): export it again"
        ) from error
    unknown = {one for labels in found for one in _used(labels)} - categories.keys()
    if unknown:
        raise DataError(f"{file}: annotations have the category {min(unknown)}, which its categories do not list")
    photos: dict[str, CocoLabels] = {}
    for labels in found:
        stem = Path(labels.photo.replace("\\", "/")).with_suffix("").as_posix()
        if stem in photos:
            both = f"{photos[stem].photo} and {labels.photo}"
            raise DataError(f"{file}: lists {both}, which have the same name up to the suffix: keep one of them")
        photos[stem] = labels
    return CocoFile(file, categories, photos)


def _used(labels: CocoLabels) -> set[int]:
    return set(labels.panoptic[1].values()) if labels.panoptic else {category for _, category in labels.annotations}


def _annotated(file: Path, data: dict[str, Any]) -> list[CocoLabels]:
    annotations: dict[Any, list[tuple[Any, int]]] = {one["id"]: [] for one in data["images"]}
    without = 0
    for one in data["annotations"]:
        if not one.get("segmentation"):
            without += 1
        elif one["image_id"] not in annotations:
            raise DataError(f"{file}: annotation {one.get('id')} is of photo {one['image_id']}, which it does not list")
        else:
            annotations[one["image_id"]].append((one["segmentation"], int(one["category_id"])))
    if without:
        raise DataError(
            f"{file}: {without} of {len(data['annotations'])} annotations have no segmentation (boxes or points only), "
            "so their pixels would have no label: export polygons or masks"
        )
    return [
        CocoLabels(file, _name(one), int(one["height"]), int(one["width"]), tuple(annotations[one["id"]]))
        for one in data["images"]
    ]


def _name(photo: dict[str, Any]) -> str:
    name = photo["file_name"]
    if not isinstance(name, str) or not Path(name).name:
        raise ValueError(f"the file_name of a photo is {name!r}")
    return name


def _panoptic(file: Path, data: dict[str, Any]) -> list[CocoLabels]:
    images = {one["id"]: one for one in data["images"]}
    folders = [file.with_suffix(""), file.parent]
    found = []
    for one in data["annotations"]:
        photo = images[one["image_id"]]
        png = next((path for folder in folders if (path := folder / one["file_name"]).is_file()), None)
        if png is None:
            raise DataError(
                f"{file}: {one['file_name']} is neither in {folders[0]} nor in {folders[1]}: unpack the panoptic PNGs "
                "there"
            )
        segments = {int(part["id"]): int(part["category_id"]) for part in one["segments_info"]}
        name, size = _name(photo), (int(photo["height"]), int(photo["width"]))
        found.append(CocoLabels(file, name, *size, panoptic=(png, segments)))
    return found
