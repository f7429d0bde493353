"""topk_classes: C++ against the reference and against torch.topk, whose choice among equal scores is not defined."""

import pytest
import torch

from fgaseg.kernels import topk_classes
from fgaseg.kernels.topk_classes.reference import topk_classes_reference

SHAPES = {
    "B1 T171 24x24": (1, 171, 24, 24),
    "B5 T847 24x24": (5, 847, 24, 24),
    "B1 T150 48x48": (1, 150, 48, 48),
}


def torch_topk(scores, k):
    best = scores.flatten(2).topk(k, dim=1).indices.flatten(1)
    kept = torch.zeros(scores.shape[:2], dtype=torch.bool).scatter_(1, best, True)
    return kept.flatten().nonzero().squeeze(1)


PROVIDERS = {
    "cpp": lambda scores, k: topk_classes(scores, k, backend="cpp").rows,
    "reference": lambda scores, k: topk_classes_reference(scores, k, "image")[0],
    "torch.topk": torch_topk,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 8, 32])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_topk_classes(measure, shape, k, provider):
    run = PROVIDERS[provider]
    scores = torch.randn(SHAPES[shape])
    measure("topk_classes", f"{shape} k{k}", provider, [scores], lambda x: run(x, k), lambda x: torch_topk(x, k))
