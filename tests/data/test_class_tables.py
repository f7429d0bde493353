"""Entries of names files and label maps, one by one: what is a value, a colour, a name or a prompt."""

import json

import pytest
import yaml

from fgaseg.data.class_tables import is_stored, is_void_name, stored_value
from fgaseg.data.label_formats import UNPAINTED, colour
from fgaseg.data.label_maps import LabelMap
from fgaseg.data.names_files import read_table
from fgaseg.errors import DataError


def test_words_that_mean_no_class():
    assert all(map(is_void_name, ("void", " Void ", "no_data", "NO DATA", "nodata", "Unlabelled", "dontcare")))
    assert not any(map(is_void_name, ("background", "others", "avoid", "no", "")))


RED = colour(255, 0, 1)
VALUES = {
    7: 7, "7": 7, " 7 ": 7, "(7)": 7, "[ 7 ]": 7, "-1": -1, -1: -1, "007": 7,
    "255,0,1": RED, "255 0 1": RED, "255;0;1": RED, "( 255, 0 , 1 )": RED, "[255,0,1]": RED, "255,0,1,9": RED,
    "#ff0001": RED, "#FF0001": RED, "#ff000180": RED, (255, 0, 1): RED,
    "0,0,256": None, "256,0,0": None, "1,2": None, "1,2,3,4,5": None, "#ff00": None, "#ff00011": None, "ff0001": None,
    "car": None, "7 cars": None, "": None, "7.5": None, True: None, None: None,
}  # fmt: skip


@pytest.mark.parametrize("written", VALUES, ids=str)
def test_a_value_or_a_colour_in_any_spelling(written):
    assert stored_value(list(written) if isinstance(written, tuple) else written) == VALUES[written]
    assert is_stored(written) == (VALUES[written] is not None)


def test_numbers_are_no_colours_however_large():
    for large in (65536, colour(1, 2, 3), 10**15, str(colour(1, 2, 3)), "9" * 19):
        with pytest.raises(DataError, match=rf"label images have values up to 65535, not {large}"):
            LabelMap.read({large: "car"})
    assert LabelMap.read({"65535": "car"}).names == {65535: "car"}
    assert all(map(is_stored, (" Unpainted", "OTHERS ", "others"))) and not is_stored("other")


