"""Results as files and as other libraries' objects: what is written reads back as what was found."""

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model

from fgaseg.data.label_formats import read_labels
from fgaseg.errors import DataError, ResultError, UsageError
from fgaseg.inference import Result, palette, write_index_png

NAMES = ("cat", 'a "big", black dog', "道路", "nothing")


def drawn(height=23, width=31, classes=NAMES, seed=0, void=False, source="", **more):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, min(len(classes), 5), (height, width))
    labels[-1, -1] = len(classes) - 1
    if void:
        labels[0, ::2] = -1
    photo = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    scores = rng.random((height, width), dtype=np.float32)
    return Result(labels, tuple(classes), scores, photo, source=str(source), **more)


def leftovers(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- the index PNG


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (23, 31)])
@pytest.mark.parametrize("count", [1, 4, 254, 255, 256, 300])
def test_an_index_png_reads_back(tmp_path, size, count):
    result = drawn(*size, classes=[f"class {i}" for i in range(count)], void=True)
    result.save(tmp_path / "labels.png")
    void = 255 if count <= 255 else 65535
    want = np.where(result.labels < 0, void, result.labels)
    assert (read_labels(tmp_path / "labels.png") == want).all()
    with Image.open(tmp_path / "labels.png") as image:
        assert (np.asarray(image) == want).all()
        assert image.mode == ("P" if count <= 255 else "I;16")
    assert leftovers(tmp_path) == ["labels.png"]


def test_an_index_png_has_the_colours_of_the_overlay_and_grey_for_void(tmp_path):
    drawn(void=True).save(tmp_path / "labels.PNG")
    with Image.open(tmp_path / "labels.PNG") as image:
        colours = np.array(image.getpalette()).reshape(256, 3)
    assert (colours[:4] == palette(4)).all() and (colours[4:] == 128).all()


@pytest.mark.parametrize("void", [-1, 255, 4, 1000])
def test_what_is_no_class_is_void(tmp_path, void):
    write_index_png(np.array([[0, void]]), 4, tmp_path / "labels.png")
    assert read_labels(tmp_path / "labels.png").tolist() == [[0, 255]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_more_classes_than_16_bits_hold_are_refused(tmp_path, suffix):
    with pytest.raises(UsageError, match="70,000 classes: 16-bit labels hold 65,535 at most"):
        drawn(classes=[str(i) for i in range(70_000)]).save(tmp_path / f"labels{suffix}")
    assert leftovers(tmp_path) == []


# --- the overlay


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_an_overlay_has_the_size_of_the_photo(tmp_path, suffix, kind):
    result = drawn(64, 300, classes=["sky", "sea"])
    result.labels[:] = 0
    result.labels[:, 150:] = 1
    result.save(tmp_path / f"overlay{suffix}")
    with Image.open(tmp_path / f"overlay{suffix}") as image:
        assert image.size == (300, 64) and image.format == kind
        want = np.asarray(result.overlay(legend=False)).astype(int)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - want).mean() < 12
    assert leftovers(tmp_path) == [f"overlay{suffix}"]


def test_a_picture_that_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UsageError, match="17000x2 cannot be written as WEBP"):
        drawn(2, 17_000).save(tmp_path / "overlay.webp")
    assert leftovers(tmp_path) == []


# --- arrays


def test_arrays_read_back_without_pickle(tmp_path):
    result = drawn(nothing=3)
    result.save(tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"labels", "scores", "classes", "nothing"}
        assert (arrays["labels"] == result.labels).all() and arrays["labels"].dtype == np.int64
        assert (arrays["scores"] == result.scores).all() and arrays["scores"].dtype == np.float32
        assert tuple(arrays["classes"]) == NAMES and int(arrays["nothing"]) == 3


