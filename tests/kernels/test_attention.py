import math
import os
import subprocess
import sys
import warnings

import pytest
import torch
from accuracy import DTYPES, LAYOUTS, backends, check_backend, needs_cpp, random
from torch import Tensor

from fgaseg.kernels import attention, explain
from fgaseg.kernels.attention.reference import attention_reference

BACKENDS = backends("cpp", "reference")
# B, heads, L, M, d: one token; odd sizes; a row more than a block of queries; more than one panel of keys and channels
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 3), (1, 2, 25, 33, 8), (2, 1, 49, 81, 40), (1, 1, 3, 70, 64)]
EMPTY = [(0, 2, 3, 3, 4), (2, 2, 0, 3, 4)]


def inputs(b: int, heads: int, queries: int, keys: int, width: int, spread: float = 2) -> list[Tensor]:
    return [spread * random(b, heads, n, width, seed=seed) for seed, n in enumerate((queries, keys, keys))]


def check(backend, dtype, layout, shape, causal=False, spread=2):
    if backend == "cpp" and dtype in (torch.float64, torch.float16):
        pytest.skip(reason="left to PyTorch")
    check_backend(
        lambda *a: attention(*a, causal=causal, backend=backend),
        lambda *a: attention_reference(*a, causal, None).transpose(1, 2),
        inputs(*shape, spread), dtype, layout,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_reference(shape, dtype, layout, backend):
    check(backend, dtype, layout, shape)


@pytest.mark.parametrize("length", [1, 10, 24, 25, 77])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_causal(length, dtype, backend):
    check(backend, dtype, "contiguous", (2, 3, length, length, 16), causal=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_softmax_of_products_times_values(backend):
    q, k, v = inputs(2, 2, 6, 6, 5)
    for causal in (False, True):
        scores = 0.7 * torch.einsum("bhic,bhjc->bhij", q, k)
        if causal:
            scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
        expected = torch.einsum("bhij,bhjc->bhic", scores.softmax(-1), v)
        got = attention(q.float(), k.float(), v.float(), causal=causal, scale=0.7, backend=backend)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_any_size(backend, dtype):
    """Far below the largest score a weight is 0; a row of equal scores is a mean."""
    q = torch.zeros(1, 1, 2, 4, dtype=dtype)
    q[..., 1, 0] = 1
    k = torch.full((1, 1, 40, 4), -3e4, dtype=dtype)
    k[..., 37, :] = 3e4
    v = torch.arange(40.0).to(dtype)[None, None, :, None].expand(1, 1, 40, 4)
    y = attention(q, k, v, scale=1.0, backend=backend)
    torch.testing.assert_close(y[0, 0, :, 0].float(), torch.tensor([19.5, 37.0]), rtol=0, atol=0.07)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_a_projection_and_an_output_without_a_copy(backend):
    """As the encoders call it; what lies beside a slice must not be read or written."""
    parts = [x.transpose(1, 2).flatten(2).float() for x in inputs(2, 3, 7, 7, 4)]
    packed = torch.cat([*parts, torch.full_like(parts[0], math.nan)], -1)
    q, k, v = (x.unflatten(-1, (3, 4)).transpose(1, 2) for x in packed.split(12, -1)[:3])
    y = attention(q, k, v, backend=backend)
    assert torch.equal(y, attention(q.contiguous(), k.contiguous(), v.contiguous(), backend=backend))
    assert y.transpose(1, 2).flatten(2).data_ptr() == y.data_ptr()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_does_not_see_another(backend):
    q, k, v = (x.float() for x in inputs(2, 2, 5, 5, 4))
    v[1, 0, 3] = math.nan
    y = attention(q, k, v, backend=backend)
    assert y[1, 0].isnan().all() and not y[0].isnan().any() and not y[1, 1].isnan().any()


@needs_cpp
def test_few_heads_are_divided_among_threads():
    """Several parts of one head, of which the last is shorter."""
    before = torch.get_num_threads()
    for causal in (False, True):
        q, k, v = (x.float() for x in inputs(1, 1, 100, 100, 8))
        try:
            results = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                results.append(attention(q, k, v, causal=causal, backend="cpp"))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(*results)


PROBE = """
import sys, torch
from fgaseg.kernels import attention, window_attention
torch.manual_seed(0)
found = []
for dtype in (torch.float32, torch.bfloat16):
    q, k, v = torch.randn(3, 2, 3, 49, 40).to(dtype)
    found += [attention(q, k, v, backend="cpp"), attention(q, k, v, causal=True, backend="cpp")]
    maps, guides = torch.randn(3, 4, 13, 12, 32).to(dtype), torch.randn(2, 2, 13, 12, 32).to(dtype)
    found.append(window_attention(*maps, *guides, 2, 6, 3, backend="cpp"))
torch.save([y.float() for y in found], sys.argv[1])
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
        for i, (got, expected) in enumerate(zip(lower, found[0], strict=True)):
            tolerance = 1e-5 if i < 3 else 2e-2
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients(causal):
    """Of the reference by differences; of the kernel, which has no float64, against the reference."""
    args = [x.requires_grad_() for x in inputs(1, 2, 4, 4, 3)]
    assert torch.autograd.gradcheck(lambda *a: attention(*a, causal=causal), args)
    if "can run" not in explain("attention", *(x.float() for x in args), causal, 1.0).splitlines()[1]:
        return
    both = []
    for backend in ("cpp", "reference"):
        leaves = [x.detach().float().requires_grad_() for x in args]
        y = attention(*leaves, causal=causal, backend=backend)
        both.append(torch.autograd.grad(y.square().sum(), leaves))
    for got, expected in zip(*both, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_chooses_pytorch_where_it_should_and_says_so():
    q, k, v = (x.float() for x in inputs(1, 1, 3, 3, 4))
    leaf = q.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention(leaf, k, v).requires_grad
        with torch.autocast("cpu", torch.bfloat16):
            assert attention(q, k, v).dtype == torch.bfloat16
        attention(q.double(), k.double(), v.double())
        attention(q.half(), k.half(), v.half())
    if "can run" in explain("attention", q, k, v, False, 1.0).splitlines()[1]:
        assert "PyTorch's own attention keeps what its backward" in explain("attention", leaf, k, v, False, 1.0)


def test_says_what_is_wrong():
    q = torch.zeros(2, 3, 4, 8)
    with pytest.raises(ValueError, match=r"q has shape \[3, 4, 8\]; expected \[B, heads, L, d\]"):
        attention(q[0], q, q)
    with pytest.raises(ValueError, match=r"k has shape \[2, 3, 0, 8\]; expected \[2, 3, M, 8\], M at least 1"):
        attention(q, q[:, :, :0], q[:, :, :0])
    with pytest.raises(ValueError, match=r"v has shape \[2, 3, 3, 8\]; expected that of k, \[2, 3, 4, 8\]"):
        attention(q, q, q[:, :, 1:])
    with pytest.raises(ValueError, match="3 queries and 4 keys; causal needs equally many"):
        attention(q[:, :, 1:], q, q, causal=True)
    with pytest.raises(ValueError, match="scale is 0; expected a positive number"):
        attention(q, q, q, scale=0)
    with pytest.raises(TypeError, match="k has dtype torch.float64 but q has torch.float32"):
        attention(q, q.double(), q)
    with pytest.raises(RuntimeError, match="backend='cpp' cannot run this call: torch.float64 is left to PyTorch"):
        attention(q.double(), q.double(), q.double(), backend="cpp")
