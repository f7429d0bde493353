"""What holds for every op on every backend: export, meta tensors, shapes without numbers."""

import warnings

import pytest
import torch
from accuracy import COMPILED, random
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fgaseg import kernels
from fgaseg.environment import CALLS
from fgaseg.kernels import Selection, _dispatch


class Call(nn.Module):
    """One op on one backend, with everything but its first tensor fixed."""

    def __init__(self, op: str, arguments: tuple, backend: str):
        super().__init__()
        self.op, self.arguments, self.backend = op, arguments, backend

    def forward(self, first: Tensor) -> Tensor:
        return one_tensor(getattr(kernels, self.op)(first, *self.arguments, backend=self.backend))


def one_tensor(result) -> Tensor:
    """Of a Selection its rows, of several results the last."""
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
def test_a_gpu_without_a_gpu(op):
    """Shapes of a call on a GPU, traced where there is none."""
    module, real = call(op)
    with FakeTensorMode(allow_non_fake_inputs=True):
        first, *others = CALLS[op](lambda *sizes: torch.empty(sizes, device="cuda"), "cuda")
        got = one_tensor(getattr(kernels, op)(first, *others, backend="reference"))
    assert got.device.type == "cuda" and got.shape == module(real).shape
