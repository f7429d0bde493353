"""The definitions of class_summary and class_lookup, in plain PyTorch."""

import torch
from torch import Tensor


def positive(x: Tensor) -> Tensor:
    """elu(x) + 1, written out because elu's backward has other strides when traced than when run (seen in torch 2.14).

    It uses where instead of clamp, whose slope at 0, a value that half types do reach, is 0 while elu's is 1.
    """
    return torch.where(x > 0, x + 1, torch.where(x > 0, 0, x).exp())


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over classes are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def features(x: Tensor, guidance: Tensor, heads: int) -> Tensor:
    """phi(x + guidance) [R, P, heads, d], in float32 or float64."""
    dtype = accumulator(x.dtype)
    return positive(x.to(dtype) + guidance.to(dtype)[:, None]).unflatten(-1, (heads, -1))


def members(offsets: Tensor, rows: int) -> list[Tensor]:
    """For every image the mask [R, 1, 1, 1] of its rows. Slices would have to wait for the offsets on a GPU."""
    image = torch.bucketize(torch.arange(rows, device=offsets.device), offsets[1:], right=True)
    return [(image == b)[:, None, None, None] for b in range(len(offsets) - 1)]


def class_summary_reference(
    k: Tensor, v: Tensor, k_guidance: Tensor, offsets: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    keys = features(k, k_guidance, heads)
    values = v.to(keys.dtype).unflatten(-1, (heads, -1))
    shape = (k.shape[1], *keys.shape[2:])
    summary, total = [keys.new_zeros(0, *shape, shape[-1])], [keys.new_zeros(0, *shape)]
    for own in members(offsets, len(k)):
        own_keys = torch.where(own, keys, 0)
        summary.append(torch.einsum("rphd,rphe->phde", own_keys, torch.where(own, values, 0))[None])
        total.append(own_keys.sum(0, keepdim=True))
    return torch.cat(summary), torch.cat(total)


def class_lookup_reference(
    q: Tensor, q_guidance: Tensor, summary: Tensor, total: Tensor, offsets: Tensor, heads: int, eps: float
) -> Tensor:
    queries = features(q, q_guidance, heads)
    out = torch.zeros_like(queries)
    for own, s, z in zip(members(offsets, len(q)), summary, total, strict=True):
        weights = torch.einsum("rphd,phd->rph", queries, z) + eps
        out = torch.where(own, torch.einsum("rphd,phde->rphe", queries, s) / weights[..., None], out)
    return out.flatten(-2).to(q.dtype)
