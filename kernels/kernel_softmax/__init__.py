"""The normalised convolution kernels of local category supplementation."""

from .op import kernel_softmax

__all__ = ["kernel_softmax"]
