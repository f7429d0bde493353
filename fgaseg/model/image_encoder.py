"""Images to features: any size, padded to whole patches."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoders import Encoder, ImageFeatures


class ImageEncoder:
    """The image tower of an encoder, run densely. Wraps the encoder without owning its weights.

    pixels [B, 3, h, w] → ImageFeatures at ceil(h / patch) × ceil(w / patch); sizes that the patch does not divide
    are padded with zeros (the mean colour, of normalised pixels) at the bottom and on the right.
    """

    def __init__(self, encoder: Encoder):
        self.patch = encoder.patch
        self._encode = encoder.image

    def __call__(self, pixels: Tensor) -> ImageFeatures:
        height, width = pixels.shape[-2:]
        return self._encode(F.pad(pixels, (0, -width % self.patch, 0, -height % self.patch)))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile of the tower, in place."""
        self._encode = torch.compile(self._encode, *args, **kwargs)
