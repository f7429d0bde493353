import pytest
import torch
from accuracy import DTYPES, LAYOUTS, backends, check_error, laid_out, needs_cpp, random
from torch._dynamo.testing import CompileCounterWithBackend

from fgaseg.kernels import embed_maps, score_maps
from fgaseg.kernels.map_conv.reference import embed_maps_reference, score_maps_reference

BACKENDS = backends("cpp", "reference")
# R, H, W, D, K: one pixel; a kernel larger than the map; several tiles and panels, the last one not full; the model's
EMBEDDINGS = [(1, 1, 1, 1, 1), (2, 3, 2, 5, 7), (3, 4, 31, 45, 3), (2, 24, 24, 128, 7), (0, 3, 4, 5, 3)]
# R, H, W, C: one pixel; one row; one column; channels beyond whole vectors; the model's
SCORES = [(1, 1, 1, 1), (2, 1, 5, 7), (2, 6, 1, 16), (3, 5, 4, 19), (1, 12, 96, 32), (0, 3, 4, 5)]
CASES = [(embed_maps, embed_maps_reference, s) for s in EMBEDDINGS]
CASES += [(score_maps, score_maps_reference, s) for s in SCORES]


def inputs(op, shape):
    if op is embed_maps:
        r, h, w, d, k = shape
        return [random(r, h, w), random(d, 1, k, k, seed=1) / k, random(d, seed=2)]
    r, h, w, c = shape
    return [random(r, h, w, c), random(1, c, 3, 3, seed=1) / c**0.5, random(1, seed=2)]


@pytest.mark.parametrize("backend", backends("cpp", "reference", "auto"))
@pytest.mark.parametrize("op, reference, shape", [CASES[3], CASES[-2]], ids=["embed_maps", "score_maps"])
def test_autocast_runs_like_a_convolution(op, reference, shape, backend):
    """Inputs of different dtypes, as autocast leaves them, come out in its dtype."""
    maps, weight, bias = (x.float() for x in inputs(op, shape))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = op(maps.bfloat16(), weight, bias, backend=backend)
    exact = reference(maps.bfloat16().double(), weight.bfloat16().double(), bias.bfloat16().double())
    check_error(got, reference(maps.bfloat16(), weight.bfloat16(), bias.bfloat16()), exact, torch.bfloat16)


@pytest.mark.parametrize("op, reference, shape", CASES, ids=lambda x: getattr(x, "__name__", str(x)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_reference(op, reference, shape, dtype, layout, backend):
    if backend == "cpp" and dtype == torch.float64:
        pytest.skip("the C++ backend leaves float64 to the reference")
    args = [x.to(dtype) for x in inputs(op, shape)]

    def results(function, dtype, **options):
        return function(*(laid_out(x.to(dtype), layout).detach() for x in args), **options)

    exact = results(reference, torch.float64)
    check_error(results(op, dtype, backend=backend), results(reference, dtype), exact, dtype)


@pytest.mark.parametrize("op, reference", [(embed_maps, embed_maps_reference), (score_maps, score_maps_reference)])
def test_gradients_come_from_the_reference(op, reference):
    args = [x.requires_grad_() for x in inputs(op, (2, 3, 4, 5, 3)[: 5 if op is embed_maps else 4])]
    assert torch.autograd.gradcheck(op, args)
    single = [x.detach().float().requires_grad_() for x in args]
    assert torch.equal(op(*single), reference(*single)) and op(*single).requires_grad


@needs_cpp
@pytest.mark.parametrize("op", [embed_maps, score_maps])
def test_a_gradient_that_it_lacks_is_refused(op):
    args = [x.float().requires_grad_() for x in inputs(op, (2, 3, 4, 5, 3)[: 5 if op is embed_maps else 4])]
    with pytest.raises(RuntimeError, match="backend='cpp' has no gradient; use 'auto', 'reference' or torch.no_grad"):
        op(*args, backend="cpp")
    with torch.no_grad():
        assert not op(*args, backend="cpp").requires_grad


@needs_cpp
@pytest.mark.parametrize("op", [embed_maps, score_maps])
def test_nan_stays_in_its_neighbourhood(op):
    args = [x.float() for x in inputs(op, (2, 6, 7, 5, 3)[: 5 if op is embed_maps else 4])]
    args[0][0, 2, 3] = torch.nan
    where = op(*args, backend="cpp").isnan()
    where = where.all(-1) if op is embed_maps else where
    expected = torch.zeros(2, 6, 7, dtype=torch.bool)
    expected[0, 1:4, 2:5] = True
    assert torch.equal(where, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [embed_maps, score_maps])
def test_one_graph_for_all_sizes(op, backend):
    counter, counts = CompileCounterWithBackend("aot_eager"), []
    compiled = torch.compile(lambda *x: op(*x, backend=backend), fullgraph=True, dynamic=True, backend=counter)
    for r, h, w in [(4, 5, 7), (5, 4, 9), (6, 8, 6)]:
        args = [x.float() for x in inputs(op, (r, h, w, 11, 3)[: 5 if op is embed_maps else 4])]
        torch.testing.assert_close(compiled(*args), op(*args, backend=backend))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


def test_says_what_is_wrong():
    maps, weight, bias = inputs(embed_maps, (2, 3, 4, 5, 3))
    with pytest.raises(ValueError, match=r"maps has shape \[2, 0, 4\]; expected \[R, H, W\], H and W at least 1"):
        embed_maps(maps[:, :0], weight, bias)
    with pytest.raises(ValueError, match=r"weight has shape \[5, 1, 3, 2\]; expected \[D, 1, K, K\], K odd"):
        embed_maps(maps, weight[..., :2], bias)
    with pytest.raises(ValueError, match=r"bias has shape \[4\]; expected \[5\]"):
        embed_maps(maps, weight, bias[:4])
    x, weight, bias = inputs(score_maps, (2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"x has shape \[2, 3, 4, 0\]; expected \[R, H, W, C\], H, W and C at least 1"):
        score_maps(x[..., :0], weight, bias)
    with pytest.raises(ValueError, match=r"weight has shape \[1, 4, 3, 3\]; expected \[1, 5, 3, 3\]"):
        score_maps(x, weight[:, :4], bias)
    with pytest.raises(TypeError, match="bias has dtype torch.float64 but x has torch.float32"):
        score_maps(x.float(), weight.float(), bias)
    with pytest.raises(RuntimeError, match="backend='cpp' cannot run this call: it computes in float32; float64 is"):
        score_maps(x, weight, bias, backend="cpp")
