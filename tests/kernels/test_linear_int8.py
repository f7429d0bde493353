"""Layers of 8 bits: the integers are defined exactly, so that the kernel agrees with the reference."""

import os
import subprocess
import sys

import pytest
import torch
from accuracy import backends, largest_error, needs_cpp, random

from fgaseg.kernels import Int8Weight, Norm, linear, mlp
from fgaseg.kernels.linear import ACTIVATIONS
from fgaseg.kernels.linear_int8.reference import SMALLEST, steps

SHAPES = [(1, 1, 1), (3, 5, 7), (17, 64, 33), (29, 30, 31), (45, 600, 200), (300, 128, 96), (5, 16, 1100)]
EMPTY = [(0, 8, 8), (3, 8, 0)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def float32_inputs(monkeypatch):
    monkeypatch.setattr(random, "dtype", torch.float32)


def layer(rows, depth, columns, dtype=torch.float32):
    """x, weight, bias, norm, residual."""
    norm = Norm((1 + 0.1 * random(depth, seed=3)).to(dtype), random(depth, seed=4).to(dtype), 1e-5)
    weight = Int8Weight.of(random(columns, depth, seed=1) / max(depth, 1) ** 0.5)
    x, bias, residual = (t.to(dtype) for t in (random(rows, depth), random(columns, seed=2), random(rows, columns)))
    return x, weight, bias, norm, residual


def close(got, exact, steps_apart=0.0):
    """Up to the rounding of the dtype, and `steps_apart` for codes that rounding before them has changed."""
    assert got.dtype == exact.dtype and got.shape == exact.shape
    scale = exact.double().abs().max().item() if exact.numel() else 0.0
    assert largest_error(got, exact.double()) <= 8 * torch.finfo(got.dtype).eps * scale + steps_apart


@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@needs_cpp
def test_the_kernel_agrees_with_the_reference(shape, dtype):
    x, weight, bias, norm, residual = layer(*shape, dtype)
    for activation in ACTIVATIONS:
        for extra in ({}, {"residual": residual}, {"norm": norm}):
            got, same = (
                linear(x, weight, bias, activation=activation, backend=backend, **extra)
                for backend in ("cpp", "reference")
            )
            # a norm sums in another order, so that a few codes are one step away
            close(got, same, 0.05 if "norm" in extra else 0.0)
    assert torch.equal(linear(x, weight, backend="cpp"), linear(x, weight, backend="cpp"))


@pytest.mark.parametrize("shape", [(3, 4, 8), (61, 128, 512), (40, 30, 50), (30, 768, 1024), (0, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@needs_cpp
def test_the_mlp_agrees_with_the_reference(shape, dtype):
    rows, depth, inner = shape
    x, one, bias1, norm, _ = layer(rows, depth, inner, dtype)
    _, two, bias2, _, _ = layer(rows, inner, depth, dtype)
    got, same = (mlp(x, norm, one, bias1, two, bias2, "gelu", backend=backend) for backend in ("cpp", "reference"))
    close(got, same, 0.05)
    assert (got - same).float().abs().mean() <= 0.01 if rows else True


@pytest.mark.parametrize("backend", backends("cpp", "reference"))
def test_the_error_is_that_of_eight_bits(backend):
    x, weight, bias = random(200, 256), random(64, 256, seed=1), random(64, seed=2)
    exact = x.double() @ weight.double().T + bias.double()
    got = linear(x, Int8Weight.of(weight), bias, backend=backend)
    # both operands are rounded to about 1/255 of a range of six deviations: 0.7 % each
    assert 0.001 < (got - exact).std() / exact.std() < 0.02
    skewed = torch.nn.functional.gelu(x)  # hardly anything below 0: the range is used by what is above
    exact = skewed.double() @ weight.double().T
    assert (linear(skewed, Int8Weight.of(weight), backend=backend) - exact).std() / exact.std() < 0.015


def test_codes_have_eight_bits_and_contain_zero():
    x = torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4], [-4, -3, -2, -1], [-1, 0, 0.5, 1], [0, SMALLEST / 2, 0, 0]])
    integers, step = steps(x)
    assert (integers.amax(1) - integers.amin(1) <= 255).all() and torch.equal(integers, integers.round())
    assert ((integers * step - x).abs() <= step / 2 + 1e-6).all()
    assert (integers[x == 0] == 0).all()
    weight = Int8Weight.of(torch.tensor([[-2.0, 1, 0.5], [0, 0, 0]]))
    assert weight.values.tolist() == [[-127, 64, 32], [0, 0, 0]] and weight.scale.tolist()[1] == 0


@pytest.mark.parametrize("backend", backends("cpp", "reference"))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_in_its_own_row(backend, value):
    x, weight, bias, _, _ = layer(20, 64, 40)
    clean = linear(x, weight, bias, backend=backend)
    x[3, 5] = value
    got = linear(x, weight, bias, backend=backend)
    assert got[3].isnan().all()
    assert torch.equal(got[[0, 1, 2, *range(4, 20)]], clean[[0, 1, 2, *range(4, 20)]])


@needs_cpp
def test_strided_rows_and_several_axes():
    x, weight, bias, _, residual = layer(60, 64, 40)
    expected = linear(x, weight, bias, residual=residual, backend="cpp")
    transposed, sliced = x.t().contiguous().t(), torch.cat([x, x.new_full((60, 1), torch.nan)], 1)[:, :-1]
    for given in (transposed, sliced, x.view(3, 4, 5, 64)):
        added = residual.view(*given.shape[:-1], 40)
        assert torch.equal(linear(given, weight, bias, residual=added, backend="cpp"), expected.view(added.shape))


@pytest.mark.parametrize("capability", ["avx2", "default"])
@needs_cpp
def test_the_numbers_are_the_same_without_instructions_for_int8(capability):
    code = (
        "import torch; from fgaseg.kernels import Int8Weight, linear, mlp, Norm; torch.manual_seed(0)\n"
        "x, w, b = torch.randn(50, 72), torch.randn(72, 72), torch.randn(72); n = Norm(b, b, 1e-5)\n"
        "for y in (lambda k: linear(x, Int8Weight.of(w), b, backend=k), lambda k: mlp(x, n, Int8Weight.of(w), b, "
        "Int8Weight.of(w), b, 'relu', backend=k)):\n"
        "    error = (y('cpp') - y('reference')).abs()\n"
        "    print(error.max().item() < 2, error.median().item() < 1e-4)"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4


def test_the_scale_stays_float32_and_a_gradient_is_refused():
    x, weight, bias, norm, _ = layer(4, 8, 8)
    assert weight.to(torch.bfloat16).scale.dtype == torch.float32 and weight.half().values.dtype == torch.int8
    with pytest.raises(RuntimeError, match="linear_int8: has no gradient"):
        linear(x.requires_grad_(), weight, bias)
    with pytest.raises(RuntimeError, match="mlp_int8: has no gradient"):
        mlp(x, norm, weight, bias, weight, bias, "relu")
    with torch.no_grad():
        assert linear(x.double(), weight, bias.double()).dtype == torch.float64


def test_errors_say_what_is_expected():
    x, weight, bias, norm, _ = layer(4, 8, 8)
    with pytest.raises(ValueError, match=r"x has shape \[4, 7\]"):
        linear(x[:, :7], weight)
    with pytest.raises(ValueError, match="expected int8"):
        linear(x, Int8Weight(weight.values.short(), weight.scale))
    with pytest.raises(TypeError, match="both be tensors or both Int8Weight"):
        mlp(x, norm, weight, bias, torch.randn(8, 8), bias, "relu")
    with pytest.raises(ValueError, match="expected 1 to 65536"):
        linear(torch.zeros(1, 65537), Int8Weight(torch.zeros(1, 65537, dtype=torch.int8), torch.ones(1)))
