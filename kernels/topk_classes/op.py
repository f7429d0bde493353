"""topk_classes, gather_classes, scatter_classes: schemas, shape rules, gradients and backends."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._dispatch import check_same, dispatch, register
from .._library import define, register_autograd
from .reference import gather_classes_reference, scatter_classes_reference, topk_classes_reference

UNIONS = ("image", "batch")


@dataclass(frozen=True)
class Selection:
    """The classes kept of each image, packed without padding: images may keep different numbers of classes, or none.

    rows     [R] int64  b*T + t of each kept class, ascending
    counts   [B] int64  the number of classes that each image keeps; they add up to R
    batch    B
    classes  T
    """

    rows: Tensor
    counts: Tensor
    batch: int
    classes: int


def _check_topk(scores: Tensor, k: int, union: str) -> None:
    check_same("topk_classes", scores=scores)
    if scores.dim() != 4:
        raise ValueError(f"topk_classes: scores has shape {list(scores.shape)}; expected [B, T, H, W]")
    if k < 1:
        raise ValueError(f"topk_classes: k is {k}; expected at least 1")
    if union not in UNIONS:
        raise ValueError(f"topk_classes: union is '{union}'; expected one of {', '.join(UNIONS)}")


def _check_gather(x: Tensor, rows: Tensor) -> None:
    _check_rows("gather_classes", "x", x, 2, rows)


def _check_scatter(y: Tensor, rows: Tensor, batch: int, classes: int, fill: float) -> None:
    _check_rows("scatter_classes", "y", y, 1, rows)
    expected = rows.shape[0]
    if torch.compiler.is_compiling():  # R is unknown while tracing, and compared when the graph runs
        torch._check(y.shape[0] == expected, lambda: "scatter_classes: y and the selection must share R")
    elif y.shape[0] != expected:
        raise ValueError(f"scatter_classes: y has shape {list(y.shape)}; the selection expects [{expected}, ...]")
    if batch < 0 or classes < 0:
        raise ValueError(f"scatter_classes: batch is {batch} and classes {classes}; expected no negative numbers")


def _check_rows(op: str, name: str, x: Tensor, leading: int, rows: Tensor) -> None:
    check_same(op, **{name: x})
    if x.dim() < leading:
        raise ValueError(f"{op}: {name} has shape {list(x.shape)}; expected at least {leading} dimensions")
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise ValueError(f"{op}: rows is {rows.dtype} {list(rows.shape)}; expected torch.int64 [R]")
    if rows.device != x.device:
        raise ValueError(f"{op}: {name} is on {x.device} but the selection is on {rows.device}; move one with .to()")


def _fake_topk(scores, k, union):
    rows = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty(rows, dtype=torch.int64), scores.new_empty(scores.shape[0], dtype=torch.int64)


def _fake_gather(x, rows):
    return x.new_empty(rows.shape[0], *x.shape[2:])


def _fake_scatter(y, rows, batch, classes, fill):
    return y.new_empty(batch, classes, *y.shape[1:])


# Rows are distinct, so gather and scatter are transposes of each other.
def _save_gather(ctx, inputs, output):
    x, rows = inputs
    ctx.sizes = x.shape[:2]
    ctx.save_for_backward(rows)


def _gather_backward(ctx, ops, grad):
    return ops("scatter_classes")(grad, *ctx.saved_tensors, *ctx.sizes, 0.0), None


def _save_scatter(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scatter_backward(ctx, ops, grad):
    return ops("gather_classes")(grad, *ctx.saved_tensors), None, None, None, None


define("topk_classes", "(Tensor scores, int k, str union) -> (Tensor, Tensor)", _check_topk, _fake_topk, __package__)
define("gather_classes", "(Tensor x, Tensor rows) -> Tensor", _check_gather, _fake_gather, __package__)
define(
    "scatter_classes",
    "(Tensor y, Tensor rows, SymInt batch, SymInt classes, float fill) -> Tensor",
    _check_scatter,
    _fake_scatter,
    __package__,
)
register_autograd("gather_classes", _save_gather, _gather_backward)
register_autograd("scatter_classes", _save_scatter, _scatter_backward)
# CUDA has half of Triton's launches, and from 847 classes on a third of its instructions
register("topk_classes", topk_classes_reference, order=("cpp", "cuda", "triton"))
register("gather_classes", gather_classes_reference)
register("scatter_classes", scatter_classes_reference)


def topk_classes(scores: Tensor, k: int, union: str = "image", *, backend: str = "auto") -> Selection:
    """The classes that are among the k best of at least one pixel.

    scores   [B, T, H, W]  float32, float64, float16 or bfloat16; any strides
    k        at least 1; k >= T keeps every class that has a selectable score anywhere
    union    "image": each image keeps its own classes; "batch": every image keeps the classes of all images
    returns  Selection; the number of rows depends on the scores

    NaN and -inf are never selected, so an image may keep no class. Of equal scores the lowest class index wins.
    Not differentiable. Every size may be 0. ``backend`` is "auto" or a name that ``explain`` lists. Source: FGAseg,
    section III-D (the released code unites over the batch). Raises ValueError for a wrong shape, k or union, TypeError
    for a wrong dtype.
    """
    rows, counts = dispatch("topk_classes", backend, scores.detach(), k, union)
    return Selection(rows, counts, scores.shape[0], scores.shape[1])


def gather_classes(x: Tensor, selection: Selection, *, backend: str = "auto") -> Tensor:
    """The selected classes of every image, image after image.

    x        [B, T, ...]  float32, float64, float16 or bfloat16; any strides
    returns  [R, ...]     contiguous, in the order of selection.rows; a copy

    Differentiable any number of times. Raises ValueError if B or T is not the selection's, or if devices differ. Rows
    that are not in 0..B*T-1, which ``topk_classes`` never gives, are a RuntimeError on a CPU; a GPU does not read them
    back: Triton gives zeros for them, and an assertion stops the CUDA kernel.
    """
    if x.dim() < 2 or x.shape[0] != selection.batch or x.shape[1] != selection.classes:
        raise ValueError(
            f"gather_classes: x has shape {list(x.shape)}; "
            f"the selection expects [{selection.batch}, {selection.classes}, ...]"
        )
    return dispatch("gather_classes", backend, x, selection.rows)


def scatter_classes(y: Tensor, selection: Selection, fill: float, *, backend: str = "auto") -> Tensor:
    """The inverse of ``gather_classes``: the selected classes where they belong, ``fill`` for all others.

    y        [R, ...]     float32, float64, float16 or bfloat16; any strides
    returns  [B, T, ...]  contiguous

    Differentiable in y any number of times. Raises ValueError if R is not the selection's, or if devices differ. For
    rows that are out of range see ``gather_classes``; Triton leaves them out. Rows that do not ascend are defined on a
    CPU alone: a GPU may not find them.
    """
    return dispatch("scatter_classes", backend, y, selection.rows, selection.batch, selection.classes, float(fill))
