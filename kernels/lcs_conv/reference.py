"""The definition of lcs_conv, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernel_softmax.reference import kernel_softmax_reference


def lcs_conv_reference(pixels: Tensor, kernel_logits: Tensor, bias: Tensor, kernel_size: int, norm: str) -> Tensor:
    """S[b,t,y,x] = bias[b,t] + sum_{c,i,j} kernels[b,t,c,i,j] * pixels[b, c, y+i-K//2, x+j-K//2], zero outside."""
    kernels = kernel_softmax_reference(kernel_logits, kernel_size, norm)
    padding = kernel_size // 2
    padded = F.pad(pixels, (padding, padding, padding, padding))
    windows = padded.unfold(2, kernel_size, 1).unfold(3, kernel_size, 1)  # [B, C, H, W, K, K]
    return torch.einsum("btcij,bchwij->bthw", kernels, windows) + bias[:, :, None, None]
