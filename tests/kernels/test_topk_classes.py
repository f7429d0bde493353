import numpy as np
import pytest
import torch
from accuracy import BACKENDS, COMPILED, DTYPES, LAYOUTS, backend_layouts, backends, laid_out, needs_cpp, random
from paths import SHARED
from torch import Tensor

from fgaseg.kernels import Selection, cosine_cost_volume, gather_classes, scatter_classes, topk_classes

CLIP_TEXT = SHARED / "data" / "clip_text" / "coco_single.npy"
SHAPES = [(1, 1, 1, 1), (2, 37, 7, 9), (3, 5, 13, 11), (2, 200, 3, 5)]  # B, T, H, W
EMPTY = [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)]
UNIONS = ["image", "batch"]


def expected_rows(scores: Tensor, k: int, union: str) -> list[int]:
    """By plain sorting of (score, class) pairs, independently of the reference."""
    batch, classes = scores.shape[:2]
    kept = [set() for _ in range(batch)]
    for b, pixels in enumerate(scores.flatten(2).double().transpose(1, 2).tolist()):
        for pixel in pixels:
            order = sorted((-score, t) for t, score in enumerate(pixel) if score > -torch.inf)
            kept[b] |= {t for _, t in order[:k]}
    if union == "batch":
        kept = [set().union(*kept)] * batch
    return [b * classes + t for b in range(batch) for t in sorted(kept[b])]


