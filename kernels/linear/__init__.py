"""Linear layers with what surrounds them: LayerNorm before, activation and residual after; and whole MLPs."""

from .._layers import ACTIVATIONS
from .op import Norm, linear, mlp

__all__ = ["ACTIVATIONS", "Norm", "linear", "mlp"]
