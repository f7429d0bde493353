"""tokenizer.json: the ids of the model's tokenizer, and words for what it reads otherwise."""

import builtins
import html
import json
import random
import re
import subprocess
import sys
import unicodedata
from types import SimpleNamespace

import ftfy
import pytest
from paths import SHARED
from small_encoders import OWN_TEXT, SIGLIP_TEXT, make_tokenizer

from fgaseg.data.benchmark_sets import CLASS_LISTS
from fgaseg.errors import ExportError
from fgaseg.export.tokenizer import LIMITS, write_tokenizer
from fgaseg.model.encoders import Tokenizer
from fgaseg.model.text_encoder import TextEncoder

tokenizers = pytest.importorskip("tokenizers")

CLIP = {"context_length": 77, "vocab_size": 49408}
TEMPLATES = ["a photo of a {}", "{}", "a bad photo of the {}.", "There is a {} in the scene."]
ODD = [
    "", " ", "cat", "CAT", "t-shirt", "it's", "IT'S", "we've we're we'll we'd I'm don't", "'sſ 'ſ", "1,000",
    "3.14 ½ ² Ⅷ", "a_b__c", "café", "cafe\u0301", "Ñandú", "İstanbul", "ΟΔΥΣΣΕΥΣ ΚΑΙ ΑΣ'Β Σ", "straße",
    "ﬁne ﬄ ŉ", "Ｗｉｄｅ　ｶﾅ", "白い猫", "고양이", "кошка", "قطة", "แมว", "🐈‍⬛🇫🇷👩🏽‍🚀",
    "“curly” ‘quotes’ ʼ", "a\u200bb\ufeffc\u00ad", "tab\tnew\nline\r\n", "\x1b[31mred\x1b[0m", "\x07bell\x7f",
    "no\u00a0break\u2003space", "x\u0345y", "<end_of_text>", "a<start_of_text>b", "<END_OF_TEXT>", "!?#$%",
    "C++ / C#", "R&B", "a <b> c", "!", "e" * 400,
]  # fmt: skip


def clip_tokenizer(**changes):
    return Tokenizer("small", {**CLIP, **changes})


def read(path):
    return tokenizers.Tokenizer.from_file(str(path))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The model's tokenizer, and its file as read again."""
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    model = clip_tokenizer()
    write_tokenizer(model, path)
    return model, read(path)


def names_of_class_lists():
    files = [json.loads(path.read_text()) for path in sorted(CLASS_LISTS.glob("*.json"))]
    lists = [content for content in files if isinstance(content, list)]
    assert len(lists) >= 6
    return list(dict.fromkeys(name for names in lists for name in names))


def drawn_texts(count):
    """Texts of 1 to 12 characters of any writing that this Python knows."""
    drawn, planes = random.Random(0), [(0x20, 0x250), (0x250, 0x2000), (0x2000, 0xD800), (0xE000, 0x20000)]
    known = [[chr(c) for c in range(*plane) if unicodedata.category(chr(c)) not in ("Cn", "Co")] for plane in planes]
    return ["".join(drawn.choices(drawn.choice(known), k=drawn.randint(1, 12))) for _ in range(count)]


def differing(model, file, texts):
    return [
        text
        for text, encoded, ids in zip(texts, file.encode_batch(texts), model(texts).tolist(), strict=True)
        if encoded.ids != ids
    ]


def as_said(text):
    """Whether the limits say that a text is read otherwise."""
    decoded = html.unescape(html.unescape(text)) != text
    repaired = ftfy.fix_text(text) != ftfy.fix_text(text, fix_encoding=False, unescape_html=False)
    sign = re.search("[^\\w\\s]<(start|end)_of_text>", text.lower()) is not None
    late = tokenizers.normalizers.NFC().normalize_str(text) != unicodedata.normalize("NFC", text)
    return decoded or repaired or sign or late


def test_same_ids_as_the_model_on_thousands_of_prompts(clip):
    model, file = clip
    names, words = names_of_class_lists(), list(model._tokenizer.encoder)
    subjects = [part for name in names for part in (name, name.split(", ")[0], name.title(), name.replace(" ", "_"))]
    texts = [template.format(name) for template in TEMPLATES for name in dict.fromkeys(subjects)]
    texts += [
        f"{before}{text}{after}" for text in ODD for before, after in (("", ""), ("a photo of a ", "."), ("'", "9"))
    ]
    texts += [" ".join(random.Random(i).choices(names, k=40)) for i in range(100)]  # cut
    words = random.Random(0).sample(words, 4000)
    texts += [word.replace("</w>", "") for word in words] + [word.replace("</w>", " x") for word in words[:1000]]
    texts += drawn_texts(3000)
    texts = list(dict.fromkeys(texts))
    exact = [text for text in texts if not as_said(text)]
    assert len(exact) >= 10_000
    assert len(texts) - len(exact) < 100
    assert differing(model, file, exact) == []


