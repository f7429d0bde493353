"""The right tokenizer or an error: Hugging Face's through open_clip's class, checked against the text tower."""

import json
import socket
import sys

import pytest
import torch
from open_clip import SimpleTokenizer
from small_encoders import (
    OWN_TEXT,
    PLAIN_TEXT,
    SIZES,
    SPECIAL,
    WORDS,
    encoder_section,
    make_tokenizer,
    small_encoder,
    small_model,
)

from fgaseg import EncoderConfig, FGASeg, ModelConfig
from fgaseg.errors import EncoderError, VocabularyError
from fgaseg.model.encoders import tokenizers
from fgaseg.model.encoders.tokenizers import Tokenizer

SIZE = len(WORDS) + len(SPECIAL)
HUB = {**OWN_TEXT, "hf_tokenizer_name": "someone/tokenizer", "pool_type": "eos", "eos_id": 1}


def test_plain_clip_has_open_clips_own():
    tokens = Tokenizer("plain", PLAIN_TEXT)(["a cat", "!?"])
    assert torch.equal(tokens, SimpleTokenizer(context_length=16)(["a cat", "!?"]))


def test_tokens_are_those_of_hugging_face_cleaned_as_the_configuration_says(tokenizer):
    text = {**HUB, "tokenizer_kwargs": {"clean": "canonicalize"}, "context_length": 6}
    ids = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokens = Tokenizer("mine", text, tokenizer)(["A red, CAT!", "unheard thing", "a a a a a a a a a"])
    assert tokens.tolist() == [
        [ids["a"], ids["red"], ids["cat"], 1, 0, 0],
        [2, ids["thing"], 1, 0, 0, 0],
        [ids["a"]] * 5 + [1],
    ]
    assert Tokenizer("mine", {**text, "tokenizer_kwargs": {}}, tokenizer)(["CAT"])[0, 0] == 2  # cased without it


def test_the_files_of_a_saved_tokenizer_are_read_and_nothing_else(tokenizer, monkeypatch):
    asked = {}

    def refuse(name, source, length, **options):
        asked.update(options, source=source)
        raise EncoderError("asked")

    monkeypatch.setattr(tokenizers, "_hugging_face", refuse)
    with pytest.raises(EncoderError, match="asked"):
        Tokenizer("mine", HUB, tokenizer)
    assert asked["source"] == str(tokenizer) and asked["local_files_only"] is True


@pytest.mark.parametrize("length", [4, 6, 16])
@pytest.mark.parametrize("prompt", ["a red cat", "a a a a a", "thing " * 20, "red " * 14, "a", "猫 " * 9, ""])
def test_what_is_cut_of_a_prompt(prompt, length, tokenizer):
    """It is what is missing in the tokens, with both kinds of tokenizers."""
    for mine in (
        Tokenizer("plain", {**PLAIN_TEXT, "context_length": length}),
        Tokenizer("mine", {**HUB, "context_length": length}, tokenizer),
    ):
        whole, cut = mine.pieces(prompt), mine.cut(prompt)
        room = length - (1 if mine.hugging_face else 2)
        assert bool(cut) == (len(whole) > room)
        words = prompt.split()
        if cut and words[0].isascii():
            assert cut.split() == words[room:]
    assert Tokenizer("plain", PLAIN_TEXT).unknown is None and Tokenizer("mine", HUB, tokenizer).unknown == 2


def test_words_that_a_tokenizer_does_not_have_are_told(tokenizer, caplog):
    model = small_model("worldwide", tokenizer)
    model.encode(["cat", "unheard", "red"])
    assert "'unheard'" in caplog.text and "'cat'" not in caplog.text
    assert model.first_of_equals(model.encode(["unheard", "unseen", "cat"])) == [0, 0, 2]


@pytest.mark.parametrize("size", [49408 + 1000, 901629, 30000])
def test_open_clips_own_tokenizer_on_another_text_tower_is_refused_both_ways(size):
    """What happened to ViT-H-14-worldwide: the vocabulary was large enough, and every word another one."""
    with pytest.raises(VocabularyError, match=f"of mine has a vocabulary of {size} tokens and the tokenizer 49408"):
        Tokenizer("mine", {**PLAIN_TEXT, "vocab_size": size})


