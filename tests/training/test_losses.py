"""The losses where classes are rare, maps are of a lower precision, or numbers have to be the same every time."""

import pytest
import torch
import torch.nn.functional as F

from fgaseg.config import LossConfig
from fgaseg.model.head import Output
from fgaseg.training.losses import segmentation_losses

LABELS = torch.tensor([[[0, 1, 2, 255], [2, 2, 255, 255], [1, 0, 0, 1], [2, 1, 0, 0]]])


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def losses_of(logits, labels, similarity=None, aux=(), **config):
    return segmentation_losses(Output(logits, logits, None, similarity, list(aux), None), labels, LossConfig(**config))


def test_a_class_with_one_pixel_counts_as_much_as_any_and_one_with_none_does_not():
    logits, labels = maps(1, 5, 4, 4), LABELS.clone()
    labels[0, 0, 3] = 3  # the only one, and none of class 4
    each = [F.cross_entropy(logits, labels.where(labels == t, 255), ignore_index=255).item() for t in range(4)]
    assert losses_of(logits, labels, class_balance=1.0)["seg"].item() == pytest.approx(sum(each) / 4, rel=1e-6)


def test_the_first_auxiliary_head_is_the_one_that_is_reported():
    heads = [maps(1, 3, 4, 4, seed=seed) for seed in (2, 3)]
    expected = F.cross_entropy(heads[0], LABELS, ignore_index=255).item()
    assert losses_of(maps(1, 3, 4, 4), LABELS, aux=heads)["aux"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("switches", [{}, {"seg": "bce", "align": "bce"}], ids=str)
def test_maps_of_a_lower_precision_are_compared_in_float32(switches):
    logits = maps(1, 3, 4, 4).bfloat16()
    got, want = (losses_of(x, LABELS, x, lambda_align=0.5, **switches) for x in (logits, logits.float()))
    for name, value in want.items():
        assert got[name].dtype == torch.float32 and torch.equal(got[name], value)


def test_the_deterministic_loss_of_rows_is_that_of_maps():
    found = []
    for rows in (False, True):
        logits = maps(2, 3, 2, 2).requires_grad_()
        torch.use_deterministic_algorithms(rows)
        try:
            loss = losses_of(logits, LABELS.repeat(2, 1, 1), class_balance=0.5)["loss"]
            (gradient,) = torch.autograd.grad(loss, logits)
        finally:
            torch.use_deterministic_algorithms(False)
        found.append((loss.detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
