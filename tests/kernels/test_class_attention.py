import pytest
import torch
import torch.nn.functional as F
from accuracy import (
    DTYPES,
    backend_layouts,
    backends,
    check_backend,
    check_error,
    needs_cpp,
    outputs_and_gradients,
    random,
)

from fgaseg.kernels import class_attention, class_lookup, class_summary

# rows of every image, P, heads, d; 32 rows and 16 pixels are done together. With d = 1 the queries' gradient is 0 and
# its rounding has no yardstick
SHAPES = [([1], 9, 2, 5), ([3, 0, 5], 4, 2, 4), ([40, 33], 3, 2, 20), ([7], 17, 4, 32)]
EMPTY = [([0, 0], 3, 2, 4), ([2, 1], 0, 2, 4)]
COMPILED = backends("cpp", "triton")  # there is no CUDA kernel
BACKENDS = backends("cpp", "triton", "reference")


def inputs(counts, pixels, heads, width):
    """q, k, v, q_guidance, k_guidance, pad_key, pad_value; offsets."""
    rows, channels = sum(counts), heads * width
    sizes = [(rows, pixels, channels)] * 3 + [(rows, channels)] * 2 + [(channels,)] * 2
    return [random(*s, seed=i) for i, s in enumerate(sizes)], offsets_of(counts)


def offsets_of(counts):
    return torch.tensor([0, *counts]).cumsum(0)


def attention(offsets, heads, pad_classes=0, backend="auto"):
    return lambda *x: class_attention(*x[:5], offsets, heads, *x[5:], pad_classes, backend=backend)


def literal(q, k, v, q_guidance, k_guidance, offsets, heads, pad_key, pad_value, pad_classes):
    """Attention with all its weights, pad tokens in the sequence, for every image, pixel and head by itself."""
    out = torch.empty_like(q)
    for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        missing = max(pad_classes - (last - first), 0)
        for p in range(q.shape[1]):
            queries = F.elu(q[first:last, p] + q_guidance[first:last]) + 1
            keys = torch.cat([k[first:last, p] + k_guidance[first:last], pad_key.expand(missing, -1)])
            values = torch.cat([v[first:last, p], pad_value.expand(missing, -1)])
            for h in torch.arange(q.shape[2]).chunk(heads):
                weights = queries[:, h] @ (F.elu(keys[:, h]) + 1).T
                out[first:last, p, h] = weights / (weights.sum(1, keepdim=True) + 1e-6) @ values[:, h]
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend, layout", backend_layouts("cpp", "triton", "reference"))
def test_matches_reference(dtype, layout, backend):
    least = 1.0 if layout == "expanded" else 0.0  # the queries' gradient is 0 if all values are the same
    for counts, *sizes in SHAPES + EMPTY:
        x, offsets = inputs(counts, *sizes)
        args = offsets, sizes[1], 6
        check_backend(attention(*args, backend), attention(*args, "reference"), x, dtype, layout, least)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_image_at_all(backend):
    x, offsets = inputs([], 3, 2, 4)
    assert attention(offsets, 2, 6, backend)(*x).shape == (0, 3, 8)
    assert class_summary(*x[1:3], x[4], offsets, 2, backend=backend)[0].shape == (0, 3, 2, 4, 4)


