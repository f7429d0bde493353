"""What is said of the numbers that a survey of labels gives, and from which number on."""

import re
from pathlib import Path

import pytest

from fgaseg.config import DataConfig
from fgaseg.data.label_formats import UNPAINTED, colour
from fgaseg.data.label_spaces import open_label_space
from fgaseg.data.label_survey import LabelFacts, LabelSurvey
from fgaseg.data.label_suspicions import findings

SKY = ["sky", "grass", "cat"]
WITH_BACKGROUND = ["background", *SKY]


@pytest.fixture
def found(tmp_path):
    """The findings on files, of which each is {stored value: pixels} or has other facts too."""

    def find(files, names=SKY, total=None, training=False, survey=None, **options):
        if names:
            (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
            options["names"] = tmp_path / "names.txt"
        config = DataConfig(**{"images": tmp_path / "images", "labels": tmp_path / "labels"} | options)
        read = LabelSurvey(len(files) if total is None else total, **survey or {})
        for number, one in enumerate(files):
            facts = one if isinstance(one, dict) and "counts" in one else {"counts": one}
            read.add(LabelFacts(Path(f"{number}.jpg"), Path(f"{number}.png"), **facts))
        return findings(read, open_label_space(config, None), config, training)

    return find


EVEN = {0: 10, 1: 10, 2: 10}
OF_200 = [f"c{n}" for n in range(200)]
LEVELS = "they look like grey levels"
ZERO = "if 0 is background, add a first line"
UNUSED = "names occur: check that the values mean"
STARTS = "if the first name is that of value 1"
VOID_LINE = "and is a class like any other"
LAST = "the last: if the names have a line for 0"
SEVERAL = "belong to annotations of several categories"
SUSPICIOUS = {  # files, names, options, what is said, none of it sure
    "nothing": ([EVEN], SKY, {}, []),
    "nothing read": ([], SKY, {}, []),
    "levels eight apart": ([{0: 5, 8: 5}], OF_200, {}, [LEVELS]),
    "levels seven apart": ([{0: 5, 8: 5, 15: 5}], OF_200, {}, []),
    "sixteen levels": ([dict.fromkeys(range(0, 128, 8), 5)], OF_200, {}, [LEVELS]),
    "seventeen levels": ([dict.fromkeys(range(0, 136, 8), 5)], OF_200, {}, []),
    "levels and void": ([{0: 5, 100: 5, 250: 5, 255: 5}], OF_200, {"ignore": [255, 250]}, [LEVELS]),
    "numbered levels": ([{0: 5, 100: 5}], [f"{n}: c{n}" for n in range(200)], {}, []),
    "mapped levels": ([{0: 5, 100: 5}], ["a", "b"], {"label_map": {0: "a", 100: "b"}}, []),
    "levels of COCO": ([{0: 5, 100: 5}], OF_200, {"labels": Path("a.JSON")}, []),
    "zero everywhere": ([{0: 1, 1: 20, 2: 20}] * 4 + [{1: 9}], SKY, {}, [f"label 0, 'sky', is in 80 % .*{ZERO}"]),
    "zero of two classes": ([{0: 90, 1: 10}] * 3, ["sky", "sea"], {}, [f"is in 100 % of .* on 90 % .*{ZERO}"]),
    "zero nearly everywhere": ([{0: 1, 1: 20, 2: 20}] * 3 + [{1: 9}], SKY, {}, []),
    "zero in two files": ([{0: 90, 1: 10, 2: 1}] * 2, SKY, {}, []),
    "zero on most pixels": ([{0: 51, 1: 25, 2: 24, 255: 3}] * 9 + [{1: 1}], SKY, {}, [f"is in 90 % of .*{ZERO}"]),
    "zero on half the pixels": ([{0: 50, 1: 25, 2: 25, 255: 3}] * 9, SKY, {}, []),
    "zero in fewer files": ([{0: 90, 1: 25, 2: 24, 255: 3}] * 8 + [{1: 1}], SKY, {}, []),
    "zero is background": ([{0: 90, 1: 5, 2: 5, 3: 1}] * 5, ["Background", *SKY], {}, []),
    "zero is clutter": ([{0: 90, 1: 5, 2: 5, 3: 1}] * 5, ["clutter", *SKY], {}, []),
    "zero is void": ([{0: 90, 1: 5, 2: 5, 3: 5}] * 5, SKY, {"ignore": [0, 255]}, []),
    "names unused": ([{0: 5, 1: 5}] * 3, ["background", *"abcde"], {}, [f"only 2 of 6 {UNUSED}"]),
    "half of the names": ([{0: 5, 1: 5, 2: 5}] * 3, ["background", *"abcde"], {}, []),
    "names unused, few files": ([{0: 5, 1: 5}] * 3, ["background", *"abcdef"], {}, []),
    "names unused so far": ([{0: 5, 1: 5}] * 3, ["background", *"abcde"], {"total": 4}, []),
    "zero never": ([{1: 5, 2: 5}], SKY, {}, [f"label 0, 'sky', never occurs, and labels are 1 to 2: .*{STARTS}"]),
    "zero and one never": ([{2: 5, 3: 5}], [*SKY, "dog"], {}, []),
    "background never": ([{1: 5, 2: 5, 3: 1}], ["Background", *SKY], {}, []),
    "void never": ([{1: 5, 2: 5, 3: 1}], ["unlabeled", *SKY], {}, []),
    "zero ignored and never": ([{2: 5, 3: 5}], SKY, {"ignore": [0, 255]}, []),
    "void is a class": ([{0: 5, 1: 5, 2: 10}], ["void", "a", "b"], {}, [f"label 0 is called 'void' {VOID_LINE} .25 %"]),
    "last never": ([{0: 5, 1: 5, 2: 5}], WITH_BACKGROUND, {"ignore": [0, 255]}, [f"'background', is .*'cat', {LAST}"]),
    "last never so far": ([{0: 5, 1: 5, 2: 5}], WITH_BACKGROUND, {"ignore": [0, 255], "total": 2}, []),
    "last occurs": ([{0: 5, 1: 5, 4: 5}], WITH_BACKGROUND, {"ignore": [0, 255]}, []),
    "last never in many files": ([{0: 5, 1: 5, 2: 5}] * 6, SKY, {"ignore": [0, 255]}, [f"'sky', is .*'cat', {LAST}"]),
    "last never in a few files": ([{0: 5, 1: 5, 2: 5}] * 5, SKY, {"ignore": [0, 255]}, []),
    "several": ([{"counts": {0: 500, 1: 300, 2: 200}, "several": 6}], SKY, {}, [f"0.6 % of the pixels {SEVERAL}"]),
    "few of several": ([{"counts": {0: 500, 1: 300, 2: 200}, "several": 5}], SKY, {}, []),
    "mostly void": ([{0: 4, 1: 3, 2: 2, 255: 91}], SKY, {}, ["91 % of the pixels are void$"]),
    "nine tenths void": ([{0: 5, 1: 3, 2: 2, 255: 90}], SKY, {}, []),
    "unpainted": ([{0: 20, 1: 19, 2: 10, UNPAINTED: 51}], SKY, {}, [
        "51 % of the pixels are void: pixels outside the annotations become a class .*{unpainted: background}"]),
    "unpainted beside void": ([{0: 20, 1: 19, 2: 10, 255: 49, UNPAINTED: 2}], SKY, {}, []),
    "half unpainted": ([{0: 20, 1: 20, 2: 10, UNPAINTED: 50}], SKY, {}, []),
    "turned": ([{"counts": EVEN, "turned": True}, EVEN], SKY, {}, [
        "^the labels of 1 photos were drawn on the photo before .* such as those of 0.jpg: they are turned with it"]),
    "doubtful": ([EVEN, {"counts": EVEN, "doubtful": True}], SKY, {}, [
        "^1 photos, such as 1.jpg, have an EXIF orientation, .* as stored or upright: say so with data.rotate_labels"]),
    "palette of greys": ([EVEN], SKY, {"survey": {"greys": ("a.png", [(0, 0), (1, 128)])}}, [
        r"^a.png has a palette of greys: its indices \(0, 1\) count, not its greys \(0, 128\)"]),
    "palette of greys that are named": (
        [{colour(0, 0, 0): 5, colour(9, 9, 9): 5}], None,
        {"survey": {"greys": ("a.png", [(0, 0), (1, 9)])}, "label_map": {"0,0,0": "a", "9,9,9": "b"}}, []),
    "one class": ([{2: 5}, {2: 5, 255: 1}], SKY, {}, [
        r"^'cat' is the only class .*; if 255 is one, give data.label_map='{2: cat, 255: sky}'"]),
    "one class alone": ([{1: 5}], SKY, {}, ["^'grass' is the only class .*; check data.names, data.ignore and data.l"]),
    "one class and two void values": ([{1: 5, 254: 1, 255: 1}], SKY, {"ignore": [255, 254]}, [
        "^'grass' is the only class .*; check data.names"]),
    "one class and its surroundings": ([{1: 5, UNPAINTED: 5}], SKY, {}, [
        "^'grass' is the only class .*; name what is outside the annotations: data.label_map='{unpainted: backgr"]),
    "one name": ([{0: 5, 254: 1}], ["roof"], {"ignore": [254]}, [
        r"^'roof' is the only class .*data.label_map='{0: roof, 254: background}'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_suspicions(found, name):
    files, names, options, expected = SUSPICIOUS[name]
    said = found(files, names, **options)
    assert len(said) == len(expected) and not any(one.sure or one.listed for one in said), said
    for one, words in zip(said, expected, strict=True):
        assert _matches(words, one.text)


def _matches(words, text):
    assert re.search(words.replace("{", r"\{").replace("}", r"\}"), text), text
    return True


COCO_STUFF = ["unlabeled", "person", *(f"c{n}" for n in range(2, 182)), "wood"]
IDS = [f"c{n}" for n in range(19)]
SURE = {  # files, names, options, what is said first, whether files that were not read may refute it
    "void alone": ([{255: 9}], SKY, {}, r"^no pixel has a label: all are void .values 255.: correct data.ignore", True),
    "void values": (
        [{9: 1, 8: 1, 7: 1, 6: 1, 5: 1, 4: 1}], SKY, {"ignore": [9, 8, 7, 6, 5, 4]},
        r"^no pixel has a label: all are void .values 4, 5, 6, 7, 8.:", True),
    "black and white": (
        [{0: 30, 255: 10}], ["a", "b"], {},
        "hold only 0 and 255, and 255 .25 % of the pixels. is void .* 'a' is everywhere: .*{0: a, 255: b}", True),
    "black and white, one name": ([{0: 30, 255: 10}], ["a"], {}, "label_map='{0: background, 255: a}'", True),
    "a photo": ([{"counts": EVEN, "is_photo": True}], SKY, {}, "^1 label files are the photos themselves, such as 0.pn",
                False),
    "reordered": ([EVEN], SKY, {"survey": {"reordered": "x"}}, "^x: a drawing program has reordered the", False),
    "train ids": ([{0: 5, 255: 5, 7: 1, 8: 3}], None, {"label_map": "cityscapes"},
                  "^labels hold 255, .*data.label_map='cityscapes-train-ids'", False),
    "COCO-Stuff": ([{0: 5, 255: 5, 1: 4, 181: 3}], COCO_STUFF, {}, "^the names are those of COCO-Stuff's labels.txt",
                   False),
    "COCO-Stuff, numbered": (
        [{0: 5, 255: 5, 1: 4, 181: 3}], [f"{n}: {name}" for n, name in enumerate(COCO_STUFF)], {},
        "^the names are those of COCO-Stuff's labels.txt", False),
    "doubtful beside turned": (
        [{"counts": EVEN, "turned": True}, {"counts": EVEN, "doubtful": True}], SKY, {},
        "^1 photos, such as 1.jpg, .* upright, and the labels of other photos were drawn on the photo before .*0.jpg",
        False),
}  # fmt: skip


@pytest.mark.parametrize("name", SURE)
def test_what_cannot_be_right(found, name):
    files, names, options, words, refutable = SURE[name]
    first, *others = found(files, names, **options)
    assert first.sure and not first.listed and first.final != refutable and _matches(words, first.text)
    assert not any(one.sure for one in others)


UNNAMED = {  # values without a name, names, cause
    "one value more": ({0: 5, 1: 5, 2: 5, 3: 1}, SKY, "0 is one value more than there are names: if it is void, give"),
    "from one": ({1: 5, 2: 5, 3: 1}, SKY, "labels count from 1: give data.ignore=.0,255.$"),
    "not from one": ({2: 5, 3: 1}, SKY, "values with gaps: say which value has which name"),
    "negative": ({-1: 5, 1: 4, 3: 3}, SKY, "values with gaps: if in the order .*'{-1: sky, 1: grass, 3: cat}'"),
    "label ids": ({0: 9, 33: 5, 7: 1}, IDS, "Cityscapes labelIds: give data.label_map='cityscapes'"),
    "beyond label ids": ({0: 9, 34: 5, 7: 1}, IDS, "values with gaps: say which"),
    "of 20 names": ({0: 9, 33: 5, 7: 1}, [*IDS, "c"], "values with gaps: say which"),
    "instances": ({0: 9, 1000: 5}, SKY, "ids of instances"),
    "64 values": (dict.fromkeys(range(100, 164), 5), SKY, "values with gaps: say which"),
    "65 values": (dict.fromkeys(range(100, 165), 5), SKY, "65 different values: the files are photos"),
    "twice the names": (dict.fromkeys(range(100, 180), 5), [f"c{n}" for n in range(40)], "values with gaps: say which"),
    "more": (dict.fromkeys(range(100, 181), 5), [f"c{n}" for n in range(40)], "81 different values: the files are"),
    "gaps": ({0: 5, 7: 5, 9: 5}, SKY, "values with gaps: if in the order of the names, .*'{0: sky, 7: grass, 9: cat}'"),
    "gaps and void": ({7: 5, 9: 5, 255: 1}, SKY, "'{7: sky, 9: grass, 255: cat}'"),
    "gaps and zero": ({0: 9, 7: 5, 9: 5, 11: 3}, SKY, "'{0: null, 7: sky, 9: grass, 11: cat}'"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNNAMED)
def test_the_cause_of_values_without_a_name(found, name):
    counts, names, cause = UNNAMED[name]
    [one] = [one for one in found([counts], names) if "holds label" in one.text]
    assert one.sure and one.listed and one.final and _matches(f"Likely cause: .*{cause}", one.text)


def test_the_most_frequent_values_without_a_name_come_first(found):
    counts = {0: 40, 1: 20, 2: 10, 50: 2, 60: 9, 61: 3, 70: 5, 80: 4, 90: 7}
    first, *others = found([{0: 3}, counts], SKY)
    assert first.sure and not any(one.sure for one in others)
    assert first.text.startswith("1.png: holds label 60 (8.7 % of the pixels)")
    assert "also without a name: 90 (6.8 %), 70 (4.9 %), 80 (3.9 %), 61 (2.9 %) and 1 more values" in first.text
    for values, options in (({colour(1, 2, 3): 5, colour(9, 9, 9): 5}, {"label_map": {"1,2,3": "sky"}, "names": None}),
                            ({7: 5, 8: 5}, {"label_map": {7: "sky"}, "names": None})):  # fmt: skip
        (one,) = [one for one in found([values], **options) if one.listed]
        assert "has no name in" in one.text and "Likely cause" not in one.text
        assert "also without" not in one.text


def test_sure_findings_come_first_and_others_in_their_order(found):
    facts = {"counts": {0: 20, 1: 19, 2: 10, UNPAINTED: 51}, "turned": True, "several": 50}
    said = [(one.sure, one.text[:15]) for one in found([facts | {"is_photo": True}])]
    assert said == [(True, "1 label files a"), (False, "the labels of 1"), (False, "50 % of the pix"),
                    (False, "51 % of the pix")]  # fmt: skip
    only = found([{2: 5}], training=True)
    assert [one.sure for one in only] == [True] and not only[0].final
    assert [one.final for one in found([{2: 5}])] == [False]
    assert [one.final for one in found([{0: 4, 1: 3, 2: 2, 255: 91}])] == [True]
