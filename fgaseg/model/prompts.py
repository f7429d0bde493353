"""Class names to prompts: synonyms, names that are the same to a text tower, and what it cannot read."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vocabulary import ClassPrompts, Vocabulary
from .encoders import Tokenizer

log = logging.getLogger(__name__)

SHOWN = 6  # names in a message
TOLD = 10_000  # notes after which they may come again
_told: set[tuple[str, str]] = set()  # notes and the names that they were about, of all models of the process
_LIST = re.compile(r"[;{}\[\]]")  # in no name
_LISTED = re.compile(r",\s*\w|\w\.\s+\w+\.|\s[/+]\s")  # in none that is the only one


@dataclass(frozen=True)
class PromptPlan:
    """The prompts of some classes.

    names    S of them
    prompts  T texts, those of a class one after the other
    counts   how many each class has
    first    the class that gets the pixels of each class: the first of those that have the same prompt
    average  the embeddings of a class are averaged; else its largest logit counts
    background  the class that stands for everything else, of which the largest logit always counts; None: there is none
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    counts: tuple[int, ...]
    first: tuple[int, ...]
    average: bool
    background: int | None = None

    @property
    def several(self) -> bool:
        """Whether any class has several prompts."""
        return len(self.prompts) > len(self.names)

    def rows(self, classes: Tensor) -> Tensor:
        """The indices of the prompts of some classes (int64, on the CPU)."""
        if not self.several:
            return classes
        ends = torch.tensor(self.counts).cumsum(0)
        return torch.cat([torch.arange(int(ends[one]) - self.counts[one], int(ends[one])) for one in classes.tolist()])

    def vocabulary(self, embeddings: Tensor, classes: Sequence[int] | None = None) -> Vocabulary:
        """The vocabulary of all classes or some, from the embeddings [T, C] of their prompts."""
        chosen = range(len(self.names)) if classes is None else classes
        names, first = tuple(self.names[one] for one in chosen), self.first if classes is None else None
        background = self.background if classes is None else None
        counts = tuple(self.counts[one] for one in chosen)
        if self.average and len(embeddings) > len(names):
            parts = [
                part if len(part) == 1 or one == self.background else F.normalize(part.mean(0, keepdim=True), dim=-1)
                for one, part in zip(chosen, embeddings.split(counts), strict=True)
            ]
            embeddings, counts = torch.cat(parts), tuple(len(part) for part in parts)
        return Vocabulary(names, embeddings, counts if len(embeddings) > len(names) else None, first, background)


