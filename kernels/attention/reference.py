"""The definition of attention, in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """softmax(scale q kᵀ) v, [B, L, heads, d]; causal: a query sees the keys up to its own; no scale: 1 / sqrt(d)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2)
