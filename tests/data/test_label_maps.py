"""Label maps: every format that tools write gives the same names, presets are as published, mistakes are named."""

import json

import numpy as np
import pytest

from fgaseg.data.benchmark_sets import BENCHMARK_SETS
from fgaseg.data.label_formats import UNPAINTED, colour
from fgaseg.data.label_maps import LabelMap, preset_names
from fgaseg.errors import DataError

VALUES = {7: "road", 11: "traffic light", 26: "car"}
COLOURS = {colour(128, 64, 128): "road", colour(250, 170, 30): "traffic light", colour(0, 0, 142): "car"}

OF_VALUES = {
    "yaml": "7: road\n11: traffic light  # hangs\n26: car\n",
    "names first.yaml": "road: 7\ntraffic light: 11\ncar: 26\n",
    "names.yaml": "path: ../data\nnc: 3\nnames:\n  7: road\n  11: traffic light\n  26: car\n",
    "records.yaml": "- {name: road, id: 7}\n- {name: traffic light, id: 11}\n- {name: car, id: 26}\n",
    "id2label.json": json.dumps({"7": "road", "11": "traffic light", "26": "car"}),
    "config.json": json.dumps({"id2label": {"7": "road", "11": "traffic light", "26": "car"}, "num_labels": 3}),
    "label2id.json": json.dumps({"road": 7, "traffic light": 11, "car": 26}),
    "categories.json": json.dumps({"categories": [{"id": key, "name": name} for key, name in VALUES.items()]}),
    "colon.txt": "# comment\n7: road\n\n11:traffic light\n26 : car\n",
    "space.txt": "7 road\n11 traffic light\n26\tcar\n",
    "comma.txt": "7,road\n11,traffic light\n26, car\n",
    "equals.txt": "7=road\n11 = traffic light\n26=car\n",
    "after.txt": "road 7\ntraffic light 11\ncar: 26\n",
    "header.csv": "id,name\n7,road\n11,traffic light\n26,car\n",
    "more.csv": "name;supercategory;id\nroad;flat;7\ntraffic light;object;11\ncar;vehicle;26\n",
    "_classes.csv": "Pixel Value, Class\n7, road\n11, traffic light\n26, car\n",
    "objectInfo.txt": "Idx\tRatio\tName\n7\t0.1\troad\n11\t0.2\ttraffic light\n26\t0.3\tcar\n",
    "tab.txt": "value\tlabel\n7\troad\n11\ttraffic light\n26\tcar\n",
}
OF_COLOURS = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,64,128::\ntraffic light:250,170,30:lamp,pole:\n"
                    "car:0,0,142::\n",
    "label_colors.txt": "128 64 128\troad\n250 170 30\ttraffic light\n0 0 142\t\tcar\n",
    "name first.txt": "road 128 64 128\ntraffic light 250 170 30\ncar 0 0 142\n",
    "brackets.txt": "(128, 64, 128): road\n[250 170 30] traffic light\ncar = (0, 0, 142)\n",
    "hex.txt": "#804080 road\n#faaa1e traffic light\n#00008E car\n",
    "class_dict.csv": "name,r,g,b\nroad,128,64,128\ntraffic light,250,170,30\ncar,0,0,142\n",
    "words.csv": "class,red,green,blue\nroad,128,64,128\ntraffic light,250,170,30\ncar,0,0,142\n",
    "color.csv": 'color,label\n#804080,road\n#faaa1e,traffic light\n"0,0,142",car\n',
    "names.yaml": "road: [128, 64, 128]\ntraffic light: '250,170,30'\ncar: '#00008e'\n",
    "colours.yaml": '"128,64,128": road\n(250, 170, 30): traffic light\n"#00008e": car\n',
    "rgba.json": json.dumps({"road": [128, 64, 128, 255], "traffic light": [250, 170, 30, 0], "car": [0, 0, 142]}),
    "supervisely.json": json.dumps({"classes": [{"title": "road", "shape": "bitmap", "color": "#804080"},
                                                {"title": "traffic light", "color": "#FAAA1E"},
                                                {"title": "car", "color": "#00008E"}]}),
    "mapillary.json": json.dumps({"labels": [{"name": "flat--road", "color": [128, 64, 128], "readable": "road"},
                                             {"color": [250, 170, 30], "readable": "traffic light"},
                                             {"color": [0, 0, 142], "readable": "car"}]}),
}  # fmt: skip


def write(folder, name, text):
    file = folder / (name if "." in name else f"map.{name}")
    file.write_text(text)
    return file


@pytest.mark.parametrize("name", OF_VALUES)
def test_values(tmp_path, name):
    found = LabelMap.read(write(tmp_path, name, OF_VALUES[name]))
    assert found.names == VALUES and found.class_names() == ["road", "traffic light", "car"] and found.has_values


@pytest.mark.parametrize("name", OF_COLOURS)
def test_colours(tmp_path, name):
    found = LabelMap.read(str(write(tmp_path, name, OF_COLOURS[name])))
    assert found.names == COLOURS and found.has_colours and not found.has_values


