"""What all image towers do alike: run blocks, keep the guidance, take dense features from the last attention."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import CLIP_MEAN, CLIP_STD
from ...errors import EncoderError
from .interface import ImageFeatures

Colour = tuple[float, float, float]


class Unsupported(Exception):
    """Raised while a tower is inspected: why its numbers would not be those of open_clip."""


def resized_positions(table: Tensor, stored: tuple[int, int], grid: tuple[int, int], first: int = 1) -> Tensor:
    """The positional table [first + h·w, D] at another grid: bicubic, without antialiasing; the first rows are kept."""
    exporting = torch.compiler.is_exporting()
    if not exporting and grid == stored:
        return table
    square = table[first:].unflatten(0, stored).permute(2, 0, 1).float()
    if exporting:  # ONNX Runtime's operator took 28 ms for a table of ViT-B/16 (Zen 5, two threads), this 0.5 ms
        down, along = (cubic_weights(*sizes, square.device) for sizes in zip(stored, grid, strict=True))
        square = (square.flatten(0, 1) @ along.T).unflatten(0, (-1, stored[0])).transpose(1, 2)
        square = (square.flatten(0, 1) @ down.T).unflatten(0, (-1, grid[1])).transpose(1, 2)
    else:
        square = F.interpolate(square[None], size=grid, mode="bicubic", align_corners=False, antialias=False)[0]
    return torch.cat([table[:first], square.flatten(1).T.to(table.dtype)])


def cubic_weights(old: int, new: int, device: torch.device) -> Tensor:
    """The matrix [new, old] by which F.interpolate's "bicubic" resizes an axis: four neighbours, A = -0.75."""
    place = (torch.arange(new, device=device) + 0.5) * (old / new) - 0.5
    offsets = torch.arange(-1, 3, device=device)
    near = (place.floor()[:, None] + offsets).clamp(0, old - 1)  # beyond the edge its value is repeated
    d = (offsets - (place - place.floor())[:, None]).abs()
    weights = torch.where(d <= 1, (1.25 * d - 2.25) * d**2 + 1, ((3.75 - 0.75 * d) * d - 6) * d + 3)
    return (weights[..., None] * (near[..., None] == torch.arange(old, device=device))).sum(1)


class ImageTower(ABC):
    """One family's image tower. Wraps the modules without owning their weights.

    blocks    the transformer blocks, in order
    stack     the module that owns them, and the prompt tokens of fine-tuning strategy `prompt`
    prefix    number of tokens in front of the patches: the class token's, or none
    last      number of blocks that run as they were trained; what comes after it gives the dense features
    """

    family: ClassVar[str]
    default_dense: ClassVar[str] = "value"

    patch: int
    channels: int
    width: int
    blocks: Any
    stack: Any
    prefix: int
    last: int

    @property
    def normalization(self) -> tuple[Colour, Colour]:
        """Mean and standard deviation of the pixels that the family is trained on, where no weights say otherwise."""
        return CLIP_MEAN, CLIP_STD

    def __init__(self, visual: Any):
        raise NotImplementedError

    @staticmethod
    def check(visual: Any) -> None:
        """Raise Unsupported for what this page does not compute as open_clip does."""
        raise NotImplementedError

    @abstractmethod
    def separate(self) -> None:
        """Give every attention separate q, k and v."""

    @abstractmethod
    def embed(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels to the tokens [B, prefix + N, D] that enter the first block."""

    @abstractmethod
    def run(self, block: Any, x: Tensor, rotation: Tensor | None) -> Tensor:
        """One block as it was trained."""

    @abstractmethod
    def dense_tokens(self, x: Tensor) -> Tensor:
        """Tokens after the blocks that run as trained to features [B, N, C] of the patches."""

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Tokens after all blocks to the embedding [B, C] of the whole image."""

    @abstractmethod
    def attention(self) -> list[Any]:
        """Every attention whose q and v train with fine-tuning strategy `attention`."""

    def rotation(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Rotary positions of the patches, [N, 2d]; None: the family has none."""
        return None

    def choose(self, dense: str | None, guidance_blocks: tuple[int, int] | None) -> None:
        """Decide the dense rule and the guidance, once. Raises EncoderError."""
        self.dense = dense or self.default_dense
        layers = len(self.blocks)
        self.guidance_blocks = guidance_blocks or (max(layers // 3 - 1, 0), max(2 * layers // 3 - 1, 0))
        if not all(0 <= i < self.last for i in self.guidance_blocks):
            after = "" if self.last == layers else " and the last one runs densely"
            raise EncoderError(
                f"encoder.guidance_blocks: {self.guidance_blocks} must name two of the first {self.last} blocks "
                f"(the image tower has {layers}{after})"
            )

    def features(self, pixels: Tensor) -> ImageFeatures:
        """Pixels of whole patches to their features."""
        grid = self._grid(pixels)
        x, rotation, kept = self.embed(pixels, grid), self.rotation(grid, pixels.device), {}
        for i in range(self.last):
            x = self._with_prompts(i, x, rotation)
            kept[i] = x
        embedding = self.dense_tokens(x)

        def as_map(tokens: Tensor) -> Tensor:
            return tokens.transpose(1, 2).unflatten(2, grid)

        early, late = (as_map(kept[i][:, self.prefix :]) for i in self.guidance_blocks)
        return ImageFeatures(as_map(embedding), early, late)

    def pooled(self, pixels: Tensor) -> Tensor:
        """The embedding [B, C] of the whole image, as open_clip's `encode_image`: what the tower was trained for."""
        grid = self._grid(pixels)
        x, rotation = self.embed(pixels, grid), self.rotation(grid, pixels.device)
        for i in range(len(self.blocks)):
            x = self._with_prompts(i, x, rotation)
        return self.pool(x)

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        return pixels.shape[2] // self.patch, pixels.shape[3] // self.patch

    def _with_prompts(self, index: int, x: Tensor, rotation: Tensor | None) -> Tensor:
        """One block, with its prompt tokens between the prefix and the patches if there are any."""
        prompts = getattr(self.stack, "prompt_tokens", None)
        if prompts is None:
            return self.run(self.blocks[index], x, rotation)
        tokens, first = prompts[index].expand(x.shape[0], -1, -1), self.prefix
        x = self.run(self.blocks[index], torch.cat([x[:, :first], tokens, x[:, first:]], dim=1), rotation)
        return torch.cat([x[:, :first], x[:, first + tokens.shape[1] :]], dim=1)
