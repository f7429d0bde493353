import os
import subprocess
import sys

import pytest
import torch
from accuracy import LAYOUTS, backends, check_backend, check_error, laid_out, needs_cpp, random
from torch.library import opcheck
from torch.nn import functional as F

from fgaseg.kernels import Norm, explain, linear, mlp
from fgaseg.kernels._library import overload
from fgaseg.kernels.linear import ACTIVATIONS
from fgaseg.kernels.linear.reference import linear_reference, mlp_reference

DTYPES = [torch.float32, torch.bfloat16]  # float64 and float16 are left to PyTorch
BACKENDS = backends("cpp", "reference")
# rows, K, N: one value; odd sizes; a last tile and a last panel that are not full; more than one group of panels, and
# more than one chain of sums; rows that outnumber the columns, and the other way round
SHAPES = [(1, 1, 1), (3, 5, 7), (17, 64, 33), (29, 30, 31), (45, 600, 200), (300, 128, 96), (5, 16, 1100)]
EMPTY = [(0, 8, 8), (4, 0, 6), (0, 0, 6)]


@pytest.fixture(autouse=True)
def float32_inputs(monkeypatch):
    monkeypatch.setattr(random, "dtype", torch.float32)


def layer(rows: int, depth: int, columns: int, norm: bool = False, residual: bool = False) -> list:
    """x, weight, bias, norm weight, norm bias, residual."""
    vectors = [1 + 0.1 * random(depth, seed=3), random(depth, seed=4)] if norm else [None, None]
    added = random(rows, columns, seed=5) if residual else None
    return [random(rows, depth), random(columns, depth, seed=1) / depth**0.5, random(columns, seed=2), *vectors, added]


def results(x, weight, bias, scale, shift, residual, activation, dtype, layout="contiguous", backend="cpp"):
    """Of the op, of PyTorch in the same dtype, and in float64."""

    def cast(to):
        tensors = (x, weight, bias, scale, shift, residual)
        return [None if t is None else laid_out(t.to(dtype).to(to), layout).detach() for t in tensors]

    def op(x, weight, bias, scale, shift, residual):
        norm = None if scale is None else Norm(scale, shift, 1e-5)
        return linear(x, weight, bias, norm=norm, activation=activation, residual=residual, backend=backend)

    def plain(x, weight, bias, scale, shift, residual):
        return linear_reference(x, weight, bias, scale, shift, 1e-5, activation, residual)

    return op(*cast(dtype)), plain(*cast(dtype)), plain(*cast(torch.float64))


