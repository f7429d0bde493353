"""Pixel-level alignment (section III-B): P2Tformer, and the T2P branch, whose output T2Ploss compares with the mask."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import KeptInFloat32


def sine_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sinusoidal 2-D positions [channels, height, width]: y in the first half of the channels, x in the second.

    Coordinates 1..n are divided by n + 1e-6 and multiplied by 2π; channels alternate sine and cosine.
    """
    half = channels // 2
    frequency = 10000 ** (2 * (torch.arange(half, device=device) // 2) / half)

    def axis(n: int) -> Tensor:
        angle = (torch.arange(1, n + 1, device=device) / (n + 1e-6) * 2 * math.pi)[:, None] / frequency
        return torch.where(torch.arange(half, device=device) % 2 == 0, angle.sin(), angle.cos())

    down = axis(height)
    across = down if width == height else axis(width)
    y = down.T[:, :, None].expand(-1, -1, width)
    x = across.T[:, None, :].expand(-1, height, -1)
    return torch.cat([y, x])


_cached_positions = lru_cache(maxsize=16)(sine_positions)


def positions_of(pixels: Tensor) -> Tensor:
    """`sine_positions` for a map [B, C, H, W], in its dtype; computed once for every grid and device."""
    channels, height, width = pixels.shape[1:]
    # neither fake tensors and symbols of a tracer nor memory of a CUDA graph may outlive the call
    traced = torch.compiler.is_compiling() or type(pixels) is not Tensor
    traced = traced or (pixels.is_cuda and torch.cuda.is_current_stream_capturing())
    with torch.inference_mode(False):  # an inference tensor could not be used in training later
        make = sine_positions if traced else _cached_positions
        return make(height, width, channels, pixels.device).to(pixels.dtype)


class P2TLayer(nn.Module):
    """t ← LayerNorm(t + Linear(MultiheadAttention(q = t, k, v))), eq. 5."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.linear = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, texts: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        attended, _ = self.attention(texts, keys, values, need_weights=False)
        return self.norm(texts + self.linear(attended))


class P2Tformer(KeptInFloat32):
    r"""Text embeddings conditioned on the image: V_emb = V_T + γ ⊙ t_N (eqs. 5-6).

    pixels   V_I [B, C, H, W], unnormalised
    texts    V_T [T, C], unit length
    returns  [B, T, C], not normalised; float32 in a model of bfloat16 too

    γ is a vector [C], trained from the initial value `gamma`, or fixed at it if `gamma_trainable` is off (Table III).
    Without layers (`layers=0`) the texts are returned unchanged. `value_positions` adds the positions to the values
    too (eq. 5).
    """

    def __init__(self, channels: int, layers: int, heads: int, gamma: float, gamma_trainable: bool,
                 value_positions: bool):  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList(P2TLayer(channels, heads) for _ in range(layers))
        self.value_positions = value_positions
        initial = torch.full((channels,), float(gamma))
        if layers and gamma_trainable:
            self.gamma = nn.Parameter(initial)
        else:
            self.register_buffer("gamma", initial, persistent=False)

    def forward(self, pixels: Tensor, texts: Tensor) -> Tensor:
        pixels, repeated = pixels.to(self.gamma.dtype), texts.to(self.gamma.dtype).expand(pixels.shape[0], -1, -1)
        if not self.layers:
            return repeated
        keys = (pixels + positions_of(pixels)).flatten(2).transpose(1, 2)
        values = keys if self.value_positions else pixels.flatten(2).transpose(1, 2)
        t = repeated
        for layer in self.layers:
            t = layer(t, keys, values)
        return repeated + self.gamma * t


def _conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class T2PProjector(nn.Module):
    """Maps that T2Ploss compares with the mask (eq. 7): per class a K×K convolution whose kernel comes from its text.

    pixels   V_I [B, C, H, W]
    texts    [B, T, C]
    returns  O [B, T, 4H, 4W], before any activation; zero padding, kernels not normalised
    """

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        half = channels // 2
        self.kernel_size = kernel_size
        self.first = _conv_bn_relu(channels, channels)
        self.second = _conv_bn_relu(channels, half)
        self.last = nn.Conv2d(half, half, 1)
        self.text = nn.Linear(channels, half * kernel_size**2 + 1)

    def project(self, pixels: Tensor) -> Tensor:
        """V'_I [B, C/2, 4H, 4W]."""
        x = self.first(F.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False))
        return self.last(self.second(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)))

    def forward(self, pixels: Tensor, texts: Tensor) -> Tensor:
        x = self.project(pixels)
        generated = self.text(texts.to(self.text.weight.dtype))
        size = (-1, x.shape[1], self.kernel_size, self.kernel_size)
        maps = [
            F.conv2d(image[None], g[:, :-1].reshape(size), g[:, -1], padding=self.kernel_size // 2)
            for image, g in zip(x, generated, strict=True)
        ]
        return torch.cat(maps)
