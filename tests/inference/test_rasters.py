"""Rasters by tiles: labels where the raster is, of what it shows, and void where it shows nothing."""

import json
import os
import subprocess
import sys
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import rasterio.shutil
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin
from tiny import NAMES, tiny_model
from torch import nn

from fgaseg import segment_raster
from fgaseg.data import CLIP_NORMALIZATION, to_pixels
from fgaseg.errors import ImageError, UsageError, VocabularyError
from fgaseg.inference import decide, pictures, rasters
from fgaseg.inference.raster_files import RasterSource
from fgaseg.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}
PLACE = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_000_000, 2, 2)}
TILE = 32  # of the model below


class ByColour(nn.Module):
    """A Segmenter that compares every cell of its grid with the colours of the classes, and looks no farther."""

    patch, normalization = 8, CLIP_NORMALIZATION

    def __init__(self, image_size=TILE, softmax=False):
        super().__init__()
        loss = SimpleNamespace(seg="ce" if softmax else "bce")
        self.config = SimpleNamespace(image_size=image_size, loss=loss, released_fast_scores=False, resize="logits",
                                      inference="whole")  # fmt: skip
        for key, values in zip(("mean", "std"), CLIP_NORMALIZATION, strict=True):
            self.register_buffer(key, torch.tensor(values))
        self.seen = []

    def encode(self, names, background=None):
        return Vocabulary(tuple(names), torch.tensor([COLOURS[name] for name in names]) / 255.0)

    def first_of_equals(self, vocabulary):
        return list(range(len(vocabulary)))

    def stream(self, pixels, vocabulary):
        rgb = pixels * self.std[:, None, None] + self.mean[:, None, None]
        self.seen.append((rgb[0] * 255).round().byte().permute(1, 2, 0).numpy())
        cells = F.avg_pool2d(rgb, self.patch // 4)
        yield (
            torch.arange(len(vocabulary)),
            -(cells[:, None] - vocabulary.embeddings[None, ..., None, None]).square().sum(2),
        )


@pytest.fixture(autouse=True)
def told(monkeypatch, caplog):
    """The notes of one test."""
    return caplog


def blobs(height, width, count=4, seed=0):
    """Regions of `count` values, int64 [height, width]."""
    small = np.random.default_rng(seed).integers(0, count, (max(height // 9, 1), max(width // 9, 1))).astype(np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)).astype(np.int64)


def coloured(labels, dtype=np.uint8, white=255):
    """[3, H, W] in the colours of the classes."""
    return (np.array(list(COLOURS.values()))[labels].transpose(2, 0, 1) / 255 * white).astype(dtype)


def write(file, values, **profile):
    colorinterp, mask = profile.pop("colorinterp", None), profile.pop("mask", None)
    bands, height, width = values.shape
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(
        file, "w", driver="GTiff", count=bands, height=height, width=width, dtype=values.dtype, **profile
    ) as out:  # fmt: skip
        if colorinterp:
            out.colorinterp = colorinterp
        out.write(values)
        if mask is not None:
            out.write_mask(mask)
    return file


def read(file):
    with rasterio.open(file) as data:
        return data.read(1)


def segment(file, folder, model=None, names=tuple(COLOURS), **options):
    """Labels of a raster, and what `segment_raster` returns."""
    done = segment_raster(model or ByColour(), file, list(names), folder / "labels.tif", **options)
    return read(done.path), done


def seen_whole(rgb, names=tuple(COLOURS)):
    """Labels of [3, H, W] from one view of all of it."""
    model = ByColour()
    height, width = (ceil(n / model.patch) * model.patch for n in rgb.shape[1:])
    margin = [(0, 0), (0, height - rgb.shape[1]), (0, width - rgb.shape[2])]
    padded = np.pad(rgb, margin, mode="symmetric")
    vocabulary = model.encode(names)
    ((_, logits),) = model.stream(to_pixels(padded.transpose(1, 2, 0).copy())[None], vocabulary)
    labels, _ = decide(model, logits[0], vocabulary, (height, width))
    return labels[: rgb.shape[1], : rgb.shape[2]].numpy()


# ---- what is written


@pytest.mark.parametrize(
    "size", [(100, 130), (33, 200), (200, 33), (64, 64), (20, 25), (1, 1), (1, 90), (90, 1)], ids=str
)
def test_labels_of_tiles_are_those_of_the_whole(tmp_path, size):
    noise = np.random.default_rng(1).integers(-60, 60, (3, *size))
    values = np.clip(coloured(blobs(*size)).astype(int) + noise, 0, 255).astype(np.uint8)
    labels, done = segment(write(tmp_path / "a.tif", values, **PLACE), tmp_path)
    np.testing.assert_array_equal(labels, seen_whole(values))
    assert done.size == size and done.void == 0
    assert done.pixels == tuple(np.bincount(labels.ravel(), minlength=4).tolist())
    assert done.pixel_area == 4.0


@pytest.mark.parametrize("size", [(64, 64), (40, 56)], ids=str)
@pytest.mark.parametrize("resize", ["logits", "scores"])
def test_a_raster_of_one_tile_is_labelled_as_a_photo_is(tmp_path, size, resize):
    """One that is smaller is seen at the size of a tile, the rest mirrored."""
    values = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    model = tiny_model(resize=resize)
    labels, _ = segment(write(tmp_path / "a.tif", values, **PLACE), tmp_path, model, NAMES)
    photo = np.pad(values, [(0, 0), (0, 64 - size[0]), (0, 64 - size[1])], mode="symmetric").transpose(1, 2, 0)
    expected = model.segment(photo.copy(), NAMES).labels[: size[0], : size[1]]
    inside = tuple(slice(None) if n == 64 else slice(n - 1) for n in size)  # the last pixels read beyond the raster
    assert (labels == expected)[inside].mean() > 0.999


def test_the_file_is_where_the_raster_is_and_names_its_classes(tmp_path, capfd):
    turned = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(2, -3)
    write(tmp_path / "a.tif", coloured(blobs(600, 530)), crs="EPSG:32632", transform=turned)
    _, done = segment(tmp_path / "a.tif", tmp_path, names=("red", "green", "blue"))
    assert "ERROR" not in capfd.readouterr().err  # GDAL's own, of a raster that is closed already
    with rasterio.open(done.path) as file:
        assert file.crs == "EPSG:32632" and file.transform.almost_equals(turned)
        assert file.dtypes == ("uint8",) and file.nodata == 255 and file.shape == (600, 530)
        assert file.profile["tiled"] and file.compression.name == "deflate"
        assert json.loads(file.tags()["CLASS_NAMES"]) == ["red", "green", "blue"]
        assert [file.colormap(1)[i][:3] for i in range(3)] == [tuple(c) for c in pictures.palette(3).tolist()]
    # GDAL reads the names: a copy has them too
    rasterio.shutil.copy(str(done.path), str(tmp_path / "copy.vrt"), driver="VRT")
    assert "<Category>green</Category>" in (tmp_path / "copy.vrt").read_text()
    assert done.pixel_area == pytest.approx(6.0) and sum(done.present.values()) == pytest.approx(1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "labels.tif", "labels.tif.aux.xml", "copy.vrt"}


def test_ground_control_points_are_kept(tmp_path):
    points = [
        GroundControlPoint(0, 0, 8.0, 45.0),
        GroundControlPoint(40, 0, 8.0, 44.9),
        GroundControlPoint(0, 40, 8.1, 45.0),
    ]
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=3, height=40, width=40, dtype="uint8") as file:
        file.gcps = (points, rasterio.CRS.from_epsg(4326))
        file.write(coloured(blobs(40, 40)))
    _, done = segment(tmp_path / "a.tif", tmp_path)
    with rasterio.open(done.path) as file:
        assert [(p.row, p.col, p.x, p.y) for p in file.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in points]
        assert file.gcps[1] == "EPSG:4326"
    assert done.pixel_area is None


@pytest.mark.parametrize(
    "crs, area",
    [("EPSG:4326", None), ("EPSG:3857", None), ("EPSG:4087", None), ("EPSG:2263", 4 * 0.3048006096**2), (None, None)],
)
def test_areas_are_given_where_pixels_have_one(tmp_path, told, crs, area):
    write(tmp_path / "a.tif", coloured(blobs(40, 40)), crs=crs, transform=from_origin(10, 50, 2, 2))
    _, done = segment(tmp_path / "a.tif", tmp_path)
    assert done.pixel_area == (None if area is None else pytest.approx(area))
    assert ("Mercator" in told.text) == (crs in ("EPSG:3857", "EPSG:4087"))


def test_more_than_255_classes_are_written_with_16_bits(tmp_path, monkeypatch):
    names = [f"grey {i}" for i in range(300)]
    monkeypatch.setattr(sys.modules[__name__], "COLOURS", {name: (i * 0.85,) * 3 for i, name in enumerate(names)})
    values = np.full((3, 40, 50), 250, np.uint8)
    values[:, :10] = 0
    labels, done = segment(write(tmp_path / "a.tif", values, nodata=0, **PLACE), tmp_path, names=names)
    assert labels.dtype == np.uint16 and (labels[:9] == 65535).all() and done.void == 500
    assert (labels[20:] == 294).all() and len(done.pixels) == 300
    with rasterio.open(done.path) as file:
        assert file.nodata == 65535 and len(json.loads(file.tags()["CLASS_NAMES"])) == 300
        assert file.colormap(1)[299][:3] == tuple(pictures.palette(300)[299].tolist())


def test_255_classes_leave_room_for_void(tmp_path, monkeypatch):
    names = [f"grey {i}" for i in range(255)]
    monkeypatch.setattr(sys.modules[__name__], "COLOURS", {name: (i,) * 3 for i, name in enumerate(names)})
    labels, _ = segment(write(tmp_path / "a.tif", np.full((3, 40, 50), 254, np.uint8), **PLACE), tmp_path, names=names)
    assert labels.dtype == np.uint8 and (labels == 254).all()


def test_pixels_below_the_threshold_are_nothing(tmp_path):
    values = coloured(np.repeat(np.arange(2), 32)[None].repeat(40, 0))
    values[:, :, 32:] = 200
    options = {"model": ByColour(softmax=True), "names": ("red", "green"), "threshold": 0.6}
    labels, done = segment(write(tmp_path / "a.tif", values, **PLACE), tmp_path, **options)
    assert done.classes == ("red", "green", "nothing")
    assert (labels[:, :28] == 0).all() and (labels[:, 36:] == 2).all()
    assert done.present["nothing"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_outlines_are_those_of_the_labels(tmp_path, suffix):
    values = coloured(blobs(90, 100))
    values[:, :20, :20] = 7
    file, shapes = write(tmp_path / "a.tif", values, nodata=7, **PLACE), tmp_path / f"outlines{suffix}"
    labels, done = segment(file, tmp_path, polygons=shapes)
    found = pyogrio.raw.read(shapes, read_geometry=False)
    fields = dict(zip(found[0]["fields"], found[3], strict=True))
    for number, name in enumerate(done.classes):
        assert fields["pixels"][fields["class"] == name].sum() == (labels == number).sum() == done.pixels[number]
    assert fields["pixels"].sum() == 90 * 100 - 400 and done.polygons == shapes


def test_outlines_of_what_is_nowhere_are_refused_before_the_work(tmp_path):
    model = ByColour()
    with pytest.raises(UsageError, match="a.tif: polygons need coordinates"):
        segment(write(tmp_path / "a.tif", coloured(blobs(40, 40))), tmp_path, model, polygons=tmp_path / "a.gpkg")
    assert model.seen == [] and [path.name for path in tmp_path.iterdir()] == ["a.tif"]


# ---- pixels without a value


def holes(height=100, width=130):
    missing = np.zeros((height, width), bool)
    missing[:70, :60] = True
    missing[90:, 100] = True
    return missing


@pytest.mark.parametrize("kind", ["nodata", "NaN", "float nodata", "alpha", "mask", "16-bit nodata", "infinite nodata"])
def test_pixels_without_a_value_are_void(tmp_path, kind):
    truth, missing = blobs(100, 130), holes()
    rgb, options = np.maximum(coloured(truth), 1), {}
    if kind == "nodata":
        values, options = np.where(missing, 0, rgb).astype(np.uint8), {"nodata": 0}
    elif kind == "16-bit nodata":
        values, options = np.where(missing, 65535, rgb.astype(np.uint16) * 256).astype(np.uint16), {"nodata": 65535}
    elif kind in ("NaN", "float nodata", "infinite nodata"):
        void = {"NaN": np.nan, "float nodata": -3.4028234663852886e38, "infinite nodata": np.inf}[kind]
        values = np.where(missing, void, rgb / 255).astype(np.float32)
        options = {} if kind == "NaN" else {"nodata": void}
    elif kind == "alpha":
        values = np.concatenate([rgb, np.where(missing, 0, 255)[None].astype(np.uint8)])
        options = {"colorinterp": [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]}
    else:
        values, options = rgb, {"mask": ~missing}
    labels, done = segment(write(tmp_path / "a.tif", values, **options, **PLACE), tmp_path)
    np.testing.assert_array_equal(labels == 255, missing)
    assert done.void == missing.sum() and sum(done.pixels) == missing.size - missing.sum()
    solid = ~missing & (np.abs(np.diff(truth, axis=0, prepend=truth[:1])) == 0)
    assert (labels == truth)[solid].mean() > 0.8


def test_a_black_pixel_is_no_missing_one(tmp_path):
    """Nodata is the value in every band that is shown."""
    values = coloured(blobs(40, 40))  # red is 255, 0, 0
    labels, done = segment(write(tmp_path / "a.tif", values, nodata=0, **PLACE), tmp_path)
    assert done.void == 0 and (labels != 255).all()


@pytest.mark.parametrize("nodata", ["-9999", "65536", "256", "nan"])
def test_nodata_that_no_pixel_can_have(tmp_path, nodata):
    options = {"photometric": "rgb", "extratags": [(42113, "s", 0, nodata, True)]}
    tifffile.imwrite(tmp_path / "a.tif", coloured(blobs(40, 40)).transpose(1, 2, 0), **options)
    labels, done = segment(tmp_path / "a.tif", tmp_path)
    assert done.void == 0 and (labels < 4).all()


def test_tiles_without_a_value_are_not_seen(tmp_path):
    truth = blobs(400, 400)
    values = coloured(truth)
    values[:, :, 48:] = 7
    values[:, 391:, 391:] = coloured(truth)[:, 391:, 391:]
    model = ByColour()
    labels, _ = segment(write(tmp_path / "a.tif", values, nodata=7, **PLACE), tmp_path, model)
    assert len(model.seen) < 60  # of 289
    np.testing.assert_array_equal(labels == 255, (values == 7).all(0))
    np.testing.assert_array_equal(labels[391:, 393:], truth[391:, 393:])
    np.testing.assert_array_equal(labels[20:380, :40], seen_whole(values)[20:380, :40])


def test_a_raster_without_any_value(tmp_path, told):
    labels, done = segment(write(tmp_path / "a.tif", np.zeros((3, 40, 40), np.uint8), nodata=0, **PLACE), tmp_path)
    assert (labels == 255).all() and done.present == {} and "none of its pixels holds a value" in told.text
    write(tmp_path / "b.tif", np.full((3, 40, 40), np.nan, np.float32), **PLACE)
    with pytest.raises(ImageError, match="holds no value at any of 1,600 pixels .* give a range"):
        segment(tmp_path / "b.tif", tmp_path)


# ---- what the model sees


def test_values_mean_the_same_in_all_tiles(tmp_path, told):
    """Left dark, right bright: percentiles of each tile alone would show both alike."""
    values = np.full((1, 64, 320), 1000, np.uint16)
    values[:, :, 160:] = 3000
    values[:, ::2] += 10
    model = ByColour()
    write(tmp_path / "a.tif", values, **PLACE)
    segment(tmp_path / "a.tif", tmp_path, model, value_range=("0%", "100%"))
    levels = {(int(view[:, 0].mean()), int(view[:, -1].mean())) for view in model.seen}
    assert all(left < 5 or left > 250 for left, _ in levels) and {min(levels)[0], max(levels)[0]} == {0, 254}
    assert "1000 is black and 3010 white in all of it: percentiles of 64x320 pixels" in told.text


def test_a_dark_raster_is_told_of_as_a_whole(tmp_path, told):
    values = np.random.default_rng(0).integers(0, 4096, (3, 100, 100)).astype(np.uint16)
    segment(write(tmp_path / "a.tif", values, **PLACE), tmp_path)
    assert told.text.count("is black and") == 0 and told.text.count("--range=0,4095") == 1
    assert "at row" not in told.text


def test_missing_pixels_are_counted_over_the_whole(tmp_path, told):
    values = coloured(blobs(100, 100))
    values[:, :50] = 9
    segment(write(tmp_path / "a.tif", values, nodata=9, **PLACE), tmp_path)
    assert "a.tif: 50.0% of its pixels hold no value" in told.text and "at row" not in told.text


@pytest.mark.parametrize("bands", [None, (4, 3, 2), (2,)])
def test_bands_that_are_shown(tmp_path, told, bands):
    values = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    model = ByColour()
    segment(write(tmp_path / "a.tif", values, **PLACE), tmp_path, model, bands=bands)
    shown = [0, 1, 2] if bands is None else [band - 1 for band in bands] * (3 // len(bands))
    np.testing.assert_array_equal(model.seen[0], values[shown].transpose(1, 2, 0))
    assert ("has 5 bands" in told.text) == (bands is None)


def test_red_green_and_blue_are_where_the_file_says(tmp_path, told):
    kinds = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    values = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    model = ByColour()
    segment(write(tmp_path / "a.tif", values, colorinterp=kinds, photometric="minisblack", **PLACE), tmp_path, model)
    np.testing.assert_array_equal(model.seen[0], values[[2, 1, 0]].transpose(1, 2, 0))
    assert "its bands 3,2,1 are red, green and blue, as the file says" in told.text


def test_a_palette_is_seen_in_its_colours_and_labels_of_ours_are_refused(tmp_path, told):
    truth = blobs(64, 64)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", count=1, height=64, width=64, dtype="uint8", **PLACE
    ) as file:
        file.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(COLOURS.values())})
        file.write(truth.astype(np.uint8), 1)
    labels, done = segment(tmp_path / "a.tif", tmp_path)
    np.testing.assert_array_equal(labels, seen_whole(coloured(truth)))
    assert "numbers of colours in a palette" in told.text
    with pytest.raises(ImageError, match=r"labels.tif: holds labels that were written here"):
        segment_raster(ByColour(), done.path, ["red"], tmp_path / "again.tif")


@pytest.mark.parametrize("options, white", [({"nbits": 12}, 4095), ({}, 65535)])
def test_white_is_the_largest_value_of_the_bits_that_are_used(tmp_path, options, white):
    values = np.full((3, 32, 32), white, np.uint16)
    values[:, :16] = 0
    model = ByColour()
    segment(write(tmp_path / "a.tif", values, **options, **PLACE), tmp_path, model)
    assert (model.seen[0][:16] == 0).all() and (model.seen[0][16:] == 255).all()


def test_a_file_whose_smallest_value_is_white(tmp_path):
    values = np.full((1, 32, 32), 250, np.uint8)
    model = ByColour()
    segment(write(tmp_path / "a.tif", values, photometric="miniswhite", **PLACE), tmp_path, model)
    assert (model.seen[0] == 5).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_seen_upright_and_labelled_as_it_is_stored(tmp_path, told, orientation):
    truth = np.zeros((70, 90), np.int64)
    truth[:36, :40], truth[50:, 60:] = 1, 2
    photo, exif = Image.fromarray(coloured(truth).transpose(1, 2, 0)), Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    model = ByColour()
    labels, done = segment(tmp_path / "a.jpg", tmp_path, model)
    assert (labels == truth).mean() > 0.99 and done.size == (70, 90)
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    view = model.seen[0]  # of the corner that is stored first, all green
    green = view[..., 1].astype(int) > 128
    assert green.all()
    part = segment_of_corner(tmp_path, photo, exif)
    assert part == corner
    assert ("stored turned" in told.text) == (orientation != 1)


def segment_of_corner(folder, photo, exif):
    """Which corner (0: top or left, 1: bottom or right) of what the model sees is the first that is stored."""
    small = photo.resize((TILE, TILE), Image.Resampling.NEAREST)
    values = np.zeros((TILE, TILE, 3), np.uint8)
    values[: TILE // 2, : TILE // 2] = 255
    Image.fromarray(values).save(folder / "corner.png", exif=exif)
    assert small.size == (TILE, TILE)
    model = ByColour()
    segment(folder / "corner.png", folder, model)
    row, column = (int(n[0]) * 2 // TILE for n in np.nonzero(model.seen[0][..., 0] > 128))
    return row, column


def test_a_photo_beyond_the_pixel_limit(tmp_path, monkeypatch, told):
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "100")
    truth = blobs(80, 90)
    Image.fromarray(coloured(truth).transpose(1, 2, 0)).save(tmp_path / "a.png")
    labels, done = segment(tmp_path / "a.png", tmp_path)
    np.testing.assert_array_equal(labels, seen_whole(coloured(truth)))
    assert done.pixel_area is None and told.text.count("does not say where on Earth it is") == 1


def test_a_file_that_is_stored_by_rows_is_decoded_once(tmp_path, monkeypatch):
    """A JPEG or PNG has no way back: reading a tile above the last one would begin at the top of the file again."""
    truth, read_rows = blobs(300, 200), []
    rgba = np.concatenate([coloured(truth), np.full((1, 300, 200), 255, np.uint8)])
    rgba[3, :90, :90] = 0
    Image.fromarray(rgba.transpose(1, 2, 0)).save(tmp_path / "a.png")
    bands = RasterSource._bands
    monkeypatch.setattr(RasterSource, "_bands", lambda *args: (read_rows.append((args[2], args[4])), bands(*args))[1])
    labels, _ = segment(tmp_path / "a.png", tmp_path)
    look, *rows = read_rows
    assert look == (0, 300)
    assert [top for top, _ in rows] == np.cumsum([0, *(count for _, count in rows)])[:-1].tolist()
    assert sum(count for _, count in rows) == 300
    np.testing.assert_array_equal(labels == 255, rgba[3] == 0)
    np.testing.assert_array_equal(labels[100:], seen_whole(rgba[:3])[100:])


# ---- tiles


def test_a_larger_tile_is_seen_coarser(tmp_path):
    truth = np.random.default_rng(2).integers(0, 4, (10, 12)).repeat(40, 0).repeat(40, 1)
    noise = np.random.default_rng(0).integers(-90, 90, (3, *truth.shape))
    values = np.clip(coloured(truth).astype(int) + noise, 0, 255).astype(np.uint8)
    model = ByColour()
    labels, _ = segment(write(tmp_path / "a.tif", values, **PLACE), tmp_path, model, tile=128)
    assert {view.shape[:2] for view in model.seen} == {(TILE, TILE)} and len(model.seen) == 4 * 5
    assert model.seen[0][:8, :8, 0].std() < 20  # averaged, not picked
    assert (labels == truth).mean() > 0.9


def test_a_smaller_tile_is_enlarged(tmp_path):
    truth = blobs(40, 40)
    model = ByColour()
    labels, _ = segment(write(tmp_path / "a.tif", coloured(truth), **PLACE), tmp_path, model, tile=16)
    assert {view.shape[:2] for view in model.seen} == {(TILE, TILE)} and (labels == truth).mean() > 0.9


def test_a_tile_is_a_multiple_of_the_patches(tmp_path, told):
    write(tmp_path / "a.tif", coloured(blobs(100, 100)), **PLACE)
    segment(tmp_path / "a.tif", tmp_path, tile=50)
    assert "tile: 48 pixels in place of 50" in told.text


def test_an_overlap_of_nothing_is_allowed(tmp_path):
    values = coloured(blobs(100, 130))
    model = ByColour()
    labels, _ = segment(write(tmp_path / "a.tif", values, **PLACE), tmp_path, model, overlap=0)
    np.testing.assert_array_equal(labels, seen_whole(values))
    assert len(model.seen) == 4 * 5


# ---- what cannot be


@pytest.mark.parametrize(
    "options, message",
    [({"tile": 0}, "tile: 0 pixels, seen at 32: give 1 to 1024"), ({"tile": 5000}, "tile: 5000 pixels"),
     ({"overlap": -1}, "overlap: -1 pixels, of tiles of 32: give 0 to 24"), ({"overlap": 32}, "overlap: 32 pixels"),
     ({"bands": (1, 2, 9)}, "a.tif: has 3 bands, and bands 1,2,9"), ({"value_range": (5, 1)}, "range 5,1"),
     ({"threshold": 1.5}, "threshold: 1.5")],
)  # fmt: skip
def test_options_that_cannot_be(tmp_path, options, message):
    write(tmp_path / "a.tif", coloured(blobs(40, 40)), **PLACE)
    with pytest.raises((UsageError, ImageError, VocabularyError), match=message):
        segment(tmp_path / "a.tif", tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_vocabulary_brings_its_background_along(tmp_path):
    file, model = write(tmp_path / "a.tif", coloured(blobs(40, 40)), **PLACE), ByColour()
    vocabulary = model.encode(["red", "green"])
    assert segment_raster(model, file, vocabulary, tmp_path / "labels.tif").classes == ("red", "green")
    with pytest.raises(VocabularyError, match="background: the vocabulary is made already"):
        segment_raster(model, file, vocabulary, tmp_path / "labels.tif", background="stuff")


def test_files_that_are_no_rasters(tmp_path):
    (tmp_path / "text.tif").write_text("not a raster")
    write(tmp_path / "complex.tif", np.zeros((1, 8, 8), np.complex64))
    write(tmp_path / "cut.tif", coloured(blobs(200, 200)), tiled=True, blockxsize=64, blockysize=64, **PLACE)
    data = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    for name, message in {
        "none.tif": "no such file: check the path",
        "text.tif": "text.tif: is no raster that GDAL can open",
        "complex.tif": "holds complex64 values",
        ".": "is a folder: name a file in it",
        "cut.tif": "cut.tif: is damaged or cannot be read",
    }.items():
        with pytest.raises(ImageError, match=message) as error:
            segment(tmp_path / name, tmp_path)
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["complex.tif", "cut.tif", "text.tif"]


def test_values_that_nothing_says_the_meaning_of(tmp_path):
    values = np.random.default_rng(0).normal(0, 30, (3, 40, 40)).astype(np.float32)
    write(tmp_path / "a.tif", values, **PLACE)
    with pytest.raises(ImageError, match="floating point images are in 0..1.*--range=2%,98%"):
        segment(tmp_path / "a.tif", tmp_path)
    segment(tmp_path / "a.tif", tmp_path, value_range=("2%", "98%"))


def test_output_files_that_cannot_be(tmp_path):
    file = write(tmp_path / "a.tif", coloured(blobs(40, 40)), **PLACE)
    before = file.read_bytes()
    os.link(file, tmp_path / "link.tif")
    (tmp_path / "folder.tif").mkdir()
    for out, message in {
        "a.tif": "is the raster itself, which would be lost",
        "link.tif": "is the raster itself",
        "labels.png": "labels are written as .tif or .tiff",
        "folder.tif": "is a folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            segment_raster(ByColour(), file, list(COLOURS), tmp_path / out)
    with pytest.raises(UsageError, match="polygons are written as .geojson or .gpkg"):
        segment_raster(ByColour(), file, list(COLOURS), tmp_path / "b.tif", polygons=tmp_path / "b.shp")
    assert file.read_bytes() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ImageError("halfway")], ids=["Ctrl-C", "error"])
def test_interrupted_work_leaves_the_old_file_and_nothing_else(tmp_path, error):
    class Stops(ByColour):
        def stream(self, pixels, vocabulary):
            if len(self.seen) == 5:
                raise error
            yield from super().stream(pixels, vocabulary)

    file = write(tmp_path / "a.tif", coloured(blobs(300, 300)), **PLACE)
    (tmp_path / "labels.tif").write_text("old")
    with pytest.raises(type(error)):
        segment(file, tmp_path, Stops())
    assert (tmp_path / "labels.tif").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "labels.tif"]
    segment(file, tmp_path)
    assert read(tmp_path / "labels.tif").shape == (300, 300)


FULL = """
import resource, sys
sys.path[:0] = {path!r}
from test_rasters import ByColour, COLOURS, segment_raster
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    segment_raster(ByColour(), {file!r}, list(COLOURS), {out!r})
except OSError as error:
    print("failed:", error)
"""


@pytest.mark.parametrize("limit", [1000, 20_000])
def test_a_full_disk(tmp_path, limit):
    """The kernel refuses to let any file grow: what a full disk looks like from inside."""
    noise = np.random.default_rng(0).integers(0, 4, (600, 600))
    file = write(tmp_path / "a.tif", coloured(noise), **PLACE)
    script = FULL.format(path=sys.path, limit=limit, file=str(file), out=str(tmp_path / "labels.tif"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("failed:") and done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_without_rasterio_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UsageError, match=r"pip install 'fgaseg\[geo\]'"):
        segment_raster(ByColour(), tmp_path / "a.tif", ["red"], tmp_path / "labels.tif")


# ---- doubts


def test_that_windows_are_not_used_is_told(tmp_path, told):
    model = ByColour()
    model.config.inference = "windows"
    segment(write(tmp_path / "a.tif", coloured(blobs(40, 40)), **PLACE), tmp_path, model)
    assert told.text.count("tiles of a raster are seen whole") == 1


def test_answers_that_say_little_are_told_of(tmp_path, told):
    file = write(tmp_path / "a.tif", coloured(np.zeros((40, 40), np.int64)), **PLACE)
    segment(file, tmp_path, names=("red",))
    assert "one class, 'red': every pixel gets one of the given names" in told.text
    segment(file, tmp_path, names=("red", "green"))
    assert f"all of {file} is 'red'" in told.text
    assert rasters.COARSEST == 32
