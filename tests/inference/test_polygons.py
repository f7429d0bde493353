"""Labels as polygons: every pixel in one of the right class, at the right place on Earth."""

import json
import sys

import numpy as np
import pytest

from fgaseg.errors import DataError, UsageError
from fgaseg.inference.polygons import regions, write_polygons

rasterio = pytest.importorskip("rasterio")
pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")
from rasterio.features import rasterize  # noqa: E402
from rasterio.transform import Affine  # noqa: E402

UTM, PLACE = "EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_000_000)  # the central meridian, 15 degrees east
NAMES = ["grass", 'a "tall", old tree', "道路", "water"]


def drawn(height: int = 23, width: int = 31, void: int = 255, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (height, width))  # diagonals, holes and islands in holes
    labels[rng.random(labels.shape) < 0.1] = void
    return labels


def features(path):
    return json.loads(path.read_text(encoding="utf-8"))["features"]


@pytest.mark.parametrize("seed", range(5))
def test_every_pixel_is_in_one_region_of_its_value(seed):
    labels = drawn(seed=seed)
    found = list(regions(labels, 3))
    painted = rasterize([(outline, value) for value, outline in found], labels.shape, fill=255)
    assert (painted == labels).all()
    assert sum(outline.area for _, outline in found) == (labels < 3).sum()
    assert all(outline.is_valid and outline.geom_type == "Polygon" for _, outline in found)


def test_a_region_is_of_pixels_that_share_edges():
    labels = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    assert sorted((value, outline.area) for value, outline in regions(labels, 2)) == [
        (0, 1.0), (0, 1.0), (0, 1.0), (1, 3.0), (1, 3.0)
    ]  # fmt: skip


def test_geopackage_keeps_the_system_of_the_source(tmp_path):
    labels = drawn()
    count = write_polygons(tmp_path / "out.gpkg", labels, NAMES, PLACE, UTM)
    about, _, outlines, (names, values, pixels, areas) = pyogrio.raw.read(tmp_path / "out.gpkg", layer="labels")
    assert about["crs"] == UTM and list(about["fields"]) == ["class", "value", "pixels", "area_m2"]
    assert len(outlines) == count == len(list(regions(labels, 3)))
    assert [NAMES[value] for value in values] == list(names)
    outlines = shapely.from_wkb(outlines)
    painted = rasterize(list(zip(outlines, values.tolist(), strict=True)), labels.shape, fill=255, transform=PLACE)
    assert (painted == labels).all()
    np.testing.assert_array_equal(pixels, shapely.area(outlines) / 100)
    np.testing.assert_allclose(areas, shapely.area(outlines) / 0.9996**2, rtol=1e-5)  # the scale of the meridian
    assert [file.name for file in tmp_path.iterdir()] == ["out.gpkg"]


def test_geojson_is_in_longitude_and_latitude(tmp_path):
    labels = np.zeros((100, 100), np.int64)
    labels[20:40, 30:50] = 2
    assert write_polygons(tmp_path / "out.geojson", labels, NAMES, PLACE, UTM) == 2
    whole = json.loads((tmp_path / "out.geojson").read_text(encoding="utf-8"))
    assert "crs" not in whole
    inner, outer = sorted(features(tmp_path / "out.geojson"), key=lambda one: one["properties"]["pixels"])
    assert inner["properties"]["class"] == "道路" and inner["properties"]["value"] == 2
    ring = np.array(inner["geometry"]["coordinates"][0])
    back = np.stack(rasterio.warp.transform("EPSG:4326", UTM, *ring.T), axis=1)
    want = [(500_000 + 10 * x, 5_000_000 - 10 * y) for x in (30, 50) for y in (20, 40)]
    for point in back:
        assert min(np.hypot(*(point - np.array(corner))) for corner in want) < 0.005  # metres
    assert shapely.LinearRing(ring).is_ccw  # as RFC 7946 says
    assert len(outer["geometry"]["coordinates"]) == 2  # with a hole
    assert [file.name for file in tmp_path.iterdir()] == ["out.geojson"]


def test_what_crosses_the_180th_meridian_is_cut_there(tmp_path):
    across = Affine(10, 0, 833_900, 0, -10, 15_000)
    write_polygons(tmp_path / "out.geojson", np.zeros((50, 100), int), NAMES, across, "EPSG:32660")
    (one,) = features(tmp_path / "out.geojson")
    assert one["geometry"]["type"] == "MultiPolygon"
    spans = [np.ptp(np.array(part[0])[:, 0]) for part in one["geometry"]["coordinates"]]
    assert max(spans) < 0.01 and one["properties"]["area_m2"] == pytest.approx(500_000, rel=0.005)


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [("EPSG:3857", Affine(20, 0, 0, 0, -20, 8_399_738), 10.0),  # Mercator at 60 degrees: twice too long
     ("EPSG:4326", Affine(0.001, 0, 12, 0, -0.001, 60), None)],
)  # fmt: skip
def test_area_is_that_on_the_ground(tmp_path, crs, transform, metres):
    write_polygons(tmp_path / "out.geojson", np.zeros((10, 10), int), ["all"], transform, crs)
    (one,) = features(tmp_path / "out.geojson")
    side = (metres, metres) if metres else (55.80, 111.41)  # of a thousandth of a degree at 60 degrees north
    assert one["properties"]["area_m2"] == pytest.approx(100 * side[0] * side[1], rel=0.01)


