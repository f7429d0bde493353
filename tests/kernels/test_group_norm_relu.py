import pytest
import torch
from accuracy import DTYPES, LAYOUTS, backends, check_backend, check_error, needs_cpp, random
from torch import Tensor

from fgaseg.kernels import group_norm_relu
from fgaseg.kernels.group_norm_relu.reference import group_norm_relu_reference

COMPILED, BACKENDS = backends("cpp", "triton"), backends("cpp", "triton", "reference")
# N, H, W, C, groups. One channel; odd everything; whole vectors; several blocks of pixels and tiles, the last one not
# full; a group of every channel; the model's groups
SHAPES = [(1, 1, 3, 1, 1), (2, 3, 5, 6, 3), (3, 2, 2, 32, 2), (2, 19, 17, 20, 1), (2, 3, 4, 5, 5), (3, 18, 20, 48, 3)]
EMPTY = (0, 2, 3, 4, 2)


def inputs(n, h, w, c, _) -> list[Tensor]:
    return [random(n, h, w, c), 1 + random(c, seed=1) / 2, random(c, seed=2) / 2]


def both(groups, relu=True, **options):
    """The op and its reference."""
    return (
        lambda *x: group_norm_relu(*x, groups, relu=relu, **options),
        lambda *x: group_norm_relu_reference(*x, groups, 1e-5, relu),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_reference(dtype, layout, backend):
    for shape in [*SHAPES, EMPTY]:
        for relu in (True, False):
            op, reference = both(shape[-1], relu, backend=backend)
            check_backend(op, reference, inputs(*shape), dtype, layout, least=1e-2)


@pytest.mark.parametrize("mean", [30.0, 3000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", COMPILED)
def test_a_mean_far_from_zero(mean, dtype, backend):
    """In 16 bits, the values that are far from zero are themselves few; they are the same for all."""
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter is wrong in bfloat16")
    x, weight, bias = (t.to(dtype) for t in inputs(2, 18, 20, 32, 2))
    x = x + mean
    op, reference = both(2, backend=backend)
    got, same = op(x, weight, bias), reference(x, weight, bias)
    check_error(got, same, reference(x.double(), weight.double(), bias.double()), dtype)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_corner_unlike_the_rest(backend):
    """A statistic that trusts the first pixels fails: they are constant, and the rest varies around another mean."""
    x, weight, bias = (t.float() for t in inputs(1, 40, 40, 16, 1))
    x = x / 16 + 500
    x[:, :2] = -500
    op, reference = both(1, backend=backend)
    got, same = op(x, weight, bias), reference(x, weight, bias)
    check_error(got, same, reference(x.double(), weight.double(), bias.double()), torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_it_computes(backend):
    x = random(2, 6, 7, 8)
    weight, bias = torch.ones_like(x[0, 0, 0]), torch.zeros_like(x[0, 0, 0])
    y = group_norm_relu(3 * x + 5, weight, bias, 2, relu=False, backend=backend)
    groups = y.unflatten(3, (2, 4)).permute(0, 3, 1, 2, 4).flatten(2)
    torch.testing.assert_close(groups.mean(2), torch.zeros_like(groups[:, :, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(groups.var(2, correction=0), torch.ones_like(groups[:, :, 0]), atol=1e-4, rtol=0)
    assert torch.equal(group_norm_relu(3 * x + 5, weight, bias, 2, backend=backend), y.clamp_min(0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_value_is_its_mean(backend):
    bias = random(6)
    y = group_norm_relu(random(1, 1, 1, 6), torch.ones_like(bias), bias, 6, backend=backend)
    torch.testing.assert_close(y.view(6), bias.clamp_min(0))


@pytest.mark.parametrize("backend", COMPILED)
def test_nan_stays_in_its_map_and_group(backend):
    x, weight, bias = inputs(2, 5, 4, 8, 2)
    x[1, 4, 3, 1] = torch.nan
    y = group_norm_relu(x, weight, bias, 2, backend=backend)
    assert y[1, ..., :4].isnan().all() and not y[0].isnan().any() and not y[1, ..., 4:].isnan().any()


@needs_cpp
@pytest.mark.parametrize("relu", [True, False])
def test_gradient_by_differences(relu):
    args = [x.requires_grad_() for x in inputs(2, 3, 4, 6, 2)]
    assert torch.autograd.gradcheck(lambda *x: group_norm_relu(*x, 2, relu=relu, backend="cpp"), args)


@pytest.mark.parametrize("backend", COMPILED)
def test_second_derivative_is_refused_not_wrong(backend):
    x, weight, bias = (t.requires_grad_() for t in inputs(1, 2, 2, 4, 2))
    y = group_norm_relu(x, weight, bias, 2, backend=backend)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference' for second derivatives"):
        torch.autograd.grad(first.sum(), x)


@needs_cpp
def test_the_same_bits_whatever_the_number_of_threads():
    """Of few maps, which are shared out by their blocks, and of many."""
    threads = torch.get_num_threads()
    for maps in (1, 4):
        results = []
        try:
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                args = [x.float().requires_grad_() for x in inputs(maps, 25, 40, 32, 2)]
                y = group_norm_relu(*args, 2, backend="cpp")
                results.append([y.detach(), *torch.autograd.grad(y, args, y.detach())])
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_autocast_keeps_full_precision():
    x, weight, bias = (t.bfloat16() for t in inputs(1, 2, 2, 4, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert group_norm_relu(x, weight.float(), bias.float(), 2).dtype == torch.float32


def test_says_what_is_wrong():
    x, vector = torch.zeros(2, 3, 3, 4), torch.zeros(4)
    with pytest.raises(ValueError, match=r"x has shape \[3, 3, 4\]; expected \[N, H, W, C\]"):
        group_norm_relu(x[0], vector, vector, 2)
    with pytest.raises(ValueError, match="H, W and C at least 1"):
        group_norm_relu(x[:, :0], vector, vector, 2)
    with pytest.raises(ValueError, match=r"bias has shape \[3\]; expected \[4\]"):
        group_norm_relu(x, vector, vector[:3], 2)
    with pytest.raises(ValueError, match="groups is 3; expected a divisor of C = 4"):
        group_norm_relu(x, vector, vector, 3)
    with pytest.raises(TypeError, match="weight has dtype torch.float64 but x has torch.float32"):
        group_norm_relu(x, vector.double(), vector, 2)
