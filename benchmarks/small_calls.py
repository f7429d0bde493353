"""Small forward and backward calls of every op on its GPU backends: for a first check, compute-sanitizer and profilers.

    python benchmarks/small_calls.py [--check] [--backend triton] [--dtype bfloat16] [--shape S3] [--op lcs_conv]

--check compares outputs and gradients with float64, by the rule of the tests, and the exit status is 1 if one differs.
FGASEG_DRY_RUN=1 runs the backends on the CPU, interpreted and emulated.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from shapes import DEVICE, SHAPES, Shape, backends
from torch import Tensor

from fgaseg import kernels
from fgaseg.kernels._dispatch import CannotRun

SMALL = Shape(2, 37, 5, 7, 9, 3)
# Takes a backend and the inputs; returns the outputs.
Call = Callable[..., Tensor | tuple[Tensor, ...]]


def calls(shape: Shape) -> dict[str, tuple[str, Call, list[tuple[int, ...]]]]:
    """By name: the op's folder, the call, and the sizes of its inputs."""
    b, c, t, h, w, k = shape
    offsets = torch.tensor([0, t - 1, t], device=DEVICE)
    scores, rows, maps, guide = (b, t, h, w), (t, h * w, 64), (b * t, h, w, 64), (b, h, w, 64)

    def selected(backend: str, scores: Tensor, union: str = "image") -> tuple[Tensor, ...]:
        chosen = kernels.topk_classes(scores.detach(), 2, union, backend=backend)
        return chosen.rows, chosen.counts

    def packed(backend: str, scores: Tensor) -> Tensor:
        chosen = kernels.topk_classes(scores.detach(), 2, backend=backend)
        kept = kernels.gather_classes(scores, chosen, backend=backend)
        return kernels.scatter_classes(kept, chosen, 0.0, backend=backend)

    def attend(backend: str, *inputs: Tensor) -> Tensor:
        return kernels.class_attention(*inputs, offsets, 2, backend=backend)

    def convolve(backend: str, *inputs: Tensor, norm: str = "taps") -> Tensor:
        return kernels.lcs_conv(*inputs, k, norm, backend=backend)

    def from_text(backend: str, *inputs: Tensor) -> Tensor:
        return kernels.lcs_conv_from_text(*inputs, k, backend=backend)

    def cosine(backend: str, pixels: Tensor, texts: Tensor) -> Tensor:
        return kernels.cosine_cost_volume(pixels, texts, backend=backend)

    def softmax(backend: str, logits: Tensor, norm: str) -> Tensor:
        return kernels.kernel_softmax(logits, k, norm, backend=backend)

    def windows(backend: str, *inputs: Tensor) -> Tensor:
        return kernels.window_attention(*inputs, 2, 4, 2, backend=backend)

    def normalised(backend: str, *inputs: Tensor) -> Tensor:
        return kernels.group_norm_relu(*inputs, 4, backend=backend)

    def largest(backend: str, scores: Tensor) -> tuple[Tensor, ...]:
        return kernels.upsample_argmax(scores.detach(), (4 * h, 5 * w), total=True, backend=backend)

    def of_views(backend: str, scores: Tensor) -> tuple[Tensor, ...]:
        return kernels.upsample_argmax_windows(scores.detach(), 12, 8, (4 * h, 5 * w), backend=backend)

    def mlp(backend: str, x: Tensor, weight1: Tensor, weight2: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
        scale, shift, bias1, bias2 = (vector.detach() for vector in vectors)  # its Triton form has no gradient
        layers = weight1.detach(), bias1, weight2.detach(), bias2
        return (kernels.mlp(x.detach(), kernels.Norm(scale, shift, 1e-5), *layers, "quick_gelu", backend=backend),)

    convolved = [(b, c, h, w), (b, t, c * k * k), (b, t)]
    return {
        "kernel_softmax": ("kernel_softmax", partial(softmax, norm="taps"), convolved[1:2]),
        "kernel_softmax channels": ("kernel_softmax", partial(softmax, norm="channels"), convolved[1:2]),
        "lcs_conv": ("lcs_conv", convolve, convolved),
        "lcs_conv channels": ("lcs_conv", partial(convolve, norm="channels"), convolved),
        "lcs_conv_from_text": (
            "lcs_conv_from_text", from_text, [(b, t, c), (c * k * k + 1, c), (c * k * k + 1,), (b, c, h, w)]
        ),
        "cosine_cost_volume": ("cosine_cost_volume", cosine, [(b, c, h, w), (b, t, 2, c)]),
        "mlp": ("linear", mlp, [(t * h * w, 64), (128, 64), (64, 128), (64,), (64,), (128,), (64,)]),
        "topk_classes": ("topk_classes", selected, [scores]),
        "topk_classes batch": ("topk_classes", partial(selected, union="batch"), [scores]),
        "gather_classes, scatter_classes": ("topk_classes", packed, [scores]),
        "class_attention": ("class_attention", attend, [rows, rows, rows, (t, 64), (t, 64)]),
        "upsample_argmax": ("upsample_argmax", largest, [scores]),
        "upsample_argmax_windows": ("upsample_argmax", of_views, [(5, t, h, w)]),
        "group_norm_relu": ("group_norm_relu", normalised, [maps, (64,), (64,)]),
        "window_attention": ("window_attention", windows, [maps, maps, maps, guide, guide]),
    }  # fmt: skip


def inputs_of(sizes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """The same random numbers on every device."""
    if DEVICE == "meta":
        return [torch.empty(size, dtype=dtype, device="meta", requires_grad=True) for size in sizes]
    numbers = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=numbers).to(DEVICE, dtype).requires_grad_() for size in sizes]