@pytest.mark.parametrize("size", [SIZE // 2, SIZE * 2])
def test_a_tokenizer_of_another_model_is_refused_both_ways(size, tokenizer):
    with pytest.raises(VocabularyError, match=f"of {size} tokens and the tokenizer {SIZE}: it is another model's"):
        Tokenizer("mine", {**HUB, "vocab_size": size}, tokenizer)


def test_another_end_of_text_is_refused(tokenizer):
    with pytest.raises(VocabularyError, match="reads token 2 as the end of text, and the tokenizer of .* ends with 1"):
        Tokenizer("mine", {**HUB, "eos_id": 2}, tokenizer)


def test_tokens_that_the_tower_does_not_know_and_prompts_without_an_end_are_refused(tokenizer):
    mine = Tokenizer("mine", HUB, tokenizer)
    mine.vocabulary = SIZE - 1
    with pytest.raises(VocabularyError, match=f"turns 'a than' into token {SIZE - 1}, and its text tower knows"):
        mine(["a cat", "a than"])
    mine = Tokenizer("mine", HUB, tokenizer)
    mine.end = 3
    with pytest.raises(VocabularyError, match="gives 'a cat' no end-of-text token .3."):
        mine(["a cat"])


def test_without_transformers_one_line_says_what_to_install(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EncoderError, match=r"of mine needs transformers.*pip install 'fgaseg\[tokenizers\]'$"):
        Tokenizer("mine", HUB, tokenizer)


def test_a_tokenizer_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for files in (tmp_path, None):
        with pytest.raises(
            EncoderError, match="the tokenizer of mine could not be read from .*give a network"
        ) as caught:
            Tokenizer("mine", HUB, files)
        assert len(str(caught.value).splitlines()) == 1


def test_the_files_that_are_given_are_used(tokenizer, tmp_path):
    section = encoder_section("worldwide", tokenizer)
    section["architecture"]["text_cfg"]["hf_tokenizer_name"] = "someone/tokenizer"
    model = FGASeg(ModelConfig(encoder=section, **SIZES), tokenizer=tokenizer)
    assert model.encode(["cat", "dog"]).embeddings.isfinite().all()


def test_a_saved_model_brings_its_tokenizer_along(tmp_path, monkeypatch):
    """Nothing is read from where it came from, and no network is asked."""

    def connect(*_):
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    source = make_tokenizer(tmp_path / "source")
    model = FGASeg(ModelConfig(encoder=encoder_section("SigLIP", source), **SIZES)).eval()
    model.save_pretrained(tmp_path / "saved")
    expected = model.encode(["cat", "dog"]).embeddings
    for file in source.iterdir():
        file.unlink()
    again = FGASeg.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.encode(["cat", "dog"]).embeddings, expected)
    again.save_pretrained(tmp_path / "twice")
    assert FGASeg.from_pretrained(tmp_path / "twice").encoder.mean == (0.5, 0.5, 0.5)
    # and so does a model whose encoder is taken
    taken = {**encoder_section("SigLIP", source), "pretrained": str(tmp_path / "saved")}
    other = FGASeg(ModelConfig(encoder=taken, **SIZES)).eval()
    assert torch.equal(other.encode(["cat", "dog"]).embeddings, expected)


def test_plain_clip_saves_no_tokenizer(tmp_path, tokenizer):
    section = encoder_section("plain CLIP", tokenizer)
    FGASeg(ModelConfig(encoder=section, **SIZES)).save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer").exists()
    saved = json.loads((tmp_path / "config.json").read_text())["encoder"]
    assert saved["mean"] == [0.48145466, 0.4578275, 0.40821073] and saved["dense"] == "value"
    assert EncoderConfig(**saved).architecture == section["architecture"]


def test_long_prompts_keep_their_end(tokenizer):
    ours = small_encoder("worldwide", tokenizer)
    assert ours.text(["a " * 40 + "cat", "dog"]).isfinite().all()
