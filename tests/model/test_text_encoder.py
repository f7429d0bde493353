"""Class names to embeddings: what the text tower is asked, and when a vocabulary is taken from the cache."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fgaseg.model import text_encoder
from fgaseg.model.text_encoder import TextEncoder


class Tower:
    """Texts by their letters, through weights of 5 and of 4·600 values; `asked` are the prompts of each call."""

    tokenizer = None

    def __init__(self, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        self.small, self.large = nn.Parameter(torch.ones(5, dtype=dtype)), nn.Parameter(torch.randn(4, 600).to(dtype))
        self.asked: list[list[str]] = []

    def text_weights(self):
        return [self.small, self.large]

    def text(self, prompts):
        self.asked.append(list(prompts))
        letters = torch.zeros(len(prompts), 600, dtype=self.large.dtype)
        for row, prompt in enumerate(prompts):
            for place, letter in enumerate(prompt.encode()):
                letters[row, (31 * place + letter) % 600] += 1
        return letters @ self.large.T * self.small.sum()


def test_each_prompt_is_asked_once_in_every_template():
    tower = Tower()
    vocabulary = TextEncoder(tower, ["a {}", "the {}!"]).encode(["red_car", "sky", "red car", "sea | red car"])
    assert tower.asked == [["a red car", "a sky", "a sea"], ["the red car!", "the sky!", "the sea!"]]
    means = torch.stack([F.normalize(tower.text(prompts)) for prompts in tower.asked[:2]]).mean(0)
    assert (means.norm(dim=1) < 0.99).all()  # so that there is something to renormalise
    torch.testing.assert_close(vocabulary.embeddings, F.normalize(means)[[0, 1, 0, 2]])
    assert vocabulary.names == ("red_car", "sky", "red car", "sea") and vocabulary.first == (0, 1, 0, 3)


def test_one_template_is_normalised_once():
    tower = Tower()
    names = [f"thing {i}" for i in range(200)]
    expected = F.normalize(tower.text([f"a {name}" for name in names]))
    assert not torch.equal(F.normalize(expected), expected)
    assert torch.equal(TextEncoder(tower, "a {}").encode(names).embeddings, expected)


@pytest.mark.parametrize("dtype, wide", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_embeddings_are_normalised_in_float32_or_wider(dtype, wide):
    tower = Tower(dtype)
    embeddings = TextEncoder(tower, "a {}").encode(["cat"]).embeddings
    assert embeddings.dtype == wide and torch.equal(embeddings, F.normalize(tower.text(["a cat"]).to(wide)))


def test_a_write_that_autograd_does_not_see_is_noticed():
    """Of a weight of few values any one is compared, of a larger one some all over it."""
    tower = Tower()
    encoder = TextEncoder(tower, "a {}")
    known = encoder.encode(["cat"])
    for index in range(5):
        tower.small.data[index] += 1
        assert encoder.encode(["cat"]) is not known
        tower.small.data[index] -= 1
        assert encoder.encode(["cat"]) is known
    tower.large.data.view(-1)[1200:] += 1
    assert encoder.encode(["cat"]) is not known


@pytest.mark.parametrize("names, settings", [
    (["dog"], {}), (["cat"], {"templates": ("the {}",)}), (["cat"], {"first_synonym": True}),
])  # fmt: skip
def test_a_vocabulary_is_of_its_names_and_settings(names, settings):
    encoder = TextEncoder(Tower(), "a {}")
    known = encoder.encode(["cat"])
    assert encoder.encode(("cat",)) is known
    for key, value in settings.items():
        setattr(encoder, key, value)
    assert encoder.encode(names) is not known


def test_the_cache_can_be_cleared():
    encoder = TextEncoder(Tower(), "a {}")
    known = encoder.encode(["cat"])
    encoder.clear_cache()
    again = encoder.encode(["cat"])
    assert again is not known and torch.equal(again.embeddings, known.embeddings)


def test_plans_and_vocabularies_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(text_encoder, "CACHED_VOCABULARIES", 2)
    tower = Tower()
    encoder = TextEncoder(tower, "a {}")
    plan, kept = encoder.plan(["cat"]), encoder.encode(["cat"])
    encoder.encode(["dog"])
    assert encoder.encode(["cat"]) is kept and encoder.plan(["cat"]) is plan
    encoder.encode(["sea"])  # the dog is the oldest
    assert encoder.encode(["cat"]) is kept and encoder.plan(["cat"]) is plan
    asked = len(tower.asked)
    encoder.encode(["dog"])
    assert len(tower.asked) == asked + 1


def test_gradients_are_recorded_where_they_are_wanted_and_possible():
    tower = Tower()
    encoder = TextEncoder(tower, "a {}")
    assert encoder.trains()
    for graph in (False, True):
        with torch.no_grad():
            assert not encoder.encode(["cat"], graph=graph).embeddings.requires_grad
            assert not encoder.embed(["cat"], graph=graph).requires_grad
        assert encoder.encode(["cat"], graph=graph).embeddings.requires_grad == graph
        assert encoder.embed(["cat"], graph=graph).requires_grad == graph
    assert encoder.encode(["cat"], graph=True) is not encoder.encode(["cat"], graph=True)
    assert not encoder.encode(["cat"]).embeddings.requires_grad and not encoder.embed(["cat"]).requires_grad
    tower.small.requires_grad_(False)
    assert encoder.trains()
    tower.large.requires_grad_(False)
    assert not encoder.trains()
    assert encoder.encode(["cat"], graph=True) is encoder.encode(["cat"], graph=True)


def test_embeddings_do_not_depend_on_where_they_are_asked_for():
    tower = Tower()
    expected = TextEncoder(tower, "a {}").encode(["cat"]).embeddings
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        encoder = TextEncoder(tower, "a {}")
        with context:
            for embeddings in (encoder.encode(["cat"]).embeddings, encoder.embed(["cat"])):
                assert torch.equal(embeddings, expected) and not embeddings.is_inference()


def test_an_encoder_without_weights_has_a_cache_too():
    encoder = TextEncoder(
        SimpleNamespace(tokenizer=None, text_weights=list, text=lambda some: torch.ones(len(some), 4)), "a {}"
    )
    assert encoder.encode(["cat"]) is encoder.encode(["cat"]) and not encoder.trains()


@pytest.mark.parametrize("name, whole, first", [
    ("traffic_light", "traffic light", "traffic light"),
    ("sofa, couch", "sofa, couch", "sofa"),
    ("sofa,couch", "sofa,couch", "sofa,couch"),
    (" a   b ", "a b", "a b"),
    ("ca\u00adt\u200b", "cat", "cat"),
    ("_, couch", ", couch", ", couch"),  # nothing would be left
    ("_", "_", "_"),
    ("\u200b", "\u200b", "\u200b"),
])  # fmt: skip
def test_what_is_put_into_a_template(name, whole, first):
    assert TextEncoder(Tower(), "a {}").subject(name) == whole
    assert TextEncoder(Tower(), "a {}", first_synonym=True).subject(name) == first


def test_how_synonyms_work_together_is_chosen():
    assert TextEncoder(Tower(), "a {}").encode(["cat | kitten", "dog"]).counts == (2, 1)
    assert TextEncoder(Tower(), "a {}", synonyms="average").encode(["cat | kitten", "dog"]).counts is None


def test_a_background_is_a_class_of_its_own():
    encoder = TextEncoder(Tower(), "a {}")
    vocabulary = encoder.encode(["cat"], background="wall, sky")
    assert vocabulary.names == ("cat", "background") and vocabulary.background == 1
    assert encoder.encode(["cat"]).background is None