def test_many_classes_are_saved_as_arrays(tmp_path):
    drawn(classes=[f"class {i}" for i in range(70_000)]).save(tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz") as arrays:
        assert arrays["classes"][69_999] == "class 69999" and arrays["labels"][-1, -1] == 69_999
        assert int(arrays["nothing"]) == -1


def test_probabilities_are_written_class_by_class(tmp_path, monkeypatch):
    result = tiny_model().segment(drawn(40, 56).image, list(NAMES[:3]), threshold=0.9, probabilities=True)
    alive = {"now": 0, "most": 0}

    def compute(index, before=result.maps._compute):
        alive["now"] += 1
        return before(index)

    monkeypatch.setattr(result.maps, "_compute", compute)
    result.save(tmp_path / "result.npz")
    assert alive["now"] == 3
    with np.load(tmp_path / "result.npz", allow_pickle=False) as arrays:
        maps = arrays["probabilities"]
        assert maps.shape == (3, 40, 56) and maps.dtype == np.float32
        for index, one in enumerate(result.probabilities):
            assert (maps[index] == one).all()
        assert len(arrays["classes"]) == 4 and int(arrays["nothing"]) == 3  # "nothing" has no map
    with zipfile.ZipFile(tmp_path / "result.npz") as archive:
        assert archive.testzip() is None


def test_probabilities_that_were_not_asked_for_are_not_there(tmp_path):
    drawn().save(tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz") as arrays:
        assert "probabilities" not in arrays


# --- what save refuses


def test_an_unknown_suffix_is_refused_in_one_line(tmp_path):
    for name in ("labels.bmp", "labels", "labels.shp", "labels.png.txt"):
        with pytest.raises(UsageError, match=r"saved as \.png, .*\.npz, \.json, \.tif, .*\.gpkg") as raised:
            drawn().save(tmp_path / name)
        assert "\n" not in str(raised.value)
    assert leftovers(tmp_path) == []


def test_the_photo_itself_is_never_overwritten(tmp_path):
    photo = tmp_path / "photo.png"
    drawn().image.save(photo)
    before = photo.read_bytes()
    os.symlink(photo, tmp_path / "link.png")
    os.link(photo, tmp_path / "hard.png")
    for name in ("photo.png", "link.png", "hard.png"):
        with pytest.raises(UsageError, match="is the photo itself"):
            drawn(source=photo).save(tmp_path / name)
    assert photo.read_bytes() == before
    drawn(source=photo).save(tmp_path / "other.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_folder_without_permission_is_an_os_error(tmp_path, suffix):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        drawn(source="photo.jpg").save(tmp_path / "locked" / f"labels{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".npz", ".json", ".tif", ".gpkg"])
def test_a_folder_that_is_a_file_is_an_os_error(tmp_path, suffix, utm):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        drawn(20, 30, source=utm).save(tmp_path / "file" / f"labels{suffix}")
    assert leftovers(tmp_path) == ["file", "utm.tif"]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".npz", ".json", ".tif", ".geojson"])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, suffix, monkeypatch, utm):
    path = tmp_path / f"labels{suffix}"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fgaseg.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        drawn(20, 30, source=utm).save(path)
    assert path.read_text() == "old" and leftovers(tmp_path) == sorted([path.name, "utm.tif"])


# --- GeoTIFF and polygons


@pytest.fixture
def utm(tmp_path) -> Path:
    """A photo of 20 x 30 pixels of 10 m."""
    rasterio = pytest.importorskip("rasterio")
    about = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    return write_tiff(tmp_path / "utm.tif", **about)