def test_every_known_character_is_read_alike(clip):
    model, file = clip
    texts = [f"x{chr(c)}Y{chr(c)}" for c in range(0x3000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    assert differing(model, file, [text for text in texts if not as_said(text)]) == []


def test_names_of_photos_are_read_alike(clip):
    if not (path := SHARED / "data" / "msrc_v2" / "names.txt").is_file():
        pytest.skip(reason=f"{path} is not there")
    assert differing(*clip, path.read_text().splitlines()) == []


@pytest.mark.parametrize(
    "text, limit", [("salt &amp; pepper", 0), ("&eacute;tage", 0), ("cafÃ©", 1), ("a !<end_of_text>", 2)]
)
def test_limits_say_what_is_read_otherwise(clip, text, limit):
    words = ("HTML entities", "decoded wrongly", "<end_of_text>")
    assert differing(*clip, [text]) == [text]
    assert words[limit] in LIMITS[limit]


def test_a_long_prompt_keeps_its_end(clip):
    ids = clip[1].encode("cat " * 100).ids
    assert (len(ids), ids[0], ids[-1]) == (77, 49406, 49407)
    ids = clip[1].encode("cat").ids
    assert (len(ids), ids[2:]) == (77, [49407] + [0] * 74)


@pytest.mark.parametrize("length", [5, 16])
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_other_lengths_and_cleaning(tmp_path, length, clean):
    model = clip_tokenizer(context_length=length, tokenizer_kwargs={"clean": clean})
    write_tokenizer(model, tmp_path / "tokenizer.json")
    texts = [text for text in ODD if "_text>" not in text.lower()]
    assert differing(model, read(tmp_path / "tokenizer.json"), texts) == []


def test_a_subject_is_what_the_page_says(clip):
    """The rule that programs follow, as the module's docstring gives it."""
    encoder = SimpleNamespace(tokenizer=None)
    for first in (True, False):
        model = TextEncoder(encoder, "a {}", first)
        for name in [*names_of_class_lists(), "traffic_light", " a  b ", "zero\u200bwidth", "one, two", "__", ", a"]:
            plain = "".join(c for c in name if c not in "\u200b\u2060\ufeff\u00ad") or name
            part = plain.split(", ")[0] if first else plain
            part = part if part.strip(" _") else plain
            assert model.subject(name) == (" ".join(part.replace("_", " ").split()) or plain)


def unigram(folder, **special):
    """A Hugging Face tokenizer that splits words into pieces, marks spaces, lowers nothing and ends with </s>."""
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=800, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
    )
    made.train_from_iterator([*names_of_class_lists()[:400], "Ñandú Çà 猫 ½"], trainer)
    made.add_special_tokens([AddedToken("<mask>", **special)])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **words).save_pretrained(folder)
    return made.get_vocab_size()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_a_hugging_face_tokenizer(tmp_path, clean, side):
    pytest.importorskip("transformers")
    size = unigram(tmp_path)
    options = {"clean": clean, "padding_side": side, "truncation_side": side}
    model = Tokenizer("small", {"context_length": 12, "vocab_size": size, "hf_tokenizer_name": str(tmp_path),
                                "tokenizer_kwargs": options})  # fmt: skip
    write_tokenizer(model, tmp_path / "file.json")
    texts = [t.format(name) for t in TEMPLATES for name in names_of_class_lists()[::5]]
    texts += [text for text in ODD if "_text>" not in text.lower()]
    assert differing(model, read(tmp_path / "file.json"), texts) == []


@pytest.mark.parametrize("text_config", [OWN_TEXT, SIGLIP_TEXT])
def test_the_small_encoders_tokenizer(tmp_path, text_config):
    pytest.importorskip("transformers")
    config = {**text_config, "hf_tokenizer_name": str(make_tokenizer(tmp_path / "made"))}
    model = Tokenizer("small", config)
    write_tokenizer(model, tmp_path / "tokenizer.json")
    texts = ["a photo of a cat", "Wooden Floor!", "much longer than the others have " * 4, "unknown"]
    assert differing(model, read(tmp_path / "tokenizer.json"), texts) == []


def test_a_file_that_would_differ_is_refused(tmp_path):
    """A sign of the tokenizer that cleaning turns into a word, which then would be that sign."""
    pytest.importorskip("transformers")
    size = unigram(tmp_path, normalized=True)
    model = Tokenizer("small", {"context_length": 12, "vocab_size": size, "hf_tokenizer_name": str(tmp_path),
                                "tokenizer_kwargs": {"clean": "canonicalize"}})  # fmt: skip
    with pytest.raises(ExportError, match=r"of small: as a file of tokenizers it reads 'a photo of a mask.' otherwise"):
        write_tokenizer(model, tmp_path / "file.json")
    assert not (tmp_path / "file.json").exists()


def test_says_why(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ExportError, match="shortens prompts by chance"):
        write_tokenizer(clip_tokenizer(tokenizer_kwargs={"reduction_mask": "simple"}), path)
    model = Tokenizer("small", {**OWN_TEXT, "hf_tokenizer_name": str(make_tokenizer(tmp_path / "made"))})
    for change, words in (({"tokenizer_mode": "clips"}, "afterwards .clips."), ({"strip_sep_token": True}, "strip_sep"),
                          ({"tokenizer": object()}, "object of transformers is written in Python")):  # fmt: skip
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setattr(model._tokenizer, name, value)
            with pytest.raises(ExportError, match=words):
                write_tokenizer(model, path)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError("No module named 'tokenizers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExportError, match=r"needs tokenizers .*fgaseg\[export\]"):
        write_tokenizer(model, path)
    assert not path.exists()


def test_the_file_is_read_by_tokenizers_alone(clip, tmp_path):
    """In a process without torch, transformers or a network's address."""
    path = tmp_path / "tokenizer.json"
    clip[1].save(str(path))
    code = (
        "import sys, tokenizers; ids = tokenizers.Tokenizer.from_file(sys.argv[1]).encode('a cat').ids;"
        "assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules); print(ids[:4])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([49406, 320, 2368, 49407])
