"""Class names to embeddings: prompt templates, and a cache that follows the weights of the text tower."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vocabulary import Vocabulary, check_names
from .encoders import Encoder

CACHED_VOCABULARIES = 16
SAMPLES = 256  # values of each weight that are compared before a cached vocabulary is used again


class TextEncoder:
    """The text tower of an encoder, given class names. Wraps the encoder without owning its weights.

    template       a format string with one `{}`, or several: their embeddings are averaged and renormalised
    first_synonym  embed only the part of a name before its first comma
    """

    def __init__(self, encoder: Encoder, template: str | Sequence[str], first_synonym: bool = False):
        self.encoder = encoder
        self.templates = (template,) if isinstance(template, str) else tuple(template)
        self.first_synonym = first_synonym
        self._cache: OrderedDict[tuple, Vocabulary] = OrderedDict()

    def encode(self, names: Sequence[str], graph: bool = False) -> Vocabulary:
        """Embed class names, or take them from the cache; with `graph`, record gradients and cache nothing."""
        names = check_names(names)
        if graph and torch.is_grad_enabled() and self.trains():
            return Vocabulary(names, self._embed(names))
        weights = self.encoder.text_weights()
        device = weights[0].device.type if weights else "cpu"
        # independent of the caller's context: a cached vocabulary may serve training, or be used without autocast
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            key = (names, self.templates, self.first_synonym, self._weights_key())
            if key not in self._cache:
                self._cache[key] = Vocabulary(names, self._embed(names))
        self._cache.move_to_end(key)
        if len(self._cache) > CACHED_VOCABULARIES:
            self._cache.popitem(last=False)
        return self._cache[key]

    def clear_cache(self) -> None:
        """Forget all embeddings. Needed only after single values of a weight were written through `.data`."""
        self._cache.clear()

    def subject(self, name: str) -> str:
        """The text substituted into the template; classes with equal subjects have equal embeddings."""
        first = name.split(", ")[0] if self.first_synonym else name
        return " ".join((first if first.strip() else name).split())

    def first_of_equals(self, names: Sequence[str]) -> list[int]:
        """For every class the first class with the same subject, usually itself."""
        first: dict[str, int] = {}
        return [first.setdefault(self.subject(name), i) for i, name in enumerate(names)]

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

    def _embed(self, names: tuple[str, ...]) -> Tensor:
        subjects = [self.subject(name) for name in names]
        unique = {s: i for i, s in enumerate(dict.fromkeys(subjects))}
        embeddings = torch.stack([self._prompts([t.format(s) for s in unique]) for t in self.templates]).mean(0)
        if len(self.templates) > 1:
            embeddings = F.normalize(embeddings, dim=-1)
        return embeddings[torch.tensor([unique[s] for s in subjects], device=embeddings.device)]

    def _prompts(self, prompts: list[str]) -> Tensor:
        """[N, C] unit embeddings."""
        return F.normalize(self.encoder.text(prompts), dim=-1)
