"""Names files: every usual format gives the names that are meant, and what looks like syntax is no name."""

import json
import logging

import pytest

from fgaseg.data import read_classes, read_names
from fgaseg.data.label_formats import colour
from fgaseg.data.label_maps import LabelMap
from fgaseg.data.name_lines import is_numbered
from fgaseg.data.names_files import names_text, read_table
from fgaseg.errors import DataError
from fgaseg.vocabulary import ClassPrompts

NAMES = ["road", "traffic light", "sofa, couch"]
QUOTED = ["'road'", '"traffic light"', '"sofa, couch"']
COLOURS = {colour(128, 64, 128): "road", colour(250, 170, 30): "traffic light", colour(0, 0, 142): "car"}

PLAIN = {
    "lines.txt": "road\ntraffic light\nsofa, couch\n",
    "crlf.txt": "\ufeffroad\r\ntraffic light \r\nsofa, couch\r\n\r\n",
    "comments.txt": "# my classes\nroad\ntraffic light  # hangs\n// furniture\nsofa, couch\n",
    "bullets.md": "- road\n- traffic light\n- sofa, couch\n",
    "quoted.txt": "\n".join(QUOTED),
    "quoted and commas.txt": '"road",\n"traffic light",\n"sofa, couch"\n',
    "full stops.txt": "road.\ntraffic light.\nsofa, couch.\n",
    "heading.csv": 'name\nroad\ntraffic light\n"sofa, couch"\n',
    "heading.txt": "Class Name\nroad\ntraffic light\nsofa, couch\n",
    "list.json": json.dumps(NAMES),
    "list.txt": json.dumps(NAMES, indent=1),
    "python.txt": str(NAMES),
    "assigned.py": f"CLASSES = {tuple(NAMES)}\n",
    "list.yaml": "- road\n- traffic light\n- sofa, couch\n",
    "yolo.yaml": "path: ../data\ntrain: [a, b]\nnc: 3\nnames: [road, traffic light, 'sofa, couch']\n",
    "yolo.txt": "train: a\nnc: 3\nnames: ['road', 'traffic light', 'sofa, couch']\n",
    "classes.json": json.dumps({"classes": NAMES, "version": 1}),
    "table.csv": 'name,supercategory\nroad,flat\ntraffic light,object\n"sofa, couch",furniture\n',
    "synsets.txt": "n04096066 road\nn06874185 traffic light\nn04256520 sofa, couch\n",
    "labelme.txt": "__ignore__\n_road_\ntraffic  light\nsofa, couch\n",
    "trailing comma.json": '["road", "traffic light", "sofa, couch",]',
    "one line.txt": '"road"; traffic light; "sofa, couch"\n',
}


@pytest.mark.parametrize("file", PLAIN)
def test_names_alone(tmp_path, file):
    (tmp_path / file).write_bytes(PLAIN[file].encode())
    assert read_names(tmp_path / file) == NAMES
    assert read_table(tmp_path / file).names == {}  # the n-th name is that of value n - 1


def test_utf16(tmp_path):
    (tmp_path / "names.txt").write_bytes("road\r\nsofa, couch\r\n猫".encode("utf-16"))
    assert read_names(tmp_path / "names.txt") == ["road", "sofa, couch", "猫"]


def test_composed_characters(tmp_path):
    (tmp_path / "names.txt").write_text("cafe\u0301\nStraße\n")
    assert read_names(tmp_path / "names.txt") == ["café", "Straße"]


