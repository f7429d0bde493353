"""Class names to embeddings: prompt templates, and a cache that follows the weights of the text tower."""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import with_background
from ..threads import adjust_threads
from ..vocabulary import ClassNames, Vocabulary, check_names
from .encoders import Encoder
from .precision import full_precision
from .prompts import PromptPlan, PromptReader

CACHED_VOCABULARIES = 16
# zero-width spaces, byte order marks and soft hyphens, which come along with copied text
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))
SAMPLES = 256  # values of each weight that are compared before a cached vocabulary is used again


class TextEncoder:
    """The text tower of an encoder, given class names. Wraps the encoder without owning its weights.

    template       a format string with one `{}`, or several: their embeddings are averaged and renormalised
    first_synonym  embed only the part of a prompt before its first comma
    synonyms       how several prompts of one class work together: the best logit counts, or the mean embedding
    """

    def __init__(
        self,
        encoder: Encoder,
        template: str | Sequence[str],
        first_synonym: bool = False,
        synonyms: Literal["best", "average"] = "best",
    ):
        self.encoder = encoder
        self.templates = (template,) if isinstance(template, str) else tuple(template)
        self.first_synonym = first_synonym
        self._reader = PromptReader(self.subject, encoder.tokenizer, synonyms)
        self._plans: OrderedDict[tuple, PromptPlan] = OrderedDict()
        self._cache: OrderedDict[tuple, Vocabulary] = OrderedDict()

    def plan(self, names: ClassNames, background: str | Sequence[str] | None = None) -> PromptPlan:
        """The prompts of class names; what may surprise about them is logged once."""
        classes, index = check_names(names), None
        if background is not None:
            classes, index = with_background(classes, background)
        key = (classes, index, self.templates, self.first_synonym)
        if key not in self._plans:
            self._plans[key] = self._reader.plan(classes, self.templates, index)
        return _latest(self._plans, key)

    def encode(
        self, names: ClassNames, graph: bool = False, background: str | Sequence[str] | None = None
    ) -> Vocabulary:
        """Embed class names, or take them from the cache; with `graph`, record gradients and cache nothing."""
        plan = self.plan(names, background)
        if graph and torch.is_grad_enabled() and self.trains():
            return plan.vocabulary(self._embed(plan.prompts))
        with self._without_context():
            key = (plan, self.templates, self.first_synonym, self._weights_key())
            if key not in self._cache:
                self._cache[key] = plan.vocabulary(self._embed(plan.prompts))
        return _latest(self._cache, key)

    def embed(self, prompts: Sequence[str], graph: bool = False) -> Tensor:
        """Unit embeddings [T, C] of the prompts of a plan, or of some of them, as `encode` gives them; not cached."""
        if graph and torch.is_grad_enabled() and self.trains():
            return self._embed(prompts)
        with self._without_context():
            return self._embed(prompts)

    @contextlib.contextmanager
    def _without_context(self) -> Iterator[None]:
        """Independent of the caller's context: a cached vocabulary may serve training, or be used without autocast."""
        weights = self.encoder.text_weights()
        device = weights[0].device.type if weights else "cpu"
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            yield

    def clear_cache(self) -> None:
        """Forget all embeddings. Needed only after single values of a weight were written through `.data`."""
        self._cache.clear()

    def subject(self, name: str) -> str:
        """The text substituted into the template; prompts with equal subjects have equal embeddings."""
        name = name.translate(_INVISIBLE) or name
        first = name.split(", ")[0] if self.first_synonym else name
        return " ".join((first if first.strip(" _") else name).replace("_", " ").split()) or name

    def first_of_equals(self, names: ClassNames) -> list[int]:
        """For every class the first class with the same prompt, usually itself."""
        return list(self.plan(names).first)

    def trains(self) -> bool:
        """Whether any weight of the text tower does."""
        return any(weight.requires_grad for weight in self.encoder.text_weights())

    def _weights_key(self) -> tuple:
        """Changes when the tower's weights do, without reading all of them.

        Version counters and addresses follow optimizers, `load_state_dict`, `to` and every other write that autograd
        sees. Writes through `.data` leave both as they are: samples of every weight are compared for these.
        """
        weights = self.encoder.text_weights()
        seen = tuple((w._version, w.data_ptr()) for w in weights)
        if not weights:
            return seen
        samples = torch.cat([w.detach().flatten()[:: max(w.numel() // SAMPLES, 1)] for w in weights])
        values = hashlib.sha256(samples.float().cpu().numpy().tobytes()).digest()
        return str(samples.device), samples.dtype, seen, values

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        adjust_threads()
        subjects = [self.subject(prompt) for prompt in prompts]
        unique = {s: i for i, s in enumerate(dict.fromkeys(subjects))}
        embeddings = torch.stack([self._prompts([t.format(s) for s in unique]) for t in self.templates]).mean(0)
        if len(self.templates) > 1:
            embeddings = F.normalize(embeddings, dim=-1)
        return embeddings[torch.tensor([unique[s] for s in subjects], device=embeddings.device)]

    def _prompts(self, prompts: list[str]) -> Tensor:
        """[N, C] unit embeddings."""
        return F.normalize(full_precision(self.encoder.text(prompts)), dim=-1)


def _latest(cache: "OrderedDict[Any, Any]", key: Any) -> Any:
    """An entry of a cache, which from now on is its latest; the oldest one goes where there are too many."""
    cache.move_to_end(key)
    if len(cache) > CACHED_VOCABULARIES:
        cache.popitem(last=False)
    return cache[key]
