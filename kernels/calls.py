"""The calls on which ops are judged: the shapes of the field's benchmarks, and every op with inputs of these shapes.

The same table serves the benchmarks, which take the shapes, aot.py, which compiles what each call launches, and the
model of time in benchmarks/predicted.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ._triton import Launch, recorded


class Shape(NamedTuple):
    """B images of H×W pixels with C channels, T classes, K×K kernels."""

    b: int
    c: int
    t: int
    h: int
    w: int
    k: int

    def __str__(self) -> str:
        return f"B{self.b} C{self.c} T{self.t} {self.h}x{self.w} K{self.k}"


SHAPES = {
    "S1": Shape(1, 512, 171, 24, 24, 3),  # training on COCO-Stuff
    "S2": Shape(5, 512, 150, 24, 24, 3),  # A-150, five views
    "S3": Shape(5, 512, 847, 24, 24, 3),  # A-847, five views
    "S4": Shape(5, 768, 847, 24, 24, 3),  # the same with ViT-L/14
    "S5": Shape(5, 512, 171, 24, 24, 11),  # a large kernel (Table IV)
    "S6": Shape(1, 512, 150, 48, 48, 3),  # a fine grid
    "S7": Shape(5, 512, 847, 24, 24, 11),  # many classes and a large kernel
    "S8": Shape(2, 37, 5, 7, 9, 5),  # small and odd: call overhead
}
CLASSES = {f"T={t}": t for t in (20, 150, 847)}  # of one image, for the ops on maps of classes
HEADS, SIZE, WINDOW, GRID = 4, 32, 12, 24  # the released model's attention
# of the released model's decoder: side, channels and groups of the maps of both stages
DECODER = {"48x48x64": (48, 64, 4), "96x96x32": (96, 32, 2)}
MAP, PHOTO, CROP, CROP_STRIDE = 96, (480, 640), 384, 256  # the maps of a view, and the released evaluation's windows


@dataclass(frozen=True)
class Call:
    """One call of an op at one shape, as its backends get it.

    row     the op and shape as the benchmarks name them
    op      of torch.ops.fgaseg, without its backend; a backward one, or one of several, is part of the row
    nbytes  that it cannot avoid to read or write
    flops   of its matrix products
    """

    row: tuple[str, str]
    op: str
    args: tuple[Any, ...]
    nbytes: float
    flops: float

    @property
    def backward(self) -> bool:
        return self.op.endswith("_backward")

    @property
    def package(self) -> str:
        return self.row[0].split()[0].removesuffix("_windows")

    def triton(self) -> tuple[list[Launch], list[tuple[float, float]]]:
        """The launches of the Triton backend; of PyTorch's kernels between them the bytes and operations."""
        launcher = getattr(import_module(f"{__package__}.{self.package}.triton"), self.op)
        with _PyTorch() as others:
            return recorded(launcher, *self.args), others.work


