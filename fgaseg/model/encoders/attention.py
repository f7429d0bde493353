"""Self-attention with separate q, k and v, so that q and v can train while k stays frozen, and its dense forms."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ...kernels import attention, linear
from ..precision import counts_launches

TERMS = {"qq": (0,), "csa": (0, 1)}  # which of (q, k) a self-correlation compares with itself


class Linear(nn.Linear):
    """nn.Linear by the op `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def use_fused_linears(module: nn.Module) -> None:
    """Make every plain linear layer of a module, which a library has built, a `Linear`. Its weights stay its own."""
    for layer in module.modules():
        if type(layer) in (nn.Linear, NonDynamicallyQuantizableLinear):
            layer.__class__ = Linear


def self_correlation(q: Tensor, k: Tensor, v: Tensor, rule: str, scale: float | None = None) -> Tensor:
    """Attention of tokens to those that resemble them, [B, heads, L, d].

    qq   softmax(s·q qᵀ) v                        ClearCLIP (Lan et al., ECCV 2024)
    csa  (softmax(s·q qᵀ) + softmax(s·k kᵀ)) v    SCLIP (Wang et al., ECCV 2024); the rows of the weights sum to 2

    scale  s; None: 1 / sqrt(d)
    """
    return sum(  # type: ignore[return-value]
        attention(x, x, v, scale=scale) for x in ((q, k)[i] for i in TERMS[rule])
    )


def rotate(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Rotary positions on the last tokens of x [B, heads, L, d]; rotation [N, 2d] holds sines, then cosines, in pairs.

    Class and prompt tokens, which come first, are not rotated.
    """
    if rotation is None:
        return x
    sine, cosine = rotation.chunk(2, dim=-1)
    first, patches = x.split((x.shape[2] - rotation.shape[0], rotation.shape[0]), dim=2)
    turned = torch.stack((-patches[..., 1::2], patches[..., ::2]), dim=-1).flatten(-2)
    return torch.cat([first, (patches * cosine + turned * sine).to(x.dtype)], dim=2)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention with separate q, k and v weights. The layout is (N, L, D), whatever open_clip uses.

    packed  the three weights below each other, while `packed_projections` has them
    """

    packed: Tensor | None = None

    def __init__(self, source: nn.MultiheadAttention):
        super().__init__()
        self.heads = source.num_heads
        q, k, v = source.in_proj_weight.detach().chunk(3)
        self.q_proj_weight = nn.Parameter(q.clone())
        self.k_proj_weight = nn.Parameter(k.clone())
        self.v_proj_weight = nn.Parameter(v.clone())
        self.in_proj_bias = source.in_proj_bias
        self.out_proj = source.out_proj

    def forward(self, x: Tensor, causal: bool = False, residual: Tensor | None = None) -> Tensor:
        q, k, v = self._project(x)
        out = attention(q, k, v, causal=causal).transpose(1, 2).flatten(2)
        return linear(out, self.out_proj.weight, self.out_proj.bias, residual=residual)

    def values(self, x: Tensor) -> Tensor:
        """The value path alone: attention in which every token attends to itself only."""
        return self.out_proj(linear(x, self.v_proj_weight, self.in_proj_bias.chunk(3)[2]))

    def correlated(self, x: Tensor, rule: str) -> Tensor:
        """Self-correlation in place of attention."""
        return self.out_proj(self_correlation(*self._project(x), rule).transpose(1, 2).flatten(2))

    def trained(self) -> list[nn.Parameter]:
        """What the fine-tuning strategy `attention` trains."""
        return [self.q_proj_weight, self.v_proj_weight]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if counts_launches(x):
            packed = self.packed  # read once: another thread may end its call
            y = linear(x, torch.cat(weights) if packed is None else packed, self.in_proj_bias)
            q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            return q, k, v
        q, k, v = (
            linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for w, b in zip(weights, self.in_proj_bias.chunk(3), strict=True)
        )
        return q, k, v


@contextmanager
def packed_projections(layers: Sequence[SelfAttention]) -> Iterator[None]:
    """Inside the block the q, k and v weights of each layer are one tensor, all of them made by one concatenation."""
    weights: list[Tensor] = [w for one in layers for w in (one.q_proj_weight, one.k_proj_weight, one.v_proj_weight)]
    for layer, packed in zip(layers, torch.cat(weights).chunk(len(layers)), strict=True):
        layer.packed = packed
    try:
        yield
    finally:
        for layer in layers:
            layer.packed = None


def linears(weight: Tensor, biases: Sequence[Tensor | None]) -> list[nn.Linear]:
    """A projection [n·D, d] as one linear layer for each of its n biases."""
    parts = []
    for rows, bias in zip(weight.detach().chunk(len(biases)), biases, strict=True):
        with torch.device("meta"):
            layer = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(rows.clone())
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        parts.append(layer)
    return parts


class RotaryAttention(nn.Module):
    """timm's attention modules with separate q, k and v, and the same names as timm's own where these are separate.

    correlation_scale  s of `self_correlation`
    """

    def __init__(self, source: Any, correlation_scale: float | None = None):
        super().__init__()
        self.heads, self.correlation_scale = source.num_heads, correlation_scale
        self.q_proj, self.k_proj, self.v_proj = separate(source)
        self.q_norm, self.k_norm = source.q_norm, source.k_norm
        self.norm, self.proj = source.norm, source.proj

    def forward(self, x: Tensor, rotation: Tensor | None = None) -> Tensor:
        q, k, v = self._project(x)
        return self._out(attention(rotate(q, rotation), rotate(k, rotation), v))

    def values(self, x: Tensor) -> Tensor:
        """The value path alone: attention in which every token attends to itself only."""
        return self.proj(self.norm(self.v_proj(x)))

    def correlated(self, x: Tensor, rule: str) -> Tensor:
        """Self-correlation in place of attention, without rotary positions."""
        return self._out(self_correlation(*self._project(x), rule, self.correlation_scale))

    def trained(self) -> list[Any]:
        """What the fine-tuning strategy `attention` trains."""
        return [self.q_proj.weight, self.v_proj.weight]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.q_norm(q), self.k_norm(k), v

    def _out(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(x.transpose(1, 2).flatten(2)))


def separate(source: Any) -> list[nn.Linear]:
    """The q, k and v projections of one of timm's attention modules, which may be one layer."""
    if source.qkv is None:
        return [source.q_proj, source.k_proj, source.v_proj]
    if getattr(source, "q_bias", None) is not None:  # EVA's keys have no bias
        return linears(source.qkv.weight, (source.q_bias, None, source.v_bias))
    bias = source.qkv.bias
    return linears(source.qkv.weight, (None,) * 3 if bias is None else bias.chunk(3))
