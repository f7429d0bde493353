"""What stays in float32 when a model is converted to a lower precision, and where launches are saved."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

HALVES = (torch.bfloat16, torch.float16)


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def counts_launches(x: Tensor) -> bool:
    """Whether work on x is arranged for few launches: on a GPU, in inference, where many take longer than they compute.

    Not under autocast, which casts what it is given piece by piece, nor under torch.compile, which fuses by itself.
    """
    if not x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not torch.is_autocast_enabled("cuda")


class KeptInFloat32(nn.Module):
    """A module whose weights are float32 in a model of bfloat16 or float16: what it computes decides between classes.

    Its `forward` takes inputs of any dtype and returns float32 (or float64, with such weights).
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def kept(x: Tensor) -> Tensor:
            converted = fn(x)
            lowered = x.is_floating_point() and converted.dtype in HALVES and x.dtype not in HALVES
            return x.to(converted.device, torch.float32) if lowered else converted

        return super()._apply(kept, recurse)
