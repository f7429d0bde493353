"""topk_classes against torch.topk and argsort, alone and followed by gather_classes."""

import pytest
import torch
from shapes import CLASS_SHAPES, META, providers

from fgaseg.kernels import gather_classes, topk_classes


def by_argsort(scores, k):
    """The k best classes of every pixel by sorting all classes, united by counting."""
    best = scores.flatten(2).argsort(dim=1, descending=True, stable=True)[:, :k].flatten(1)
    counts = torch.stack([torch.bincount(one, minlength=scores.shape[1]) for one in best])
    return counts.flatten().nonzero().squeeze(1)


def by_topk(scores, k):
    best = scores.flatten(2).topk(k, dim=1).indices.flatten(1)
    kept = torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device).scatter_(1, best, True)
    return kept.flatten().nonzero().squeeze(1)


def rows(provider: str, k: int):
    forms = {"argsort": by_argsort, "torch.topk": by_topk, "torch.compile": by_argsort}
    if provider in forms:
        return lambda scores: forms[provider](scores, k)
    return lambda scores: topk_classes(scores, k, backend=provider).rows


@pytest.mark.parametrize("shape", CLASS_SHAPES)
@pytest.mark.parametrize("k", [1, 8, 32])
@pytest.mark.parametrize("provider", providers("topk_classes", "argsort", "torch.topk"))
def test_topk_classes(measure, new, shape, k, provider):
    b, _, t, h, w, _ = CLASS_SHAPES[shape]
    scores = new(b, t, h, w)
    if provider in ("torch.topk", "torch.compile") and k > t:
        pytest.skip(reason="torch.topk refuses k > T")
    nbytes = scores.numel() * scores.element_size()
    op = f"topk_classes k={k}"
    measure(op, shape, provider, rows(provider, k), rows("argsort", k), [scores], False, scores.numel(), nbytes)


@pytest.mark.parametrize("shape", CLASS_SHAPES)
@pytest.mark.parametrize("provider", ["ours"] if META else ["ours", "argsort"])
def test_topk_and_gather(measure, new, shape, provider):
    b, _, t, h, w, _ = CLASS_SHAPES[shape]
    scores, maps = new(b, t, h, w), new(b, t, h * w)

    def ours(scores, maps):
        return gather_classes(maps, topk_classes(scores, 8))

    def plain(scores, maps):
        return maps.flatten(0, 1)[by_argsort(scores, 8)]

    nbytes = 2 * scores.numel() * scores.element_size()
    run = ours if provider == "ours" else plain
    measure("topk_classes k=8 + gather", shape, provider, run, plain, [scores, maps], False, 0.0, nbytes)