def write_tiff(path: Path, height=20, width=30, **about) -> Path:
    import rasterio

    with rasterio.open(path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8", **about) as file:
        file.write(np.full((3, height, width), 7, np.uint8))
    return path


@pytest.mark.parametrize("count", [1, 4, 255, 300])
def test_a_geotiff_has_labels_colours_names_and_the_place(tmp_path, utm, count):
    import rasterio

    names = [*NAMES[1:3], *(f"class {i}" for i in range(298))][:count]
    result = drawn(20, 30, classes=names, void=True, source=utm)
    result.save(tmp_path / "labels.tif")
    void = 255 if count <= 255 else 65535
    with rasterio.open(tmp_path / "labels.tif") as file, rasterio.open(utm) as photo:
        assert (file.read(1) == np.where(result.labels < 0, void, result.labels)).all()
        assert (file.nodata, file.crs, file.transform) == (void, photo.crs, photo.transform)
        assert (file.read_masks(1) == 255 * (result.labels >= 0)).all()
        assert [file.colormap(1)[i][:3] for i in range(count)] == [tuple(c) for c in palette(count).tolist()]
        assert json.loads(file.tags()["CLASS_NAMES"]) == names
    assert category_names(tmp_path / "labels.tif") == names


def category_names(path: Path) -> list[str]:
    """As GDAL reads them: it copies them to a virtual raster."""
    import xml.etree.ElementTree as ElementTree

    import rasterio.shutil

    rasterio.shutil.copy(path, path.with_suffix(".vrt"), driver="VRT")
    return [one.text for one in ElementTree.parse(path.with_suffix(".vrt")).iter("Category")]


def test_a_geotiff_of_any_photo_has_no_place(tmp_path, recwarn):
    rasterio = pytest.importorskip("rasterio")
    drawn().image.save(tmp_path / "photo.jpg")
    for source in ("", tmp_path / "photo.jpg", "https://example.org/photo.jpg"):
        drawn(source=source).save(tmp_path / "labels.tiff")
        assert not [str(one.message) for one in recwarn]
        with rasterio.open(tmp_path / "labels.tiff") as file:
            assert file.crs is None and file.transform.is_identity
        recwarn.clear()  # of reading
    (tmp_path / "labels.tiff.aux.xml").unlink()
    assert (read_labels(tmp_path / "labels.tiff") == drawn().labels).all()


def test_a_geotiff_keeps_control_points(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.control import GroundControlPoint

    points = [GroundControlPoint(row, col, 10 + col, 50 - row) for row, col in ((0, 0), (0, 30), (20, 0), (20, 30))]
    photo = write_tiff(tmp_path / "photo.tif", gcps=points, crs="EPSG:4326")
    result = drawn(20, 30, source=photo)
    result.save(tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as file:
        kept, crs = file.gcps
    assert [(one.row, one.col, one.x, one.y) for one in kept] == [(one.row, one.col, one.x, one.y) for one in points]
    assert crs == "EPSG:4326"
    with pytest.raises(DataError, match="control points or a sensor model only: use gdalwarp on it"):
        result.to_geojson()


def test_polygons_lie_where_the_source_does(tmp_path, utm):
    pyogrio = pytest.importorskip("pyogrio")
    result = drawn(20, 30, source=utm, void=True)
    result.save(tmp_path / "labels.gpkg")
    about = pyogrio.read_info(tmp_path / "labels.gpkg")
    assert about["crs"] == "EPSG:32633"
    np.testing.assert_allclose(about["total_bounds"], (500_000, 4_999_800, 500_300, 5_000_000))
    collection = result.to_geojson()
    result.save(tmp_path / "labels.geojson")
    assert json.loads((tmp_path / "labels.geojson").read_text(encoding="utf-8")) == collection
    shares = {}
    for one in collection["features"]:
        shares[one["properties"]["class"]] = shares.get(one["properties"]["class"], 0) + one["properties"]["pixels"]
    assert shares == {name: (result.labels == i).sum() for i, name in enumerate(NAMES)}


def place():
    import rasterio

    return rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("no file", "the photo was read from no file"),
     ("address", r"https://example.org/a.tif: is no file of this machine"),
     ("plain", r"photo.tif: does not say where on Earth it is"),
     ("no system", r"photo.tif: has no coordinate reference system"),
     ("size", r"photo.tif: is 30x20, its labels are 31x23"),
     ("turned", r"photo.tif: is stored turned \(EXIF orientation 6\)"),
     ("not GDAL's", r"photo.tif: GDAL cannot open it")],
)  # fmt: skip
def test_polygons_without_a_place_are_refused_in_one_line(tmp_path, kind, words):
    pytest.importorskip("rasterio")
    photo, size = tmp_path / "photo.tif", (20, 30)
    if kind == "plain":
        write_tiff(photo)
    elif kind == "no system":
        write_tiff(photo, transform=place())
    elif kind in ("size", "turned"):
        write_tiff(photo, crs="EPSG:32633", transform=place())
        size = (23, 31) if kind == "size" else (30, 20)
    elif kind == "not GDAL's":
        photo.write_text("x")
    if kind == "turned":
        turn(photo)
    source = {"no file": "", "address": "https://example.org/a.tif"}.get(kind, photo)
    result = drawn(*size, source=source)
    for write in (result.to_geojson, lambda: result.save(tmp_path / "labels.gpkg")):
        with pytest.raises(DataError, match=words) as raised:
            write()
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "labels.gpkg").exists()


