"""An encoder of one's own, as small as it can be: five attributes."""

import torch
from torch import Tensor, nn


class Words(nn.Module):
    """Patches through two layers; texts as bags of words."""

    patch, channels, width = 8, 32, 24

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, self.width, self.patch, stride=self.patch)
        self.late = nn.Conv2d(self.width, self.width, 3, padding=1)
        self.project = nn.Conv2d(self.width, self.channels, 1)
        self.words = nn.Embedding(1000, self.channels)
        self.late.requires_grad_(False)

    def image(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        early = self.early(pixels)
        late = self.late(early.relu())
        return self.project(late.relu()), early, late

    def text(self, prompts: list[str]) -> Tensor:
        rows = [[sum(word.encode()) % 1000 for word in prompt.split()] for prompt in prompts]
        return torch.stack([self.words(torch.tensor(row, device=self.words.weight.device)).sum(0) for row in rows])
