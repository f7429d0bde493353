"""What the model needs of an encoder, whatever is behind it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .tokenizers import Tokenizer


class ImageFeatures(NamedTuple):
    """What the head reads of images (H×W patches)."""

    embedding: Tensor  # V_I [B, C, H, W], of any length, in the space of the text embeddings
    early: Tensor  # [B, D, H, W], raw output of the first guidance block
    late: Tensor  # [B, D, H, W], raw output of the second guidance block

    def image(self, index: int) -> "ImageFeatures":
        """Those of one image, B = 1."""
        return ImageFeatures(*(x[index : index + 1] for x in self))


class Encoder(ABC):
    """An image tower and a text tower with one joint space. It owns no weights: `module` does, and the model owns that.

    module           the weights, under the prefix `clip.` in the model's state dict
    name             for messages
    patch            side of a patch in pixels
    channels, width  C of the joint space, D of the guidance maps
    mean, std        of RGB in 0..1, by which pixels are normalised
    weights          the tag or path that its weights were read from; None: neither
    architecture     open_clip's description of the towers, which a saved model carries; None: there is none
    dense            the rule of the dense features; None: the encoder's own
    guidance_blocks  the two blocks whose outputs are the guidance; None: the encoder's own choice
    tokenizer        of the text tower; None: not known
    """

    module: Any
    name: str
    patch: int
    channels: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str | None = None
    architecture: dict[str, Any] | None = None
    dense: str | None = None
    guidance_blocks: tuple[int, int] | None = None
    tokenizer: Tokenizer | None = None

    @abstractmethod
    def image(self, pixels: Tensor) -> ImageFeatures:
        """Pixels [B, 3, h, w], normalised, whole patches, to features of h / patch × w / patch."""

    @abstractmethod
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to embeddings [N, C] of any length, on the device of the weights."""

    @abstractmethod
    def text_weights(self) -> list[Tensor]:
        """Every tensor that the text embeddings depend on."""

    def towers(self) -> list[list[Any]]:
        """The blocks of each tower in the order that they run, with parts `attn` and `mlp`; none: not to be sharded."""
        return []

    def keep_statistics(self) -> None:
        """Called whenever the model changes between training and evaluation mode."""
        return

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files, atomically, if they are not part of an installed package."""
        return

    def why_not_released(self) -> str:
        """Why the released code has no counterpart of this encoder; "": it has."""
        return f"{self.name} is not a plain CLIP ViT"
