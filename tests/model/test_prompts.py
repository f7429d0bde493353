"""Classes with several prompts, and names that a text tower does not tell apart or cannot read."""

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import pixels, tiny_model

from fgaseg import FGASeg, Vocabulary
from fgaseg.errors import VocabularyError
from fgaseg.model.prompts import classes_of_rows, merge_rows

CLASSES = ["red car | bus | van", "sky", "tree | bush"]
FLAT, COUNTS, CLASS_OF = ["red car", "bus", "van", "sky", "tree", "bush"], (3, 1, 2), [0, 0, 0, 1, 2, 2]
MODES = {
    "whole": {},
    "windows": {"inference": "windows"},
    "cosine": {"propagation": False, "lcs": False, "t2p": False, "p2t_layers": 0},
    "budget": {"class_maps_budget": 0},
    "cap": {"class_cap": 4},
    "fast": {"fast": True, "top_k": 1},
    "bce": {"loss": {"seg": "bce"}},
}


@pytest.fixture(scope="module")
def photo():
    noise = torch.randint(0, 256, (12, 16, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "names",
    [CLASSES, [["red car", "bus", "van"], "sky", ["tree", "bush"]], tuple(CLASSES),
     {"red car": ["red car", "bus", "van"], "sky": "sky", "tree": "tree | bush"}],
    ids=["text", "lists", "tuple", "mapping"],
)  # fmt: skip
def test_every_form_of_synonyms(names):
    vocabulary = tiny_model().encode(names)
    assert vocabulary.names == ("red car", "sky", "tree") and len(vocabulary) == 3
    assert vocabulary.counts == COUNTS and vocabulary.embeddings.shape[0] == 6


def test_a_class_is_named_as_the_mapping_says(photo):
    result = tiny_model().segment(photo, {"vehicle": ["car", "van"], "rest": ["sky", "tree"]})
    assert result.classes == ("vehicle", "rest") and set(result.present) <= {"vehicle", "rest"}
    assert sum(result.present.values()) == pytest.approx(1)


@pytest.mark.parametrize("mode", MODES)
def test_the_largest_logit_of_a_class_counts(mode, photo):
    model = tiny_model(**MODES[mode])
    x = pixels(2)
    with torch.no_grad():
        flat, out = model(x, model.encode(FLAT)), model(x, model.encode(CLASSES))
        expected = torch.stack([flat.logits[:, :3].amax(1), flat.logits[:, 3], flat.logits[:, 4:].amax(1)], 1)
        assert torch.equal(out.logits, expected)
        assert out.gcs.shape[1] == 3 and (out.lcs is None or out.lcs.shape[1] == 3)
        parts = list(model.stream(x, model.encode(CLASSES)))
        streamed = torch.full_like(expected, -100)
        for classes, logits in parts:
            streamed[:, classes] = logits
        assert torch.cat([classes for classes, _ in parts]).tolist() == sorted(
            {c for cs, _ in parts for c in cs.tolist()}
        )
        torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=1e-5)
    result = model.segment(photo, CLASSES)
    assert result.classes == ("red car", "sky", "tree") and result.labels.max() < 3
    assert (result.scores > 0).all() and (result.scores <= 1).all()


def test_the_score_of_a_class_is_not_shared_among_its_prompts(photo):
    """With a softmax over prompts, more synonyms would make every score smaller."""
    model = tiny_model(propagation=False, lcs=False, t2p=False, p2t_layers=0)
    vocabulary = model.encode(["cat", "sky"])
    rows = vocabulary.embeddings[[0, 0, 0, 1]]
    one = model.segment(photo, vocabulary)
    three = model.segment(photo, Vocabulary(("cat", "sky"), rows, (3, 1)))
    assert (one.labels == three.labels).all() and abs(one.scores - three.scores).max() < 1e-5


def test_embeddings_of_a_class_are_averaged_on_request(photo):
    model = tiny_model(synonyms="average")
    flat, vocabulary = tiny_model().encode(FLAT).embeddings, model.encode(CLASSES)
    expected = torch.stack([F.normalize(flat[:3].mean(0), dim=0), flat[3], F.normalize(flat[4:].mean(0), dim=0)])
    torch.testing.assert_close(vocabulary.embeddings, expected)
    assert torch.equal(vocabulary.embeddings[1], flat[3]) and vocabulary.counts is None
    assert model.segment(photo, CLASSES).classes == ("red car", "sky", "tree")