@pytest.mark.parametrize("pad_classes", [0, 4, 50])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_attention_over_the_classes_of_an_image(backend, pad_classes):
    """Images of different numbers of classes, more and fewer than pad_classes, and of none."""
    (q, k, v, q_guidance, k_guidance, *pad), offsets = inputs([3, 0, 45, 5], 3, 2, 4)
    got = class_attention(q, k, v, q_guidance, k_guidance, offsets, 2, *pad, pad_classes, backend=backend)
    torch.testing.assert_close(got, literal(q, k, v, q_guidance, k_guidance, offsets, 2, *pad, pad_classes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_add_up_to_the_whole(backend):
    """Classes in pieces, the later ones of one image only; pixels in pieces."""
    (q, k, v, q_guidance, k_guidance, *_), offsets = inputs([40, 9], 5, 2, 4)
    whole = class_summary(k, v, k_guidance, offsets, 2, backend=backend)
    pieces = [(slice(0, 35), [35, 0]), (slice(35, 44), [5, 4]), (slice(44, 49), [0, 5])]
    parts = [class_summary(k[r], v[r], k_guidance[r], offsets_of(n), 2, backend=backend) for r, n in pieces]
    for sums, added in zip(whole, map(sum, zip(*parts, strict=True)), strict=True):
        torch.testing.assert_close(sums, added)
    y = class_attention(q, k, v, q_guidance, k_guidance, offsets, 2, backend=backend)
    for p in (slice(0, 3), slice(3, 5)):
        part = class_attention(q[:, p], k[:, p], v[:, p], q_guidance, k_guidance, offsets, 2, backend=backend)
        torch.testing.assert_close(part, y[:, p])
    by_rows = [
        class_lookup(q[r], q_guidance[r], *whole, offsets_of(n), 2, backend=backend) for r, n in pieces
    ]  # every piece of queries looks up the same sums
    torch.testing.assert_close(torch.cat(by_rows), y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slices_of_one_linear_output(backend):
    (q, k, v, *guidance, _, _), offsets = inputs([6, 3], 5, 2, 4)
    packed = torch.cat([q, k, v], -1).requires_grad_()

    def gradient(*parts):
        y = class_attention(*parts, *guidance, offsets, 2, backend=backend)
        return y.detach(), torch.autograd.grad(y.square().sum(), packed)[0]

    for x, y in zip(gradient(*packed.split(8, -1)), gradient(*(t.contiguous() for t in packed.split(8, -1)))):  # noqa: B905
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_far_numbers_neither_overflow_nor_spread(dtype, backend):
    """Sums that float16 cannot hold; keys that phi makes 0 or inf; NaN spoils its own image and pixel only."""
    (q, k, v, q_guidance, k_guidance, *_), offsets = inputs([200, 3], 2, 1, 4)
    x = [40 * t.abs().to(dtype) for t in (q, k, v)]
    q_guidance, k_guidance = q_guidance.to(dtype), k_guidance.to(dtype)
    got = class_attention(*x, q_guidance, k_guidance, offsets, 1, backend=backend)
    same = class_attention(*x, q_guidance, k_guidance, offsets, 1, backend="reference")
    assert got.isfinite().all() and same.isfinite().all()
    exact = class_attention(*(t.double() for t in (*x, q_guidance, k_guidance)), offsets, 1, backend="reference")
    check_error(got, same, exact, dtype)
    x[1][0, 0], x[1][1, 0] = -30000, torch.nan
    got = class_attention(*x, q_guidance, k_guidance, offsets, 1, backend=backend)
    assert got[:200, 0].isnan().all() and not got[:, 1].isnan().any() and not got[200:].isnan().any()


@needs_cpp
def test_gradients_by_differences():
    x, offsets = inputs([3, 0, 2], 3, 2, 3)
    x = [t.requires_grad_() for t in x]
    assert torch.autograd.gradcheck(attention(offsets, 2, 4, "cpp"), x)
    _, k, v, _, k_guidance, *_ = x
    for i in range(2):  # of one result alone
        assert torch.autograd.gradcheck(
            lambda *a, i=i: class_summary(*a, offsets, 2, backend="cpp")[i], (k, v, k_guidance)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_slope_at_zero_is_that_of_elu(backend):
    k = torch.zeros(1, 1, 2, requires_grad=True)
    v, guidance, offsets = torch.ones(1, 1, 2), torch.zeros(1, 2), offsets_of([1])
    _, total = class_summary(k, v, guidance, offsets, 1, backend=backend)
    (slope,) = torch.autograd.grad(total.sum(), k)
    assert (total == 1).all() and (slope == 1).all()


@needs_cpp
def test_any_number_of_threads_gives_the_same_bits():
    (*x, _, _), offsets = inputs([40, 33], 50, 2, 20)
    x = [t.float().requires_grad_() for t in x]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(attention(offsets, 2, 0, "cpp"), x, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", COMPILED)
def test_second_derivative_is_refused_not_wrong(backend):
    (q, *x), offsets = inputs([2], 1, 1, 2)
    q.requires_grad_()
    (first,) = torch.autograd.grad(attention(offsets, 1, 0, backend)(q, *x).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference' for second derivatives"):
        torch.autograd.grad(first.sum(), q)


def test_autocast_takes_rows_in_its_own_type_and_keeps_sums():
    (q, k, v, q_guidance, k_guidance, *pad), offsets = inputs([3, 4], 5, 2, 4)
    q, k, v, q_guidance, k_guidance, *pad = (x.float() for x in (q, k, v, q_guidance, k_guidance, *pad))
    with torch.autocast("cpu", torch.bfloat16):
        summary, total = class_summary(k, v, k_guidance, offsets, 2)
        got = class_attention(q, k, v, q_guidance, k_guidance, offsets, 2, *pad, 6)
    assert summary.dtype == total.dtype == torch.float32 and got.dtype == torch.bfloat16
    same = class_attention(
        *(x.bfloat16() for x in (q, k, v, q_guidance, k_guidance)), offsets, 2, *pad, 6, backend="reference"
    )
    torch.testing.assert_close(got, same)


def test_says_what_is_wrong():
    (q, k, v, q_guidance, k_guidance, *pad), offsets = inputs([3, 2], 4, 2, 4)
    with pytest.raises(ValueError, match=r"k has shape \[5, 4, 8\] and heads is 3; expected \[R, P, D\]"):
        class_summary(k, v, k_guidance, offsets, 3)
    with pytest.raises(ValueError, match=r"v has shape \[5, 3, 8\]; expected that of k, \[5, 4, 8\]"):
        class_summary(k, v[:, 1:], k_guidance, offsets, 2)
    with pytest.raises(ValueError, match=r"k_guidance has shape \[4, 8\]; expected \[5, 8\]"):
        class_summary(k, v, k_guidance[1:], offsets, 2)
    with pytest.raises(TypeError, match="offsets has dtype torch.int32; expected torch.int64"):
        class_summary(k, v, k_guidance, offsets.int(), 2)
    with pytest.raises(TypeError, match="v has dtype torch.float32 but k has torch.float64"):
        class_summary(k, v.float(), k_guidance, offsets, 2)
    summary, total = class_summary(k, v, k_guidance, offsets, 2)
    with pytest.raises(ValueError, match=r"summary has shape \[1, 4, 2, 4, 4\]; expected \[2, 4, 2, 4, 4\]"):
        class_lookup(q, q_guidance, summary[1:], total, offsets, 2)
    with pytest.raises(TypeError, match="total has dtype torch.float32; q has torch.float64 and expects torch.float64"):
        class_lookup(q, q_guidance, summary, total.float(), offsets, 2)
    with pytest.raises(ValueError, match="pad_classes is 9; give pad_key and pad_value"):
        class_attention(q, k, v, q_guidance, k_guidance, offsets, 2, pad_classes=9)
    with pytest.raises(ValueError, match=r"pad_key has shape \[7\]; expected \[8\]"):
        class_attention(q, k, v, q_guidance, k_guidance, offsets, 2, pad[0][1:], pad[1], 9)


@needs_cpp
@pytest.mark.parametrize("wrong", [[0, 3], [1, 3, 5], [0, 4, 3, 5], [0, 9, 5], [0, -1, 5]], ids=str)
def test_offsets_that_lead_out_of_the_rows_are_refused(wrong):
    (_, k, v, _, k_guidance, *_), _ = inputs([3, 2], 4, 2, 4)
    with pytest.raises(RuntimeError, match="offsets must ascend from 0 to R, the number of rows, 5"):
        class_summary(k, v, k_guidance, torch.tensor(wrong), 2, backend="cpp")