@dataclass(frozen=True)
class PromptReader:
    """Makes plans, and tells once what a user may not expect about the names.

    subject    the text of a prompt that is substituted into the templates
    synonyms   how the prompts of one class work together: their best logit counts, or their mean embedding
    """

    subject: Callable[[str], str]
    tokenizer: Tokenizer | None
    synonyms: Literal["best", "average"]

    def plan(
        self, classes: Sequence[ClassPrompts], templates: tuple[str, ...], background: int | None = None
    ) -> PromptPlan:
        """The prompts of classes, to be put into templates with one `{}` each.

        background  the class that stands for everything else; None: there is none
        """
        subjects = {prompt: self.subject(prompt) for one in classes for prompt in one.prompts}
        keys = self._keys(list(dict.fromkeys(subjects.values())), templates)
        key_of = {prompt: keys[subject] for prompt, subject in subjects.items()}
        plan = self._separate(classes, key_of, background)
        self._tell_lists(classes)
        self._tell_underscores(subjects)
        self._tell_equal(classes, key_of)
        self._tell_unreadable(subjects, templates[0])
        return plan

    def _keys(self, subjects: list[str], templates: tuple[str, ...]) -> dict[str, Hashable]:
        """What the text tower sees of each subject: subjects with equal keys have equal embeddings."""
        keys: dict[str, Hashable] = {one: one for one in subjects}
        if self.tokenizer is None:
            return keys
        groups: dict[Hashable, list[str]] = {}
        for one, row in zip(subjects, self._tokens(subjects, templates[0]), strict=True):
            keys[one] = row
            groups.setdefault(row, []).append(one)
        for group in groups.values():  # cut in one template, they may differ in another
            if len(group) > 1 and len(templates) > 1:
                rows = zip(*(self._tokens(group, template) for template in templates), strict=True)
                keys.update(zip(group, rows, strict=True))
        return keys

    def _tokens(self, subjects: Sequence[str], template: str) -> list[Hashable]:
        assert self.tokenizer is not None
        return [tuple(row) for row in self.tokenizer([template.format(one) for one in subjects]).tolist()]

    def _separate(
        self, classes: Sequence[ClassPrompts], key_of: dict[str, Hashable], background: int | None
    ) -> PromptPlan:
        """Each class with the prompts that no class before it has; a class that has none of its own left gives its
        pixels to the first that has its first prompt."""
        owner: dict[Hashable, int] = {}
        prompts, counts, first = list[str](), list[int](), list[int]()
        for number, (_, words) in enumerate(classes):
            average = self.synonyms == "average" and number != background  # its prompts are different things
            if average or len(words) == 1:
                own = words
                key = tuple(sorted(str(key_of[word]) for word in words)) if len(words) > 1 else key_of[words[0]]
                first.append(owner.setdefault(key, number))
            else:
                own = tuple(word for word in words if owner.setdefault(key_of[word], number) == number)
                first.append(number if own else owner[key_of[words[0]]])
                own = own or words[:1]
            prompts += own
            counts.append(len(own))
        names = tuple(one.name for one in classes)
        first_of = tuple(first)
        return PromptPlan(names, tuple(prompts), tuple(counts), first_of, self.synonyms == "average", background)

    # ---- what is told

    def _tell(self, level: int, names: Sequence[str], text: str) -> None:
        """One line about names that it was not yet told about; {names} in the text stands for some of them."""
        new = [one for one in dict.fromkeys(names) if (text, one) not in _told]
        if new:
            if len(_told) > TOLD:
                _told.clear()
            _told.update((text, one) for one in new)
            more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
            log.log(level, "class names: %s", text.format(names=", ".join(new[:SHOWN]) + more))

    def _tell_lists(self, classes: Sequence[ClassPrompts]) -> None:
        prompts = [prompt for one in classes for prompt in one.prompts]
        found = [repr(_short(prompt)) for prompt in prompts if _LIST.search(prompt)]
        if len(prompts) == 1 and _LISTED.search(prompts[0]):
            found = [repr(_short(prompts[0]))]
        self._tell(logging.WARNING, found, "read as one name, though it looks like several: {names}; give a list with "
                   "one name for each class")  # fmt: skip

    def _tell_underscores(self, subjects: dict[str, str]) -> None:
        found = [f"{prompt!r} as {subject!r}" for prompt, subject in subjects.items() if "_" in prompt]
        self._tell(logging.INFO, found, "underscores are read as spaces: {names}")

    def _tell_equal(self, classes: Sequence[ClassPrompts], key_of: dict[str, Hashable]) -> None:
        first: dict[Hashable, tuple[int, str]] = {}
        found = []
        for number, (_, words) in enumerate(classes):
            for word in words:
                before, like = first.setdefault(key_of[word], (number, word))
                one, other = _of(classes[number], word), _of(classes[before], like)
                if before != number:
                    found.append(f"{one} is {other}" if one != other else f"{one} is there twice")
        self._tell(
            logging.INFO, found, "these prompts are the same tokens, and the first class that has one gets its pixels: "
            "{names}",
        )  # fmt: skip

    def _tell_unreadable(self, subjects: dict[str, str], template: str) -> None:
        unique = list(dict.fromkeys(subjects.values()))
        wordless = [one for one in unique if not any(char.isalnum() for char in one)]
        self._tell(logging.WARNING, [repr(one) for one in wordless], "no letter and no number in {names}: signs alone "
                   "name nothing that the text tower was trained on")  # fmt: skip
        if self.tokenizer is None:
            return
        cut = {one: rest for one in unique if (rest := self.tokenizer.cut(template.format(one)))}
        self._tell(logging.WARNING, [f"{_short(one)!r} without {_short(rest)!r}" for one, rest in cut.items()],
                   f"prompts are cut after {self.tokenizer.length} tokens: {{names}}")  # fmt: skip
        strange = [one for one in unique if one not in wordless and self._in_pieces(one)]
        self._tell(logging.WARNING, [repr(one) for one in strange], "the text tower hardly knows {names}: to "
                   "its tokenizer that is single bytes, or unknown; write it in English")  # fmt: skip

    def _in_pieces(self, subject: str) -> bool:
        """Whether a word in another writing falls into as many tokens as it has letters, or into unknown ones."""
        assert self.tokenizer is not None
        letters = [char for char in subject if char.isalpha()]
        latin = all("LATIN" in unicodedata.name(char, "") for char in letters)
        if latin and self.tokenizer.unknown is None:
            return False
        pieces = self.tokenizer.pieces(subject)
        return self.tokenizer.unknown in pieces or (not latin and len(pieces) >= len(letters))


