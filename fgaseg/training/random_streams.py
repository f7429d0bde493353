"""Random numbers as a function of the run's seed, their purpose, and an epoch or a step.

Nothing depends on what was drawn before, so a resumed run draws what an uninterrupted one does.
"""

import numpy as np

SHUFFLE, CLASSES, STEP, CAPTIONS = 1, 2, 3, 4  # purposes; their values are part of what a seed means


def generator(seed: int, purpose: int, index: int) -> np.random.Generator:
    """NumPy's generator for an epoch (SHUFFLE) or a step (CLASSES, CAPTIONS)."""
    return np.random.default_rng([seed, purpose, index])


def torch_seed(seed: int, step: int, rank: int) -> int:
    """The seed of PyTorch's generators for a step on one process."""
    found: int = np.random.SeedSequence((seed, STEP, step, rank)).generate_state(1).item()
    return found
