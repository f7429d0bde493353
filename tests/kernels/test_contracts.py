"""What holds for every op on every backend: PyTorch's own checks, one graph for all sizes, export, meta tensors."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from accuracy import BACKENDS, COMPILED, check_one_graph, random
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from fgaseg import kernels
from fgaseg.environment import CALLS
from fgaseg.kernels import Selection, _dispatch
from fgaseg.kernels._library import overload

OpCall = tuple[str, tuple[Any, ...]]  # the name of an op without its backend, and its arguments


def leaves(*sizes: tuple[int, ...]) -> list[Tensor]:
    return [random(*size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]


def detached(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach() for x in tensors]


def kernel_softmax_ops(norm: str) -> Iterator[OpCall]:
    (logits,) = leaves((2, 3, 4 * 9))
    yield "kernel_softmax", (logits, 3, norm)
    kernels_ = kernels.kernel_softmax(logits, 3, norm).detach()
    yield "kernel_softmax_backward", (random(2, 3, 4, 3, 3), kernels_, norm)


def lcs_conv_ops(norm: str) -> Iterator[OpCall]:
    args = leaves((2, 2, 3, 2), (2, 3, 2 * 9), (2, 3))
    yield "lcs_conv", (*args, 3, norm)
    yield "lcs_conv_backward", (random(2, 3, 3, 2), *detached(args[:2]), 3, norm)


def lcs_conv_from_text_ops() -> Iterator[OpCall]:
    args = leaves((2, 3, 4), (2 * 9 + 1, 4), (2 * 9 + 1,), (2, 2, 3, 2))
    yield "lcs_conv_from_text", (*args, 3, "taps")
    yield "lcs_conv_from_text_backward", (random(2, 3, 3, 2), *detached(args), 3, "taps")


def cosine_cost_volume_ops() -> Iterator[OpCall]:
    args = leaves((2, 5, 4, 3), (2, 3, 2, 5))
    yield "cosine_cost_volume", (*args, 1e-12)
    yield "cosine_cost_volume_backward", (random(2, 2, 3, 4, 3), *detached(args), 1e-12)


def topk_classes_ops(union: str) -> Iterator[OpCall]:
    yield "topk_classes", (random(2, 5, 3, 3), 2, union)


def gather_and_scatter_ops() -> Iterator[OpCall]:
    (x, y), rows = leaves((2, 5, 3), (3, 4)), torch.tensor([1, 4, 7])
    yield "gather_classes", (x, rows)
    yield "scatter_classes", (y, rows, 2, 5, 0.5)


def upsample_argmax_ops() -> Iterator[OpCall]:
    for total in (False, True):
        yield "upsample_argmax", (random(2, 5, 3, 3), 7, 8, total)
    yield "upsample_argmax_windows", (random(5, 5, 3, 3), 2, 6, 4, 7, 8, True)


def window_attention_ops() -> Iterator[OpCall]:
    args = leaves(*[(4, 3, 4, 4)] * 3, *[(2, 3, 4, 4)] * 2)
    yield "window_attention", (*args, 2, 2, 1)
    yield "window_attention_backward", (random(4, 3, 4, 4), *detached(args), 2, 2, 1)


def window_attention_ops_of_cuda() -> Iterator[OpCall]:
    """Its kernels take heads of 32 channels of 16 bits."""
    args = [x.detach().half().requires_grad_() for x in leaves(*[(2, 3, 4, 32)] * 3, *[(1, 3, 4, 32)] * 2)]
    yield "window_attention", (*args, 1, 3, 1)
    yield "window_attention_backward", (random(2, 3, 4, 32).half(), *detached(args), 1, 3, 1)


def up_stage_call(rows: int, images: int, h: int, w: int) -> list[Tensor]:
    """In float32: there is no kernel for float64."""
    c, p, n = 13, 11, 18
    weights = [(c, p, 2, 2), (p,), (n, p, 3, 3), (n,), (n,), (n, n, 3, 3), (n,), (n,)]
    sizes = [(rows, h, w, c), (images, 2 * h, 2 * w, n), *weights]
    return [random(*size, seed=seed).float() for seed, size in enumerate(sizes)]


def up_stage_ops() -> Iterator[OpCall]:
    x, guidance, *weights = up_stage_call(2, 1, 3, 2)
    yield "up_stage", (x, guidance, *weights, 2, 1e-5)
    yield "up_stage", (x, None, *weights, 2, 1e-5)


def group_norm_relu_ops() -> Iterator[OpCall]:
    args = leaves((2, 3, 2, 6), (6,), (6,))
    yield "group_norm_relu", (*args, 2, 1e-5, True)
    moments = random(2, 2, 2, seed=5).abs()
    yield "group_norm_relu_backward", (random(2, 3, 2, 6, seed=4), *detached(args), moments, 2, True)


def map_conv_ops() -> Iterator[OpCall]:
    yield "embed_maps", (random(3, 4, 5).float(), random(6, 1, 3, 3).float(), random(6).float())
    yield "score_maps", (random(3, 4, 5, 6).float(), random(1, 6, 3, 3).float(), random(1).float())


def attention_ops(causal: bool) -> Iterator[OpCall]:
    yield "attention", (*(x.detach().float().requires_grad_() for x in leaves(*[(2, 3, 5, 4)] * 3)), causal, 0.5)


def class_attention_ops() -> Iterator[OpCall]:
    """One image has no rows."""
    (q, k, v, *guidance), offsets = leaves(*[(5, 3, 8)] * 3, *[(5, 8)] * 2), torch.tensor([0, 3, 3, 5])
    summary, total = (x.detach().requires_grad_() for x in kernels.class_summary(k, v, guidance[1], offsets, 2))
    yield "class_summary", (k, v, guidance[1], offsets, 2)
    yield "class_lookup", (q, guidance[0], summary, total, offsets, 2, 1e-6)
    grads = random(*summary.shape, seed=8), random(*total.shape, seed=7)
    yield "class_summary_backward", (*grads, *detached([k, v, guidance[1]]), offsets, 2)
    lookup = detached([q, guidance[0], summary, total])
    yield "class_lookup_backward", (random(*q.shape, seed=9), *lookup, offsets, 2, 1e-6)


def singles(*sizes: tuple[int, ...]) -> list[Tensor]:
    """For ops that leave float64 to PyTorch."""
    return [x.float() for x in inputs(*sizes)]


def linear_ops() -> Iterator[OpCall]:
    x, weight, bias, scale, shift, residual = singles((3, 4), (5, 4), (5,), (4,), (4,), (3, 5))
    yield "linear", (x, weight, bias, scale, shift, 1e-5, "gelu", residual)
    plain = [t.requires_grad_() for t in singles((3, 4), (5, 4), (5,))]
    yield "linear", (*plain, None, None, 0.0, "none", None)
    plain = [t.requires_grad_() for t in singles((3, 4), (5, 4), (5,), (4,), (4,), (3, 5))]
    yield "linear", (*plain[:5], 1e-5, "none", plain[5])
    weights = singles((6, 4), (6,), (4, 6), (4,))
    yield "mlp", (x, scale, shift, 1e-5, *weights, "relu")
    yield "mlp", (*(t.requires_grad_() for t in singles((3, 4), (4,), (4,))), 1e-5, *weights, "gelu")
    for trained in (False, True):
        yield "mlp_backward", (*singles((3, 4), (3, 4)), *weights[:3], "quick_gelu", trained)


def linear_int8_ops() -> Iterator[OpCall]:
    x, one, two, bias, scale, shift = (t.detach() for t in singles((3, 4), (6, 4), (4, 6), (6,), (4,), (4,)))
    first, second = (kernels.Int8Weight.of(w) for w in (one, two))
    weights = (first.values, first.scale, bias), (second.values, second.scale, shift)
    yield "linear_int8", (x, *weights[0], scale, shift, 1e-5, "gelu", None)
    yield "mlp_int8", (x, scale, shift, 1e-5, *weights[0], *weights[1], "relu")


OP_CALLS: dict[str, tuple[Callable[..., Iterator[OpCall]], list[str]]] = {
    **{f"kernel_softmax {norm}": (kernel_softmax_ops, [norm]) for norm in ("taps", "channels", "none")},
    **{f"lcs_conv {norm}": (lcs_conv_ops, [norm]) for norm in ("taps", "channels", "none")},
    "lcs_conv_from_text": (lcs_conv_from_text_ops, []),
    "cosine_cost_volume": (cosine_cost_volume_ops, []),
    **{f"topk_classes {union}": (topk_classes_ops, [union]) for union in ("image", "batch")},
    "gather_classes and scatter_classes": (gather_and_scatter_ops, []),
    "upsample_argmax": (upsample_argmax_ops, []),
    "linear": (linear_ops, []),
    "linear_int8": (linear_int8_ops, []),
    "window_attention": (window_attention_ops, []),
    "window_attention, CUDA": (window_attention_ops_of_cuda, []),
    **{f"attention causal={causal}": (attention_ops, [causal]) for causal in (False, True)},
    "class_attention": (class_attention_ops, []),
    "group_norm_relu": (group_norm_relu_ops, []),
    "up_stage": (up_stage_ops, []),
    "map_conv": (map_conv_ops, []),
}
# there is none, or, for window_attention, none for these sizes
NO_CUDA_KERNEL = {"lcs_conv_from_text", "group_norm_relu", "window_attention", "class_attention"}
CUDA_ONLY = {"window_attention, CUDA"}
CPU_ONLY = {
    "linear",
    "mlp",
    "linear_int8",
    "map_conv",
    "up_stage",
    "attention",
    "attention causal=False",
    "attention causal=True",
}
# what is slow to trace, or to run in Triton's interpreter
SLOW = {("window_attention", "triton"), ("window_attention", "reference"), ("class_attention", "triton")}


def on_backends(names: Iterable[str], backends: list[Any], long: Iterable[tuple[str, str]] = ()) -> list[Any]:
    """Parameters "name, backend" for every op on every backend that has a kernel for it; ``long``: exhaustive."""

    def marks(*pair: str) -> list[Any]:
        if pair in long:
            return [pytest.mark.slow, pytest.mark.exhaustive]
        return [pytest.mark.slow] if pair in SLOW else []

    return [
        pytest.param(name, *one.values, marks=[*one.marks, *marks(name, *one.values)])
        for name in names
        for one in backends
        if not (name in NO_CUDA_KERNEL and one.values == ("cuda",))
        and not (name in CUDA_ONLY and one.values != ("cuda",))
        and not (name in CPU_ONLY and one.values in [("cuda",), ("triton",)])
    ]


@pytest.mark.parametrize(
    "name, backend",
    on_backends(OP_CALLS, COMPILED, long=[("lcs_conv channels", "triton"), ("window_attention", "triton")]),
)
def test_passes_the_checks_of_pytorch(name, backend):
    """Schema, fake results, autograd registration and tracing, of forward and backward ops."""
    calls, arguments = OP_CALLS[name]
    for op, args in calls(*arguments):
        opcheck(overload(op, backend), args)


def prune(scores: Tensor, backend: str) -> Tensor:
    """The number of rows depends on the scores and is unknown while the graph is made."""
    selection = kernels.topk_classes(scores, 1, backend=backend)
    kept = 2 * kernels.gather_classes(scores, selection, backend=backend)
    return kernels.scatter_classes(kept, selection, 0.0, backend=backend)


def attend_to_classes(q, k, v, q_guidance, k_guidance, pad_key, pad_value, offsets, backend: str) -> Tensor:
    guidance, pad = (q_guidance, k_guidance), (pad_key, pad_value)
    return kernels.class_attention(q, k, v, *guidance, offsets, 2, *pad, 5, backend=backend)


def class_attention_call(counts: list[int], pixels: int) -> list[Tensor]:
    rows = sum(counts)
    sizes = [(rows, pixels, 8)] * 3 + [(rows, 8)] * 2 + [(8,)] * 2
    return [*(random(*size, seed=i) for i, size in enumerate(sizes)), torch.tensor([0, *counts]).cumsum(0)]


def inputs(*sizes: tuple[int, ...]) -> list[Tensor]:
    return [random(*size, seed=seed) for seed, size in enumerate(sizes)]


def lcs_conv_call(b: int, c: int, t: int, h: int, w: int) -> list[Tensor]:
    return inputs((b, c, h, w), (b, t, c * 9), (b, t))


def from_text_call(b: int, t: int, d: int, c: int, h: int, w: int) -> list[Tensor]:
    return inputs((b, t, d), (c * 9 + 1, d), (c * 9 + 1,), (b, c, h, w))


def window_call(b: int, t: int, h: int, w: int, d: int) -> list[Tensor]:
    """The grid is padded on both sides: the reference pads only where it must, which would be another graph."""
    return inputs(*[(b * t, h, w, d)] * 3, *[(b, h, w, d)] * 2)


# By op: a function of arguments and a backend, and the arguments of calls of different sizes.
GRAPHS: dict[str, tuple[Callable[..., Any], Callable[[], list[list[Any]]]]] = {
    "kernel_softmax": (
        lambda x, backend: kernels.kernel_softmax(x, 3, backend=backend),
        lambda: [inputs((b, t, c * 9)) for b, t, c in [(2, 3, 5), (3, 7, 8), (5, 2, 4)]],
    ),
    "lcs_conv": (
        lambda *x, backend: kernels.lcs_conv(*x, 3, backend=backend),
        lambda: [lcs_conv_call(*size) for size in [(2, 3, 5, 4, 6), (3, 4, 7, 5, 9), (4, 2, 6, 8, 3)]],
    ),
    "lcs_conv_from_text": (
        lambda *x, backend: kernels.lcs_conv_from_text(*x, 3, backend=backend),
        lambda: [from_text_call(*size) for size in [(2, 5, 7, 4, 6, 3), (3, 7, 5, 2, 3, 4), (4, 6, 9, 3, 5, 7)]],
    ),
    "cosine_cost_volume": (
        kernels.cosine_cost_volume,
        lambda: [
            inputs((b, c, h, w), (b, t, p, c))
            for b, c, t, p, h, w in [(2, 3, 5, 4, 6, 7), (3, 4, 7, 2, 5, 9), (4, 5, 6, 3, 8, 2)]
        ],
    ),
    "group_norm_relu": (
        # a default that is a float would be symbolic at first: two graphs
        lambda *x, backend: kernels.group_norm_relu(*x, 2, 1e-5, backend=backend),
        lambda: [inputs((n, h, w, c), (c,), (c,)) for n, h, w, c in [(2, 3, 4, 6), (3, 5, 7, 8), (4, 6, 3, 10)]],
    ),
    "linear": (
        lambda x, w, b, backend: kernels.linear(x, w, b, activation="gelu", backend=backend),
        lambda: [singles((m, k), (n, k), (n,)) for m, k, n in [(3, 4, 5), (6, 7, 8), (9, 5, 4)]],
    ),
    "mlp": (
        lambda x, s, b, *w, backend: kernels.mlp(x, kernels.Norm(s, b, 1e-5), *w, "relu", backend=backend),
        lambda: [
            singles((m, d), (d,), (d,), (n, d), (n,), (d, n), (d,)) for m, d, n in [(3, 4, 5), (6, 7, 8), (9, 5, 4)]
        ],
    ),
    "topk_classes": (prune, lambda: [inputs(size) for size in [(2, 9, 3, 4), (3, 8, 2, 5), (4, 21, 3, 6)]]),
    "window_attention": (
        lambda *x, backend: kernels.window_attention(*x, 2, 5, 1, backend=backend),
        lambda: [window_call(*size) for size in [(2, 2, 6, 7, 8), (3, 2, 7, 8, 10), (5, 2, 8, 9, 12)]],
    ),
    "window_attention, CUDA": (
        lambda *x, backend: kernels.window_attention(*x, 1, 5, 1, backend=backend),
        lambda: [[x.half() for x in window_call(*size, 32)] for size in [(2, 2, 6, 7), (3, 2, 7, 8), (4, 3, 8, 9)]],
    ),
    "attention": (
        lambda *x, backend: kernels.attention(*(y.float() for y in x), causal=True, backend=backend),
        lambda: [inputs(*[size] * 3) for size in [(2, 3, 5, 4), (3, 2, 7, 6), (4, 5, 9, 8)]],
    ),
    "class_attention": (
        attend_to_classes,
        lambda: [class_attention_call(*call) for call in [([3, 4], 5), ([2, 9], 6), ([7, 6], 9)]],
    ),
}


@pytest.mark.parametrize(
    "op, backend",
    on_backends(GRAPHS, BACKENDS, long=[("window_attention", "triton"), ("lcs_conv_from_text", "triton")]),
)
def test_one_graph_for_all_sizes(op, backend):
    function, calls = GRAPHS[op]
    check_one_graph(lambda *x: function(*x, backend=backend), calls())


@pytest.mark.parametrize("op, backend", on_backends(["upsample_argmax"], BACKENDS))
def test_one_graph_for_all_sizes_of_maps_and_photos(op, backend):
    """Only the reference's graph depends on the number of classes."""
    more = [0, 0, 0] if backend == "reference" else [0, 3, 9]
    calls = [[random(n, 6 + classes, 3 + n, 5 + n), 9 + n, 4 + 3 * n] for n, classes in enumerate(more, start=2)]

    def labels_scores_and_total(maps: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        return getattr(kernels, op)(maps, (height, width), total=True, backend=backend)

    check_one_graph(labels_scores_and_total, calls)


class Call(nn.Module):
    """One op on one backend, with everything but its first tensor fixed."""

    def __init__(self, op: str, arguments: tuple, backend: str):
        super().__init__()
        self.op, self.arguments, self.backend = op, arguments, backend

    def forward(self, first: Tensor) -> Tensor:
        return one_tensor(getattr(kernels, self.op)(first, *self.arguments, backend=self.backend))


def one_tensor(result) -> Tensor:
    """The rows of a Selection, the last of several results."""
    if isinstance(result, Selection):
        return result.rows
    return result[-1] if isinstance(result, tuple) else result


def call(op: str, backend: str = "auto") -> tuple[Call, Tensor]:
    first, *others = CALLS[op](lambda *sizes: random(*sizes), torch.get_default_device().type)
    return Call(op, tuple(others), backend), first


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("backend", COMPILED)
def test_exports(op, backend):
    module, first = call(op, backend)
    if why := next(b for b in _dispatch.OPS[op] if b.name == backend).why_not(first, *module.arguments):
        pytest.skip(reason=why)
    exported = torch.export.export(module, (first,), strict=False)
    torch.testing.assert_close(exported.module()(first), module(first))
    assert any(f"fgaseg.{op}_{backend}" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("op", [op for op in CALLS if op != "topk_classes"])
def test_meta_tensors_get_the_shape_and_no_warning(op):
    first, *others = CALLS[op](lambda *sizes: torch.zeros(sizes, device="meta"), "meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = one_tensor(getattr(kernels, op)(first, *others))
    module, real = call(op)
    assert got.device.type == "meta" and got.shape == module(real).shape


@pytest.mark.parametrize("op", [op for op in CALLS if op != "topk_classes"])
def test_fake_gpu_tensors_without_a_gpu(op):
    """Shapes of a call on a GPU, traced where there is none."""
    module, real = call(op)
    with FakeTensorMode(allow_non_fake_inputs=True):
        first, *others = CALLS[op](lambda *sizes: torch.empty(sizes, device="cuda"), "cuda")
        got = one_tensor(getattr(kernels, op)(first, *others, backend="reference"))
    assert got.device.type == "cuda" and got.shape == module(real).shape
