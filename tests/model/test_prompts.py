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
from fgaseg.model import prompts
from fgaseg.model.prompts import PromptReader, classes_of_rows, merge_at_once, merge_rows
from fgaseg.vocabulary import check_names

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


# ---- what a reader tells, by a tokenizer of one token a letter


class Letters:
    """A token for each letter, but one for each word of Latin letters; 12 tokens at most."""

    length, unknown = 12, None

    def __call__(self, prompts):
        ids = [[sum(map(ord, piece)) % 5000 for piece in self._split(prompt)][:12] for prompt in prompts]
        return torch.tensor([row + [0] * (12 - len(row)) for row in ids])

    def _split(self, text):
        return [piece for word in text.split() for piece in ([word] if word.isascii() else word)]

    def pieces(self, text):
        return [7 if piece == "strange" else sum(map(ord, piece)) for piece in self._split(text)]

    def cut(self, prompt):
        return " ".join(self._split(prompt)[12:])


def notes(names, caplog, tokenizer=None, templates=("a {}",)):
    caplog.clear()
    reader = PromptReader(lambda name: name, tokenizer or Letters(), "best")
    with caplog.at_level(logging.INFO, "fgaseg"):
        reader.plan(check_names(names), templates)
    return [record.getMessage().removeprefix("class names: ") for record in caplog.records]


def test_six_names_of_a_kind_are_shown_and_the_others_counted(caplog):
    signs = ["!" * (i + 1) for i in range(8)]
    (six,), (one,) = notes(signs[:6], caplog), notes(signs[:7], caplog)
    assert six.startswith("no letter and no number in '!', '!!', '!!!', '!!!!', '!!!!!', '!!!!!!': signs")
    assert one.startswith("no letter and no number in '!!!!!!!': signs")  # the six were told of already
    (seven,) = notes(["?" * (i + 1) for i in range(7)], caplog)
    assert "'??????' and 1 more: signs" in seven and "???????" not in seven


@pytest.mark.parametrize("letters, shown", [(40, "x" * 39 + ";"), (41, "x" * 37 + "...")])
def test_names_of_more_than_forty_letters_are_shortened(letters, shown, caplog):
    (told,) = notes(["x" * (letters - 1) + ";", "cat"], caplog)
    assert told.startswith(f"read as one name, though it looks like several: {shown!r}; give")
    (told,) = notes(["b " * 11 + "y" * (letters - 1) + ";"], caplog)[1:]
    assert told == f"prompts are cut after 12 tokens: '{'b ' * 11}{'y' * 15}...' without {shown.replace('x', 'y')!r}"


def test_what_is_cut_in_the_first_template_is_told(caplog):
    assert notes(["b " * 11 + "c"], caplog) == [
        "prompts are cut after 12 tokens: 'b b b b b b b b b b b c' without 'c'"
    ]
    assert notes(["b " * 10 + "c"], caplog) == []


@pytest.mark.parametrize("name, told", [
    ("猫", True), ("кот", True), ("ab кот", True), ("cat", False), ("strange", False), ("42 кот", True),
    ("кот cat dog sea sky", True),  # seven pieces, fifteen letters
])  # fmt: skip
def test_words_in_pieces_are_told_of(name, told, caplog):
    letters = [char for char in name if char.isalpha()]
    told = told and len(Letters().pieces(name)) >= len(letters)
    assert bool(notes([name, "cow"], caplog)) == told


def test_words_that_are_unknown_to_a_tokenizer_are_told_of_in_any_script(caplog):
    tokenizer = Letters()
    tokenizer.unknown = 7
    assert notes(["strange", "cat"], caplog, tokenizer)[0].startswith("the text tower hardly knows 'strange': to")
    assert notes(["cat", "dog"], caplog, tokenizer) == []


@pytest.mark.parametrize("names, told", [
    (["a;b", "c"], "a;b"), (["{a}", "c"], "{a}"), (["[a", "c"], "[a"), (["a, b"], "a, b"), (["a. b. c."], "a. b. c."),
    (["a / b"], "a / b"), (["a + b"], "a + b"),
    (["a, b", "c"], None), (["a,"], None), (["a. b"], None), (["a/b"], None), (["a | b, c"], None),
])  # fmt: skip
def test_names_that_look_like_lists(names, told, caplog):
    found = [note for note in notes(names, caplog) if note.startswith("read as one name")]
    assert found == ([] if told is None else [
        f"read as one name, though it looks like several: {told!r}; give a list with one name for each class"
    ])  # fmt: skip