def test_the_choice_is_saved_with_the_model(tmp_path):
    tiny_model(synonyms="average").save_pretrained(tmp_path)
    assert FGASeg.from_pretrained(tmp_path).encode(CLASSES).counts is None
    assert FGASeg.from_pretrained(tmp_path, synonyms="best").encode(CLASSES).counts == COUNTS


@pytest.mark.parametrize("cuts", [[6], [1, 1, 1, 1, 1, 1], [2, 2, 2], [4, 2], [1, 5], [3, 1, 2]], ids=str)
def test_a_class_whose_prompts_come_in_parts_comes_once(cuts):
    logits = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    parts = zip(torch.arange(6).split(cuts), logits.split(cuts, 1), strict=True)
    merged = list(classes_of_rows(parts, COUNTS))
    assert torch.cat([classes for classes, _ in merged]).tolist() == [0, 1, 2]
    assert torch.equal(torch.cat([x for _, x in merged], 1), merge_rows(logits, COUNTS))


def test_prompts_that_were_dropped_leave_their_class_there():
    logits = torch.randn(1, 3, 2, 2)
    (part,) = [*classes_of_rows(iter([(torch.tensor([1, 2, 5]), logits)]), COUNTS)][:1]
    assert part[0].tolist() == [0] and torch.equal(part[1], logits[:, :2].amax(1, keepdim=True))


# ---- equal prompts

