"""Class names to embeddings: prompt template, tokens cut at the longest end-of-text, and a cache with a correct key."""

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


def _weighted_sum(x: Tensor) -> Tensor:
    """A sum in which every element has a weight of its place."""
    rows = x.reshape(-1, x.shape[-1]).float()
    down, across = (torch.arange(n, device=x.device) % 1021 + 1.0 for n in rows.shape)
    return down @ (rows @ across)


class TextEncoder:
    """CLIP's text tower, read at the end-of-text token. A view on the tower: the weights belong to `clip`.

    template    a format string with one `{}`, or several: their embeddings are averaged and renormalised
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
        """Embed class names, from the cache if they are in it; with `graph`, record gradients and cache nothing."""
        names = check_names(names)
        if graph and torch.is_grad_enabled() and any(p.requires_grad for p in self._tower()):
            return Vocabulary(names, self._embed(names))
        device = self.clip.positional_embedding.device.type
        # the same whatever surrounds the call: a cached vocabulary may serve training, or run without autocast
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            key = (names, self.templates, self.first_synonym, self._fingerprint())
            if key not in self._cache:
                self._cache[key] = Vocabulary(names, self._embed(names))
        self._cache.move_to_end(key)
        if len(self._cache) > CACHED_VOCABULARIES:
            self._cache.popitem(last=False)
        return self._cache[key]

    def subject(self, name: str) -> str:
        """What of a class name is put into the template; classes with equal subjects are one and the same."""
        first = name.split(", ")[0] if self.first_synonym else name
        return " ".join((first if first.strip() else name).split())

    def _tower(self) -> list[Tensor]:
        clip = self.clip
        own = (clip.token_embedding.weight, clip.positional_embedding, clip.text_projection)
        return [*own, *clip.transformer.parameters(), *clip.ln_final.parameters()]

    def _fingerprint(self) -> tuple:
        """Follows the content of the text tower's weights, however they were written (optimizer, load, `.data`)."""
        weights = [p.detach() for p in self._tower()]
        bits = torch.stack([torch.hash_tensor(w).to(torch.int64) for w in weights])
        places = torch.stack([_weighted_sum(w) for w in weights])  # the hash is blind to the order of the elements
        return str(weights[0].device), weights[0].dtype, bits.cpu().numpy().tobytes(), places.cpu().numpy().tobytes()

    def _embed(self, names: tuple[str, ...]) -> Tensor:
        subjects = [self.subject(name) for name in names]
        unique = {s: i for i, s in enumerate(dict.fromkeys(subjects))}
        embeddings = torch.stack([self._prompts([t.format(s) for s in unique]) for t in self.templates]).mean(0)
        if len(self.templates) > 1:
            embeddings = F.normalize(embeddings, dim=-1)
        return embeddings[torch.tensor([unique[s] for s in subjects], device=embeddings.device)]

    def _prompts(self, prompts: list[str]) -> Tensor:
        """[N, C] unit embeddings; prompts of like length share a batch, so little is spent on padding."""
        tokens = self.tokenizer(prompts)
        order = tokens.argmax(dim=1).argsort(stable=True)  # end-of-text has the largest id: argmax is its position
        parts = [self._run(tokens[i]) for i in order.split(PROMPTS_PER_BATCH)]
        return torch.cat(parts)[order.argsort().to(parts[0].device)]

    def _run(self, tokens: Tensor) -> Tensor:
        clip = self.clip
        end = tokens.argmax(dim=1)
        length = int(end.max()) + 1  # attention is causal: nothing read here depends on what follows
        tokens, end = (t.to(clip.positional_embedding.device) for t in (tokens[:, :length], end))
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        for block in clip.transformer.resblocks:
            x = run_block(block, x, causal=True)
        x = clip.ln_final(x[torch.arange(len(x), device=x.device), end])
        return F.normalize(x @ clip.text_projection, dim=-1)
