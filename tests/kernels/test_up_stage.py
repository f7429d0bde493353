import functools

import pytest
import torch
from accuracy import DTYPES, LAYOUTS, backends, check_backend, check_error, laid_out, needs_cpp, random
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from fgaseg.kernels import UpWeights, up_stage
from fgaseg.kernels.up_stage.reference import up_stage_reference

BACKENDS = backends("cpp", "reference")
# B, R, H, W, C, P, N, groups; B = 0: no guidance. One pixel; odd everything; whole vectors and panels, and a row of
# tiles in several blocks; more than one panel, the last one not full; one image's maps on a tall grid
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1, 1), (2, 4, 3, 5, 7, 5, 6, 3), (1, 2, 2, 29, 16, 16, 32, 2), (0, 3, 4, 3, 5, 20, 50, 5),
    (3, 3, 9, 2, 4, 33, 17, 1),
]  # fmt: skip
EMPTY = [(2, 0, 3, 4, 4, 4, 4, 2), (0, 0, 3, 4, 4, 4, 4, 2)]


def inputs(b, r, h, w, c, p, n, _, offset=0.0) -> list[Tensor | None]:
    """x, guidance and the weights; the maps have about unit variance after every convolution."""
    x, guidance = random(r, h, w, c), random(b, 2 * h, 2 * w, n, seed=1) if b else None
    up, bias = random(c, p, 2, 2, seed=2) / c**0.5, random(p, seed=3) + offset
    conv1, conv2 = random(n, p, 3, 3, seed=4) / (9 * p) ** 0.5, random(n, n, 3, 3, seed=5) / (9 * n) ** 0.5
    norms = [1 + random(n, seed=6) / 4, random(n, seed=7) / 4, 1 + random(n, seed=8) / 4, random(n, seed=9) / 4]
    return [x, guidance, up, bias, conv1, *norms[:2], conv2, *norms[2:]]


def stage(x, guidance, *weights, groups, **options) -> Tensor:
    return up_stage(x, guidance, UpWeights(*weights), groups, **options)


def to(args, dtype, layout="contiguous") -> list[Tensor | None]:
    return [None if x is None else laid_out(x.to(dtype), layout).detach() for x in args]


def check(backend, dtype, layout, args, groups):
    if backend == "cpp" and dtype == torch.float64:
        pytest.skip("the C++ backend leaves float64 to the reference")
    args = [None if x is None else x.to(dtype) for x in args]
    got = stage(*to(args, dtype, layout), groups=groups, backend=backend)
    same, exact = (up_stage_reference(*to(args, t, layout), groups, 1e-5) for t in (dtype, torch.float64))
    check_error(got, same, exact, dtype)
    assert got.is_contiguous() or backend == "reference"


@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_reference(shape, dtype, layout, backend):
    check(backend, dtype, layout, inputs(*shape), shape[-1])


