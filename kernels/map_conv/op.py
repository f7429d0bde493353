"""embed_maps and score_maps: schemas, shape rules and backends."""

from collections.abc import Callable

import torch
from torch import Tensor

from .._dispatch import LONGEST_SIDE, check_same, check_shape, differentiated, dispatch, register, under_autocast
from .._library import define
from .reference import embed_maps_reference, score_maps_reference


def _check_embedding(maps: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_same("embed_maps", maps=maps, weight=weight, bias=bias)
    _check_embedding_shapes(maps, weight, bias)


def _check_embedding_shapes(maps: Tensor, weight: Tensor, bias: Tensor) -> None:
    if maps.dim() != 3 or any(n < 1 for n in maps.shape[1:]):
        raise ValueError(f"embed_maps: maps has shape {list(maps.shape)}; expected [R, H, W], H and W at least 1")
    odd = weight.dim() == 4 and weight.shape[2] == weight.shape[3] and weight.shape[3] % 2 == 1
    if not odd or weight.shape[1] != 1 or weight.shape[0] < 1:
        raise ValueError(f"embed_maps: weight has shape {list(weight.shape)}; expected [D, 1, K, K], K odd")
    if weight.shape[3] > LONGEST_SIDE:
        raise ValueError(f"embed_maps: K is {weight.shape[3]}; expected at most {LONGEST_SIDE}")
    check_shape("embed_maps", "bias", bias, [weight.shape[0]])


def _check_scores(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_same("score_maps", x=x, weight=weight, bias=bias)
    _check_score_shapes(x, weight, bias)


def _check_score_shapes(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.dim() != 4 or any(n < 1 for n in x.shape[1:]):
        raise ValueError(f"score_maps: x has shape {list(x.shape)}; expected [R, H, W, C], H, W and C at least 1")
    check_shape("score_maps", "weight", weight, [1, x.shape[3], 3, 3])
    check_shape("score_maps", "bias", bias, [1])


def _fake_embedding(maps, weight, bias):
    return maps.new_empty(*maps.shape, weight.shape[0])


def _fake_scores(x, weight, bias):
    return x.new_empty(x.shape[:3])


define(
    "embed_maps",
    "(Tensor maps, Tensor weight, Tensor bias) -> Tensor",
    _check_embedding,
    _fake_embedding,
    __package__,
)
define("score_maps", "(Tensor x, Tensor weight, Tensor bias) -> Tensor", _check_scores, _fake_scores, __package__)


def _not_double(x: Tensor, *_) -> str:
    return "it computes in float32; float64 is left to PyTorch's own convolution" if x.dtype == torch.float64 else ""


for _op, _reference in (("embed_maps", embed_maps_reference), ("score_maps", score_maps_reference)):
    register(
        _op,
        _reference,
        cpp=_not_double,
        triton=lambda *_: "there is no Triton kernel: on a GPU PyTorch's own convolution runs",
        cuda=lambda *_: "there is no CUDA kernel: on a GPU PyTorch's own convolution runs",
    )


def _run(op: str, reference: Callable[..., Tensor], backend: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    grad = differentiated(x, weight, bias)
    if backend == "auto" and (grad or x.device.type not in ("cpu", "meta") or x.dtype == torch.float64):
        backend = "reference"  # a choice, not a fallback
    if backend == "reference":
        return reference(x, weight, bias)
    if grad:
        raise RuntimeError(f"{op}: backend='{backend}' has no gradient; use 'auto', 'reference' or torch.no_grad()")
    (x, weight, bias), no_more_casts = under_autocast(x, weight, bias)
    with no_more_casts:
        return dispatch(op, backend, x, weight, bias)


def embed_maps(maps: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """A convolution that gives maps of one channel D channels, channels last, padded with zeros to the same size.

    maps     [R, H, W]        float64, float32, float16 or bfloat16; any strides
    weight   [D, 1, K, K]     K odd
    bias     [D]
    returns  [R, H, W, D]     dtype of maps, contiguous; sums in float32, in float64 for float64

    The C++ backend has no gradient: where one is asked for PyTorch's own convolution runs, as on a GPU and in float64.
    Under autocast it runs in autocast's dtype. R may be 0. ``backend`` is "auto" or a name that ``explain`` lists.
    Source: FGAseg's embedding of the similarity maps (section III-C2). Raises ValueError for mismatched shapes or
    devices, TypeError for mismatched dtypes, RuntimeError for a gradient of the C++ backend.
    """
    _check_embedding_shapes(maps, weight, bias)
    return _run("embed_maps", embed_maps_reference, backend, maps, weight, bias)


def score_maps(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """A 3x3 convolution of maps that are channels last to one channel, padded with zeros to the same size.

    x        [R, H, W, C]  float64, float32, float16 or bfloat16; any strides
    weight   [1, C, 3, 3]
    bias     [1]
    returns  [R, H, W]     dtype of x; sums in float32, in float64 for float64

    Gradients, autocast, backends and errors are those of ``embed_maps``. Source: the head of FGAseg's decoder (section
    III-D).
    """
    _check_score_shapes(x, weight, bias)
    return _run("score_maps", score_maps_reference, backend, x, weight, bias)
