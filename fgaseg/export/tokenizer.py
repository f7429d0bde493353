"""The tokenizer of a text tower as a file of the `tokenizers` library, which reads it in several languages.

Its ids are those of the model's tokenizer, begun, ended, cut and padded. What goes in is a prompt as `TextEncoder`
makes it, and the program that runs the graphs has to make it likewise from a class name (`TextEncoder.subject`):
U+200B, U+2060, U+FEFF and U+00AD are taken out; with `first_synonym` only the part before the first ", " is kept;
underscores become spaces; spaces at both ends go, and several in a row become one; the rest goes into the template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.benchmark_sets import CLASS_LISTS
from ..errors import ExportError
from ..files import atomic_write
from ..model.encoders import Tokenizer

if TYPE_CHECKING:
    import tokenizers

TOKENIZER = "tokenizer.json"
# The pattern of open_clip's SimpleTokenizer, which ignores case: U+017F is a small s then, and U+0345, a small iota,
# is neither a letter nor anything else, so that it is left out.
WORDS = (
    r"'[sSſ]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|\p{L}+|\p{N}|"
    r"[^\s\p{L}\p{N}\x{345}]+"
)
PUNCTUATION = r"[!-/:-@\[-`{-~]"  # of ASCII
# Python's rule for the small form of a sigma that ends a word; `tokenizers` lowers letters one by one
LAST_SIGMA = r"\p{Cased}\p{Case_Ignorable}*\KΣ(?!\p{Case_Ignorable}*\p{Cased})"

# of the files, in a manifest
LIMITS = [
    "tokenizer.json: HTML entities (&amp;) are read as they are written; fgaseg decodes them: write the sign itself",
    "tokenizer.json: text that was decoded wrongly (cafÃ©) is read as it is written; fgaseg repairs it",
    "tokenizer.json: signs of the tokenizer itself (such as <end_of_text>) beside punctuation may be read otherwise",
    "tokenizer.json: letters and accents that Unicode received lately may be read otherwise, as versions of tokenizers "
    "know them or not",
]


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> list[str]:
    """Write a file for `tokenizers.Tokenizer.from_file`, whose `encode(prompt).ids` are those of a model's tokenizer.

    Returns what it cannot do as the model's tokenizer does, in sentences. What is written is read again, and compared
    with the model's tokenizer on the names of all class lists and on prompts that are cut, accented or in another
    writing. Raises ExportError for a tokenizer that no such file can hold, or without `tokenizers`.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ExportError(
            f"the tokenizer as a file needs tokenizers ({error}): pip install 'fgaseg[export]', or leave the part text "
            "out"
        ) from None
    made = _hugging_face(tokenizer) if tokenizer.hugging_face else _open_clip(tokenizer)
    content = made.to_str()
    _check(tokenizer, tokenizers.Tokenizer.from_str(content))
    atomic_write(path, lambda file: file.write(content.encode()))
    return list(LIMITS)


def _open_clip(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The byte-pair encoding of open_clip's SimpleTokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

    own = tokenizer._tokenizer
    if own.reduction_fn is not None:
        raise ExportError(f"tokenizer of {tokenizer.name}: shortens prompts by chance or by grammar; no file does that")
    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.get)
    made = Tokenizer(models.BPE(vocab=own.encoder, merges=merges, end_of_word_suffix="</w>"))
    made.normalizer = _cleaning(own.clean_fn)
    words = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    special = [(own.decoder[one], one) for one in own.all_special_ids]
    # looked for in cleaned text; where cleaning takes their brackets away, no text becomes one
    cleaned = own.clean_fn(special[0][0]) == special[0][0]
    made.add_special_tokens([AddedToken(text, normalized=cleaned) for text, _ in special])
    (first, _), (last, _) = special[:2]
    made.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=special[:2])
    made.enable_truncation(tokenizer.length)
    made.enable_padding(length=tokenizer.length, pad_id=0, pad_token=own.decoder[0])
    return made


