"""The definition of kernel_softmax, in plain PyTorch."""

from torch import Tensor


def kernel_softmax_reference(kernel_logits: Tensor, kernel_size: int, norm: str) -> Tensor:
    """[B, T, C*K*K] -> [B, T, C, K, K]: "taps" normalises within a channel, "channels" across channels at each tap."""
    batch, classes, length = kernel_logits.shape
    channels = length // kernel_size**2
    kernels = kernel_logits.reshape(batch, classes, channels, kernel_size**2)
    if norm == "taps":
        kernels = kernels.softmax(3)
    elif norm == "channels":
        kernels = kernels.softmax(2)
    return kernels.view(batch, classes, channels, kernel_size, kernel_size)