GAPS = {7: "road", 11: "traffic light", 26: "sofa, couch"}
NUMBERED = {
    "colon.txt": "7: road\n11: traffic light\n\n26: sofa, couch\n",
    "any order.txt": "26: sofa, couch\n7:road\n11 :traffic light\n",
    "space.txt": "# id name\n7 road\n11 traffic light\n26 sofa, couch\n",
    "tab.txt": "7\troad\n11\ttraffic light\n26\tsofa, couch\n",
    "dot.txt": "7. road\n11. traffic light\n26. sofa, couch\n",
    "bracket.txt": "7) road\n11) traffic light\n26) sofa, couch\n",
    "dash.txt": "7 - road\n11 - traffic light\n26 - sofa, couch\n",
    "equals.txt": "7 = road\n11 = 'traffic light'\n26 = \"sofa, couch\"\n",
    "comma.csv": "7,road\n11,traffic light\n26,\"sofa, couch\"\n",
    "after.txt": "road: 7\ntraffic light: 11\nsofa, couch: 26\n",
    "equals after.txt": "road=7\ntraffic light=11\nsofa, couch=26\n",
    "id to name.json": json.dumps({"26": "sofa, couch", "7": "road", "11": "traffic light"}),
    "name to id.json": json.dumps({"road": 7, "traffic light": 11, "sofa, couch": 26}),
    "python.txt": str(GAPS),
    "config.json": json.dumps({"id2label": GAPS, "label2id": {v: k for k, v in GAPS.items()}, "num_labels": 3}),
    "yolo.yaml": "nc: 3\nnames:\n  7: road\n  11: traffic light\n  26: sofa, couch\n",
    "items.yaml": "names:\n- 7: road\n- 11: traffic light\n- 26: sofa, couch\n",
    "instances.json": json.dumps({"images": [], "annotations": [],
                                  "categories": [{"id": key, "name": name, "supercategory": "thing"}
                                                 for key, name in reversed(GAPS.items())]}),
    "lines.json": "".join(json.dumps({"id": key, "name": name}) + "\n" for key, name in GAPS.items()),
    "brackets.txt": "[7] road\n[11] traffic light\n[26] sofa, couch\n",
    "brackets after.txt": "road (7)\ntraffic light (11)\nsofa, couch (26)\n",
    "_classes.csv": 'Pixel Value, Class\n7, road\n11, traffic light\n26, "sofa, couch"\n',
    "capitals.csv": 'Class ID,Class Name\n7,road\n11,traffic light\n26,"sofa, couch"\n',
    "class_index.json": json.dumps({"7": ["n04096066", "road"], "11": ["n06874185", "traffic light"],
                                    "26": ["n04256520", "sofa, couch"]}),
    "header.csv": 'id,name\n7,road\n11,traffic light\n26,"sofa, couch"\n',
    "semicolons.csv": "Class;Id\nroad;7\ntraffic light;11\nsofa, couch;26\n",
    "label and name.csv": 'label,name\n7,road\n11,traffic light\n26,"sofa, couch"\n',
    "object_info.txt": "Idx\tRatio\tName\n7\t0.15\troad\n11\t0.1\ttraffic light\n26\t0.0\tsofa, couch\n",
    "label_map.pbtxt": "".join(f'item {{\n  id: {key}\n  name: "/m/{key}"\n  display_name: "{name}"\n}}\n'
                               for key, name in GAPS.items()),
}  # fmt: skip


@pytest.mark.parametrize("file", NUMBERED)
def test_names_with_their_values(tmp_path, file):
    (tmp_path / file).write_text(NUMBERED[file])
    assert read_table(tmp_path / file).names == GAPS
    assert read_names(tmp_path / file) == list(GAPS.values())


COLOURED = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,64,128::\ntraffic light:250,170,30:lamp,pole:\n"
                    "car:0,0,142::\n",
    "class_dict.csv": "name,r,g,b\nroad,128,64,128\ntraffic light,250,170,30\ncar,0,0,142\n",
    "no header.csv": "road,128,64,128\ntraffic light,250,170,30\ncar,0,0,142\n",
    "label_colors.txt": "128 64 128\troad\n250 170 30\ttraffic light\n0 0 142\t\tcar\n",
    "brackets.txt": "(128, 64, 128): road\n[250 170 30] traffic light\n(0,0,142)=car\n",
    "tags.json": json.dumps({"tags": [{"name": "road", "color": "#804080"},
                                      {"name": "traffic light", "color": "#faaa1e"},
                                      {"name": "car", "color": "#00008e"}]}),
    "hex.txt": "road #804080\ntraffic light #faaa1e\ncar #00008e\n",
    "supervisely.json": json.dumps({"classes": [{"title": "road", "color": "#804080"},
                                                {"title": "traffic light", "color": "#FAAA1E"},
                                                {"title": "car", "color": "#00008E"}], "tags": []}),
}  # fmt: skip
BOTH = {
    "slicer.ctbl": "# Color table\n7 road 128 64 128 255\n11 traffic light 250 170 30 255\n26 car 0 0 142 255\n",
    "itk_snap.txt": '7 128 64 128 1 1 1 "road"\n11 250 170 30 1 1 1 "traffic light"\n26 0 0 142 1 1 1 "car"\n',
    "id rgb.txt": "7 128 64 128 road\n11 250 170 30 traffic light\n26 0 0 142 car\n",
    "qgis.txt": "7,128,64,128,255,road\n11,250,170,30,255,traffic light\n26,0,0,142,255,car\n",
    "both.csv": "id,name,r,g,b\n7,road,128,64,128\n11,traffic light,250,170,30\n26,car,0,0,142\n",
    "both.yaml": "road: {id: 7, color: [128, 64, 128]}\ntraffic light: {id: 11, color: '#faaa1e'}\n"
                 "car: {id: 26, color: [0, 0, 142]}\n",
    "panoptic.json": json.dumps([{"id": 7, "name": "road", "color": [128, 64, 128], "isthing": 0},
                                 {"id": 11, "name": "traffic light", "color": [250, 170, 30], "isthing": 1},
                                 {"id": 26, "name": "car", "color": [0, 0, 142], "isthing": 1}]),
}  # fmt: skip


