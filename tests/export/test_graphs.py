"""The head as it is exported, run and traced, against the model itself: every option, any size, ties and NaN."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from exported_graphs import runners
from own_encoder import Words
from tiny import pixels, tiny_model

import fgaseg
from fgaseg.errors import ExportError
from fgaseg.export.exportable import check_exportable
from fgaseg.export.forms import class_lookup, window_attention
from fgaseg.export.graphs import HeadGraph, head_part, image_part, largest
from fgaseg.export.tracing import trace
from fgaseg.kernels.window_attention.reference import window_attention_reference
from fgaseg.model.class_selection import ClassSelector
from fgaseg.model.encoders import ImageFeatures

slow = pytest.mark.slow
PARTS = ("image", "text", "head", "whole")
OPTIONS = {
    "paper": {},
    "released": {"preset": "released"},
    "released, fast": {"preset": "released", "fast": True, "top_k": 1},
    "released, fast, cap": {"preset": "released", "fast": True, "top_k": 8, "class_cap": 9},
    "fast": {"fast": True},
    "fast, all classes": {"fast": True, "top_k": None},
    "fast, two heads": {"fast": True, "top_k": 1, "loss": {"aux_heads": 2}},
    "fast, three heads": {"fast": True, "top_k": 2, "pad_classes": 9, "loss": {"aux_heads": 3}},
    "fast, union of the batch": {"fast": True, "top_k": 1, "topk_union": "batch", "loss": {"aux_heads": 3}},
    "fast, cap": {"fast": True, "top_k": 2, "class_cap": 9, "loss": {"aux_heads": 2}},
    "fast, cap, union of the batch": {
        "fast": True, "top_k": 2, "class_cap": 9, "topk_union": "batch", "loss": {"aux_heads": 2}
    },
    "cap": {"class_cap": 5, "pad_classes": 9},
    "kernels over channels": {"kernel_norm": "channels", "kernel_size": 5},
    "kernels as they are": {"kernel_norm": "none", "kernel_size": 1},
    "kernels times the text": {"kernel_norm": "cosine", "kernel_size": 5},
    "replicated border": {"kernel_norm": "cosine", "lcs_padding": "replicate", "class_cap": 9},
    "sum": {"fusion": "add"},
    "no LCS": {"lcs": False},
    "no propagation": {"propagation": False, "lcs": False, "t2p": False},
    "no P2Tformer": {"p2t_layers": 0},
    "deep P2Tformer": {"p2t_layers": 3, "p2t_value_positions": False},
    "pooled by 2": {"class_pooling_eval": 2},
    "pooled by 3": {"class_pooling_eval": 3},
    "large window": {"window": 12},
    "window of a pixel": {"window": 1},
}  # fmt: skip
# images, rows, columns, classes; none is the size that is traced
SIZES = [(2, 10, 10, 3), (1, 1, 1, 1), (1, 7, 9, 7), (3, 5, 2, 40), (2, 4, 4, 12), (1, 2, 5, 300)]


def features(images, rows, columns, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 * images + rows)
    return ImageFeatures(*(torch.randn(images, 32, rows, columns, generator=generator).to(dtype) for _ in range(3)))


def texts(classes, dtype=torch.float32):
    return F.normalize(torch.randn(classes, 32, generator=torch.Generator().manual_seed(1)), dim=-1).to(dtype)


def same(got, expected, tolerance=1e-5):
    assert got.shape == expected.shape and got.dtype == expected.dtype
    for left_out in (-100.0, 0.0):  # exactly the same classes
        assert torch.equal(got == left_out, expected == left_out)
    assert torch.equal(got.isnan(), expected.isnan())
    got, expected = got.nan_to_num(), expected.nan_to_num()
    computed = expected[expected != -100]
    assert (got - expected).abs().max() <= tolerance * (computed.abs().max() if len(computed) else 1)


@torch.no_grad()
def check(model, run, dtype=torch.float32, tolerance=1e-5):
    for images, rows, columns, classes in SIZES:
        maps = features(images, rows, columns, dtype)
        same(run(*maps, texts(classes, dtype)), model.head(maps, texts(classes, dtype)).logits, tolerance)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_graph_gives_the_logits_of_the_model(name):
    model = tiny_model(aggregation_layers=1, **OPTIONS[name])
    check(model, HeadGraph(model))


def test_the_graph_in_float64():
    model = tiny_model(preset="released", fast=True, top_k=2, class_cap=9).double()
    check(model, HeadGraph(model), torch.float64, 1e-12)


@torch.no_grad()
def test_half_precision_errs_no_more_than_the_model_does():
    model = tiny_model(aggregation_layers=1)
    exact, lowered = copy.deepcopy(model).double(), model.half()
    for images, rows, columns, classes in SIZES[:3]:
        maps = features(images, rows, columns)
        truth = exact.head(ImageFeatures(*(x.double() for x in maps)), texts(classes).double()).logits
        own = lowered.head(ImageFeatures(*(x.half() for x in maps)), texts(classes)).logits
        got = HeadGraph(lowered)(*maps, texts(classes))
        assert got.dtype == torch.float32  # what goes in and out
        assert (got - truth).abs().max() <= 2 * (own - truth).abs().max()


@slow
@pytest.mark.parametrize("options", [
    {"preset": "released", "fast": True, "top_k": 2, "class_cap": 9, "pad_classes": 9, "class_pooling_eval": 3},
    *(pytest.param(one, marks=pytest.mark.exhaustive) for one in [
        {"class_cap": 5, "kernel_norm": "channels", "kernel_size": 1, "p2t_layers": 0, "class_pooling_eval": 2},
        {"kernel_norm": "cosine", "lcs_padding": "replicate", "kernel_size": 5},
        {"fast": True, "top_k": 1, "lcs": False, "loss": {"aux_heads": 2}},
        {"propagation": False, "lcs": False, "t2p": False},
    ]),
])  # fmt: skip
def test_a_trace_holds_for_other_sizes_in_every_program(options, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (fgaseg[export])")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (fgaseg[export])")
    pytest.importorskip("openvino", reason="openvino is not installed (fgaseg[export])")
    model = tiny_model(aggregation_layers=1, **options)
    for run in runners(head_part(model), tmp_path).values():
        check(model, lambda *inputs, run=run: run(*inputs)[0])


@slow
def test_the_image_tower_is_traced_with_its_prompt_tokens():
    model = tiny_model(encoder={"finetune": "prompt", "prompt_tokens": 3})
    run = trace(image_part(model)).module(check_guards=False)
    with torch.no_grad():
        model.clip.visual.transformer.prompt_tokens.normal_()
        for images, height, width in ((1, 8, 8), (3, 61, 40), (1, 32, 32)):
            image = pixels(images, height, width)
            for got, expected in zip(run(image), model.image_encoder(image), strict=True):
                same(got, expected)


def test_windows_are_those_of_the_op():
    generator = torch.Generator().manual_seed(0)
    for rows, columns, window, shift in ((1, 1, 1, 0), (5, 7, 4, 2), (5, 7, 4, 0), (8, 12, 4, 2), (13, 6, 5, 2)):
        q, k, v = torch.randn(3, 6, rows, columns, 32, generator=generator).unbind()
        guidance = torch.randn(2, 2, rows, columns, 32, generator=generator).unbind()
        args = (q, k, v, *guidance, 4, window, shift)
        same(window_attention(*args), window_attention_reference(*args))
    args = (q, k, v, *guidance, 4, 7, 3)  # the smaller side of the grid is 6
    same(window_attention(*args), window_attention_reference(*args[:-2], 6, 0))


def test_nothing_present_adds_nothing():
    q, offsets = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 6])
    sums = torch.zeros(2, 5, 4, 8, 8), torch.zeros(2, 5, 4, 8)
    same(class_lookup(q, q[:, 0], *sums, offsets, 4, 1e-6), torch.zeros_like(q))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_of_equal_scores_the_first_count(count):
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    assert torch.equal(largest(scores, count), torch.zeros_like(scores).scatter(1, best, 1.0) > 0)


@torch.no_grad()
def test_of_equal_classes_the_first_are_kept():
    """Equal names have equal scores."""
    for options in ({"class_cap": 5}, {"fast": True, "top_k": 1, "loss": {"aux_heads": 3}}):
        model, maps = tiny_model(aggregation_layers=1, **options), features(2, 1, 3)
        repeated = texts(3)[torch.arange(12) % 3]
        kept = (HeadGraph(model)(*maps, repeated) != -100)[..., 0, 0]
        if "class_cap" in options:
            same(HeadGraph(model)(*maps, repeated), model.head(maps, repeated).logits)
        assert kept.any() and not (kept[:, 3:] & ~kept[:, :-3]).any()  # no repetition without the one before it


@pytest.mark.parametrize("name", ["fast", "fast, three heads", "fast, cap, union of the batch", "released, fast, cap"])
@torch.no_grad()
def test_nan_is_among_the_best_of_no_pixel(name):
    model = tiny_model(aggregation_layers=1, **OPTIONS[name])
    maps, names = features(2, 5, 6), texts(24)
    names[7] = float("nan")
    if "cap" not in name:  # the cap has NaN first, as a sort
        same(HeadGraph(model)(*maps, names), model.head(maps, names).logits)
    for x in maps:
        x[1] = float("nan")
    same(HeadGraph(model)(*maps, texts(24)), model.head(maps, texts(24)).logits)
    for x in maps:
        x[0] = float("nan")
    with pytest.raises(FloatingPointError):
        model.head(maps, texts(24))
    logits = HeadGraph(model)(*maps, texts(24))  # a graph cannot raise
    assert logits[logits != -100].isnan().all() and logits.isnan().any()


def test_what_has_no_graph_is_refused_with_the_reason():
    check_exportable(tiny_model(class_cap=5), PARTS)
    for why, change in {
        "quantized": fgaseg.quantize,
        "meta": lambda model: model.to("meta"),
        "selector": lambda model: setattr(model.head, "selector", type("Mine", (ClassSelector,), {})()),
        "sharded": lambda model: setattr(model.head.text_guidance.weight, "full_tensor", None),  # as a DTensor has
    }.items():
        model = tiny_model(class_cap=5)
        change(model)
        with pytest.raises(ExportError, match=why) as raised:
            check_exportable(model, ("head",))
        assert "\n" not in str(raised.value)
    model = tiny_model()  # without anything to choose
    model.head.selector = SimpleNamespace()
    check_exportable(model, PARTS)


def test_an_encoder_of_ones_own_has_no_graph_but_the_head():
    model = fgaseg.FGASeg(fgaseg.ModelConfig(hidden=64), Words())
    check_exportable(model, ("head",))
    for part in ("image", "text", "whole"):
        with pytest.raises(ExportError, match="export the part head alone"):
            check_exportable(model, ("head", part))