ENTRIES = {  # a label map, what it names, the prompts
    "unpainted": ({" Unpainted ": "wall"}, {UNPAINTED: "wall"}, {}),
    "names and values": ({"car": 7, "sky": "8"}, {7: "car", 8: "sky"}, {}),
    "names and several values": ({"car": [[1, 2, 3], [4, 5, 6]]}, {colour(1, 2, 3): "car", colour(4, 5, 6): "car"}, {}),
    "names and several texts": ({"car": ["7", "9"]}, {7: "car", 9: "car"}, {}),
    "name and colour": ({"car": [255, 0, 1]}, {RED: "car"}, {}),
    "records": ({"car": {"ID": 7, "Color": "#ff0001"}}, {7: "car", RED: "car"}, {}),
    "named records": ({"7": {"name": "car", "color": None}}, {7: "car"}, {}),
    "bands": ({"car": {"r": 255, "g": 0, "b": 1}, "sky": {"red": 1, "green": 2, "blue": 3}},
              {RED: "car", colour(1, 2, 3): "sky"}, {}),
    "bands left empty": ({"car": {"id": 7, "r": "", "g": " ", "b": 1}}, {7: "car"}, {}),
    "prompts": ({"car": {"id": 7, "prompts": ["car", "van"]}}, {7: "car"}, {"car": ("car", "van")}),
    "one prompt": ({"car": {"id": 7, "prompt": "van"}}, {7: "car"}, {"car": ("van",)}),
    "its own prompt": ({"car": {"id": 7, "prompts": "car"}}, {7: "car"}, {}),
    "synonyms": ({"car": {"id": 7, "synonyms": "van, bus"}}, {7: "car"}, {"car": ("car", "van", "bus")}),
    "aliases": ({"car": {"id": 7, "aliases": "van | bus"}}, {7: "car"}, {"car": ("car", "van", "bus")}),
    "prompts before synonyms": ({"car": {"id": 7, "prompts": "van", "synonyms": "bus"}}, {7: "car"}, {"car": ("van",)}),
    "prompts that are no text": ({"car": {"id": 7, "prompts": ["van", 3]}}, {7: "car"}, {}),
    "prompts in the name": ({7: " car | van "}, {7: "car"}, {"car": ("car", "van")}),
    "numbers and void": ({7: 0, 8: None, 9: -1}, {7: 0, 8: None, 9: -1}, {}),
    "twice the same": ({"7": "car", "(7)": "car"}, {7: "car"}, {}),
    "a list": ([{"id": 7, "name": "car"}, {"id": 8, "name": "sky"}], {7: "car", 8: "sky"}, {}),
    "a list of pairs": ([{7: "car"}, {8: None}], {7: "car", 8: None}, {}),
    "a list of names": (["car", None], {0: "car", 1: None}, {}),
    "labels of a larger file": ({"labels": {"7": "car"}, "version": 3}, {7: "car"}, {}),
    "Names in capitals": ({"Names": {"7": "car"}, "train": ["a.txt"]}, {7: "car"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_a_label_map(tmp_path, name):
    data, names, prompts = ENTRIES[name]
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    found = LabelMap.read(tmp_path / "map.yaml")
    assert (found.names, found.prompts, found.others, found.unstored) == (names, prompts, (), ())
    assert found.has_values == any(one < 2**31 for one in names)
    assert found.has_colours == any(2**31 < one < UNPAINTED for one in names)


def test_all_further_values():
    for other in ("sky", None, 3):
        assert LabelMap.read({7: "car", " Others": other}).others == (other,)
    assert LabelMap.read({"others": "sky"}).class_names() == ["sky"]
    assert LabelMap.read({9: "b", 7: "a", 8: "void", 6: "b", "others": "c"}).class_names() == ["b", "a", "c"]


NAMED = {  # a names file, its classes in the order of the file and of their values, prompts
    "list": (["road", "sky"], ["road", "sky"], None, {}),
    "lists": ([["car", "van"], ["sky"], "road"], ["car", "sky", "road"], None, {"car": ("car", "van")}),
    "records": ([{"name": "car", "prompts": "van"}, {"Title": "sky"}], ["car", "sky"], None, {"car": ("van",)}),
    "values": ({9: "car", 7: "road", 8: "void"}, ["car", "road"], ["road", "car"], {}),
    "values, then colours": (
        {"#000001": "sky", "#000000": "sea", 9: "car", 7: "road"}, ["sky", "sea", "car", "road"],
        ["road", "car", "sky", "sea"], {}),
    "WordNet": ({0: ["n01440764", "tench", "Tinca"], 1: ["n01443537"]}, ["tench", "n01443537"], None,
                {"tench": ("tench", "Tinca")}),
    "mapping": ({"car": ["car", "van"], "sky": None, "road": "road"}, ["car", "sky", "road"], None,
                {"car": ("car", "van")}),
    "prompts of records": ({"car": {"prompts": ["van"]}, "sky": {"synonyms": "air"}}, ["car", "sky"], None,
                           {"car": ("van",), "sky": ("sky", "air")}),
    "a file of classes with tags": ({"classes": ["car", "sky"], "tags": []}, ["car", "sky"], None, {}),
    "classes that are named so": ({"classes": ["room", "class"], "sky": ["air"]}, ["classes", "sky"], None,
                                  {"classes": ("room", "class"), "sky": ("air",)}),
    "names beside words": ({"names": ["car"], "train": ["a.txt"]}, ["car"], None, {}),
    "void in a list": (["void", "car"], ["void", "car"], None, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_entries_of_a_names_file(tmp_path, name):
    data, names, by_value, prompts = NAMED[name]
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    found = read_table(tmp_path / "names.yaml")
    assert found.class_names() == names and found.class_names(by_value=True) == (by_value or names)
    assert found.prompts == prompts


REFUSED = {  # data, whether a label map, what is said
    "no value": ({"car": "blue"}, True, "entry 'car': neither 'car' nor 'blue' is a value or a colour: write 7: car"),
    "no colour": ([{"name": "car", "color": "blue"}], True, "entry 1: 'blue' is no value, and no colour such as 0,0"),
    "no name": ([{"id": 7}], True, "entry 1: has no name among id"),
    "neither": ([{"name": "a", "id": 1}, {"name": "b"}], True, "entry 2: 'b' has neither a value nor a colour"),
    "void twice": ({"7": None, "(7)": "car"}, True, r"entry '\(7\)': 7 is void and 'car': give it one name"),
    "text": ("road", True, "holds str: give a mapping such as 7: car, or a list of records"),
    "text of names": (7, False, "holds int: give a list of class names"),
    "nothing": ([], True, "names no value and no colour: write lines such as 7: car"),
    "no names": ([], False, "holds no names: give one class name per line"),
    "an empty name": (["car", " "], False, "name 2 is empty: the n-th line names the class of label n - 1"),
    "a number as a name": (["car", 3], False, "name 2: 3 is no name: give text"),
    "no text": ([True], False, "name 1: True is no name: give text, or null for void"),
    "void without a value": ([None], False, "name 1: None is no name: give text"),
    "twice": (["car", "sky", "car"], False, "name 1 and name 3 are both 'car': give each class once"),
    "only a sign": (["|"], False, "name 1: .* is no name: give text between the |"),
    "values in part": ([{"name": "a", "id": 1}, {"name": "b"}], False, "name 2: 'b' has neither a value nor a col"),
    "other prompts": ({0: "car | van", 1: "car | bus"}, False, "entry '1': 'car' has other prompts above"),
    "a tree": ({"vehicle": {"car": 1, "van": 2}}, False, "entry 'vehicle': car, van says neither its name nor its"),
    "a number for a name": ({"car": 3.5}, False, "entry 'car': neither 'car' nor 3.5 is a value or a colour"),
    "mixed words": ({"car": ["van", 3]}, False, r"entry 'car': neither 'car' nor \['van', 3\] is a value"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_entries_that_say_nothing_or_too_much(tmp_path, name):
    data, label_map, words = REFUSED[name]
    (tmp_path / "file.yaml").write_text(json.dumps(data))
    with pytest.raises(DataError, match=rf"file\.yaml: {words}"):
        (LabelMap.read if label_map else read_table)(tmp_path / "file.yaml")