def results(call: Call, backend: str, inputs: list[Tensor]) -> list[Tensor]:
    """The outputs, and the gradient of every input."""
    y = call(backend, *inputs)
    if isinstance(y, tuple):
        return list(y)
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, weights)]


def differences(call: Call, backend: str, inputs: list[Tensor], got: list[Tensor]) -> str:
    """What is wrong with the results, or "": the rule of the tests for numbers, equality for labels."""
    from accuracy import check_error

    dtype = inputs[0].dtype
    same = results(call, "reference", inputs)
    exact = results(call, "reference", [x.detach().double().requires_grad_() for x in inputs])
    for index, (mine, theirs, right) in enumerate(zip(got, same, exact, strict=True)):
        if mine.shape != theirs.shape:
            return f"result {index}: shape {tuple(mine.shape)}, the reference's {tuple(theirs.shape)}"
        if not mine.is_floating_point():
            if (mine != theirs).sum() > mine.numel() / 1000:  # labels may differ where two scores round to one number
                return f"result {index}: {int((mine != theirs).sum())} of {mine.numel()} integers differ"
            continue
        try:
            check_error(mine, theirs, right, mine.dtype, least=1e-3)
        except AssertionError:
            worst = (mine.double() - right.double()).abs().max().item()
            return f"result {index}: error {worst:.1e} of {right.abs().max().item():.1e} in {dtype}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--backend", default="")
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--shape", default="")
    parser.add_argument("--op", default="")
    options = parser.parse_args()
    wrong = 0
    for name, (op, call, sizes) in calls(SHAPES.get(options.shape, SMALL)).items():
        if options.op not in ("", op):
            continue
        for backend in backends(op):
            if options.backend not in ("", backend):
                continue
            for dtype in (getattr(torch, word) for word in options.dtype.split(",")):
                inputs = inputs_of(sizes, dtype)
                try:
                    got = results(call, backend, inputs)
                    if DEVICE == "cuda":
                        torch.cuda.synchronize()
                    why = differences(call, backend, inputs, got) if options.check else ""
                except CannotRun as error:  # by design, as window_attention's CUDA form in float32
                    print(
                        f"{name:<32}{backend:<8}{str(dtype)[6:]:<10}left out: {str(error).splitlines()[0]}", flush=True
                    )
                    continue
                except Exception as error:  # the other ops still run
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                wrong += bool(why)
                print(f"{name:<32}{backend:<8}{str(dtype)[6:]:<10}{why or 'ok'}", flush=True)
    print(f"{wrong} calls failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