def _hugging_face(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer of transformers, with open_clip's cleaning before it."""
    from tokenizers import Tokenizer

    wrapper = tokenizer._tokenizer
    own = wrapper.tokenizer
    if (backend := getattr(own, "backend_tokenizer", None)) is None:
        raise ExportError(
            f"tokenizer of {tokenizer.name}: {type(own).__name__} of transformers is written in Python and has no file "
            "of tokenizers; export with the parts image and head"
        )
    if wrapper.tokenizer_mode or wrapper.strip_sep_token:
        mode = wrapper.tokenizer_mode or "strip_sep_token"
        raise ExportError(
            f"tokenizer of {tokenizer.name}: open_clip changes its tokens afterwards ({mode}), which no file of "
            "tokenizers does; export with the parts image and head"
        )
    made = Tokenizer.from_str(backend.to_str())
    made.normalizer = _cleaning(wrapper.clean_fn, made.normalizer)
    made.enable_truncation(tokenizer.length, direction=own.truncation_side)
    made.enable_padding(
        direction=own.padding_side, pad_id=own.pad_token_id, pad_type_id=own.pad_token_type_id,
        pad_token=own.pad_token, length=tokenizer.length,
    )  # fmt: skip
    return made


def _cleaning(function: Any, then: tokenizers.normalizers.Normalizer | None = None) -> Any:
    """What open_clip does to a prompt before it is split, as far as single characters go, and another normalizer.

    ftfy: Windows-1252 for control characters, ligatures, widths, straight quotes, no control characters, NFC. Not its
    guesses about wrong encodings, and no entities of HTML, which are more than replacements.
    """
    from ftfy import chardata
    from open_clip.tokenizer import get_clean_fn
    from tokenizers import Regex, normalizers

    characters = {chr(i): bytes([i]).decode("sloppy-windows-1252") for i in range(0x80, 0xA0)}
    characters |= {chr(key): value for key, value in (chardata.LIGATURES | chardata.WIDTH_MAP).items()}
    controls = "".join(f"\\x{{{key:x}}}" for key in chardata.CONTROL_CHARS)
    replaced = [(key, value) for key, value in characters.items() if key != value] + [
        (Regex(chardata.DOUBLE_QUOTE_RE.pattern), '"'),
        (Regex(chardata.SINGLE_QUOTE_RE.pattern), "'"),
        (Regex(r"\x{1b}\[[0-9;]*[a-zA-Z]"), ""),
        (Regex(f"[{controls}]"), ""),
    ]
    steps: list[Any] = [*(normalizers.Replace(*one) for one in replaced), normalizers.NFC()]
    if function is get_clean_fn("canonicalize"):
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(PUNCTUATION), "")]
    if function is not get_clean_fn("whitespace"):
        steps += [normalizers.Replace(Regex(LAST_SIGMA), "ς"), normalizers.Lowercase()]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return normalizers.Sequence([*steps, *([then] if then is not None else [])])


def _check(tokenizer: Tokenizer, made: tokenizers.Tokenizer) -> None:
    """Raise ExportError for the first prompt that the file reads otherwise than the model's tokenizer."""
    prompts = ["", *(f"a photo of a {name}." for name in _names(tokenizer, made)), "cat " * tokenizer.length]
    for prompt, encoded, ids in zip(prompts, made.encode_batch(prompts), tokenizer(prompts).tolist(), strict=True):
        if encoded.ids != ids:
            raise ExportError(
                f"tokenizer of {tokenizer.name}: as a file of tokenizers it reads {prompt[:60]!r} otherwise than in "
                f"the model: {encoded.ids[:12]} instead of {ids[:12]}"
            )


def _names(tokenizer: Tokenizer, made: tokenizers.Tokenizer) -> list[str]:
    """Names of the longest class lists, names that tokenizers differ on, and words that its own signs may become."""
    lists = [json.loads((CLASS_LISTS / name).read_text()) for name in ("ade847.json", "pc459.json")]
    signs = [token.content for token in made.get_added_tokens_decoder().values()]
    words = [word for sign in signs if (word := tokenizer._clean(sign)) != sign]
    return [*lists[0], *lists[1], *words, "t-shirt, it's 1,000 R'N'B's", "Çà et là: Ñandú, İß", "ΟΔΥΣΣΕΥΣ", "白い猫",
            "🐈‍⬛ ½ ²", "“ﬁne” Ｗｉｄｅ‘s"]  # fmt: skip