@pytest.mark.parametrize("file", [*COLOURED, *BOTH])
def test_names_with_their_colours(tmp_path, file):
    text = COLOURED.get(file) or BOTH[file]
    (tmp_path / file).write_text(text)
    values = {7: "road", 11: "traffic light", 26: "car"} if file in BOTH else {}
    assert read_table(tmp_path / file).names == COLOURS | values
    assert read_names(tmp_path / file) == ["road", "traffic light", "car"]
    assert LabelMap.read(tmp_path / file).names == COLOURS | values  # one reader for both


def test_red_green_blue_and_alpha_are_no_value(tmp_path):
    (tmp_path / "a.txt").write_text("128 64 128 255 road\n0 0 142 255 car\n")
    assert read_table(tmp_path / "a.txt").names == {colour(128, 64, 128): "road", colour(0, 0, 142): "car"}


NUMBERS_IN_NAMES = {
    "2 wheeler\ncar\n4x4\n": ["2 wheeler", "car", "4x4"],
    "boeing 737\nairbus 320\n": ["boeing 737", "airbus 320"],
    "class 0\nclass 1\nclass 2\n": ["class 0", "class 1", "class 2"],
    "0: 2 wheeler\n1: boeing 737\n2: car\n": ["2 wheeler", "boeing 737", "car"],
    "'2 wheeler'\n'4 wheeler'\n": ["2 wheeler", "4 wheeler"],
    "road 0\ncar 1\n": ["road", "car"],  # they count
    "3.5 ton truck\ncar\n": ["3.5 ton truck", "car"],
    "C#\nC++\n!?\n": ["C#", "C++", "!?"],
    "'7: is lucky'\ncar\n": ["7: is lucky", "car"],
}


@pytest.mark.parametrize("text", NUMBERS_IN_NAMES)
def test_numbers_and_signs_that_are_a_part_of_a_name(tmp_path, text):
    (tmp_path / "names.txt").write_text(text)
    assert read_names(tmp_path / "names.txt") == NUMBERS_IN_NAMES[text]


SYNONYMS = {
    "lines.txt": "car | automobile | van\nsky\n",
    "numbered.txt": "0: car | automobile | van\n1: sky\n",
    "list.json": json.dumps([["car", "automobile", "van"], "sky"]),
    "mapping.json": json.dumps({"car": ["car", "automobile", "van"], "sky": ["sky"]}),
    "mapping.yaml": "car: [car, automobile, van]\nsky:\n",
    "text.yaml": "car: car | automobile | van\nsky: sky\n",
    "commas.yaml": "car: car, automobile, van\nsky: sky\n",
    "records.yaml": "car: {prompts: [car, automobile, van], color: [0, 0, 142]}\nsky: {color: '#4682b4'}\n",
    "values.json": json.dumps({"0": ["car", "automobile", "van"], "1": ["sky"]}),
    "semicolons.csv": "id,name\n0,car;automobile;van\n1,sky\n",
    "synonyms.csv": "id,name,synonyms\n0,car,automobile|van\n1,sky,\n",
}