def test_a_band_of_a_file_gives_what_its_array_gives(tmp_path):
    labels = drawn()
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=31, height=23, count=1, dtype="uint8",
                       nodata=255, crs=UTM, transform=PLACE) as file:  # fmt: skip
        file.write(labels.astype(np.uint8), 1)
    with rasterio.open(tmp_path / "a.tif") as file:
        write_polygons(tmp_path / "band.geojson", rasterio.band(file, 1), NAMES, file.transform, file.crs)
    write_polygons(tmp_path / "array.geojson", labels, NAMES, PLACE, UTM)
    assert features(tmp_path / "band.geojson") == features(tmp_path / "array.geojson")


def test_batches_lose_nothing(tmp_path, monkeypatch):
    write_polygons(tmp_path / "one.geojson", drawn(), NAMES, PLACE, UTM)
    monkeypatch.setattr("fgaseg.inference.polygons._VERTICES", 50)
    write_polygons(tmp_path / "many.geojson", drawn(), NAMES, PLACE, UTM)
    assert features(tmp_path / "many.geojson") == features(tmp_path / "one.geojson")


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".GPKG"])
@pytest.mark.parametrize("labels", [np.full((4, 4), 65535), np.full((1, 1), -1)])
def test_void_alone_is_a_file_without_polygons(tmp_path, suffix, labels):
    path = tmp_path / f"out{suffix}"
    assert write_polygons(path, labels, NAMES, PLACE, UTM) == 0
    assert pyogrio.read_info(path)["features"] == 0
    assert pyogrio.read_info(path)["driver"] == ("GeoJSON" if suffix == ".geojson" else "GPKG")


def test_more_classes_than_eight_bits_hold(tmp_path):
    labels = np.array([[69_999, 300], [255, 70_000]])
    write_polygons(tmp_path / "out.geojson", labels, [f"class {i}" for i in range(70_000)], PLACE, UTM)
    found = {one["properties"]["class"] for one in features(tmp_path / "out.geojson")}
    assert found == {"class 69999", "class 300", "class 255"}


@pytest.mark.parametrize(
    ("name", "crs", "error", "words"),
    [("out.shp", UTM, UsageError, r"written as \.geojson or \.gpkg"),
     ("out.geojson", None, DataError, "no coordinate reference system"),
     ("out.gpkg", None, DataError, "no coordinate reference system"),
     ("out.geojson", 'LOCAL_CS["hall",UNIT["metre",1]]', DataError, r"no way to it from .*write a \.gpkg")],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(tmp_path, name, crs, error, words):
    with pytest.raises(error, match=words) as raised:
        write_polygons(tmp_path / name, drawn(), NAMES, PLACE, crs)
    assert "\n" not in str(raised.value) and list(tmp_path.iterdir()) == []


def test_a_local_system_is_written_without_an_area(tmp_path):
    write_polygons(tmp_path / "out.gpkg", drawn(), NAMES, PLACE, 'LOCAL_CS["hall",UNIT["metre",1]]')
    *_, (_, _, pixels, areas) = pyogrio.raw.read(tmp_path / "out.gpkg")
    assert (pixels > 0).all() and np.isnan(areas).all()


def test_an_interrupted_file_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "out.gpkg").write_bytes(b"old")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fgaseg.inference.polygons._append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_polygons(tmp_path / "out.gpkg", drawn(), NAMES, PLACE, UTM)
    assert [file.name for file in tmp_path.iterdir()] == ["out.gpkg"]
    assert (tmp_path / "out.gpkg").read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_full_disk_is_an_os_error_in_one_line(tmp_path, monkeypatch, suffix):
    def full(*_, **__):
        raise pyogrio.errors.FeatureError("database or disk is full")

    monkeypatch.setattr("pyogrio.raw.write", full)
    with pytest.raises(OSError, match=r"out\..*: could not be written \(database or disk is full\)") as raised:
        write_polygons(tmp_path / f"out{suffix}", drawn(), NAMES, PLACE, UTM)
    assert "\n" not in str(raised.value) and list(tmp_path.iterdir()) == []


def test_a_file_without_its_end_is_never_there(tmp_path, monkeypatch):
    def cut(stream, path, *words, write=pyogrio.write_arrow, **options):
        write(stream, path, *words, **options)
        path.write_bytes(path.read_bytes()[:-10])

    monkeypatch.setattr("pyogrio.write_arrow", cut)
    with pytest.raises(OSError, match="its end is missing"):
        write_polygons(tmp_path / "out.geojson", drawn(), NAMES, PLACE, UTM)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["pyogrio", "shapely", "rasterio"])
def test_missing_packages_are_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs {package}: pip install 'fgaseg\[geo\]'"):
        write_polygons(tmp_path / "out.gpkg", drawn(), NAMES, PLACE, UTM)
