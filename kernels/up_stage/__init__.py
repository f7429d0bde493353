"""A stage of the decoder: twice the size, then two convolutions with GroupNorm and ReLU."""

from .op import UpWeights, up_stage

__all__ = ["UpWeights", "up_stage"]
