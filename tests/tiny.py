"""A model small enough to run many times: every stage is there, nothing is wide."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fgaseg import FGASeg, ModelConfig

ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
NAMES = ["cat", "dog", "red star", "blue ring", "wooden floor"]


def tiny_config(**switches: Any) -> ModelConfig:
    encoder = {"name": "tiny", "architecture": ARCHITECTURE, "finetune": "scratch", **switches.pop("encoder", {})}
    sizes = {"image_size": 64, "hidden": 32, "guidance_channels": (16, 16), "guidance_hidden": (16, 8),
             "decoder_channels": (32, 16), "window": 4}  # fmt: skip
    return ModelConfig(encoder=encoder, **{**sizes, **switches})


def tiny_model(seed: int = 0, **switches: Any) -> FGASeg:
    """In evaluation mode, with weights large enough that every part of the model moves the logits."""
    torch.manual_seed(seed)
    model = FGASeg(tiny_config(**switches))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.mul_(1.5)
            if name.endswith(("pad_token", "pad_guidance")):
                p.normal_()
    return model.eval()


def pixels(batch: int = 1, height: int = 64, width: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


class Largest(TorchDispatchMode):
    """The number of values in the largest tensor that any operation inside the block returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result