EQUAL = {
    "case": (["water", "Water", "WATER"], [0, 0, 0]),
    "spaces": (["wooden floor", " wooden   floor ", "floor"], [0, 0, 2]),
    "underscores": (["orange_star", "orange star", "star"], [0, 0, 2]),
    "invisible": (["cat", "dog", "ca\u00adt\u200b", "\ufeffdog"], [0, 1, 0, 1]),
    "composed": (["café", "cafe\u0301", "cafe"], [0, 0, 2]),
    "cut": (["one two three four five six seven eight nine ten eleven a",
             "one two three four five six seven eight nine ten eleven b", "cat"], [0, 0, 2]),
    "twice": (["cat", "dog", "cat"], [0, 1, 0]),
    "different": (["cat", "cats", "a cat"], [0, 1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_prompts_with_the_same_tokens_are_one(name, photo, caplog):
    names, first = EQUAL[name]
    model = tiny_model()
    with caplog.at_level(logging.INFO, "fgaseg"):
        vocabulary = model.encode(names)
        model.encode(names[::-1])
        model.encode(names)
    assert model.first_of_equals(vocabulary) == first
    told = [record for record in caplog.records if "the same tokens" in record.getMessage()]
    assert bool(told) == (name != "different")
    result = model.segment(photo, names)
    assert set(result.labels.flatten().tolist()) <= set(first)  # never at random
    text = "\n".join(record.getMessage() for record in caplog.records)
    for a, b in [(names[i], names[f]) for i, f in enumerate(first) if i != f and names[i] != names[f]]:
        assert text.count(f"{a!r} is {b!r}") == 1  # told once


def test_a_prompt_of_two_classes_is_that_of_the_first(caplog):
    model = tiny_model()
    with caplog.at_level(logging.INFO, "fgaseg"):
        vocabulary = model.encode(
            {"vehicle": ["car", "van"], "big": ["Van", "bus"], "small": "Car", "all": ["bus", "car"]}
        )
    assert vocabulary.counts == (2, 1, 1, 1) and model.first_of_equals(vocabulary) == [0, 1, 0, 1]
    assert "'Van' of 'big' is 'van' of 'vehicle'" in caplog.text and "'Car' of 'small' is 'car' of" in caplog.text
    averaged = tiny_model(synonyms="average").encode({"a": ["car", "van"], "b": ["Van", "car"], "c": ["van"]})
    assert averaged.first == (0, 0, 2)


def test_words_told_apart_by_one_of_several_templates():
    """Cut in the first template, they differ in the second."""
    names = ["one two three four a", "one two three four b"]
    long = "a photo of what everyone who sees it would call by the {}"
    assert tiny_model(template=long).text_encoder.first_of_equals(names) == [0, 0]
    assert tiny_model(template=[long, "a {}"]).text_encoder.first_of_equals(names) == [0, 1]


# ---- what is told


def told(names, caplog, **switches):
    with caplog.at_level(logging.INFO, "fgaseg"):
        tiny_model(**switches).encode(names)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("name", ["orange_star", "traffic_light", "_wall_", "a__b"])
def test_underscores_are_spaces(name, caplog):
    ((level, text),) = told([name], caplog)
    model = tiny_model()
    spaces = " ".join(name.replace("_", " ").split())
    assert torch.equal(model.encode([name]).embeddings, model.encode([spaces]).embeddings)
    assert model.encode([name]).names == (name,)
    assert level == "INFO" and f"{name!r} as {spaces!r}" in text


def test_what_was_told_is_not_told_again(caplog):
    names = ["orange_star", "Water", "water", "猫", "..."]
    assert len(told(names, caplog)) == 4
    caplog.clear()
    assert told(names, caplog) == told(names[1:], caplog) == []
    assert len(told([*names, "blue_ring"], caplog)) == 1 and "orange" not in caplog.text


@pytest.mark.parametrize("words", [13, 20, 300])
def test_what_is_cut_is_named(words, caplog):
    name = " ".join(["cat"] * (words - 1) + ["dog"])
    ((level, text),) = told([name, "sofa"], caplog)
    assert level == "WARNING" and "cut after 16 tokens" in text and "without 'cat" in text
    assert "sofa" not in text


@pytest.mark.parametrize("name", ["!?", "...", "-", "***", "🐈‍⬛"])
def test_signs_alone_are_warned_of(name, caplog):
    (level, text), *rest = told(["cat", name], caplog)
    assert level == "WARNING" and "no letter and no number" in text and not rest


@pytest.mark.parametrize("name", ["猫", "кошка", "γάτα", "मछली", "고양이", "ネコ"])
def test_a_script_that_the_tokenizer_does_not_know_is_warned_of(name, caplog):
    ((level, text),) = told(["cat", name], caplog)
    assert level == "WARNING" and f"hardly knows {name!r}" in text


@pytest.mark.parametrize(
    "name", ["wooden floor", "café", "façade", "Straße", "4x4", "cat 🐈", "sofa, couch", "St. Bernard"]
)
def test_nothing_is_told_of_good_names(name, caplog):
    assert told(["person", name], caplog) == []


@pytest.mark.parametrize(
    "name", ["cat, dog, sofa", "cat; dog", "cat. dog. sofa.", "cat\ndog", "['cat', 'dog']", "cat / dog"]
)
def test_one_name_that_looks_like_several_is_warned_of(name, caplog):
    ((level, text),) = told([name], caplog)
    assert level == "WARNING" and "read as one name" in text


def test_an_encoder_of_ones_own_without_a_known_tokenizer():
    from fgaseg.model.text_encoder import TextEncoder

    encoder = SimpleNamespace(tokenizer=None, text_weights=list, text=lambda some: torch.ones(len(some), 4))
    text = TextEncoder(encoder, "a {}")
    assert text.first_of_equals(["cat", "Cat", "cat ", "猫"]) == [0, 1, 0, 3]
    assert text.encode(["cat | kitten", "dog"]).counts == (2, 1)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "|"], "entry 1 is empty"),
        ({"cat": []}, "entry 0 is empty"),
        ({" ": ["cat"]}, "entry 0 is empty"),
        ([["cat", 3]], "entry 0 is 3 of type int"),
        ({}, "the list is empty"),
        (["bank | river bank", "bank | money"], "two classes are called 'bank' and have different prompts"),
        ("cat | dog", "got the string 'cat | dog'; give a list"),
    ],
)
def test_what_is_no_class_is_named(names, words):
    with pytest.raises(VocabularyError, match=words.replace("|", r"\|")):
        tiny_model().encode(names)
