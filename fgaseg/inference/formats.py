"""Results as files: index PNG, overlay, NumPy arrays, GeoTIFF, polygons and COCO annotations, by the suffix."""

from __future__ import annotations

import json
import os
import urllib.parse
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from ..errors import ResultError, UsageError
from ..files import atomic_write
from .coco import coco_of
from .georeference import write_geotiff, write_outlines
from .label_images import write_index_png
from .labelled import Labelled
from .scores import Probabilities

PICTURES = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_QUALITY = 92  # of overlays: at less, colours of classes run into one another


def save_result(result: Labelled, path: str | os.PathLike[str]) -> None:
    """Write a result in the format that the suffix of ``path`` says; see `Result.save`."""
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise UsageError(f"{path}: results are saved as {', '.join(_WRITERS)}: choose one of these suffixes")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder: give the name of a file")
    if result.source and path.exists() and os.path.exists(result.source) and os.path.samefile(path, result.source):
        raise UsageError(f"{path}: is the photo itself, which would be lost: choose another path")
    write(result, path)


def write_overlay(result: Labelled, path: str | os.PathLike[str]) -> None:
    """Write the labels over the photo, at its own size. Raises UsageError if it is too large for the format."""
    path = Path(path)
    kind, picture = PICTURES[path.suffix.lower()], result.overlay(legend=False)
    more = {"subsampling": 0} if kind == "JPEG" else {}
    try:
        atomic_write(path, lambda file: picture.save(file, format=kind, quality=_QUALITY, **more))
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None):  # a full disk
            raise
        raise UsageError(
            f"{path}: {picture.width}x{picture.height} cannot be written as {kind} ({error}): write a PNG with "
            "result.overlay(legend=False).save(...)"
        ) from error


def write_arrays(result: Labelled, path: str | os.PathLike[str]) -> None:
    """Write labels, scores and classes as an .npz file, and the probabilities if the result has them."""
    arrays = {
        "labels": result.labels,
        "scores": result.scores,
        "classes": np.array(result.classes),
        "nothing": np.array(-1 if result.nothing is None else result.nothing),
    }

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, values, allow_pickle=False)
            if result.maps is not None:
                _write_maps(archive, result.maps)

    atomic_write(Path(path), write)


def _write_maps(archive: zipfile.ZipFile, maps: Probabilities) -> None:
    """float32 [T, H, W], one class after the other; as they are, since they hardly become smaller."""
    about = {"descr": "<f4", "fortran_order": False, "shape": maps.shape}
    with archive.open(zipfile.ZipInfo("probabilities.npy"), "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, about)
        for values in maps:
            entry.write(values.astype("<f4").tobytes())


def file_name_of(result: Labelled) -> str:
    """The name of the photo's file, "" if it came from none."""
    address = urllib.parse.urlsplit(result.source)
    if "://" in result.source and not os.path.exists(result.source):
        return PurePosixPath(urllib.parse.unquote(address.path)).name
    return Path(result.source).name


def to_coco(result: Labelled, file_name: str | None) -> dict[str, Any]:
    file_name = file_name or file_name_of(result)
    if not file_name:
        raise ResultError("the photo came from no file, and COCO needs its name: result.to_coco(file_name='photo.jpg')")
    return coco_of(result, file_name)


def _write_coco(result: Labelled, path: Path) -> None:
    text = json.dumps(to_coco(result, None), allow_nan=False)
    atomic_write(path, lambda file: file.write(text.encode()))


def to_supervision(result: Labelled) -> Any:
    """See `Result.to_supervision`."""
    try:
        import supervision
    except ImportError as error:
        raise UsageError("Detections are those of supervision: pip install supervision") from error
    labels, count = result.labels, len(result.classes)
    present = np.unique(labels[(labels >= 0) & (labels < count)])
    if not present.size:
        return supervision.Detections.empty()
    masks = np.stack([labels == value for value in present])
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks) + np.array([0, 0, 1, 1]),  # beside the last pixel, as of COCO's boxes
        mask=masks,
        class_id=present,
        confidence=np.array([result.scores[mask].mean(dtype=np.float64) for mask in masks], np.float32),
        data={"class_name": np.array([result.classes[value] for value in present])},
    )


def _write_labels(result: Labelled, path: Path) -> None:
    write_index_png(result.labels, len(result.classes), path)


_WRITERS: dict[str, Callable[[Labelled, Path], None]] = {
    ".png": _write_labels,
    **dict.fromkeys(PICTURES, write_overlay),
    ".npz": write_arrays,
    ".json": _write_coco,
    ".tif": write_geotiff,
    ".tiff": write_geotiff,
    ".geojson": write_outlines,
    ".gpkg": write_outlines,
}
