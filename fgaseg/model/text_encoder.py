"""Class names to embeddings: prompt templates, prompts cut after the longest, and a cache that follows the weights."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from torch import Tensor

from ..errors import VocabularyError
from ..vocabulary import Vocabulary, check_names
from .clip import run_block

PROMPTS_PER_BATCH = 256
CACHED_VOCABULARIES = 16
SAMPLES = 256  # values of each weight that are compared before a cached vocabulary is used again


class TextEncoder:
    """CLIP's text tower, read at the end-of-text token. Wraps the tower without owning its weights.

    template       a format string with one `{}`, or several: their embeddings are averaged and renormalised
    first_synonym  embed only the part of a name before its first comma
    """

    def __init__(self, clip: CLIP, template: str | Sequence[str], first_synonym: bool = False):
        self.clip = clip
        self.templates = (template,) if isinstance(template, str) else tuple(template)
        self.first_synonym = first_synonym
        self.tokenizer = SimpleTokenizer(context_length=clip.context_length)
        self._cache: OrderedDict[tuple, Vocabulary] = OrderedDict()
        if clip.vocab_size < self.tokenizer.vocab_size:
            raise VocabularyError(
                f"text tower: its vocabulary of {clip.vocab_size} tokens is smaller than the tokenizer's "
                f"{self.tokenizer.vocab_size}"
            )

    def encode(self, names: Sequence[str], graph: bool = False) -> Vocabulary:
        """Embed class names, or take them from the cache; with `graph`, record gradients and cache nothing."""
        names = check_names(names)
        if graph and torch.is_grad_enabled() and any(p.requires_grad for p in self._tower()):
            return Vocabulary(names, self._embed(names))
        device = self.clip.positional_embedding.device.type
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

    def _tower(self) -> list[Tensor]:
        clip = self.clip
        own = (clip.token_embedding.weight, clip.positional_embedding, clip.text_projection)
        return [*own, *clip.transformer.parameters(), *clip.ln_final.parameters()]

    def _weights_key(self) -> tuple:
        """Changes when the tower's weights do, without reading all of them.

        Version counters and addresses follow optimizers, `load_state_dict`, `to` and every other write that autograd
        sees. Writes through `.data` leave both as they are: samples of every weight are compared for these.
        """
        weights = self._tower()
        seen = tuple((w._version, w.data_ptr()) for w in weights)
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
        """[N, C] unit embeddings; prompts of similar length share a batch, which keeps padding small."""
        tokens = self.tokenizer(prompts)
        order = tokens.argmax(dim=1).argsort(stable=True)  # end-of-text has the largest id: argmax is its position
        parts = [self._run(tokens[i]) for i in order.split(PROMPTS_PER_BATCH)]
        return torch.cat(parts)[order.argsort().to(parts[0].device)]

    def _run(self, tokens: Tensor) -> Tensor:
        clip = self.clip
        end = tokens.argmax(dim=1)
        length = int(end.max()) + 1  # attention is causal: nothing after the end-of-text token is read
        tokens, end = (t.to(clip.positional_embedding.device) for t in (tokens[:, :length], end))
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        for block in clip.transformer.resblocks:
            x = run_block(block, x, causal=True)
        x = clip.ln_final(x[torch.arange(len(x), device=x.device), end])
        return F.normalize(x @ clip.text_projection, dim=-1)