def turn(path: Path) -> None:
    """Write a TIFF again, with all that GDAL's tags say, as one of EXIF orientation 6."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        tags = [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in file.pages[0].tags if tag.code >= 33_000]
        values = file.pages[0].asarray()
    about = {"photometric": "rgb", "planarconfig": file.pages[0].planarconfig}
    tifffile.imwrite(path, values, **about, extratags=[*tags, (274, "H", 1, 6, True)])


def test_a_geotiff_of_a_turned_source_says_that_its_place_is_lost(tmp_path, caplog):
    rasterio = pytest.importorskip("rasterio")
    turn(write_tiff(tmp_path / "photo.tif", crs="EPSG:32633", transform=place()))
    drawn(30, 20, source=tmp_path / "photo.tif").save(tmp_path / "labels.tif")
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.crs is None and file.transform.is_identity
    assert "EXIF orientation 6" in caplog.text and "labels.tif has no georeference" in caplog.text


@pytest.mark.parametrize("suffix", [".tif", ".geojson"])
def test_missing_packages_are_named(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UsageError, match=r"needs rasterio: pip install 'fgaseg\[geo\]'"):
        drawn().save(tmp_path / f"labels{suffix}")


# --- supervision


def test_detections_of_supervision():
    supervision = pytest.importorskip("supervision")
    result = drawn(void=True)
    found = result.to_supervision()
    assert found.mask.shape == (4, 23, 31) and found.mask.dtype == bool
    assert list(found.data["class_name"]) == list(NAMES) and found.class_id.tolist() == [0, 1, 2, 3]
    assert (found.mask.sum(0) == (result.labels >= 0)).all()
    for i, mask in enumerate(found.mask):
        assert (mask == (result.labels == i)).all()
        assert found.confidence[i] == pytest.approx(result.scores[mask].mean(), abs=1e-6)
        rows, columns = np.nonzero(mask)
        assert found.xyxy[i].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    photo = np.asarray(result.image)[..., ::-1].copy()
    for annotator in (supervision.MaskAnnotator(), supervision.BoxAnnotator(), supervision.PolygonAnnotator()):
        assert annotator.annotate(photo.copy(), found).shape == photo.shape
    colour = supervision.MaskAnnotator(opacity=1).annotate(photo.copy(), found)
    assert (colour[result.labels < 0] == photo[result.labels < 0]).all()
    labelled = supervision.LabelAnnotator().annotate(photo.copy(), found, labels=list(found.data["class_name"]))
    assert (labelled != photo).any()


def test_detections_of_void_alone_are_none():
    pytest.importorskip("supervision")
    result = drawn(1, 1)
    result.labels[:] = 255
    assert len(result.to_supervision()) == 0


def test_supervision_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError, match="pip install supervision"):
        drawn().to_supervision()


# --- COCO of one photo: see test_coco.py for many


@pytest.mark.parametrize(
    ("source", "name"),
    [("/data/photos/a b,c.jpg", "a b,c.jpg"), ("https://example.org/x/ph%20oto.jpg?size=3", "ph oto.jpg")],
)
def test_coco_is_named_after_the_source(tmp_path, source, name):
    result = drawn(source=source)
    assert result.to_coco()["images"][0]["file_name"] == name
    assert result.to_coco("below/other.jpg")["images"][0]["file_name"] == "below/other.jpg"
    result.save(tmp_path / "coco.json")
    assert json.loads((tmp_path / "coco.json").read_text()) == result.to_coco()


def test_coco_without_a_name_is_refused(tmp_path):
    for write in (drawn().to_coco, lambda: drawn().save(tmp_path / "coco.json")):
        with pytest.raises(ResultError, match=r"result\.to_coco\(file_name="):
            write()
    assert leftovers(tmp_path) == []