@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_reference(shape, dtype, backend):
    check_error(*results(*layer(*shape), "none", dtype, backend=backend), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@needs_cpp
def test_any_strides(layout, dtype):
    check_error(*results(*layer(20, 24, 40, True, True), "gelu", dtype, layout), dtype)


@pytest.mark.parametrize("columns", [1100, 3], ids=["more columns", "more rows"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@needs_cpp
def test_one_input_channel_in_odd_strides(columns, dtype):
    """In bfloat16 rows whose values are not side by side are read two by two, and here is no second one."""
    check_error(*results(*layer(5, 1, columns), "none", dtype, "transposed"), dtype)
    x, weight = random(1, 5).to(dtype).t(), random(1, columns, seed=1).to(dtype).t()
    same, exact = x @ weight.t(), x.double() @ weight.double().t()
    check_error(linear(x, weight, backend="cpp"), same, exact, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_input_channels(backend):
    y = linear(torch.ones(2, 3, 0), torch.ones(5, 0), torch.arange(5.0), residual=torch.ones(2, 3, 5), backend=backend)
    assert torch.equal(y, (torch.arange(5.0) + 1).expand(2, 3, 5))


@pytest.mark.parametrize("sizes", [(0,), (3, 0), (2, 3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("backend", backends("auto", "cpp", "triton", "reference"))
def test_no_channels_of_an_mlp(backend, sizes):
    """All gradients are empty but that of the hidden bias, which nothing depends on."""
    bias = torch.ones(5, requires_grad=backend != "triton")
    y = mlp(torch.ones(sizes), Norm(torch.ones(0), torch.ones(0), 1e-5), torch.ones(5, 0), bias, torch.ones(0, 5),
            torch.ones(0), "gelu", backend=backend)  # fmt: skip
    assert y.shape == sizes
    if bias.requires_grad:
        assert not torch.autograd.grad(y.sum(), bias)[0].any()


@pytest.mark.parametrize("backend", backends("auto", "cpp", "reference"))
def test_no_hidden_channels_of_an_mlp(backend):
    norm = Norm(torch.ones(4), torch.ones(4), 1e-5)
    x, bias = torch.ones(2, 3, 4), torch.arange(4.0)
    y = mlp(x, norm, torch.ones(0, 4), torch.ones(0), torch.ones(4, 0), bias, "gelu", backend=backend)
    assert torch.equal(y, x + bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("shape", [(17, 64, 33), (40, 300, 600), (300, 128, 96)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@needs_cpp
def test_norm_activation_and_residual(activation, norm, residual, shape, dtype):
    check_error(*results(*layer(*shape, norm, residual), activation, dtype), dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@needs_cpp
def test_activations_everywhere(activation):
    """Also where the error function is 1, and where float32 ends."""
    x = torch.cat([torch.linspace(-30, 30, 20001), torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30, 3e38, -3e38])])[:, None]
    got = linear(x, torch.ones(1, 1), activation=activation, backend="cpp")
    same, exact = (
        linear_reference(y, y.new_ones(1, 1), None, None, None, 0, activation, None) for y in (x, x.double())
    )
    for part in (slice(0, 20001), slice(20001, None)):
        check_error(got[part], same[part], exact[part], torch.float32)
    special = torch.tensor([float("inf"), float("-inf"), float("nan")])[:, None]
    got = linear(special, torch.ones(1, 1), activation=activation, backend="cpp").double()
    exact = linear_reference(special.double(), torch.ones(1, 1).double(), None, None, None, 0, activation, None)
    torch.testing.assert_close(got, exact, equal_nan=True)


def mlp_inputs(rows: int, width: int, inner: int) -> list:
    norm = [1 + 0.1 * random(width, seed=6), random(width, seed=7)]
    weights = [
        random(inner, width, seed=1) / width**0.5,
        random(inner, seed=2),
        random(width, inner, seed=3) / inner**0.5,
    ]
    return [random(rows, width), *norm, *weights, random(width, seed=4)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
# both weights in the cache; odd widths; weights that do not fit
@pytest.mark.parametrize("shape", [(1, 2, 2), (61, 128, 512), (30, 31, 65), (0, 8, 16), (40, 330, 660)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_mlp_matches_reference(activation, shape, dtype, backend):
    def op(x, scale, shift, *weights):
        return mlp(x, Norm(scale, shift, 1e-5), *weights, activation, backend=backend)

    def plain(x, scale, shift, *weights):
        return mlp_reference(x, scale, shift, 1e-5, *weights, activation)

    inputs = [x.to(dtype) for x in mlp_inputs(*shape)]
    check_error(op(*inputs), plain(*inputs), plain(*(x.double() for x in inputs)), dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", [*LAYOUTS, "nothing added"])
# one value; odd widths, and rows that do not fill a program; a row that fills several
@pytest.mark.parametrize("shape", [(1, 2, 2), (30, 31, 65), (37, 128, 512), (0, 8, 16), (3, 2500, 40)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", backends("triton"))
def test_mlp_of_a_sum_on_a_gpu(activation, layout, shape, dtype, backend):
    def plain(x, added, *weights):
        return mlp_reference(x if added is None else x + added, *weights[:2], 1e-5, *weights[2:], activation)

    (x, *weights), added = (y.to(dtype) for y in mlp_inputs(*shape)), random(*shape[:2], seed=9).to(dtype)
    if layout == "nothing added":
        added = None
    else:
        x, added, *weights = (laid_out(y, layout).detach() for y in (x, added, *weights))
    args = (x, added, *weights)
    got = overload("mlp_of_sum", backend)(x, added, *weights[:2], 1e-5, *weights[2:], activation)
    exact = plain(*(None if y is None else y.double() for y in args))
    check_error(got, plain(*args), exact, dtype)
    if added is None:
        by_name = mlp(x, Norm(*weights[:2], 1e-5), *weights[2:], activation, backend=backend)
        assert torch.equal(by_name, got)


@pytest.mark.parametrize("backend", backends("triton"))
def test_mlp_on_a_gpu_passes_the_checks_of_pytorch(backend):
    x, *weights = (y.detach() for y in mlp_inputs(3, 4, 6))
    for added in (None, x.flip(0)):
        opcheck(overload("mlp_of_sum", backend), (x, added, *weights[:2], 1e-5, *weights[2:], "quick_gelu"))
    opcheck(overload("mlp", backend), (x, *weights[:2], 1e-5, *weights[2:], "gelu"))
    with pytest.raises(RuntimeError, match="Triton's form has no gradient"):
        mlp(x.requires_grad_(), Norm(*weights[:2], 1e-5), *weights[2:], "gelu", backend=backend)


@pytest.mark.parametrize("backend", backends("auto", "cpp", "reference"))
def test_what_is_added_before_an_mlp(backend):
    x, *weights = (y.detach() for y in mlp_inputs(6, 8, 16))
    added = x.flip(0)
    got = mlp(x, Norm(*weights[:2], 1e-5), *weights[2:], "gelu", added=added, backend=backend)
    assert torch.equal(got, mlp(x + added, Norm(*weights[:2], 1e-5), *weights[2:], "gelu", backend=backend))
    with pytest.raises(ValueError, match=r"mlp: added has shape \[8\]; expected that of x, \[6, 8\]"):
        mlp(x, Norm(*weights[:2], 1e-5), *weights[2:], "gelu", added=added[0], backend=backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (45, 300, 200), (300, 128, 96)], ids=str)
@needs_cpp
def test_gradients_of_linear(layout, shape):
    x, weight, bias, *norm, residual = layer(*shape, True, True)

    def plain(x, weight, bias, scale, shift, residual):
        return linear_reference(x, weight, bias, scale, shift, 1e-5, "gelu", residual)

    def op(x, weight, bias, scale, shift, residual):
        return linear(x, weight, bias, norm=Norm(scale, shift, 1e-5), activation="gelu", residual=residual)

    check_backend(op, plain, [x, weight, bias, *norm, residual], torch.float32, layout)


def plain_layer(x, weight, bias, scale, shift, residual):
    return linear_reference(x, weight, bias, scale, shift, 1e-5, "none", residual)


def op_layer(x, weight, bias, scale, shift, residual):
    return linear(x, weight, bias, norm=Norm(scale, shift, 1e-5), residual=residual)


# of a norm and a residual inside the op; more rows than are packed together for the gradient of the weight
@pytest.mark.parametrize("shape", [(3, 5, 7), (1100, 64, 33), (600, 300, 290), (0, 8, 8)], ids=str)
@needs_cpp
def test_gradients_of_norm_and_residual(shape):
    check_backend(op_layer, plain_layer, layer(*shape, True, True), torch.float32, "contiguous")


def plain_mlp(activation):
    return lambda x, scale, shift, *weights: mlp_reference(x, scale, shift, 1e-5, *weights, activation)


def op_mlp(activation):
    return lambda x, scale, shift, *weights: mlp(x, Norm(scale, shift, 1e-5), *weights, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
# no rows; an odd width; several chunks of hidden values
@pytest.mark.parametrize("shape", [(40, 16, 64), (0, 8, 16), (33, 5, 71), (2100, 24, 600)], ids=str)
@needs_cpp
def test_gradients_of_mlp(activation, shape):
    check_backend(op_mlp(activation), plain_mlp(activation), mlp_inputs(*shape), torch.float32, "contiguous")


@pytest.mark.parametrize("trained", [[0], [1, 2], [4], [3, 6], [5]], ids=str)
@needs_cpp
def test_gradients_of_frozen_parts(trained):
    """A tower whose MLPs are frozen asks for the gradient of x alone."""
    inputs = [x.requires_grad_(i in trained) for i, x in enumerate(mlp_inputs(40, 16, 64))]
    wanted = [inputs[i] for i in trained]
    grads = [torch.autograd.grad(f("gelu")(*inputs).square().sum(), wanted) for f in (op_mlp, plain_mlp)]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@needs_cpp
def test_slopes_everywhere(activation):
    """An mlp of width 1 whose norm passes on its bias: its gradient is the slope of the activation."""
    at = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 40.0, -40.0, 1e4, -1e4])])

    def gradient(run, dtype):
        bias = at.to(dtype).requires_grad_()
        one = torch.ones(1, dtype=dtype)
        y = run(activation)(
            one[None] * 0, one, one * 0, (0 * at.to(dtype))[:, None], bias, 0 * bias.detach()[None] + 1, one
        )
        return torch.autograd.grad(y.sum(), bias)[0]

    check_error(
        gradient(op_mlp, torch.float32), gradient(plain_mlp, torch.float32), gradient(plain_mlp, torch.float64),
        torch.float32,
    )  # fmt: skip


@needs_cpp
def test_mlp_keeps_its_input_alone():
    inputs = [x.requires_grad_() for x in mlp_inputs(64, 16, 64)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        op_mlp("gelu")(*inputs)
    assert sorted(kept) == sorted(x.shape for x in inputs)


@needs_cpp
def test_mlp_and_norm_are_twice_differentiable():
    def penalties(run, inputs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        (grad,) = torch.autograd.grad(run(*leaves).pow(3).sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), leaves[:4])

    for ours, plain, inputs in (
        (op_mlp("gelu"), plain_mlp("gelu"), mlp_inputs(4, 6, 8)),
        (op_layer, plain_layer, layer(4, 6, 5, True, True)),
    ):
        for got, expected in zip(penalties(ours, inputs), penalties(plain, inputs), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_gradients_in_float64():
    x, weight, bias, scale, shift, residual = (t.double().requires_grad_() for t in layer(3, 4, 5, True, True))

    def layer_of(*t):
        return linear(*t[:3], norm=Norm(t[3], t[4], 1e-5), activation="gelu", residual=t[5])

    assert torch.autograd.gradcheck(layer_of, (x, weight, bias, scale, shift, residual))
    inputs = [t.double().requires_grad_() for t in mlp_inputs(3, 4, 6)]
    assert torch.autograd.gradcheck(lambda x, s, b, *w: mlp(x, Norm(s, b, 1e-5), *w, "quick_gelu"), inputs)


@needs_cpp
def test_twice_differentiable():
    x, weight, *_ = layer(4, 6, 5)
    x, weight = x.requires_grad_(), weight.requires_grad_()

    def penalty(product):
        (grad,) = torch.autograd.grad(product(x, weight).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), weight)[0]

    torch.testing.assert_close(penalty(linear), penalty(F.linear), rtol=1e-4, atol=1e-4)


PROBE = """
import torch
from fgaseg.kernels import linear, mlp, Norm
torch.manual_seed(0)
x, w, b = torch.randn(31, 40), torch.randn(50, 40), torch.randn(50)
half = [t.bfloat16() for t in (x, w, b)]
norm = Norm(torch.ones(40), torch.zeros(40), 1e-5)
y = [linear(x, w, b, norm=norm, activation="gelu", backend="cpp"), linear(*half, backend="cpp").float()]
y.append(mlp(x, norm, w, b, w.t().contiguous(), torch.zeros(40), "quick_gelu", backend="cpp"))
torch.save(y, __import__("sys").argv[1])
"""


@needs_cpp
def test_every_instruction_set_gives_the_same_numbers(tmp_path):
    found = []
    for level in ("", "avx2", "default"):
        path = tmp_path / f"level_{level}.pt"
        environment = os.environ | ({"ATEN_CPU_CAPABILITY": level} if level else {})
        subprocess.run([sys.executable, "-c", PROBE, str(path)], env=environment, check=True)
        found.append(torch.load(path, weights_only=True))
    for lower in found[1:]:
        for got, expected in zip(lower, found[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@needs_cpp
def test_the_number_of_threads_changes_no_number():
    """Rows and columns are cut elsewhere, sums are not."""
    x, weight, bias, scale, shift, residual = layer(130, 257, 300, True, True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(linear(x, weight, bias, norm=Norm(scale, shift, 1e-5), residual=residual, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], y) for y in found[1:])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": (5, 3)}, r"linear: x has shape \[2, 4\] and weight \[5, 3\]; expected \[..., K\] and \[N, K\]"),
        ({"bias": (4,)}, r"linear: bias has shape \[4\]; expected \[5\]"),
        ({"residual": (2, 4)}, r"linear: residual has shape \[2, 4\]; expected \[2, 5\]"),
    ],
)
def test_wrong_shapes(change, message):
    shapes = {"x": (2, 4), "weight": (5, 4), "bias": (5,), "residual": (2, 5)} | change
    with pytest.raises(ValueError, match=message):
        linear(**{name: random(*shape) for name, shape in shapes.items()})


def test_wrong_words_and_dtypes():
    x, weight = random(2, 4), random(5, 4)
    with pytest.raises(ValueError, match=r"activation is 'swish'; expected one of none, relu, gelu, quick_gelu"):
        linear(x, weight, activation="swish")
    with pytest.raises(TypeError, match=r"linear: weight has dtype torch.bfloat16 but x has torch.float32"):
        linear(x, weight.bfloat16())
    with pytest.raises(ValueError, match=r"mlp: weight2 has shape \[4, 4\]; expected \[4, 5\]"):
        mlp(x, Norm(random(4), random(4), 1e-5), weight, random(5), random(4, 4), random(4), "gelu")


@needs_cpp
def test_bfloat16_is_left_to_matrix_instructions(monkeypatch):
    x, weight = random(2, 4), random(5, 4)
    monkeypatch.setattr(sys.modules["fgaseg.kernels.linear.op"], "AMX", True)
    assert "auto takes the reference: PyTorch's product uses this processor's AMX" in explain(
        "linear", x.bfloat16(), weight.bfloat16()
    )
    assert torch.equal(linear(x.bfloat16(), weight.bfloat16()), F.linear(x.bfloat16(), weight.bfloat16()))
    assert "auto takes" not in explain("linear", x, weight)