def test_equal_prompts_of_several_classes(caplog):
    told = notes({"cat": ["cat", "kitten"], "pet": ["kitten", "dog"], "dog": "dog"}, caplog)
    assert told == ["these prompts are the same tokens, and the first class that has one gets its pixels: "
                    "'kitten' of 'pet' is 'kitten' of 'cat', 'dog' is 'dog' of 'pet'"]  # fmt: skip
    (told,) = notes(["cow", "sea", "cow"], caplog)
    assert told.endswith("gets its pixels: 'cow' is there twice")


def test_notes_come_again_after_very_many_others(monkeypatch, caplog):
    monkeypatch.setattr(prompts, "TOLD", 2)
    for sign in ("!", "?", "-"):
        assert notes([sign, "cat"], caplog) and not notes([sign, "cat"], caplog)
    assert not notes(["!", "cat"], caplog)  # two are no more than two
    assert notes(["+", "cat"], caplog) and notes(["!", "cat"], caplog)  # forgotten before the fourth


# ---- plans


def plan(names, synonyms="best", templates=("a {}",), tokenizer=True, background=None):
    reader = PromptReader(lambda name: name.strip("_"), Letters() if tokenizer else None, synonyms)
    return reader.plan(check_names(names), templates, background)


def test_each_class_has_the_prompts_that_no_class_before_it_has():
    made = plan({"cat": ["cat", "kitten"], "pet": ["kitten", "dog"], "dog": "dog", "kitten": ["kitten", "cat"]})
    assert made.names == ("cat", "pet", "dog", "kitten") and made.first == (0, 1, 1, 0)
    assert made.prompts == ("cat", "kitten", "dog", "dog", "kitten") and made.counts == (2, 1, 1, 1)
    assert made.several and not plan(["cat", "dog"]).several
    both, turned = ["cat", "kitten"], ["kitten", "cat"]
    averaged = plan({"cat": both, "kitten": turned, "pet": "cat", "else": turned}, "average", background=3)
    assert averaged.prompts == ("cat", "kitten", "kitten", "cat", "cat", "kitten")
    assert averaged.counts == (2, 2, 1, 1) and averaged.first == (0, 0, 2, 3)  # the last is the background


def test_rows_of_some_classes():
    made = plan(["cat | kitten", "sea", "dog | hound | whelp"])
    assert made.rows(torch.tensor([2, 0])).tolist() == [3, 4, 5, 0, 1]
    assert plan(["cat", "sea"]).rows(torch.tensor([1])).tolist() == [1]


def test_vocabularies_of_all_classes_and_of_some():
    made, rows = plan(["cat | kitten", "sea"]), torch.eye(3)
    whole = made.vocabulary(rows)
    assert (whole.names, whole.counts, whole.first) == (("cat", "sea"), (2, 1), (0, 1))
    some = made.vocabulary(rows[:2], [0])
    assert (some.names, some.counts, some.first) == (("cat",), (2,), None)
    assert made.vocabulary(rows[2:], [1]).counts is None
    averaged = plan(["cat | kitten", "sea", "wall | sky"], "average", background=2)
    whole = averaged.vocabulary(torch.eye(5))
    half = 0.5**0.5
    torch.testing.assert_close(whole.embeddings, torch.tensor([[half, half, 0, 0, 0], *torch.eye(5)[2:].tolist()]))
    assert (whole.counts, whole.background) == ((1, 1, 2), 2)
    one = averaged.vocabulary(torch.eye(5)[:2], [0])
    assert one.counts is None and one.background is None and one.embeddings.shape == (1, 5)


def test_prompts_are_told_apart_by_any_of_the_templates():
    names, long = ["b b a", "b b c", "dog"], "b b b b b b b b b b {}"
    assert plan(names, templates=(long,)).first == (0, 0, 2)
    assert plan(names, templates=(long, "a {}")).first == (0, 1, 2)
    assert plan(names, templates=("a {}", long)).first == (0, 1, 2)
    assert plan(names, templates=(long, long + " c")).first == (0, 0, 2)
    assert plan(["_cat", "cat"], tokenizer=False).first == (0, 0)  # by the subjects alone


def test_classes_of_maps_one_by_one_and_at_once():
    x = torch.tensor([[1.0, 5.0, 3.0, 2.0]])[..., None]
    for merge in (merge_rows, lambda maps, counts: merge_at_once(maps, tuple(counts))):
        assert merge(x, [2, 1, 1]).flatten().tolist() == [5, 3, 2]
        flags = merge(x > 2.5, [2, 1, 1])
        assert flags.dtype == torch.bool and flags.flatten().tolist() == [True, True, False]


def test_the_owners_of_prompts_may_be_used_in_training_afterwards():
    with torch.inference_mode():
        owners = prompts.owners_of((2, 1), torch.device("cpu"))
    assert owners.tolist() == [0, 0, 1] and not owners.is_inference()
