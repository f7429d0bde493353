"""Linear layers with what surrounds them: LayerNorm before, activation and residual after; and whole MLPs."""

from .op import ACTIVATIONS, Norm, linear, mlp

__all__ = ["ACTIVATIONS", "Norm", "linear", "mlp"]
