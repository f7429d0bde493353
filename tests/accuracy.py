"""How the tests of the ops compare results: against float64, with PyTorch in the same dtype as the yardstick."""

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from interpreter import index_by_one_element, truncate_tf32
from shim import emulate_cuda, guarded
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fgaseg.kernels._library import emulated, unavailable

if not torch.cuda.is_available():
    unavailable["cuda"] = emulate_cuda()
if "triton" in emulated:
    truncate_tf32()
    index_by_one_element()

NAMES = ["cpp", "triton", "cuda"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "sliced", "transposed", "expanded"]
needs = {name: pytest.mark.skipif(bool(unavailable[name]), reason=unavailable[name]) for name in NAMES}
needs_cpp = needs["cpp"]
SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive


def backends(*names: str, slow: Iterable[str] = ()) -> list[Any]:
    """Parameters for these backends, each skipped where it is unavailable; ``slow``: those whose tests are slow."""
    marks = {name: [needs[name]] if name in needs else [] for name in names}
    return [pytest.param(n, marks=[*marks[n], *([pytest.mark.slow] if n in slow else [])]) for n in names]


COMPILED = backends(*NAMES)
BACKENDS = backends(*NAMES, "reference")


def backend_layouts(*names: str) -> list[Any]:
    """Parameters "backend, layout" for an op that is slow in Triton's interpreter: quick there for "contiguous" alone,
    and exhaustive but for "expanded", whose strides of 0 are the hardest."""
    marks = {layout: [SLOW, EXHAUSTIVE] for layout in LAYOUTS} | {"contiguous": [], "expanded": [SLOW]}
    return [
        pytest.param(*one.values, layout, marks=[*one.marks, *(marks[layout] if one.values == ("triton",) else [])])
        for layout in LAYOUTS
        for one in backends(*names)
    ]


def why_not_tested(backend: str, dtype: torch.dtype | None) -> str:
    if backend in ("triton", "cuda") and dtype == torch.float64:
        return f"{backend} leaves float64 to the reference"
    if backend in emulated and backend == "triton" and dtype == torch.bfloat16:
        return "Triton's interpreter is wrong in bfloat16"
    return ""


@contextmanager
def device_of(backend: str):
    """Puts new tensors on the backend's device, random ones in a dtype it takes, and NaN in uninitialised memory."""
    on_gpu = backend in ("triton", "cuda") and backend not in emulated
    before, random.dtype = random.dtype, torch.float64 if backend in ("cpp", "reference") else torch.float32
    torch.use_deterministic_algorithms(True, warn_only=True)  # this is what fills torch.empty with NaN
    try:
        with torch.device("cuda" if on_gpu else "cpu"), guarded():
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        random.dtype = before


def random(*sizes: int, seed: int = 0) -> Tensor:
    x = torch.randn(sizes, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")
    return x.to(torch.get_default_device(), random.dtype)


random.dtype = torch.float64  # type: ignore[attr-defined]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of x in another memory layout, as a new leaf.

    "sliced": the last dimension is part of a longer one, from its second element on; "expanded": every image is the
    first, which begins at the second element of its memory. So both are aligned to one element only.
    """
    if layout == "sliced":
        nan = torch.full_like(x, torch.nan)
        x = torch.cat([nan[..., :1], x, nan], -1)[..., 1 : 1 + x.shape[-1]]
    elif layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "expanded":
        one = x[:1].reshape(-1)
        x = torch.cat([one.new_full((1,), torch.nan), one])[1:].view(x[:1].shape).expand_as(x)
    return x.detach().requires_grad_(x.is_floating_point())


def outputs_and_gradients(function, inputs: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    """The outputs and, for a gradient with stride 0 over the images, the gradient of every input that requires one."""
    y = function(*inputs)
    if isinstance(y, tuple):
        return list(y)
    if not y.requires_grad:
        return [y]
    grad = random(1, *y.shape[1:], seed=7).to(dtype).expand_as(y)
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def largest_error(x: Tensor, exact: Tensor) -> float:
    return (x.double() - exact).abs().max().item() if exact.numel() else 0.0


def check_error(got: Tensor, same: Tensor, exact: Tensor, dtype: torch.dtype, least: float = 0.0) -> None:
    """At most twice PyTorch's own error in that dtype, plus four units in the last place of the largest value.

    If that value is below ``least``, units of ``least`` count: the rounding of values that are 0 in exact arithmetic
    has no yardstick. In float64 there is nothing to measure PyTorch's error against: 64 units then, of 1 if all values
    are smaller.
    """
    assert got.dtype == dtype and got.shape == exact.shape
    scale = max(exact.abs().max().item(), least) if exact.numel() else 0.0
    rounding = 64 * max(scale, 1.0) if dtype == torch.float64 else 4 * scale
    assert largest_error(got, exact) <= 2 * largest_error(same, exact) + rounding * torch.finfo(dtype).eps


def check_backend(op, reference, inputs: list[Tensor], dtype: torch.dtype, layout: str, least: float = 0.0) -> None:
    """Output and gradients of op against reference, in dtype and in float64; ``least`` as in ``check_error``."""
    inputs = [x.to(dtype) for x in inputs]

    def results(function, dtype: torch.dtype) -> list[Tensor]:
        return outputs_and_gradients(function, [laid_out(x.to(dtype), layout) for x in inputs], dtype)

    got, same, exact = results(op, dtype), results(reference, dtype), results(reference, torch.float64)
    for three in zip(got, same, exact, strict=True):
        check_error(*three, dtype, least)


def check_one_graph(function, calls: Sequence[Sequence[Any]]) -> None:
    """One graph serves calls of several sizes, forward and backward, and gives the results of eager mode.

    The floating-point tensors among the arguments of a call get gradients, if the op has any.
    """
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for arguments in calls:
        leaves = [
            x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments
        ]
        both = (outputs_and_gradients(f, leaves, arguments[0].dtype) for f in (compiled, function))
        for got, expected in zip(*both, strict=True):
            torch.testing.assert_close(got, expected)
    assert counter.frame_count == 1
