"""open_clip's text tower: tokens to one embedding per prompt, read where the tower was trained to be read."""

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from .clip_vit import adapt_block, check_blocks, run_block
from .image_tower import Unsupported
from .tokenizers import Tokenizer

PROMPTS_PER_BATCH = 128


class TextTower:
    """The text tower of an open_clip model. Wraps its modules without owning their weights.

    channels  C of the joint space
    causal    whether a token sees only those before it
    pool      which token is read: the one with the largest id (argmax), the end of text (eos), the first or the last
    """

    def __init__(self, clip: CLIP | CustomTextCLIP, tokenizer: Tokenizer | None = None):
        parts: Any = getattr(clip, "text", clip)
        own = isinstance(parts, TextTransformer)
        self.parts, self.tokenizer = parts, tokenizer
        self.pool = parts.pool_type if own else parts.text_pool_type
        self.end_token = parts.eos_id if own else parts.text_eos_id
        self.causal = parts.attn_mask is not None
        self.blocks: Any = parts.transformer.resblocks
        projection = parts.text_projection
        self.linear = isinstance(projection, nn.Linear)
        table = parts.positional_embedding if projection is None else projection  # both [..., C]
        self.channels = len(projection.weight) if self.linear else table.shape[1]

    @staticmethod
    def check(clip: nn.Module) -> None:
        """Raise Unsupported for what this page does not compute as open_clip does."""
        parts: Any = getattr(clip, "text", clip)
        if not isinstance(clip, CLIP) and type(parts) is not TextTransformer:
            raise Unsupported(f"its text tower is open_clip's {type(parts).__name__}")
        tower = TextTower(clip)
        if tower.pool not in ("argmax", "eos", "first", "last"):
            raise Unsupported(f"its text tower pools by {tower.pool!r}")
        if len(parts.positional_embedding) != parts.context_length:
            raise Unsupported("its text tower has a class token (embed_cls), as CoCa's")
        if getattr(parts, "output_tokens", False):
            raise Unsupported("output_tokens: its text tower returns more than an embedding")
        if getattr(parts, "use_pad_mask", False):
            raise Unsupported("its text tower masks padding tokens")
        check_blocks(tower.blocks, "text")

    def separate(self) -> None:
        """Give every attention separate q, k and v."""
        for block in self.blocks:
            adapt_block(block)

    def weights(self) -> list[Tensor]:
        """Every tensor that the embeddings depend on."""
        parts = self.parts
        projection = [] if parts.text_projection is None else [parts.text_projection]
        projection = list(parts.text_projection.parameters()) if self.linear else projection
        own = (parts.token_embedding.weight, parts.positional_embedding, *projection)
        return [*own, *parts.transformer.parameters(), *parts.ln_final.parameters()]

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [N, C] of any length; prompts of similar length share a batch, which keeps padding small."""
        assert self.tokenizer is not None  # there is none only while a tower is inspected
        tokens = self.tokenizer(list(prompts))
        order = self.ends(tokens).argsort(stable=True)
        parts = [self.run(tokens[i]) for i in order.split(PROMPTS_PER_BATCH)]
        return torch.cat(parts)[order.argsort().to(parts[0].device)]

    def ends(self, tokens: Tensor) -> Tensor:
        """The position [N] at which the tower is read."""
        if self.pool == "argmax":  # end-of-text has the largest id
            return tokens.argmax(dim=1)
        if self.pool == "eos":
            return (tokens == self.end_token).int().argmax(dim=1)
        return torch.full((tokens.shape[0],), 0 if self.pool == "first" else tokens.shape[1] - 1)

    def run(self, tokens: Tensor) -> Tensor:
        """Tokens [N, L] to embeddings [N, C].

        Where attention is causal, nothing after the token that is read matters, and the longest prompt ends the batch.
        Elsewhere every token does, padding too: the tower was trained with it.
        """
        end = self.ends(tokens)
        length = int(end.max()) + 1 if self.causal else tokens.shape[1]
        return self.embed(*(t.to(self.parts.positional_embedding.device) for t in (tokens[:, :length], end)))

    def embed(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Tokens [N, L] to embeddings [N, C], each read at position `end` [N]."""
        parts = self.parts
        x = parts.token_embedding(tokens) + parts.positional_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = run_block(block, x, causal=self.causal)
        x = parts.ln_final(x[torch.arange(x.shape[0], device=x.device), end])
        return self.project(x)

    def project(self, x: Tensor) -> Tensor:
        """From the width of the tower to the joint space."""
        projection = self.parts.text_projection
        if projection is None:
            return x
        return projection(x) if self.linear else x @ projection