class _PyTorch(TorchDispatchMode):
    """Notes PyTorch's own kernels. A number that a launcher reads from the device is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[tuple[float, float]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in (*args, result) if isinstance(x, Tensor) and x.device.type == "meta"]
        if not function.is_view and "empty" not in function.name() and tensors:
            flops = flop_registry.get(function._overloadpacket, lambda *_, **__: 0)
            self.work.append((_bytes(*tensors), flops(*args, **(kwargs or {}), out_val=result)))
        return result


def calls(dtype: torch.dtype, device: str = "meta") -> Iterator[Call]:
    """Every op forward and backward at every shape, with uninitialised inputs.

    Only index tensors have values and are on the CPU: how often the kernels loop depends on them.
    """

    def new(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device=device)

    for name, shape in SHAPES.items():
        yield from _convolutions(name, shape, new)
        if name != "S7":  # S3 with other kernels
            yield from _similarities(name, shape, new)
    for name, classes in CLASSES.items():
        yield from _attention(name, classes, new)
        yield from _norms(name, classes, new)
        yield from _upsampling(name, classes, new)


def _bytes(*tensors: Tensor) -> float:
    return float(sum(x.numel() * x.element_size() for x in tensors))


def _convolutions(name: str, shape: Shape, new: Callable[..., Tensor]) -> Iterator[Call]:
    b, c, t, h, w, k = shape
    pixels, logits, bias, maps = new(b, c, h, w), new(b, t, c * k * k), new(b, t), new(b, t, h, w)
    kernels = logits.view(b, t, c, k, k)
    once, flops = _bytes(logits), 2.0 * b * t * c * k * k * h * w
    yield Call(("kernel_softmax taps", name), "kernel_softmax", (logits, k, "taps"), 2 * once, 0)
    yield Call(("kernel_softmax taps", name), "kernel_softmax_backward", (kernels, kernels, "taps"), 3 * once, 0)
    yield Call(("lcs_conv", name), "lcs_conv", (pixels, logits, bias, k, "taps"), _bytes(pixels, logits, maps), flops)
    inputs = (maps, pixels, logits)
    yield Call(
        ("lcs_conv", name), "lcs_conv_backward", (*inputs, k, "taps"), _bytes(*inputs, pixels, logits), 2 * flops
    )
    texts, weight, outputs = new(b, t, c), new(c * k * k + 1, c), new(c * k * k + 1)
    args = (texts, weight, outputs, pixels, k, "taps")
    project = 2.0 * b * t * c * k * k * c
    yield Call(
        ("lcs_conv_from_text", name), "lcs_conv_from_text", args, _bytes(texts, weight, pixels, maps), flops + project
    )


def _similarities(name: str, shape: Shape, new: Callable[..., Tensor]) -> Iterator[Call]:
    b, c, t, h, w, _ = shape
    pixels, texts, cosines = new(b, c, h, w), new(b, t, 1, c), new(b, 1, t, h, w)
    once, flops = _bytes(pixels, texts, cosines), 2.0 * b * t * c * h * w
    yield Call(("cosine_cost_volume", name), "cosine_cost_volume", (pixels, texts, 1e-12), once, flops)
    backward = once + _bytes(pixels, texts)
    yield Call(
        ("cosine_cost_volume", name),
        "cosine_cost_volume_backward",
        (cosines, pixels, texts, 1e-12),
        backward,
        2 * flops,
    )
    yield Call(("topk_classes k=8", name), "topk_classes", (cosines[:, 0], 8, "image"), _bytes(cosines), 0)


def _attention(name: str, classes: int, new: Callable[..., Tensor]) -> Iterator[Call]:
    channels, pixels = HEADS * SIZE, GRID * GRID
    row = ("window_attention", f"{name} shift={WINDOW // 2}")
    grad, *maps = (new(classes, GRID, GRID, channels) for _ in range(4))
    once, flops = _bytes(grad), 4.0 * WINDOW**2 * classes * pixels * channels
    args = (*maps, *(new(1, GRID, GRID, channels) for _ in range(2)), HEADS, WINDOW, WINDOW // 2)
    yield Call(row, "window_attention", args, 4 * once, flops)
    yield Call(row, "window_attention_backward", (grad, *args), 7 * once, 2.5 * flops)
    row = ("class_attention", name)
    q, k, v = new(classes, pixels, 3 * channels).split(channels, -1)  # slices, as the model's linear layer gives them
    guidance, offsets, grad = new(classes, channels), torch.tensor([0, classes]), new(classes, pixels, channels)
    sums, sums_grad = (
        (new(1, pixels, HEADS, SIZE, SIZE).float(), new(1, pixels, HEADS, SIZE).float()) for _ in range(2)
    )
    small, flops = _bytes(*sums), 2.0 * classes * pixels * channels * SIZE
    keys, queries = (k, v, guidance, offsets, HEADS), (q, guidance, *sums, offsets, HEADS, 1e-6)
    yield Call(row, "class_summary", keys, 2 * once + small, flops)
    yield Call(row, "class_summary_backward", (*sums_grad, *keys), 4 * once + small, 2 * flops)
    yield Call(row, "class_lookup", queries, 2 * once + small, flops)
    yield Call(row, "class_lookup_backward", (grad, *queries), 3 * once + 2 * small, 3 * flops)


def _norms(name: str, classes: int, new: Callable[..., Tensor]) -> Iterator[Call]:
    for stage, (side, channels, groups) in DECODER.items():
        row, x, weight = ("group_norm_relu", f"{name} {stage}"), new(classes, side, side, channels), new(channels)
        moments = new(classes, groups, 2).float()
        yield Call(row, "group_norm_relu", (x, weight, weight, groups, 1e-5, True), 2 * _bytes(x), 0)
        args = (new(*x.shape), x, weight, weight, moments, groups, True)
        yield Call(row, "group_norm_relu_backward", args, 3 * _bytes(x), 0)


def _upsampling(name: str, classes: int, new: Callable[..., Tensor]) -> Iterator[Call]:
    maps, views = new(1, classes, MAP, MAP), new(5, classes, MAP, MAP)
    results = 12.0 * PHOTO[0] * PHOTO[1]
    yield Call(("upsample_argmax", name), "upsample_argmax", (maps, *PHOTO, False), _bytes(maps) + results, 0)
    args = (views, 2, CROP, CROP_STRIDE, *PHOTO, True)
    yield Call(("upsample_argmax_windows", name), "upsample_argmax_windows", args, _bytes(views) + results, 0)
