"""The definition of cosine_cost_volume, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_cost_volume_reference(pixels: Tensor, texts: Tensor, eps: float) -> Tensor:
    """S[b,p,t,y,x] = <texts[b,t,p], pixels[b,:,y,x]> / (|texts| |pixels|), every length at least eps."""
    return torch.einsum("bchw,btpc->bpthw", F.normalize(pixels, dim=1, eps=eps), F.normalize(texts, dim=3, eps=eps))