def check_selection(selection: Selection, scores: Tensor, k: int, union: str) -> None:
    batch, classes = scores.shape[:2]
    rows = expected_rows(scores.detach(), k, union)
    assert selection.rows.tolist() == rows and (selection.batch, selection.classes) == (batch, classes)
    assert selection.counts.tolist() == [sum(row // classes == b for row in rows) for b in range(batch)]


@pytest.mark.parametrize("union", UNIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend, layout", backend_layouts("cpp", "triton", "cuda", "reference"))
def test_matches_plain_sorting(union, dtype, layout, backend):
    """Rounded scores, so that ties are everywhere."""
    for sizes in SHAPES + EMPTY:
        scores = laid_out((4 * random(*sizes)).round().to(dtype), layout)
        for k in (1, 2, 9, 300):
            check_selection(topk_classes(scores, k, union, backend=backend), scores, k, union)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [300, 1100])
@pytest.mark.parametrize("backend", COMPILED)
def test_more_classes_than_registers_hold(backend, classes, dtype):
    scores = (4 * random(2, classes, 2, 3)).round().to(dtype)
    for k, union in [(3, "image"), (20, "batch"), (40, "image")]:
        check_selection(topk_classes(scores, k, union, backend=backend), scores, k, union)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lowest_class_wins_a_tie(backend):
    assert topk_classes(torch.zeros(2, 7, 3, 3), 2, backend=backend).rows.tolist() == [0, 1, 7, 8]
    displaced = torch.tensor([5.0, 3.0, 3.0, 4.0]).view(1, 4, 1, 1)  # 4 displaces one of the 3s: the later one
    assert topk_classes(displaced, 3, backend=backend).rows.tolist() == [0, 1, 3]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_minus_infinity_are_never_selected(dtype, backend):
    scores = random(3, 4, 2, 2).to(dtype)
    scores[0] = torch.nan
    scores[1] = -torch.inf
    scores[2, 1:] = torch.nan
    scores[2, 0, 0, 0] = torch.inf
    selection = topk_classes(scores, 3, backend=backend)
    assert selection.rows.tolist() == [8] and selection.counts.tolist() == [0, 0, 1]
    assert topk_classes(scores, 3, "batch", backend=backend).rows.tolist() == [0, 4, 8]
    check_selection(selection, scores, 3, "image")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_does_not_depend_on_its_batch(backend):
    scores = random(3, 50, 6, 6)
    together = topk_classes(scores, 2, backend=backend)
    alone = [topk_classes(scores[b : b + 1], 2, backend=backend).rows + 50 * b for b in range(3)]
    assert torch.equal(together.rows, torch.cat(alone))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather_and_scatter(dtype, layout, backend):
    """Selected rows come out and go back bit for bit, the rest is the fill; gradients likewise."""
    selection = topk_classes(random(3, 7, 2, 2), 2)
    for trailing in [(5, 3), (), (0, 2)]:
        x = laid_out(random(3, 7, *trailing).to(dtype), layout)
        packed = gather_classes(x, selection, backend=backend)
        assert torch.equal(packed, x.reshape(21, *trailing)[selection.rows])
        back = scatter_classes(packed, selection, -100.0, backend=backend)
        kept = torch.zeros(21, dtype=torch.bool).index_fill(0, selection.rows, True).view(3, 7)
        assert torch.equal(back[kept], x[kept]) and (back[~kept] == -100).all()
        grad = random(3, 7, *trailing, seed=3).to(dtype)
        (got,) = torch.autograd.grad(back, x, grad)
        assert torch.equal(got[kept], grad[kept]) and not got[~kept].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_class_selected(backend):
    selection = topk_classes(torch.full((2, 3, 4, 4), torch.nan), 2, backend=backend)
    packed = gather_classes(torch.ones(2, 3, 5), selection, backend=backend)
    assert packed.shape == (0, 5)
    assert torch.equal(scatter_classes(packed, selection, 2.5, backend=backend), torch.full((2, 3, 5), 2.5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_real_text_embeddings(backend):
    """Pixels made of CLIP embeddings 3, 40 and 170 of 171: the best class of each is what it is made of."""
    if not CLIP_TEXT.exists():
        pytest.skip(reason=f"no {CLIP_TEXT.name} beside the repository")
    texts = torch.from_numpy(np.load(CLIP_TEXT)).float().to(torch.get_default_device())
    pixels = texts[[40, 3, 170, 3]].T.reshape(1, 512, 2, 2) + 0.01 * random(1, 512, 2, 2).float()
    scores = cosine_cost_volume(pixels, texts[None, :, None])[:, 0]
    assert topk_classes(scores, 1, backend=backend).rows.tolist() == [3, 40, 170]
    for k in (4, 16):
        check_selection(topk_classes(scores, k, backend=backend), scores, k, "image")


@needs_cpp
def test_gradients_by_differences():
    x, rows = random(2, 5, 3).requires_grad_(), torch.tensor([1, 4, 7])
    selection = Selection(rows, torch.tensor([2, 1]), 2, 5)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: gather_classes(x, selection, backend="cpp").square(), x)
        assert check(
            lambda y: scatter_classes(y, selection, 1.0, backend="cpp").square(), random(3, 4).requires_grad_()
        )


def test_says_what_is_wrong():
    scores = random(2, 3, 4, 4)
    selection = topk_classes(scores, 1)
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        topk_classes(scores, 0)
    with pytest.raises(ValueError, match="union is 'all'; expected one of image, batch"):
        topk_classes(scores, 1, "all")
    with pytest.raises(ValueError, match=r"scores has shape \[2, 3, 4\]; expected \[B, T, H, W\]"):
        topk_classes(scores[..., 0], 1)
    with pytest.raises(TypeError, match="scores has dtype torch.int64"):
        topk_classes(scores.long(), 1)
    with pytest.raises(ValueError, match=r"x has shape \[2, 4, 5\]; the selection expects \[2, 3, ...\]"):
        gather_classes(torch.zeros(2, 4, 5), selection)
    with pytest.raises(ValueError, match=r"y has shape \[9, 5\]; the selection expects"):
        scatter_classes(torch.zeros(9, 5), selection, 0.0)
    with pytest.raises(ValueError, match="x is on meta but the selection is on cpu"):
        gather_classes(torch.zeros(2, 3, 5, device="meta"), selection)


@pytest.mark.parametrize("rows", [[-1, 2], [1, 6], [-(2**63), 2], [2, 2**31], [-(2**31), 2**62], [2, 2**63 - 1]])
@pytest.mark.parametrize("backend", backends("triton"))
def test_rows_out_of_range_touch_no_memory_in_triton(backend, rows):
    """On a GPU they are not read back. Whatever is accessed beside a tensor is an error of this test."""
    x, y, index = random(1, 3, 4), random(2, 4, seed=1), torch.tensor(rows)
    packed = gather_classes(x, Selection(index, torch.tensor([2]), 1, 3), backend=backend)
    full = scatter_classes(y, Selection(index, torch.tensor([2]), 1, 3), 0.5, backend=backend)
    expected_full = torch.full_like(x, 0.5)
    for i, row in enumerate(rows):
        inside = 0 <= row < 3
        assert torch.equal(packed[i], x[0, row] if inside else torch.zeros(4).to(x))
        if inside:
            expected_full[0, row] = y[i]
    assert torch.equal(full, expected_full)
    assert gather_classes(x[:, :0], Selection(index, torch.tensor([2]), 1, 0), backend=backend).eq(0).all()


@needs_cpp
def test_a_row_beyond_the_classes_is_an_error_not_a_crash():
    broken = Selection(torch.tensor([1, 6]), torch.tensor([2]), 1, 3)
    with pytest.raises(RuntimeError, match="row 6 of the selection"):
        gather_classes(torch.zeros(1, 3, 4), broken, backend="cpp")
    with pytest.raises(RuntimeError, match="row 6 of the selection"):
        scatter_classes(torch.zeros(2, 4), broken, 0.0, backend="cpp")