def _of(one: ClassPrompts, prompt: str) -> str:
    return repr(prompt) if prompt == one.name else f"{prompt!r} of {one.name!r}"


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def merge_rows(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The largest [B, S, ...] of the maps (or flags) [B, T, ...] of each class, which has `counts` of them."""
    if x.is_cuda:  # one launch for all classes, not one for each
        return merge_at_once(x, tuple(counts))
    return torch.cat([part.amax(dim=1, keepdim=True) for part in x.split(list(counts), dim=1)], dim=1)


def merge_at_once(x: Tensor, counts: tuple[int, ...]) -> Tensor:
    """`merge_rows` in a number of operations that does not grow with the classes."""
    if x.dtype == torch.bool:
        return merge_at_once(x.to(torch.uint8), counts).bool()
    traced = torch.compiler.is_compiling() or type(x) is not Tensor  # a tracer's tensors may not outlive the call
    owners = (owners_of if traced else _cached_owners)(counts, x.device)
    merged = x.new_empty(x.shape[0], len(counts), *x.shape[2:])
    return merged.scatter_reduce(1, owners.view(-1, *[1] * (x.ndim - 2)).expand_as(x), x, "amax", include_self=False)


def owners_of(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """The class of every prompt, int64 [T]."""
    with torch.inference_mode(False):  # an inference tensor could not be used in training later
        classes = torch.arange(len(counts))
        return torch.repeat_interleave(classes, torch.tensor(counts), output_size=sum(counts)).to(device)


_cached_owners = lru_cache(maxsize=16)(owners_of)


def classes_of_rows(parts: Iterator[tuple[Tensor, Tensor]], counts: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """(classes [s], logits [B, s, ...]) of (prompts [c], logits [B, c, ...]), both ascending, in parts.

    A class whose prompts are in several parts comes once, when the last of them is there.
    """
    owner = owners_of(tuple(counts), torch.device("cpu"))
    held: tuple[Tensor, Tensor] | None = None  # the last class so far, of which more prompts may come
    for rows, logits in parts:
        if len(rows) == len(owner):  # all prompts in one part: nothing has to be asked of the device
            yield torch.arange(len(counts), device=rows.device), merge_rows(logits, counts)
            return
        classes, sizes = owner.to(rows.device)[rows].unique_consecutive(return_counts=True)
        merged = merge_rows(logits, sizes.tolist())
        if held is not None and held[0] == classes[0]:
            merged = torch.cat([torch.maximum(held[1], merged[:, :1]), merged[:, 1:]], dim=1)
        elif held is not None:
            classes, merged = torch.cat([held[0], classes]), torch.cat([held[1], merged], dim=1)
        held = classes[-1:], merged[:, -1:]
        if len(classes) > 1:
            yield classes[:-1], merged[:, :-1]
    if held is not None:
        yield held
