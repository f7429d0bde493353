"""mlp on a GPU: the two products are cuBLAS's, and what is around them is Triton's.

One kernel reads x, to which the output of an attention may have to be added first, and writes both LayerNorm(x), which
enters the first product, and x + bias2, to which the second product is added in place. That makes three launches and an
activation, where PyTorch's own operations make five and an activation of one or, of quick_gelu, three. There is no
gradient: with one, PyTorch's operations run.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._activation import activate
from .._triton import FLOATS, Configuration, far_apart, launch, recorded

ELEMENTS = 2048  # of x in a program, in whole rows: 16 a thread
BLOCK = 2048  # hidden values a program activates


@triton.jit
def _mlp_enter(
    x, added, scale, shift, bias, normal, out, rows, stride_x, stride_added, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """normal = LayerNorm(x + added) and out = x + added + bias, both contiguous; program = ROWS rows of x."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (channel < WIDTH)[None, :]
    values = tl.load(x + row[:, None] * stride_x + channel[None, :], inside, other=0.0).to(tl.float32)
    if ADDED:
        values += tl.load(added + row[:, None] * stride_added + channel[None, :], inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / WIDTH
    centred = tl.where(inside, values - mean[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + eps)
    scales = tl.load(scale + channel, channel < WIDTH, other=0.0).to(tl.float32)
    shifts = tl.load(shift + channel, channel < WIDTH, other=0.0).to(tl.float32)
    constants = tl.load(bias + channel, channel < WIDTH, other=0.0).to(tl.float32)
    offset = row[:, None] * WIDTH + channel[None, :]
    normalised = centred * inverse[:, None] * scales[None, :] + shifts[None, :]
    tl.store(normal + offset, normalised.to(normal.dtype.element_ty), inside)
    tl.store(out + offset, (values + constants[None, :]).to(out.dtype.element_ty), inside)


@triton.jit
def _mlp_quick_gelu(x, size, BLOCK: tl.constexpr):
    """x · sigmoid(1.702 x), in place."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + offset, offset < size, other=0.0).to(tl.float32)
    tl.store(x + offset, (values * tl.sigmoid(1.702 * values)).to(x.dtype.element_ty), offset < size)


def _enter(
    x: Tensor, added: Tensor | None, scale: Tensor, shift: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm(x + added) and x + added + bias, both [R, D], of x and added [R, D] with adjacent channels."""
    rows, width = x.shape
    normal, out = x.new_empty(rows, width), x.new_empty(rows, width)
    block = triton.next_power_of_2(width)
    sizes = {"rows": rows, "stride_x": x.stride(0), "WIDTH": width, "BLOCK": block, "ROWS": max(ELEMENTS // block, 1)}
    more = {"added": x, "stride_added": 0} if added is None else {"added": added, "stride_added": added.stride(0)}
    call = {"x": x, "scale": scale, "shift": shift, "bias": bias, "normal": normal, "out": out, "eps": eps,
            **sizes, **more, "ADDED": added is not None}  # fmt: skip
    launch(_mlp_enter, triton.cdiv(rows, sizes["ROWS"]), call, num_warps=4 if block <= ELEMENTS else 8)
    return normal, out


def _activated(hidden: Tensor, activation: str) -> Tensor:
    """In place where that takes no launch more."""
    if activation == "quick_gelu":
        size = hidden.numel()
        launch(_mlp_quick_gelu, triton.cdiv(size, BLOCK), {"x": hidden, "size": size, "BLOCK": BLOCK})
        return hidden
    return hidden.relu_() if activation == "relu" else activate(hidden, activation)


def _dense(x: Tensor) -> Tensor:
    """x, copied if its channels are not adjacent in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def mlp_of_sum(
    x: Tensor, added: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight1: Tensor, bias1: Tensor,
    weight2: Tensor, bias2: Tensor, activation: str,
) -> Tensor:  # fmt: skip
    if not x.numel():
        return x.new_empty(x.shape)
    scale, shift, bias = (vector.contiguous() for vector in (norm_weight, norm_bias, bias2))
    normal, out = _enter(_dense(x), None if added is None else _dense(added), scale, shift, bias, eps)
    hidden = _activated(torch.addmm(bias1, normal, weight1.t()), activation)
    return out.addmm_(hidden, weight2.t())


def mlp(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    bias2: Tensor, activation: str,
) -> Tensor:  # fmt: skip
    return mlp_of_sum(x, None, norm_weight, norm_bias, eps, weight1, bias1, weight2, bias2, activation)


def configurations() -> Iterator[Configuration]:
    """The widths of class maps and of the image towers of ViT-B and ViT-L; other widths are constants too."""
    for (dtype, name), width in product(FLOATS.items(), (128, 768, 1024)):
        vectors = [torch.empty(width, dtype=dtype, device="meta") for _ in range(3)]
        x = far_apart(40, width, dtype=dtype)
        for one in recorded(_enter, x, x, *vectors, 1e-5):
            yield Configuration(f"{name} D={width}", one)
    for dtype, name in FLOATS.items():
        for one in recorded(_activated, torch.empty(40, 512, dtype=dtype, device="meta"), "quick_gelu"):
            yield Configuration(f"{name} quick_gelu", one)
