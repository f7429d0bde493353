"""Automatic mixed precision (train.amp)."""

from typing import Literal

import torch


def autocast(device: torch.device, amp: Literal["no", "bf16", "fp16"]) -> torch.autocast:
    """The context of forward passes; it does nothing for "no"."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=amp != "no")
