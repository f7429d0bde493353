"""Set-up of the processes of a run: process group, share of the batch, deterministic mode, writing on rank 0."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from ..config import TrainConfig
from ..distributed import any_process, rank, world_size
from ..errors import CheckpointError, TrainingError

PATIENCE = timedelta(minutes=10)  # how long a process waits for the others before it considers them lost


def join_processes() -> torch.device:
    """Join the process group when torchrun started this process (NCCL on GPUs, Gloo on CPUs); returns its device."""
    from accelerate import PartialState  # type: ignore[import-untyped]  # its choice of device and backend

    device: torch.device = PartialState(timeout=PATIENCE).device
    if world_size() > 1:
        atexit.unregister(_leave_processes)
        atexit.register(_leave_processes)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # the protocol: float32 with TF32 products
    return device


def _leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
        # sharded models in reference cycles keep the group alive; a gloo thread that still holds tensors when the
        # interpreter finalises aborts the process
        gc.collect()


def check_batch(recipe: TrainConfig) -> None:
    """Raise TrainingError when processes and micro-batches cannot share the batch evenly."""
    shares = world_size() * recipe.accumulate
    if recipe.batch % shares:
        micro = f" of {recipe.accumulate} micro-batches (train.accumulate)" if recipe.accumulate > 1 else ""
        raise TrainingError(
            f"train.batch={recipe.batch} cannot be shared evenly by {world_size()} processes{micro}: "
            f"give a multiple of {shares}"
        )


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Within the context, PyTorch uses only algorithms that give the same bits every time; it raises if it has none."""
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on a GPU
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextlib.contextmanager
def opening(out: Path) -> Iterator[None]:
    """Around the first writes to train.out: an OSError becomes a CheckpointError that names the folder."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"train.out={out}: cannot be written to: {error.strerror or error}; make room or give another folder"
        ) from error


def write_on_main(write: Callable[[], None], device: torch.device) -> None:
    """Call `write` on rank 0, which raises CheckpointError if it fails; the others wait, and then raise one too."""
    error: CheckpointError | None = None
    if rank() == 0:
        try:
            write()
        except CheckpointError as caught:
            error = caught
    if any_process(error is not None, device):
        raise error or CheckpointError("rank 0 could not write its files; its message says why")
