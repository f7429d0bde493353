"""A budget of what a view launches on a GPU, at the size of ViT-B/16, counted on fake tensors.

Launches take the host about 8 µs each (an estimate): beyond a hundred or two they take longer than a GPU computes.
"""

import contextlib
import importlib
from types import SimpleNamespace

import pytest
import torch
from launches import Launches, on_pretended_gpu, pretended_gpu
from tiny import NAMES, pixels, tiny_model

from fgaseg import FGASeg, ModelConfig, Vocabulary
from fgaseg.model import alignment, prompts
from fgaseg.model.packed_maps import Chunk, PackedMaps
from fgaseg.model.precision import counts_launches
from fgaseg.model.prompts import merge_at_once, merge_rows

BUDGET = 250  # 247 are made


def launches(classes: int, views: int = 1, synonyms: int = 1, dtype: torch.dtype = torch.bfloat16, **switches):
    """Of one call of `stream`, images of 384×384, without what is kept from call to call for a grid and its names."""
    with pretended_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "positions_of", lambda x: x.new_empty(x.shape[1:]))
        owners = lambda counts, device: torch.empty(sum(counts), dtype=torch.int64, device=device)  # noqa: E731
        patch.setattr(prompts, "owners_of", owners)
        config = ModelConfig(encoder={"name": "ViT-B-16-quickgelu", "pretrained": None}, **switches)
        model = on_pretended_gpu(FGASeg(config).eval(), dtype)
        images = torch.empty(views, 3, 384, 384, dtype=dtype, device="cuda")
        texts = torch.empty(classes * synonyms, 512, device="cuda")
        counts = (synonyms,) * classes if synonyms > 1 else None
        vocabulary = Vocabulary(tuple(map(str, range(classes))), texts, counts)
        with torch.inference_mode(), Launches() as counted:
            parts = list(model.stream(images, vocabulary))
        assert sum(logits.shape[1] for _, logits in parts) == min(classes, config.class_cap or classes)
        return counted


def test_work_is_arranged_for_few_launches_in_inference_on_a_gpu_alone(monkeypatch):
    gpu, cpu = SimpleNamespace(is_cuda=True), torch.zeros(1)
    with torch.no_grad():
        assert counts_launches(gpu) and not counts_launches(cpu)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        assert not counts_launches(gpu)
        monkeypatch.undo()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not counts_launches(gpu)
        monkeypatch.undo()
    with torch.enable_grad():
        assert not counts_launches(gpu) and not counts_launches(cpu)


@pytest.fixture(scope="module")
def view():
    return launches(150)


def test_a_view_at_150_classes(view):
    assert view.total <= BUDGET, view.by_name
    assert view.waits == []


def test_launches_do_not_grow_with_the_classes(view):
    assert launches(20).by_name == view.by_name


def test_synonyms_take_a_few_launches(view):
    several = launches(150, synonyms=3)
    assert several.total <= view.total + 4 and several.waits == []


def test_five_windows_are_one_batch(view):
    windows = launches(150, views=5)
    assert windows.total <= view.total + 5 and windows.waits == []


def test_chunks_hold_several_images(view):
    """1,600 maps of four images are two chunks, not four."""
    assert launches(400, views=4).total <= 1.6 * view.total


def test_under_the_class_cap(view):
    capped = launches(847, preset="released")
    assert capped.total <= view.total + 60 and capped.waits == []


def test_the_counter_sees_what_waits():
    with pretended_gpu(), Launches() as counted:
        x = torch.empty(4, device="cuda")
        for work in (x.sum().item, x.cpu, lambda: x[x > 0], lambda: torch.tensor([1.0], device="cuda"), x.nonzero):
            before = len(counted.waits)
            with contextlib.suppress(Exception):  # some have no result without values
                work()
            assert len(counted.waits) == before + 1, work
        before = counted.total
        assert (x.view(2, 2)[0] + 1).mul_(2).shape == (2,) and counted.total == before + 2


MODULES = ("aggregation", "supplement", "encoders.attention", "encoders.clip_vit")


@pytest.mark.parametrize("switches", [{}, {"preset": "released"}, {"fusion": "add"}], ids=str)
def test_what_is_arranged_for_few_launches_computes_the_same(switches, monkeypatch):
    model, images = tiny_model(**switches).double(), pixels(2).double()
    vocabulary = model.encode(NAMES)
    with torch.no_grad():
        expected = model(images, vocabulary).logits
        used = set()
        for name in MODULES:
            module = importlib.import_module(f"fgaseg.model.{name}")
            monkeypatch.setattr(module, "counts_launches", lambda x, name=name: used.add(name) is None)
        torch.testing.assert_close(model(images, vocabulary).logits, expected, rtol=0, atol=1e-10)
    assert used == set(MODULES) - ({"supplement"} if switches.get("fusion") == "add" else set())


def test_rows_are_merged_at_once_as_one_by_one():
    counts = (1, 3, 2, 1)
    x = torch.randn(2, 7, 3, 5, generator=torch.Generator().manual_seed(0))
    x[0, 2, 1, 1], x[1, 5] = torch.nan, -torch.inf
    for values in (x, x.bfloat16(), x > 0, x[..., 0, 0]):
        assert torch.equal(*(merge(values, counts).float().nan_to_num(9) for merge in (merge_at_once, merge_rows)))
    one, other = (x.nan_to_num(posinf=9, neginf=-9).requires_grad_() for _ in range(2))
    for values, merge in ((one, merge_at_once), (other, merge_rows)):
        merge(values, counts).pow(2).sum().backward()
    assert torch.equal(one.grad, other.grad)


def test_chunks_of_whole_images():
    maps = PackedMaps(5, 9, 4)
    spans = [(one.images.start, one.images.stop, one.rows.start, one.rows.stop) for one in maps.chunks(10, 85, True)]
    assert spans == [(0, 2, 0, 8), (2, 4, 8, 16), (4, 5, 16, 20)]
    assert maps.chunks(10, 85) == [Chunk(slice(i, i + 1), slice(4 * i, 4 * i + 4)) for i in range(5)]
    assert maps.chunks(10, 30, True)[0] == Chunk(slice(0, 1), slice(0, 3))  # not even one image fits
    assert len(maps.chunks(10, 200, True)) == 1