def test_mappings_of_the_configuration():
    assert LabelMap.read({"7": "road", "11": "traffic light", "26": "car"}).names == VALUES
    found = LabelMap.read({"0": None, "255": "crack", "unpainted": "wall", "others": None})
    assert found.names == {0: None, 255: "crack", UNPAINTED: "wall"} and found.others == (None,)
    several = LabelMap.read({"car": [[0, 0, 142], [0, 0, 70]], "person": "255,0,0", "ground": "unpainted"})
    assert several.names == {colour(0, 0, 142): "car", colour(0, 0, 70): "car", colour(255, 0, 0): "person",
                             UNPAINTED: "ground"}  # fmt: skip
    both = LabelMap.read({"road": {"id": 7, "color": [128, 64, 128]}, "car": {"id": 26, "color": "#00008e"}})
    assert both.names == {7: "road", colour(128, 64, 128): "road", 26: "car", colour(0, 0, 142): "car"}
    assert LabelMap.read({"7": 0, "8": 1, "0": 255}).names == {7: 0, 8: 1, 0: 255}  # ids to train ids


def test_void_names_are_no_classes():
    found = LabelMap.read({"0": "void", "1": "Unlabeled", "2": "sky", "3": None, "4": "ignore", "5": "sky"})
    assert found.class_names() == ["sky"]


def test_presets_are_what_the_sets_publish():
    assert {"cityscapes", "camvid", "pascal-voc", "coco-stuff", "loveda", *BENCHMARK_SETS} <= set(preset_names())
    for name in preset_names():
        found = LabelMap.read(name)
        assert len(found.class_names()) >= 6 and found.origin == f"the preset {name}"
    city = LabelMap.read("cityscapes").names
    assert [city[value] for value in (7, 8, 11, 33)] == ["road", "sidewalk", "building", "bicycle"]
    assert city[0] is city[9] is city[30] is None and city[colour(220, 20, 60)] == "person"
    trained = LabelMap.read("cityscapes-train-ids")
    assert trained.class_names() == LabelMap.read("cityscapes").class_names() and len(trained.class_names()) == 19
    assert [trained.names[value] for value in (0, 10, 18, 255)] == ["road", "sky", "bicycle", None]
    camvid = LabelMap.read("camvid")
    assert len(camvid.names) == 32 and len(camvid.class_names()) == 31
    assert camvid.names[colour(128, 64, 128)] == "road" and camvid.names[colour(0, 0, 0)] is None
    love = LabelMap.read("loveda").names
    assert love[0] is None and [love[value] for value in (1, 4, 7)] == ["background", "water", "agriculture"]


def test_the_voc_palette_is_the_published_algorithm():
    names = LabelMap.read("pascal-voc").names
    for index in [*range(21), 255]:
        parts = [sum((index >> (3 * bit + band) & 1) << (7 - bit) for bit in range(8)) for band in range(3)]
        assert names[colour(*parts)] == names[index]


@pytest.mark.parametrize("name", BENCHMARK_SETS)
def test_presets_of_benchmark_sets_convert_as_the_preparation_does(name):
    benchmark = BENCHMARK_SETS[name]
    if benchmark.scored is not None:  # several prompts are one class there
        return
    found = LabelMap.read(name)
    # A-847 has names twice: their labels differ, their names do not
    assert list(dict.fromkeys(benchmark.classes)) == found.class_names()
    for value in np.flatnonzero(benchmark.table >= 0).tolist():
        label = int(benchmark.table[value])
        assert found.names[value] == (None if label == benchmark.ignore else benchmark.classes[label])


MISTAKES = {
    "missing.txt": (None, r"missing\.txt: cannot be read as a label map \(No such file.*cityscapes"),
    "plain.txt": ("road\ncar\n", r"line 1 is 'road': a label map has a value or a colour.*data\.names"),
    "half.txt": ("7: road\ncar\n", r"half\.txt: line 2 is 'car'"),
    "twice.txt": ("7: road\n7: car\n", r"line 2: 7 is 'road' and 'car': give it one name"),
    "colour twice.txt": ("road:1,2,3::\ncar:1,2,3::\n", r"1,2,3 is 'road' and 'car'"),
    "big.txt": ("road:1,2,300::\n", r"line 1: '1,2,300' is no value, and no colour"),
    "empty.yaml": ("", r"holds NoneType: give a mapping"),
    "nothing.txt": ("# comment\n", r"names no value and no colour"),
    "twice.yaml": ("7: road\n7: car\n", r"not valid YAML \(line 2, column 1: key '7' stands twice"),
    "twice.json": ('{"7": "road", "7": "car"}', r"'7' stands twice"),
    "broken.json": ('{"7": "road"', r"not valid JSON \(line 1"),
    "names.yaml": ("road: car\n", r"neither 'road' nor 'car' is a value or a colour"),
    "no.yaml": ("7: no\n", r"entry 7: False is no name: give text, or null"),
    "empty name.yaml": ("7: ''\n", r"'' is no name"),
    "header.csv": ("road,flat\n", r"line 1 is 'road,flat': a label map has a value or a colour"),
    "short.csv": ("name,r,g,b\nroad,1,2\n", r"line 2: 'road,1,2': has 3 cells, the header 4"),
    "none.csv": ("name,id\nroad,\n", r"'road' has neither a value nor a colour"),
    "records.json": ('[{"id": 3}]', r"entry 1: has no name among id"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(tmp_path, name):
    text, words = MISTAKES[name]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        LabelMap.read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_is_not_utf8(tmp_path):
    (tmp_path / "map.txt").write_bytes("7: Straße".encode("latin-1"))
    with pytest.raises(DataError, match=r"map\.txt: is not UTF-8 text"):
        LabelMap.read(tmp_path / "map.txt")