@pytest.mark.parametrize("shape", [(1, 2, 24, 24, 128, 96, 64, 4), (1, 2, 12, 48, 64, 48, 32, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_models_stages(shape, dtype, backend):
    check(backend, dtype, "contiguous", inputs(*shape), shape[-1])


@needs_cpp
@pytest.mark.parametrize("offset", [30.0, 1000.0])
def test_a_large_mean_does_not_spoil_the_variance(offset):
    """The values of a group are far from 0 and close together."""
    shape = (1, 2, 8, 8, 16, 16, 16, 1)
    check("cpp", torch.float32, "contiguous", inputs(*shape, offset=offset), 1)


@needs_cpp
def test_the_same_bits_whatever_the_number_of_threads():
    args, threads = to(inputs(1, 3, 7, 9, 12, 10, 8, 2), torch.float32), torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(stage(*args, groups=2, backend="cpp"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_cpp
@pytest.mark.parametrize("where", ["x", "guidance"])
def test_nan_stays_in_its_map(where):
    args = to(inputs(2, 4, 3, 4, 5, 6, 4, 2), torch.float32)
    (args[0][1] if where == "x" else args[1][0])[0, 0, 0] = torch.nan
    y = stage(*args, groups=2, backend="cpp")
    expected = up_stage_reference(*args, 2, 1e-5)
    assert torch.equal(y.isnan(), expected.isnan()) and y.isnan().any() and not y[2:].isnan().any()


@needs_cpp
def test_a_slice_of_a_convolutions_weight():
    """As the model calls it: the channels of the guidance are beside those of x in one weight."""
    args = to(inputs(1, 2, 3, 4, 8, 6, 4, 2), torch.float32)
    joined = torch.cat([args[4], torch.full((4, 3, 3, 3), torch.nan)], 1)
    expected = stage(*args, groups=2, backend="cpp")
    args[4] = joined[:, :6]
    assert torch.equal(stage(*args, groups=2, backend="cpp"), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gradients_take_the_op_of_the_norms(dtype):
    args = [x.requires_grad_() for x in inputs(1, 2, 2, 3, 3, 4, 4, 2)]
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda *a: stage(*a, groups=2), args)
        assert torch.autograd.gradgradcheck(lambda *a: stage(*a, groups=2, backend="reference"), args)
    both = (lambda *a: stage(*a, groups=2)), (lambda *a: up_stage_reference(*a, 2, 1e-5))
    check_backend(*both, args, dtype, "contiguous", least=1e-2)


@needs_cpp
def test_a_gradient_that_it_lacks_is_refused():
    args = [x.float().requires_grad_() for x in inputs(1, 2, 2, 3, 3, 4, 4, 2)]
    with pytest.raises(RuntimeError, match="up_stage: backend='cpp' has no gradient; use 'auto', 'reference' or"):
        stage(*args, groups=2, backend="cpp")
    with torch.no_grad():
        assert not stage(*args, groups=2, backend="cpp").requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    args = to(inputs(1, 2, 2, 3, 3, 4, 4, 2), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = stage(*args, groups=2, backend=backend)
    expected = up_stage_reference(*to(args, torch.float64), 2, 1e-5)
    assert (y.double() - expected).abs().max() < 0.1
    assert y.dtype == torch.bfloat16 or backend == "reference"


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_for_all_sizes(backend):
    """No size of the first call equals another, or torch.compile would take them for one."""
    weights = [nn.Parameter(w.float(), requires_grad=False) for w in inputs(1, 1, 1, 1, 13, 11, 18, 2)[2:]]
    counter = CompileCounterWithBackend("aot_eager")
    run = functools.partial(stage, groups=2, backend=backend)
    compiled, counts = torch.compile(run, fullgraph=True, dynamic=True, backend=counter), []
    for b, h, w in [(4, 5, 7), (5, 4, 9), (6, 8, 6)]:
        x, guidance = (x.float() for x in inputs(b, 2 * b, h, w, 13, 11, 18, 2)[:2])
        torch.testing.assert_close(compiled(x, guidance, *weights), run(x, guidance, *weights))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


def test_says_what_is_wrong():
    x, guidance, *weights = inputs(1, 2, 2, 3, 3, 4, 6, 2)
    with pytest.raises(ValueError, match=r"x has shape \[2, 0, 3, 3\]; expected \[R, H, W, C\], H, W and C at least 1"):
        stage(x[:, :0], guidance, *weights, groups=2)
    with pytest.raises(ValueError, match=r"up_weight has shape \[3, 4, 2, 2\]; expected \[2, P, 2, 2\], P at least 1"):
        stage(x[..., :2], guidance, *weights, groups=2)
    with pytest.raises(ValueError, match=r"norm2_bias has shape \[5\]; expected \[6\]"):
        stage(x, guidance, *weights[:-1], weights[-1][:5], groups=2)
    with pytest.raises(ValueError, match=r"weight1 has shape \[6, 3, 3, 3\]; expected \[6, 4, 3, 3\]"):
        stage(x, guidance, *weights[:2], weights[2][:, :3], *weights[3:], groups=2)
    with pytest.raises(ValueError, match=r"guidance has shape \[1, 4, 5, 6\]; expected \[B, 4, 6, 6\]"):
        stage(x, guidance[:, :, :5], *weights, groups=2)
    with pytest.raises(ValueError, match="x has 2 rows for 3 images; expected equally many rows for every image"):
        stage(x, guidance.expand(3, -1, -1, -1), *weights, groups=2)
    with pytest.raises(ValueError, match="groups is 4; expected a divisor of N = 6"):
        stage(x, guidance, *weights, groups=4)
    with pytest.raises(TypeError, match="guidance has dtype torch.float64 but x has torch.float32"):
        stage(x.float(), guidance, *(w.float() for w in weights), groups=2)
    with pytest.raises(RuntimeError, match="backend='cpp' cannot run this call: it computes in float32; float64 is"):
        stage(x, guidance, *weights, groups=2, backend="cpp")
