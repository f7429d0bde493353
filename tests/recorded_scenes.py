"""Recordings of drawn scenes, by which the demonstration's weights were trained; ``recorded.py`` writes them.

A scene is kept as the mean colour of every square of CELL pixels, in which the noise is averaged out, and as the label
of every STEP-th pixel.
"""

import numpy as np
import torch
from torch import Tensor

from fgaseg.data.scenes import COLOURS, SHAPES, scene

CELL, STEP = 8, 3
SIZES = [(96, 96), (72, 120), (128, 64)]


def scenes() -> dict[str, Tensor]:
    """The pictures and the labels of three scenes of every colour: square, wide and tall."""
    made = {}
    for number, colour in enumerate(COLOURS):
        for turn, size in enumerate(SIZES):
            image, labels = scene([number, turn], size, [f"{colour} {shape}" for shape in SHAPES])
            rows, columns = (side // CELL for side in size)
            cells = image.astype(np.float64).reshape(rows, CELL, columns, CELL, 3).mean((1, 3))
            made[f"{colour}.{turn}.image"] = torch.from_numpy(cells).half()
            made[f"{colour}.{turn}.labels"] = torch.from_numpy(labels[STEP // 2 :: STEP, STEP // 2 :: STEP].copy())
    return made
