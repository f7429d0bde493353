"""Sharing photos with the other processes that torchrun, or a scheduler, has started with the same command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from ..errors import UsageError

T = TypeVar("T")


def process() -> tuple[int, int]:
    """RANK and WORLD_SIZE of the environment: which process this is, and of how many. Raises UsageError."""
    given = {key: os.environ.get(key) or default for key, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, world = int(given["RANK"]), int(given["WORLD_SIZE"])
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world or (world > 1 and not os.environ.get("RANK")):
        raise UsageError(
            f"RANK={os.environ.get('RANK', '')} WORLD_SIZE={os.environ.get('WORLD_SIZE', '')} in the environment: a "
            "process is one of 0 to WORLD_SIZE - 1: start them with torchrun, or unset both"
        )
    return rank, world


def share(items: Sequence[T], rank: int, world: int) -> list[T]:
    """Every ``world``-th item; which ones does not depend on what is done already."""
    return list(items[rank::world])


def own_device(device: str | None) -> str | None:
    """The device of this process: as given, else one of this machine's GPUs in turn."""
    import torch

    if device is not None or "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
