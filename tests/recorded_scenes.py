"""Recordings of drawn scenes, by which the demonstration's weights were trained; ``recorded.py`` writes them.

A scene is kept as the mean colour of every square of CELL pixels, in which the noise is averaged out, and as the label
of every STEP-th pixel.
"""

import numpy as np
import torch
from torch import Tensor

from fgaseg.data.scenes import _GROUND, COLOURS, SHAPES, scene

CELL, STEP = 8, 3
SIZES = [(96, 96), (72, 120), (128, 64)]
# of which one more or less pixel of the size of a blob changes how many there are
GROUND_SIZES = [(80, 88), (96, 80), (88, 112), (72, 104), (104, 72)]


def scenes() -> dict[str, Tensor]:
    """Pictures and labels of three scenes of every colour: square, wide and tall; and pictures of every ground."""
    made = {}
    for number, colour in enumerate(COLOURS):
        for turn, size in enumerate(SIZES):
            image, labels = scene([number, turn], size, [f"{colour} {shape}" for shape in SHAPES])
            made[f"{colour}.{turn}.image"] = _cells(image)
            made[f"{colour}.{turn}.labels"] = torch.from_numpy(labels[STEP // 2 :: STEP, STEP // 2 :: STEP].copy())
    for name, draw in _GROUND.items():
        for turn, (height, width) in enumerate(GROUND_SIZES):
            ground = draw(np.random.default_rng(turn), height, width, min(height, width) / 96)
            made[f"{name}.{turn}.image"] = _cells(ground)
    return made


def _cells(image: np.ndarray) -> Tensor:
    height, width, _ = image.shape
    cells = image.astype(np.float64).reshape(height // CELL, CELL, width // CELL, CELL, 3)
    return torch.from_numpy(cells.mean((1, 3))).half()
