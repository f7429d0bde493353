"""The attention-pooling head (MAP) of SigLIP and PE-Core: one vector of all tokens, or one of every patch."""

from typing import Any

import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from .attention import TERMS, linears, self_correlation


class PoolingHead(nn.Module):
    """timm's AttentionPoolLatent with separate q, k and v."""

    def __init__(self, source: Any):
        super().__init__()
        self.heads = source.num_heads
        self.latent = source.latent
        self.q_proj = source.q
        biases = (None, None) if source.kv.bias is None else source.kv.bias.chunk(2)
        self.k_proj, self.v_proj = linears(source.kv.weight, biases)
        self.q_norm, self.k_norm = source.q_norm, source.k_norm
        self.proj, self.norm, self.mlp = source.proj, source.norm, source.mlp

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D] to one vector each, [B, D]."""
        q = self._split(self.q_proj(self.latent.expand(x.shape[0], -1, -1)))
        k, v = self._split(self.k_proj(x)), self._split(self.v_proj(x))
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self._finish(out.transpose(1, 2).flatten(2))[:, 0]

    def dense(self, x: Tensor, rule: str) -> Tensor:
        """Tokens [B, N, D] to vectors [B, N, D] in the space of the pooled one.

        value    what the head gives for a token that gets all the attention: its value path, projection and MLP
        qq, csa  tokens attend to those that resemble them, with the head's own q and k of tokens, instead of the latent
                 to all; the two terms of csa are averaged, because the MLP, unlike a norm, depends on the length
        """
        if rule == "value":
            return self._finish(self.v_proj(x))
        q, k, v = (self._split(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        out = self_correlation(self.q_norm(q), self.k_norm(k), v, rule) / len(TERMS[rule])
        return self._finish(out.transpose(1, 2).flatten(2))

    def trained(self) -> list[nn.Parameter]:
        """What the fine-tuning strategy `attention` trains."""
        return [self.q_proj.weight, self.v_proj.weight]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _finish(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x + self.mlp(self.norm(x))


def unsupported(source: Any) -> str:
    """Why the head of another shape cannot be run; "": it can."""
    if type(source) is not AttentionPoolLatent:
        return f"its pooling head is timm's {type(source).__name__}"
    if source.pos_embed is not None or source.pool != "token" or source.latent_len != 1 or source.mlp is None:
        return "its pooling head has positions, several latents or no MLP"
    if not isinstance(source.q, nn.Linear) or source.q.in_features != source.kv.in_features:
        return "the query of its pooling head is not projected from tokens' width"
    return ""