@pytest.mark.parametrize("file", SYNONYMS)
def test_synonyms(tmp_path, file):
    (tmp_path / file).write_text(SYNONYMS[file])
    assert read_classes(tmp_path / file) == [ClassPrompts("car", ("car", "automobile", "van")), "sky"]
    assert read_names(tmp_path / file) == ["car", "sky"]


def test_a_class_may_be_called_otherwise_than_its_prompts(tmp_path):
    (tmp_path / "a.yaml").write_text("vehicle: [car, van]\nrest: [sky]\n")
    assert read_classes(tmp_path / "a.yaml") == [
        ClassPrompts("vehicle", ("car", "van")),
        ClassPrompts("rest", ("sky",)),
    ]


def test_void_names_of_a_numbered_file_are_no_classes(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("0: unlabeled\n1: person\n2: car\n")
    with caplog.at_level(logging.INFO, "fgaseg"):
        assert read_classes(tmp_path / "a.txt") == ["person", "car"]
    assert "'unlabeled' names no class and is left out" in caplog.text


REFUSED = {
    "mixed.txt": ("0: road\ncar\n", r"line 2 is 'car', but others are like '0: road'"),
    "mixed after.txt": ("road\nsky\ncar: 3\n", r"line 3 is 'car: 3', but others are like 'road'"),
    "brace.txt": ("road\n}\n", r"line 2 is '\}', which looks like more than a name"),
    "tab.txt": ("road\tflat\ncar\tvehicle\n", r"line 1 is 'road\\tflat', which looks like more"),
    "colon.txt": ("sky\nvehicle: car\n", r"line 2 is 'vehicle: car', which looks like more"),
    "markdown.md": ("| id | name |\n|---|---|\n| 0 | road |\n", r"line 1 is '\| id \| name \|'"),
    "tuples.txt": ("(0, 'road'),\n(1, 'car'),\n", r"line 1 is \"\(0, 'road'\)\", which looks like more"),
    "binary.txt": ("road\x00\x01\ncar\n", r"line 1 is 'road\\x00\\x01', which looks like more"),
    "numbers.txt": ("0\n1\n", r"line 1 is '0': it holds no name"),
    "xml.xml": ("<a>\n<name>cat</name>\n</a>", r"its first line is '<a>': XML is not read"),
    "ini.txt": ("[classes]\nroad=0\n", r"not valid JSON \(line 1, '\[classes\]'"),
    "wheels.txt": ("2 wheeler\n4 wheeler\n", r"lines 1 and 2, '2 wheeler' and '4 wheeler', .* in quotes"),
    "comma.csv": ("id,name\n0,sofa, couch\n", r"line 2: '0,sofa, couch': has 3 cells, .*quotes"),
    "empty.csv": ("id,name\n0,\n", r"line 2: '0,': holds no name"),
    "palette.gpl": ("GIMP Palette\nColumns 2\n0 0 0 road\n", r"line \d is .*, but others are like"),
    "some.json": ('[{"id": 0, "name": "a"}, {"name": "b"}]', r"name 2: 'b' has neither a value nor a colour"),
    "no names.yaml": ("path: x\nnc: 3\n", r"'path' has neither a value nor a colour"),
    "no.yaml": ("names: [yes, car]\n", r"name 1: True is no name"),
    "tree.json": ('{"vehicle": {"car": 0, "bus": 1}}', r"entry 'vehicle'"),
    "nothing.json": ('{"images": [], "annotations": [{"id": 3}]}', r"entry 'images'"),
    "big.json": ('{"70000": "road"}', r"values up to 65535, not 70000"),
    "twice.txt": ("0: road\n0: car\n", r"line 2: 0 is 'road' and 'car'"),
    "three columns.csv": ("0,road,7\n1,car,8\n", r"line 1 is '0,road,7': its numbers are neither"),
}


@pytest.mark.parametrize("file", REFUSED)
def test_what_is_no_name_is_quoted(tmp_path, file):
    text, words = REFUSED[file]
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_names(tmp_path / file)
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_comments_between_names_are_told(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("road\n# sidewalk\ncar\n")
    with caplog.at_level(logging.INFO, "fgaseg"):
        assert read_names(tmp_path / "a.txt") == ["road", "car"]
    assert "comment lines between names are not counted: 2 lines name labels 0 to 1" in caplog.text


@pytest.mark.parametrize(
    "classes",
    [
        ["road", "sofa, couch", "猫"],
        ["2 wheeler", "4 wheeler"],
        ["7: is lucky", "a [b]"],
        [ClassPrompts("car", ("car", "van")), "sky"],
        [ClassPrompts("vehicle", ("car", "van")), ClassPrompts("rest", ("sky",))],
        ["cat"],
        ["a, b"],
        ["1", "2"],
        ["1 cat", "2 dog"],
        ["- a", "- b"],
        ["_background_", "a."],
        ["# sharp", 'say "hi"', "don't"],
        ["id,name", "x"],
        ["name", "class"],
        ["two lines", "a // b"],
    ],
    ids=str,
)
def test_written_names_read_back(tmp_path, classes):
    (tmp_path / "names.txt").write_text(names_text(classes))
    assert read_classes(tmp_path / "names.txt") == classes


def test_a_name_that_stands_twice_is_not_written():
    with pytest.raises(DataError, match="'car' stands twice"):
        names_text(["car", "sky", "car"])


@pytest.mark.parametrize("line", ["3 road", "road 3", "128 64 128 road", "road: 3"])
def test_a_line_with_a_value_or_a_colour_is_numbered(line):
    assert is_numbered(line)


@pytest.mark.parametrize("line", ["road", "traffic light", "3", "3 road, car", ""])
def test_a_name_alone_is_not_numbered(line):
    assert not is_numbered(line)


FILES = {  # file, its text, values or names
    "upper.YAML": ("- cat\n- dog\n", ["cat", "dog"]),
    "upper.JSON": ('["cat"]', ["cat"]),
    "lines.yml": ("cat\ndog\n", ["cat", "dog"]),
    "a.yaml": ("names:\n  3: cat\n", {3: "cat"}),
    "brackets behind.txt": ("cat (animal)\ndog (animal)\n", ["cat (animal)", "dog (animal)"]),
    "assigned.txt": ("  LABELS = ['cat', 'dog'];\n", ["cat", "dog"]),
    "one name.txt": ("traffic light\n", ["traffic light"]),
    "one value.txt": ("7: cat\n", {7: "cat"}),
    "one line of values.txt": ("7: cat, 8: dog\n", ["cat", "dog"]),
    "one column.csv": ("name\ncat\ndog\n", ["cat", "dog"]),
    "numbers and names.csv": ("label,name\n7,cat\n8,dog\n", {7: "cat", 8: "dog"}),
    "numbers, names and ids.csv": ("label,name,id\n1,cat,7\n2,dog,8\n", {7: "cat", 8: "dog"}),
    "quoted header.csv": ('"Class ID", "Label Name"\n7, cat\n8, "dog, big"\n', {7: "cat", 8: "dog, big"}),
    "empty rows.csv": ("id,name\n7,cat\n,\n8,dog,,\n", {7: "cat", 8: "dog"}),
    "semicolons.csv": ("id;name\n7;cat, big\n8;'dog'\n", {7: "cat, big", 8: "'dog'"}),
    "tabs.tsv": ("id\tname\tr\tg\tb\n7\tcat\t1\t2\t3\n", {7: "cat", colour(1, 2, 3): "cat"}),
    "hash.csv": ("#id,name\n7,cat\n", {7: "cat"}),
    "items.txt": ("# a\nitem {\n id: 7\n name: 'cat'\n}\nitem { ID: 8, Name: \"a {b}\" }\n", {7: "cat", 8: "a {b}"}),
    "two lines.json": ('{"id": 7, "name": "cat"}\n{"id": 8, "name": "dog"}\n', {7: "cat", 8: "dog"}),
    "python in.json": ("['cat', 'dog']", ["cat", "dog"]),
    "wide.txt": ("cat\ndog\n", ["cat", "dog"]),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_formats_are_told_by_suffix_and_content(tmp_path, file):
    text, expected = FILES[file]
    (tmp_path / file).write_bytes(text.encode("utf-16" if file == "wide.txt" else "utf-8"))
    table = read_table(tmp_path / file)
    assert (table.names or list(table.unstored)) == expected


NOT_READ = {  # file, its text, what is said
    "a.html": ("cat", "its first line is 'cat': XML is not read; give names as text, JSON, YAML or CSV"),
    "a.json": ('["cat",\n "dog"\n', "is not valid JSON (line 3, '': "),
    "long.json": ('{"cat": ' + "x" * 60, 'is not valid JSON (line 1, \'{"cat": ' + "x" * 32 + "': "),
    "twice.json": ('{"a": {"b": 1, "b": 2}}', "'b' stands twice: give each value once"),
    "twice in lines.json": ('{"id": 7, "id": 8}\n{"name": "cat"}', "'id' stands twice: give each value once"),
    "number.json": ("7", 'is not a JSON list of strings: give ["first class", "second class", ...]'),
    "digits.json": ("[" + "9" * 5000 + "]", "is not JSON of names (Exceeds the limit"),
    "a.yaml": ("a: [b", "is not valid YAML ("),
    "items.txt": ("item { id: 7 name: 'cat' }\nand more", "holds 'and more' outside of item { id: 1 name: 'car' }"),
    "no name.txt": ("item { id: 7 }", "item 1: has no name among id"),
    "few cells.csv": ("id,name,r\n7,cat\n", "line 2: '7,cat': has 2 cells, the header 3"),
    "many cells.csv": (
        "id,name\n7,cat,dog\n",
        "line 2: '7,cat,dog': has 3 cells, the header 2: put quotes around a name",
    ),
    "no names.csv": ("id,name\n7,cat\n8,\n", "line 3: '8,': holds no name"),
    "open quote.csv": (
        'id,name\n7,"cat\n8,dog"\n',
        "line 2: a quote is not closed on its line: close it, or remove it",
    ),
    "empty.txt": (" \n", "holds no names: give one class name per line, label 0 first"),
    "gone.txt": (None, "cannot be read as a names file (No such file or directory): give one name per line"),
    "latin.txt": (b"caf\xe9", "is not UTF-8 text: save the names file as UTF-8"),
}


@pytest.mark.parametrize("file", NOT_READ)
def test_files_that_cannot_be_read_say_why(tmp_path, file):
    text, words = NOT_READ[file]
    if text is not None:
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / file)
    assert str(caught.value).startswith(f"{tmp_path / file}: {words}")


def test_label_maps_are_read_line_by_line_and_name_their_presets(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("7: cat\n")
    assert read_table(file, label_map=True).names == {7: "cat"}
    file.write_text("labels:\n")  # of a names file it would be YAML
    with pytest.raises(DataError, match=r"a\.txt: line 1 is 'labels:': a label map has a value or a colour"):
        read_table(file, label_map=True)
    for text in ("", "cat"):
        file.write_text(text)
        with pytest.raises(DataError, match="names no value and no colour|a label map has a value"):
            read_table(file, label_map=True)
    (tmp_path / "a.yaml").write_text("cat\n")
    with pytest.raises(DataError, match=r"a\.yaml: holds str: give a mapping such as 7: car"):
        read_table(tmp_path / "a.yaml", label_map=True)
    with pytest.raises(DataError, match=r"cannot be read as a label map .*labelmap\.txt file, or one of x, y$"):
        read_table(tmp_path / "none", label_map=True, presets="x, y")


def test_a_single_line_is_told_to_be_several_names(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fgaseg"):
        (tmp_path / "a.txt").write_text("cat, dog\n")
        assert read_names(tmp_path / "a.txt") == ["cat", "dog"]
        assert f"{tmp_path}/a.txt: its only line is read as 2 names" in caplog.messages
        caplog.clear()
        (tmp_path / "a.txt").write_text("cat\n")
        read_names(tmp_path / "a.txt")
    assert not caplog.messages


def test_names_are_written_in_the_plainest_way_that_reads_back():
    assert names_text(["cat", "große Tür"]) == "cat\ngroße Tür\n"
    assert names_text(["2 cats", "dog: a"]) == '"2 cats"\n"dog: a"\n'
    assert names_text(['say "a: b"', "it's: b"]) == '\'say "a: b"\'\n"it\'s: b"\n'
    assert names_text([ClassPrompts("car", ("car", "van")), "sky"]) == "car | van\nsky\n"
    assert names_text([ClassPrompts("Auto ä", ("car", "van"))]) == '{\n "Auto ä": [\n  "car",\n  "van"\n ]\n}\n'
    with pytest.raises(DataError, match="'cat' stands twice, which a file of names cannot say: give it once"):
        names_text(["cat", "dog", "cat"])
