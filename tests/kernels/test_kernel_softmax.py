import pytest
import torch
from accuracy import BACKENDS, COMPILED, DTYPES, LAYOUTS, check_backend, needs_cpp, random

from fgaseg.kernels import kernel_softmax
from fgaseg.kernels.kernel_softmax.reference import kernel_softmax_reference

SHAPES = [(1, 1, 1, 1), (2, 3, 37, 3), (1, 2, 65, 5), (2, 2, 5, 7), (1, 1, 64, 11), (3, 2, 32, 3)]  # B, T, C, K
EMPTY = [(0, 3, 4, 3), (2, 0, 4, 3), (2, 3, 0, 3)]
NORMS = ["taps", "channels", "none"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_reference(norm, dtype, layout, backend):
    for b, t, c, k in SHAPES + EMPTY:
        check_backend(
            lambda x, k=k: kernel_softmax(x, k, norm, backend=backend),
            lambda x, k=k: kernel_softmax_reference(x, k, norm),
            [3 * random(b, t, c * k * k)],
            dtype,
            layout,
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm, axes", [("taps", (3, 4)), ("channels", 2)])
def test_sums_to_one_over_what_it_normalises(norm, axes, backend):
    x = random(2, 3, 37 * 9)
    kernels = kernel_softmax(x, 3, norm, backend=backend)
    torch.testing.assert_close(kernels.sum(axes), torch.ones_like(kernels.sum(axes)))
    assert kernels[1, 2, 5, 2, 1] == kernel_softmax(x[1:, 2:], 3, norm, backend=backend)[0, 0, 5, 2, 1]
    # c-major, then row, then column: raising logit c*9 + i*3 + j raises kernel [c, i, j]
    x[0, 0, 5 * 9 + 2 * 3 + 1] = 50
    assert kernel_softmax(x, 3, norm, backend=backend)[0, 0, 5, 2, 1] > 0.999


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_logits_neither_overflow_nor_vanish(dtype, size, backend):
    """Channels a thousand apart are normalised each by itself; -inf counts as nothing; NaN spoils its channel only."""
    x = random(1, 1, 70 * size**2).to(dtype)
    shifted = x + 1000 * torch.arange(70, dtype=dtype).repeat_interleave(size**2)
    shifted[..., 0] = -torch.inf
    shifted[..., size**2] = torch.nan
    got = kernel_softmax(shifted, size, backend=backend)
    assert got[0, 0, 0, 0, 0] == 0 and got[0, 0, 1].isnan().all()
    torch.testing.assert_close(got, kernel_softmax_reference(shifted, size, "taps"), equal_nan=True)
    assert not got[0, 0, 2:].isnan().any()


@needs_cpp
@pytest.mark.parametrize("norm", NORMS)
def test_gradient_by_differences(norm):
    x = random(2, 3, 4 * 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernel_softmax(x, 3, norm, backend="cpp"), x)


@pytest.mark.parametrize("backend", COMPILED)
def test_second_derivative_is_refused_not_wrong(backend):
    x = random(1, 1, 9).requires_grad_()
    (first,) = torch.autograd.grad(kernel_softmax(x, 3, backend=backend).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference' for second derivatives"):
        torch.autograd.grad(first.sum(), x)


def test_autocast_keeps_full_precision():
    x = random(1, 2, 36).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel_softmax(x, 3).dtype == torch.float32


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="kernel_size is 4; expected an odd number"):
        kernel_softmax(torch.zeros(1, 1, 16), 4)
    with pytest.raises(ValueError, match="norm is 'tap'; expected one of taps, channels, none"):
        kernel_softmax(torch.zeros(1, 1, 9), 3, "tap")
    with pytest.raises(ValueError, match=r"shape \[1, 1, 10\]; expected \[B, T, C\*3\*3\]"):
        kernel_softmax(torch.zeros(1, 1, 10), 3)
    with pytest.raises(TypeError, match=r"dtype torch.int64; expected one of"):
        kernel_softmax(torch.zeros(1, 1, 9, dtype=torch.int64), 3)
