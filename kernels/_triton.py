"""What the Triton kernels share: how a launch is described, and what the machine allows."""

import os
from dataclasses import dataclass
from typing import Any

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when a kernel is decorated
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Configuration:
    """One way in which a Triton kernel is launched: what a launcher chooses, and what ahead-of-time compilation checks.

    signature  every parameter that is not constexpr, in order, as Triton writes types: "*bf16", "i32", "fp32"
    constants  the constexpr parameters
    matrix     tensor-core instructions are meant to be in it
    hot        it must not spill registers
    """

    label: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    matrix: bool = False
    hot: bool = True


def precision() -> str:
    """How tl.dot multiplies float32: as torch.backends.cuda.matmul.allow_tf32 says."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
