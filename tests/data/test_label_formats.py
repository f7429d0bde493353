"""Every format of labels: values against computations of another kind, and damaged files that are named."""

import json

import numpy as np
import pytest
from PIL import Image
from sample_data import CONTEXT, FULL

from fgaseg.data.label_formats import decode_counts, read_ade_segments, read_label_map, read_labels
from fgaseg.data.preparation import prepare
from fgaseg.errors import DataError


def test_palette_and_sixteen_bit_labels(tmp_path):
    values = np.array([[0, 1, 255], [2, 20, 7]], np.uint8)
    coloured = Image.fromarray(values).convert("P")
    coloured.putdata(values.ravel().tolist())
    coloured.putpalette(list(range(256)) * 3)
    coloured.save(tmp_path / "voc.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "voc.png"), values)
    deep = np.array([[0, 846, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        np.testing.assert_array_equal(read_labels(tmp_path / name), deep)


def test_a847_ids_are_those_of_the_json_beside_the_labels(tree):
    for file in (tree / FULL).rglob("*_seg.png"):
        objects = json.loads(file.with_name(file.name.replace("_seg.png", ".json")).read_text("latin-1"))
        known = {one["name_ndx"] for one in objects["annotation"]["object"]}
        assert set(np.unique(read_ade_segments(file)).tolist()) <= known | {0}


VECTORS = {
    "01": [0, 1],
    "031O000O0": [0, 3, 1, 2, 1, 2, 1, 1, 1],
    "WRW1o;a000000iej4": [40007, 383, 17, 383, 17, 383, 17, 383, 158410],
}


def test_run_lengths_as_pycocotools_writes_them():
    for text, counts in VECTORS.items():
        assert decode_counts(text).tolist() == counts


def test_label_map_of_other_kinds(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(tmp_path / "a.mat", {"Other": np.ones((2, 2))})
    with pytest.raises(DataError, match=r"a\.mat: holds no LabelMap"):
        read_label_map(tmp_path / "a.mat")
    savemat(tmp_path / "b.mat", {"LabelMap": np.array([["x"]], object)})
    with pytest.raises(DataError, match=r"b\.mat: LabelMap is object"):
        read_label_map(tmp_path / "b.mat")


@pytest.mark.parametrize("segmentation", [
    {"counts": "0204"}, {"counts": "o" * 30 + "0"}, {"counts": [2**62] * 4 + [60 * 80]}, {"size": [1, 1]},
    {"size": None}, [[1, 2, 3, 4]],
])  # fmt: skip
def test_damaged_run_lengths_name_the_photo(tree, segmentation):
    file = tree / CONTEXT / "trainval_merged.json"
    data = json.loads(file.read_text())
    first = data["annos_segmentation"][0]
    first["segmentation"] = first["segmentation"] | segmentation if isinstance(segmentation, dict) else segmentation
    file.write_text(json.dumps(data))
    [row] = prepare(["pc59"], tree)
    assert "trainval_merged.json, 2008_000002: a mask of category" in row.failed["2008_000002"] and row.converted == 2


def test_a_photo_of_impossible_size_is_not_painted(tree):
    file = tree / CONTEXT / "trainval_merged.json"
    data = json.loads(file.read_text())
    data["images"][0] |= {"height": 10**6, "width": 10**6}
    file.write_text(json.dumps(data))
    [row] = prepare(["pc59"], tree)
    assert "1000000 high" in row.failed["2008_000002"] and row.converted == 2
