"""What follows the encoders, on random features: which classes are computed, what is kept, what comes in parts."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from fgaseg.errors import PredictionError
from fgaseg.kernels import Selection
from fgaseg.model import packed_maps
from fgaseg.model.encoders import ImageFeatures
from fgaseg.model.head import Head

FAST = {"preset": "released", "fast": True, "top_k": 1, "loss": {"aux_heads": 3}}


def head(**switches) -> Head:
    """Of 32 channels, in evaluation mode, in float64, with weights large enough to be seen."""
    torch.manual_seed(0)
    made = Head(tiny_config(**switches), 32, 24).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.5)
    return made


def features(images: int = 1, height: int = 5, width: int = 5) -> ImageFeatures:
    generator = torch.Generator().manual_seed(1)
    sizes = [(images, channels, height, width) for channels in (32, 24, 24)]
    return ImageFeatures(*(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes))


def texts(classes: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return F.normalize(torch.randn(classes, 32, generator=generator, dtype=torch.float64), dim=-1)


def embedded(made: Head) -> list[int]:
    """How many maps each call embeds from now on."""
    seen = []
    made.embed_global.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


@torch.no_grad()
def test_maps_of_the_alignment_loss_are_made_in_training_alone():
    for switches, has in (({}, True), ({"t2p": False}, False)):
        made = head(**switches)
        assert made(features(), texts()).align is None
        made.train()
        assert (made(features(), texts()).align is not None) == has
    for kind in ("aligned", "text"):
        made, x, v = head(t2p_text=kind).train(), features(2), texts()
        aligned = made.p2t(x.embedding, v)
        expected = made.t2p(x.embedding, aligned if kind == "aligned" else v.expand(2, -1, -1))
        torch.testing.assert_close(made(x, v).align, expected)
        assert expected.shape == (2, 5, 20, 20)


def test_the_kernels_of_the_alignment_loss_may_be_smaller():
    assert head().t2p.kernel_size == head().lcs.kernel_size == 3
    made = head(kernel_size=5, t2p_kernel_size=1)
    assert (made.t2p.kernel_size, made.lcs.kernel_size) == (1, 5) and head(kernel_size=5).t2p.kernel_size == 5


@torch.no_grad()
@pytest.mark.parametrize("lcs", [True, False])
def test_classes_beyond_the_cap_are_left_out(lcs):
    x, v = features(2), texts()
    whole, at_the_cap = head(lcs=lcs)(x, v), head(lcs=lcs, class_cap=5)(x, v)
    assert whole.kept is None and at_the_cap.kept is None and torch.equal(at_the_cap.logits, whole.logits)
    out = head(lcs=lcs, class_cap=4)(x, v)
    assert out.kept.sum(1).tolist() == [4, 4] and (out.logits[~out.kept] == -100).all()
    for one in (whole, out):
        assert (one.lcs is not None) == lcs
    if lcs:
        assert (out.lcs[~out.kept] == 0).all()
        torch.testing.assert_close(out.lcs[out.kept], whole.lcs[out.kept])
    weakest = out.gcs.flatten(2).amax(2).argmin(1)
    assert (~out.kept).nonzero()[:, 1].tolist() == weakest.tolist()


@torch.no_grad()
@pytest.mark.parametrize("lcs, size", [(True, 0.064), (False, 0.032)])
def test_maps_are_kept_between_two_phases_while_they_fit_the_budget(lcs, size):
    """5 maps of 5×5 pixels, 32 values of 8 bytes each; and as many of the embedded local maps."""
    expected = head(lcs=lcs)(features(), texts()).logits
    for budget, calls in ((None, 1), (size, 1), (size - 0.001, 3)):
        made = head(lcs=lcs, class_maps_budget=budget)
        seen = embedded(made)
        torch.testing.assert_close(made(features(), texts()).logits, expected)
        assert seen == [5] * calls  # for each of two sums over classes, and for the logits
    made = head(lcs=lcs, class_maps_budget=0)
    seen = embedded(made)
    made(features(2), texts())
    assert seen == [10]  # the budget is for one image
    with torch.enable_grad():
        made(features(), texts())
    assert seen == [10, 5]


@torch.no_grad()
def test_over_the_budget_all_classes_come_in_parts(monkeypatch):
    monkeypatch.setitem(packed_maps.PIXELS_PER_CHUNK, "cpu", 50)
    x, v = features(2), texts()
    expected = head()(x, v).logits
    parts = list(head(class_maps_budget=0).stream(x, v))
    assert [classes.tolist() for classes, _ in parts] == [[0, 1], [2, 3], [4]]
    torch.testing.assert_close(torch.cat([logits for _, logits in parts], 1), expected)
    ((classes, logits),) = head().stream(x, v)
    assert classes.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(logits, expected)
    capped = head(class_maps_budget=0, class_cap=2)
    ((classes, logits),) = capped.stream(x, v)  # there is one part of classes that differ between images
    torch.testing.assert_close(logits, capped(x, v).logits[:, classes])
    assert classes.tolist() == capped(x, v).kept.any(0).nonzero()[:, 0].tolist()


@torch.no_grad()
def test_images_are_propagated_one_by_one_on_a_cpu_unless_they_share_their_classes():
    for switches, calls in (({}, [5, 5]), ({**FAST, "topk_union": "image"}, [5, 5]), (FAST, [10])):
        made = head(**switches)
        seen = embedded(made)
        ((classes, logits),) = made.stream(features(2), texts())
        assert seen == calls
        torch.testing.assert_close(logits, made(features(2), texts()).logits[:, classes])


@torch.no_grad()
def test_without_propagation_there_are_cosines_of_all_classes():
    made = head(propagation=False, t2p=False, lcs=False)
    ((classes, logits),) = made.stream(features(2), texts())
    out = made(features(2), texts())
    assert classes.tolist() == list(range(5)) and torch.equal(logits, out.logits)
    torch.testing.assert_close(out.logits, F.interpolate(out.gcs / 0.07, scale_factor=4, mode="bilinear"))
    assert (out.lcs, out.align, out.aux, out.kept) == (None, None, [], None)


@torch.no_grad()
def test_released_scores_of_fast_mode_are_between_0_and_1_and_0_where_pruned():
    made = head(**FAST)
    plain = head(**FAST, released_fast_scores=False)
    x, v = features(2, 2, 2), texts(30)
    out, logits = made(x, v), plain(x, v)
    assert torch.equal(out.kept, logits.kept) and 0 < out.kept.sum() < out.kept.numel()
    torch.testing.assert_close(out.logits[out.kept], logits.logits[out.kept].sigmoid())
    assert (out.logits[~out.kept] == 0).all() and (logits.logits[~out.kept] == -100).all()
    trained = made.train()(x, v)
    assert trained.logits.min() < 0 and trained.kept is None and len(trained.aux) == 3


@torch.no_grad()
def test_auxiliary_heads_choose_where_there_is_something_to_choose():
    x, v = features(), texts()
    for switches, aux in (({}, 0), ({"fast": True, "top_k": None}, 1), ({**FAST, "loss": {"aux_heads": 2}}, 2)):
        made = head(**switches)
        assert len(made.aux_heads) == aux and made(x, v).aux == []
        assert (made(x, v).kept is None) == (switches.get("top_k") is None)
        out = made.train()(x, v)
        assert [tuple(one.shape) for one in out.aux] == [(1, 5, 5, 5), (1, 5, 5, 5)][:aux] and out.kept is None


@torch.no_grad()
def test_each_auxiliary_head_reads_maps_of_its_own():
    made = head(**FAST).train()
    for number, one in enumerate(made.aux_heads):
        one.conv.weight.zero_()
        one.conv.bias.fill_(number)
    aux = made(features(), texts()).aux
    assert [tuple(one.shape[2:]) for one in aux] == [(5, 5), (5, 5), (10, 10)]
    assert [one.unique().tolist() for one in aux] == [[0], [1], [2]]


@torch.no_grad()
def test_a_selector_of_ones_own_that_keeps_nothing_is_an_error():
    made = head(**FAST)
    made.selector.prune = lambda scores, k, union: Selection(torch.zeros(0).long(), torch.zeros(1).long(), 1, 5)
    with pytest.raises(PredictionError, match="no class has a finite score"):
        made(features(), texts())


@torch.no_grad()
def test_class_attention_is_pooled_as_the_mode_says(monkeypatch):
    made = head(class_pooling=2, class_pooling_eval=1)
    seen = []
    for layer in made.layers:
        across = layer.across_classes
        monkeypatch.setattr(layer, "across_classes", lambda *a, across=across: seen.append(a[-1]) or across(*a))
    made(features(), texts())
    made.train()(features(), texts())
    assert seen == [1] * len(made.layers) + [2] * len(made.layers)


def test_maps_of_a_class_are_the_largest_of_its_prompts():
    made = head(fast=True).train()
    out = made(features(), texts(4))
    merged = out.of_classes([3, 1])
    for got, maps in zip((merged.logits, merged.gcs, merged.lcs, merged.align, *merged.aux),
                         (out.logits, out.gcs, out.lcs, out.align, *out.aux), strict=True):  # fmt: skip
        assert torch.equal(got, torch.stack([maps[:, :3].amax(1), maps[:, 3]], 1))
    assert merged.kept is None and len(merged.aux) == 1
