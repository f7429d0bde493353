"""Linear layers in 8 bits: a named, inexact form of a model, for inference on a CPU."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from torch import Tensor, nn

from ..errors import CheckpointError, UsageError
from ..kernels import Int8Weight, linear
from .aggregation import SharedGuidanceLinear
from .encoders.attention import SelfAttention
from .supplement import Fusion

Model = TypeVar("Model", bound=nn.Module)


class Int8Linear(nn.Module):
    """nn.Linear with an `Int8Weight`."""

    weight: Int8Weight

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = Int8Weight.of(layer.weight)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def quantize(model: Model) -> Model:
    """Give a model's linear layers weights of 8 bits, in place, and return it: for inference on a CPU.

        model = fgaseg.quantize(fgaseg.load("cat-seg-b16"))

    In the blocks of both towers and in the aggregation every output channel's weights become int8 with one float32
    scale, a quarter of their memory, and in every call each row of activations gets 8 bits, a step and a zero. All else
    stays in the model's type: `fgaseg.quantize(model).to(torch.bfloat16)` has the rest in bfloat16. Labels and scores
    change a little. An encoder of one's own without blocks (`towers`) stays as it is.

    The model cannot be trained or saved afterwards: save it before, and quantize again what was loaded. Raises
    UsageError for a model that is quantized already.
    """
    if is_quantized(model):
        raise UsageError("quantize: the model is quantized already")
    owner: Any = model
    for blocks in owner.encoder.towers():
        for block in blocks:
            _replace(block)
    for layer in getattr(owner.head, "layers", ()):
        _replace(layer)
    for module in list(owner.head.modules()):
        if isinstance(module, Fusion) and module.linear is not None:
            module.halves = nn.ModuleList(Int8Weight.of(half) for half in module.linear.weight.chunk(2, dim=1))
    return model.requires_grad_(False).eval()


def is_quantized(model: nn.Module) -> bool:
    """Whether any weight has 8 bits."""
    return any(isinstance(module, Int8Weight) for module in model.modules())


def check_not_quantized(model: nn.Module) -> None:
    """Raise CheckpointError for a model whose weights cannot be saved."""
    if is_quantized(model):
        raise CheckpointError(
            "model: is quantized to int8, and its weights were replaced: save a model before fgaseg.quantize, and "
            "quantize again what was loaded"
        )


def _replace(module: nn.Module) -> None:
    """Quantize the linear layers inside a module."""
    if isinstance(module, SharedGuidanceLinear):
        module.quantized = Int8Weight.of(
            cast("Tensor", module.own_weight)
        )  # what the guidance is multiplied with stays
        return
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            _replace(child)
    if isinstance(module, SelfAttention):
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            weight = getattr(module, name)
            delattr(module, name)
            setattr(module, name, Int8Weight.of(weight))
