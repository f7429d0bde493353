"""Every format of labels: values against computations of another kind, and damaged files that are named."""

import json

import numpy as np
import pytest
from PIL import Image
from sample_data import CONTEXT, FULL, compressed

from fgaseg.data.label_formats import (
    UNPAINTED,
    RunLengths,
    colour,
    decode_counts,
    decode_mask,
    describe,
    read_ade_segments,
    read_label_map,
    read_labels,
    read_palette,
    read_run_lengths,
    read_stored,
)
from fgaseg.data.preparation import prepare
from fgaseg.errors import DataError, ImageError


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


def test_stored_values_are_written_as_people_write_them():
    written = {0: "0", 65535: "65535", colour(0, 0, 0): "0,0,0", colour(1, 2, 3): "1,2,3",
               colour(255, 254, 253): "255,254,253", UNPAINTED: "unpainted"}  # fmt: skip
    assert {one: describe(one) for one in written} == written
    assert 65535 < colour(0, 0, 0) and colour(255, 255, 255) < UNPAINTED < 2**62


RED, DARK, GREY, BLACK = colour(255, 0, 0), colour(0, 0, 9), colour(7, 7, 7), colour(0, 0, 0)


def picture(mode, *pixels):
    """A row of pixels."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def with_palette(*indices, transparency=None):
    image = picture("P", *indices)
    image.putpalette([255, 0, 0, 0, 0, 9, 7, 7, 7])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def as_stored(image, folder, named=(), suffix="png"):
    image.save(folder / f"a.{suffix}")
    return read_stored(folder / f"a.{suffix}", named).tolist()[0]


STORED = {  # image, stored values that have a name, what is read
    "grey": (picture("L", 0, 7, 255), [], [0, 7, 255]),
    "grey, values and colours named": (picture("L", 0, 7), [5, RED], [0, 7]),
    "grey, colours alone named": (picture("L", 0, 7), [RED, UNPAINTED], [BLACK, GREY]),
    "grey, what is unpainted named": (picture("L", 0, 7), [UNPAINTED], [0, 7]),
    "one bit": (picture("1", 0, 1), [], [0, 1]),
    "rgb grey": (picture("RGB", (0, 0, 0), (7, 7, 7)), [], [0, 7]),
    "rgb grey, values and colours named": (picture("RGB", (0, 0, 0), (7, 7, 7)), [0, 7, RED], [0, 7]),
    "rgb grey, all colours named": (picture("RGB", (0, 0, 0), (7, 7, 7)), [0, 7, BLACK, GREY], [BLACK, GREY]),
    "rgb grey, values named in part": (picture("RGB", (0, 0, 0), (7, 7, 7)), [0, RED], [BLACK, GREY]),
    "rgb, colours named": (picture("RGB", (255, 0, 0), (0, 0, 9)), [RED, DARK], [RED, DARK]),
    "rgb, values named too": (picture("RGB", (255, 0, 0), (7, 7, 7)), [0, 7, 255, RED], [RED, GREY]),
    "rgba": (picture("RGBA", (255, 0, 0, 1), (9, 8, 7, 0)), [RED], [RED, UNPAINTED]),
    "rgba grey": (picture("RGBA", (7, 7, 7, 255), (9, 8, 7, 0)), [], [7, UNPAINTED]),
    "grey and opacity": (picture("LA", (7, 255), (9, 0)), [], [7, UNPAINTED]),
    "palette": (with_palette(0, 2, 1), [], [0, 2, 1]),
    "palette, colours named": (with_palette(0, 2, 1), [RED, DARK, GREY], [RED, GREY, DARK]),
    "palette, values and colours named": (with_palette(0, 2, 1), [0, 1, 2, RED], [0, 2, 1]),
    "palette, all of both named": (with_palette(0, 1), [0, 1, RED, DARK], [RED, DARK]),
    "palette, none named fully": (with_palette(0, 1), [0, RED], [RED, DARK]),
    "palette, exactly these values": (with_palette(0, 1), [0, 1, BLACK], [0, 1]),
    "palette with a transparent index": (with_palette(0, 2, 1, transparency=1), [RED], [RED, GREY, UNPAINTED]),
    "palette with opacities": (
        with_palette(0, 2, 1, transparency=bytes([0, 255, 1])), [RED], [UNPAINTED, GREY, DARK]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_depends_on_the_image_and_on_what_has_a_name(tmp_path, name):
    image, named, expected = STORED[name]
    assert as_stored(image, tmp_path, named) == expected


def test_images_that_hold_no_labels_are_named(tmp_path):
    for name, (image, suffix, words) in {
        "fractions": (Image.fromarray(np.array([[1.0, 1.5]], np.float32)), "tif", "holds fractions"),
        "colours": (picture("RGB", (7, 7, 7), (7, 7, 8)), "png", "is a RGB image: .* data.label_map"),
        "two channels": (picture("RGB", (7, 8, 8)), "png", "is a RGB image"),
        "the first two": (picture("RGB", (7, 7, 8)), "png", "is a RGB image"),
        "ink": (picture("CMYK", (1, 2, 3, 4)), "tif", "is a CMYK image: a label image is grey, RGB or RGBA"),
        "gif": (with_palette(2, 1), "gif", "is a GIF in colours"),
    }.items():
        with pytest.raises(DataError, match=rf"a\.{suffix}: {words}"):
            as_stored(image, tmp_path, suffix=suffix)
            pytest.fail(name)
    whole = Image.fromarray(np.array([[1.0, 60000.0]], np.float32))
    assert as_stored(whole, tmp_path, suffix="tif") == [1, 60000]
    assert as_stored(picture("I", 0, 65535), tmp_path, suffix="tif") == [0, 65535]
    assert as_stored(picture("L", 3, 200), tmp_path, suffix="gif") == [3, 200]
    as_stored(picture("LA", (7, 255), (9, 0)), tmp_path)
    with pytest.raises(DataError, match=r"a\.png: is partly transparent: a label image has one value per pixel"):
        read_labels(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_cut_label_images_are_named(tmp_path, mode):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    for read in (read_stored, read_ade_segments) if mode == "RGB" else (read_stored,):
        with pytest.raises(ImageError, match=r"a\.png: is truncated or corrupt"):
            read(tmp_path / "a.png")


def test_the_palette_of_an_image(tmp_path):
    with_palette(0, 1).save(tmp_path / "a.png")
    palette = read_palette(tmp_path / "a.png")
    assert palette is not None and palette[:3].tolist() == [RED, DARK, GREY]
    picture("L", 0, 1).save(tmp_path / "b.png")
    assert read_palette(tmp_path / "b.png") is None


def test_segments_of_ade20k_are_red_tens_and_green(tmp_path):
    picture("RGB", (0, 0, 9), (19, 3, 0), (120, 84, 255), (255, 255, 1)).save(tmp_path / "a_seg.png")
    assert read_ade_segments(tmp_path / "a_seg.png").tolist() == [[0, 259, 3156, 6655]]
    picture("L", 0).save(tmp_path / "a_seg.png")
    with pytest.raises(DataError, match=r"a_seg\.png: is a L image: ADE20K's _seg.png is RGB"):
        read_ade_segments(tmp_path / "a_seg.png")


def test_label_maps_are_whole_numbers_in_two_dimensions(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    file = tmp_path / "a.mat"
    for values in (np.array([[1, 459]], np.uint16), np.array([[1.0, 2.0]])):
        savemat(file, {"LabelMap": values, "Other": np.ones((3, 3))})
        assert read_label_map(file).tolist() == values.tolist() and read_label_map(file).dtype == np.int64
    others = {r"float64\[1, 2\]": np.array([[1.0, 2.5]]), r"uint8\[1, 2, 2\]": np.ones((1, 2, 2), np.uint8),
              r"float64\[0, 2\]": np.ones((0, 2))}  # fmt: skip
    for words, values in others.items():
        savemat(file, {"LabelMap": values})
        with pytest.raises(DataError, match=rf"a\.mat: LabelMap is {words}, not whole numbers"):
            read_label_map(file)
    savemat(file, {"LabelMap": np.ones((4, 5))})
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "20")
    assert read_label_map(file).shape == (4, 5)
    monkeypatch.setenv("FGASEG_PIXEL_LIMIT", "19")
    with pytest.raises(DataError, match=r"a\.mat: LabelMap says 4x5, more than 19 pixels: refused"):
        read_label_map(file)


def test_masks_are_painted_in_their_order():
    first, second = np.array([[1, 1, 0], [0, 0, 0]]), np.array([[0, 1, 1], [0, 0, 0]])
    masks = [({"size": [2, 3], "counts": compressed(first)}, 5), ({"size": [2, 3], "counts": [2, 1, 1, 1, 1]}, 9)]
    assert RunLengths("a.json, x", 2, 3, masks).paint().tolist() == [[5, 9, 9], [0, 0, 0]]
    assert decode_mask(masks[1][0], 2, 3).tolist() == second.tolist()
    assert RunLengths("a.json, x", 1, 1, []).paint().tolist() == [[0]]
    for height, width in ((0, 5), (5, 0), (-1, 5), (10_001, 10_000)):
        with pytest.raises(DataError, match=f"^a.json, x: a photo cannot be {height} high and {width} wide"):
            RunLengths("a.json, x", height, width, []).paint()
    for mask, words in (({"size": [3, 2], "counts": [6]}, r"its size is \[3, 2\], the photo's \[2, 3\]"),
                        ({"size": [2, 3], "counts": [5.5]}, "no whole numbers of 64 bits")):  # fmt: skip
        with pytest.raises(DataError, match=rf"a.json, x: a mask of category 7 is damaged \(.*{words}\)"):
            RunLengths("a.json, x", 2, 3, [(mask, 7)]).paint()


def test_run_lengths_of_any_mask_and_of_long_numbers():
    rng = np.random.default_rng(0)
    for density in (0.01, 0.3, 0.99):
        mask = (rng.random((37, 300)) < density).astype(int)
        counts = decode_counts(compressed(mask))
        values = np.arange(len(counts)) % 2
        assert np.repeat(values, counts).reshape(300, 37).T.tolist() == mask.tolist()
    assert decode_counts("P" * 11 + "?").tolist() == [15 << 55]  # twelve groups of five bits
    with pytest.raises(ValueError, match="a number of its counts has more than 60 bits"):
        decode_counts("P" * 12 + "0")


def test_photos_of_the_validation_phase_are_read(tmp_path):
    file = tmp_path / "trainval_merged.json"
    images = [{"image_id": number, "file_name": f"{name}.jpg", "height": 2, "width": 3, "phase": phase}
              for number, name, phase in ((4, "a", "val"), (5, "b", "train"), (6, "c", "val"))]  # fmt: skip
    masks = [{"image_id": number, "category_id": number + 10, "segmentation": {}} for number in (4, 5, 4)]
    file.write_text(json.dumps({"images": images, "annos_segmentation": masks}))
    found = read_run_lengths(file)
    assert {stem: (one.height, one.width, one.masks) for stem, one in found.items()} == {
        "a": (2, 3, [({}, 14), ({}, 14)]), "c": (2, 3, [])
    }  # fmt: skip
    assert str(found["a"]) == "trainval_merged.json, a"
    file.write_text("{}")
    with pytest.raises(
        DataError, match=r"trainval_merged\.json: is not PASCAL in Detail's .*KeyError: 'images'\): fetch"
    ):
        read_run_lengths(file)
