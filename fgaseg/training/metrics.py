"""Speed and memory of a run."""

import resource
import sys

import torch


class Speed:
    """Photos per second of training since the last reset."""

    def __init__(self, batch: int):
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        """Count a step that took `seconds`."""
        self.steps += 1
        self.seconds += seconds

    @property
    def images_per_second(self) -> float:
        return self.steps * self.batch / self.seconds


def peak_memory_mb() -> float:
    """The most memory that this process has held, in MB: of its GPU if it uses one, else resident in main memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
