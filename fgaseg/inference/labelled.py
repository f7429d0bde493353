"""What files and other libraries' objects are made from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image

from .scores import Probabilities


class Labelled(Protocol):
    """A photo with its labels: a `Result`, which says what each attribute is."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def scores(self) -> np.ndarray: ...

    @property
    def nothing(self) -> int | None: ...

    @property
    def source(self) -> str: ...

    @property
    def maps(self) -> Probabilities | None: ...

    def overlay(self, alpha: float = 0.7, legend: bool = True) -> Image.Image: ...
