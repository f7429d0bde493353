"""Linear layers and MLPs whose weights have 8 bits, and whose activations get 8 bits in every call."""

from .op import Int8Weight, linear_int8, mlp_int8

__all__ = ["Int8Weight", "linear_int8", "mlp_int8"]
