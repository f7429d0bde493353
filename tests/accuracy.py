"""How the tests of the ops judge numbers: against float64, with PyTorch in the same dtype as the yardstick."""

from contextlib import contextmanager

import pytest
import torch
from shim import emulate_cuda
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fgaseg.kernels._library import emulated, unavailable

if not torch.cuda.is_available():
    unavailable["cuda"] = emulate_cuda()

NAMES = ["cpp", "triton", "cuda"]
needs = {name: pytest.mark.skipif(bool(unavailable[name]), reason=unavailable[name]) for name in NAMES}
needs_cpp = needs["cpp"]
COMPILED = [pytest.param(name, marks=needs[name]) for name in NAMES]
BACKENDS = [*COMPILED, "reference"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "sliced", "transposed", "expanded"]


def why_not_tested(backend: str, dtype: torch.dtype | None) -> str:
    if backend in ("triton", "cuda") and dtype == torch.float64:
        return f"{backend} leaves float64 to the reference"
    if backend in emulated and backend == "triton" and dtype == torch.bfloat16:
        return "Triton's interpreter is wrong in bfloat16"
    return ""


@contextmanager
def at_home(backend: str):
    """New tensors on the backend's device, uninitialised memory full of NaN, random numbers in a type that it takes."""
    on_gpu = backend in ("triton", "cuda") and backend not in emulated
    before, random.dtype = random.dtype, torch.float64 if backend in ("cpp", "reference") else torch.float32
    torch.use_deterministic_algorithms(True, warn_only=True)  # what fills torch.empty
    try:
        with torch.device("cuda" if on_gpu else "cpu"):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        random.dtype = before


def random(*sizes: int, seed: int = 0) -> Tensor:
    numbers = torch.randn(sizes, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")
    return numbers.to(torch.get_default_device(), random.dtype)


random.dtype = torch.float64  # type: ignore[attr-defined]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The numbers of x in another memory layout ("expanded": every image is the first), as a new leaf."""
    if layout == "sliced":
        x = torch.cat([x, torch.full_like(x, torch.nan)], -1)[..., : x.shape[-1]]
    elif layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "expanded":
        x = x[:1].expand_as(x)
    return x.detach().requires_grad_(x.is_floating_point())


def outputs_and_gradients(function, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The output and, for a gradient with stride 0 over the images, the gradient of every input."""
    y = function(*inputs)
    grad = random(1, *y.shape[1:], seed=7).to(dtype).expand_as(y)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def worst(x: Tensor, exact: Tensor) -> float:
    return (x.double() - exact).abs().max().item() if exact.numel() else 0.0


def check_error(got: Tensor, same: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """At most twice PyTorch's own error in that dtype, plus four units in the last place of the largest number.

    In float64 there is nothing to measure PyTorch's error against: 64 units then, of 1 if all numbers are smaller.
    """
    assert got.dtype == dtype and got.shape == exact.shape
    scale = exact.abs().max().item() if exact.numel() else 0.0
    rounding = 64 * max(scale, 1.0) if dtype == torch.float64 else 4 * scale
    assert worst(got, exact) <= 2 * worst(same, exact) + rounding * torch.finfo(dtype).eps


def check_backend(op, reference, inputs: list[Tensor], dtype: torch.dtype, layout: str) -> None:
    """Output and gradients of op against reference, in dtype and in float64."""
    inputs = [x.to(dtype) for x in inputs]
    got = outputs_and_gradients(op, [laid_out(x, layout) for x in inputs], dtype)
    same = outputs_and_gradients(reference, [laid_out(x, layout) for x in inputs], dtype)
    exact = outputs_and_gradients(reference, [laid_out(x.double(), layout) for x in inputs], dtype)
    for results in zip(got, same, exact, strict=True):
        check_error(*results, dtype)


def check_one_graph(function, inputs: list[list[Tensor]]) -> None:
    """One graph serves inputs of several sizes, forward and backward, and gives what eager gives."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for args in inputs:
        leaves = [x.detach().requires_grad_() for x in args]
        for x, y in zip(*(outputs_and_gradients(f, leaves, args[0].dtype) for f in (compiled, function)), strict=True):
            torch.testing.assert_close(x, y)
    assert counter.frame_count == 1
