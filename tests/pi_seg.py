"""Pi-Seg's names of CAT-Seg's weights, and its own."""

import re

import torch
from checkpoint_shapes import HEAD, linear


def noise(channels: int) -> dict[str, list[int]]:
    """Generators of noise, as cat_seg/pini_vpn.py registers them."""
    parts = ("cross_attn.fc_q", "cross_attn.fc_k", "cross_attn.fc_v", "fc_mean", "fc_variance")
    shapes = {key: shape for part in parts for key, shape in linear(f"image_vpn.{part}", channels, channels).items()}
    return shapes | {"text_vpn.mu": [1, 1, 1, channels], "text_vpn.var": [1, 1, 1, channels]}


def pi_seg_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CAT-Seg state dict by Pi-Seg's names, with the weights of its noise."""
    names = {key: re.sub(r"(layers\.\d+)\.attention\.", r"\1.class_agg.", key) for key in weights}
    tensors = {name.replace(".swin_block.", ".sptial_agg."): weights[key] for key, name in names.items()}
    return tensors | {HEAD + key: torch.rand(shape) for key, shape in noise(64).items()}
