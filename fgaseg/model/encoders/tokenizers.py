"""The tokenizer that a text tower was trained with: open_clip's own, or one of Hugging Face's."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from open_clip import SimpleTokenizer
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from ...errors import EncoderError, VocabularyError
from ...files import atomic_directory
from ...weights.saved_config import read_object

OTHER_FILES = re.compile(r"auto_map|init_inputs|(?<!special_tokens_map)_files?$|_name_or_path$")  # keys of its settings
LARGEST_FILE = 128 << 20  # bytes; the vocabularies of a million tokens have less than half of that
SLACK = 0.01  # of the vocabulary: special tokens that a tokenizer counts and a text tower does not, or the reverse


class Tokenizer:
    """Prompts to token ids [N, context], padded.

    name         of the encoder, for messages
    text_config  open_clip's text_cfg
    files        a folder with the files of the tokenizer, in place of those on the Hugging Face Hub

    length       of the context, in tokens
    unknown      the token of what the tokenizer cannot write; None: it can write everything

    Raises EncoderError where it cannot be had, and VocabularyError where it is not the text tower's.
    """

    def __init__(self, name: str, text_config: dict[str, Any], files: str | Path | None = None):
        self.name, self.vocabulary = name, int(text_config.get("vocab_size", 49408))
        length, options = text_config.get("context_length", 77), text_config.get("tokenizer_kwargs") or {}
        self.length, self.unknown = int(length), None
        source = text_config.get("hf_tokenizer_name")
        self.hugging_face = bool(source)
        self.end = text_config.get("eos_id", 2) if text_config.get("pool_type") == "eos" else None
        if not source:
            self._tokenizer: Any = SimpleTokenizer(context_length=length, **options)
            self._check_size(self._tokenizer.vocab_size, slack=0)
            return
        mode = text_config.get("tokenizer_mode")
        if files is not None:
            _check_files(Path(files))
            options = {**options, "local_files_only": True}
        self._tokenizer = _hugging_face(name, str(files or source), length, tokenizer_mode=mode, **options)
        self._check_size(len(self._tokenizer.tokenizer), slack=int(SLACK * self.vocabulary))
        self.unknown = self._tokenizer.tokenizer.unk_token_id
        end = self._tokenizer.tokenizer.eos_token_id
        if self.end is not None and end != self.end:
            raise VocabularyError(
                f"encoder: the text tower of {name} reads token {self.end} as the end of text, and the tokenizer of "
                f"{files or source} ends with {end}: it is another model's"
            )

    def __call__(self, prompts: list[str]) -> Tensor:
        tokens: Tensor = self._tokenizer(prompts)
        if self.hugging_face and int(tokens.max()) >= self.vocabulary:
            row = int(tokens.amax(dim=1).argmax())
            raise VocabularyError(
                f"encoder: the tokenizer of {self.name} turns {prompts[row]!r} into token {int(tokens.max())}, and its "
                f"text tower knows {self.vocabulary}: it is another model's"
            )
        if self.end is not None and not (tokens == self.end).any(dim=1).all():
            row = int((tokens == self.end).any(dim=1).int().argmin())
            raise VocabularyError(
                f"encoder: the tokenizer of {self.name} gives {prompts[row]!r} no end-of-text token ({self.end}), at "
                "which the text tower is read"
            )
        return tokens

    def pieces(self, text: str) -> list[int]:
        """The tokens of a text of any length, without those that begin and end every prompt."""
        if not self.hugging_face:
            return list(self._tokenizer.encode(text))
        return list(self._tokenizer.tokenizer(self._clean(text), add_special_tokens=False)["input_ids"])

    def cut(self, prompt: str) -> str:
        """The end of a prompt that is beyond the context; empty if there is none."""
        if len(prompt.encode()) + 4 <= self.length:  # no token is shorter than a byte
            return ""
        pieces = self.pieces(prompt)
        added = 2
        if self.hugging_face:
            whole = self._tokenizer.tokenizer(self._clean(prompt))["input_ids"]
            added = 3 if self._tokenizer.tokenizer_mode == "clips" else len(whole) - len(pieces)
        rest = pieces[self.length - added :]
        if not rest:
            return ""
        decoded = self._tokenizer.tokenizer.decode(rest) if self.hugging_face else self._tokenizer.decode(rest)
        return str(decoded).strip() or "its end"

    def _clean(self, text: str) -> str:
        return str(self._tokenizer.clean_fn(text))

    def save(self, folder: Path) -> None:
        """Write the files of a Hugging Face tokenizer to a folder, atomically; open_clip brings its own along."""
        if self.hugging_face:
            with atomic_directory(folder) as temporary:
                self._tokenizer.save_pretrained(temporary)

    def _check_size(self, size: int, slack: int) -> None:
        if abs(size - self.vocabulary) > slack:
            raise VocabularyError(
                f"encoder: the text tower of {self.name} has a vocabulary of {self.vocabulary} tokens and the "
                f"tokenizer {size}: it is another model's (text_cfg.hf_tokenizer_name names the right one)"
            )


def _check_files(folder: Path) -> None:
    """Refuse what would make transformers open a file that is not in the folder, or run code of somebody's."""
    for file in sorted(folder.iterdir()):
        if (size := file.stat().st_size) > LARGEST_FILE:
            raise EncoderError(
                f"{file}: has {size:,} bytes; a tokenizer's files have at most {LARGEST_FILE:,}: refused"
            )
    for file in sorted(folder.glob("*config.json")):
        found = [key for key, value in read_object(file).items() if OTHER_FILES.search(key) and value is not None]
        if found:
            raise EncoderError(
                f"{file}: {found[0]!r} names other files or code; a saved tokenizer has its own, and it is refused"
            )


def _hugging_face(name: str, source: str, length: int, **options: Any) -> HFTokenizer:
    if importlib.util.find_spec("transformers") is None:
        raise EncoderError(
            f"encoder: the tokenizer of {name} needs transformers, which is not installed: pip install "
            "'fgaseg[tokenizers]'"
        )
    try:
        return HFTokenizer(source, context_length=length, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises a dozen types for missing files, networks and packages
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EncoderError(
            f"encoder: the tokenizer of {name} could not be read from {source} ({reason[:300]}); give a network, a "
            "Hugging Face cache that holds it, or FGASeg(..., tokenizer=folder)"
        ) from error
