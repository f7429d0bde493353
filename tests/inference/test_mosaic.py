"""Tiles with blended logits: labels are those of the whole where the model can know, and seams are nowhere."""

from itertools import pairwise
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from tiny import NAMES, tiny_model

from fgaseg.inference import mosaic
from fgaseg.inference.mosaic import CELLS, TilePlan, label_tiles, starts
from fgaseg.kernels import upsample_argmax


def argmax(logits, size):
    return upsample_argmax(logits[None], size)[0][0]


def assemble(plan, classes, see, decide=argmax, budget=mosaic.STRIPE_BYTES):
    """Labels of the whole raster, -1 where none were written, and how many tiles were seen."""
    labels = torch.full((plan.height, plan.width), -1)

    def write(top, left, part):
        there = labels[top : top + part.shape[0], left : left + part.shape[1]]
        assert there.shape == part.shape and (there == -1).all(), "outside, or twice"
        there[:] = part

    count = sum(1 for _ in label_tiles(plan, classes, see, decide, write, budget))
    assert count == plan.count(classes, budget)
    return labels


def world(plan, classes, seed=0):
    """Logits of a whole raster, on its grid: smooth enough that labels are regions."""
    rows, columns = (max(ceil(n / plan.patch), plan.side) * CELLS for n in (plan.height, plan.width))
    noise = torch.randn(1, classes, rows // 6 + 2, columns // 6 + 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise.double(), (rows, columns), mode="bicubic")[0]


def cut(maps, plan):
    """What a model that sees one patch at a time gives of a tile."""
    side = plan.side * CELLS
    return lambda row, column: maps[:, row * CELLS : row * CELLS + side, column * CELLS : column * CELLS + side]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 40, 333, 1000])
@pytest.mark.parametrize("side, overlap", [(8, 0), (8, 2), (8, 7), (1, 0), (24, 6), (24, 13)])
def test_tiles_cover_everything_and_share_what_was_asked_for(length, side, overlap):
    found = starts(length, side, overlap)
    assert found[0] == 0 and found[-1] == max(length - side, 0)
    for before, after in pairwise(found):
        assert before < after <= before + side - overlap
    assert len(found) <= max(length - side, 0) / (side - overlap) + 2


@pytest.mark.parametrize(
    "height, width, patch, side, overlap",
    [(100, 130, 8, 6, 2), (37, 301, 5, 4, 1), (301, 37, 7, 4, 3), (10, 10, 8, 6, 2), (1, 200, 16, 4, 1),
     (130, 90, 3, 5, 0), (64, 64, 16, 2, 1), (48, 48, 16, 3, 1)],
)  # fmt: skip
@pytest.mark.parametrize("budget", [mosaic.STRIPE_BYTES, 1])
def test_labels_are_those_of_the_whole(monkeypatch, height, width, patch, side, overlap, budget):
    monkeypatch.setattr(mosaic, "ALIGNMENT", 32)  # several stripes of small rasters
    plan = TilePlan.spread(height, width, patch, side, overlap)
    assert len(plan.stripes(5, budget)) == (1 if budget > 1 else ceil(width / 32))
    maps = world(plan, 5)
    whole = argmax(maps, tuple(n * patch // CELLS for n in maps.shape[1:]))[:height, :width]
    assert len(whole.unique()) > 1
    torch.testing.assert_close(assemble(plan, 5, cut(maps, plan), budget=budget), whole, rtol=0, atol=0)


@pytest.mark.parametrize("block", [1, 40])
def test_labels_do_not_depend_on_the_size_of_what_is_decided_at_a_time(monkeypatch, block):
    plan = TilePlan.spread(150, 170, 8, 6, 2)
    maps = world(plan, 4)
    expected = assemble(plan, 4, cut(maps, plan))
    monkeypatch.setattr(mosaic, "BLOCK_PIXELS", block**2)
    monkeypatch.setattr(mosaic, "BLOCK_BYTES", 1)
    torch.testing.assert_close(assemble(plan, 4, cut(maps, plan)), expected, rtol=0, atol=0)


def test_labels_are_those_of_the_whole_where_the_receptive_field_allows():
    """A model that reads `radius` cells around each: it is cut at the border of a tile, and of the raster."""
    radius, plan = 2, TilePlan.spread(430, 390, 8, 12, 3)
    maps = world(plan, 6, seed=3)

    def blur(part):
        padded = F.pad(part[None], (radius,) * 4, mode="replicate")
        return F.avg_pool2d(padded, 2 * radius + 1, 1)[0]

    tile = cut(maps, plan)
    labels = assemble(plan, 6, lambda row, column: blur(tile(row, column)))
    whole = argmax(blur(maps), tuple(n * plan.patch // CELLS for n in maps.shape[1:]))[:430, :390]
    known = torch.ones(maps.shape[1:], dtype=torch.bool)  # cells that every tile over them sees as the whole does
    reach = radius + 1  # bilinear interpolation reads one more
    for axis, begins in enumerate((plan.rows, plan.columns)):
        for cell in [c * CELLS for c in begins[1:]] + [(c + plan.side) * CELLS for c in begins[:-1]]:
            known.narrow(axis, cell - reach, 2 * reach).fill_(False)
    known = known.repeat_interleave(2, 0).repeat_interleave(2, 1)[:430, :390]
    assert 0.3 < known.double().mean() < 0.7
    assert (labels == whole)[known].all()
    assert 0 < (labels != whole)[~known].double().mean() < 0.2  # elsewhere they may differ, and here they do


def test_tiles_without_pixels_of_interest_leave_the_others_as_they_are():
    plan = TilePlan.spread(200, 200, 8, 6, 2)
    maps = world(plan, 3)
    see = cut(maps, plan)
    valid = torch.zeros(200, 200, dtype=torch.bool)
    valid[110:171, 40:93] = True

    def seen(row, column):
        part = valid[row * 8 : row * 8 + plan.tile, column * 8 : column * 8 + plan.tile]
        return see(row, column) if part.any() else None

    some, every = assemble(plan, 3, seen), assemble(plan, 3, see)
    assert (some == every)[valid].all()
    assert (some[:40] == 0).all() and (every[:40] != 0).any()
    assert (assemble(plan, 3, lambda row, column: None) == 0).all()


def test_what_is_kept_does_not_grow_with_the_height(monkeypatch):
    sizes = []
    add = mosaic._Strip.add
    monkeypatch.setattr(
        mosaic._Strip, "add", lambda self, *args: (add(self, *args), sizes.append(self.sums.numel()))[0]
    )
    for height in (300, 3000):
        plan = TilePlan.spread(height, 100, 8, 6, 2)
        assemble(plan, 2, lambda row, column: torch.zeros(2, 24, 24))
    assert len(set(sizes)) == 1 and sizes[0] == 2 * (6 + 2) * CELLS * ceil(100 / 8) * CELLS


@pytest.mark.parametrize("classes", [1, 150, 847, 20_000])
def test_stripes_fit_the_budget(classes):
    plan = TilePlan.spread(20_000, 20_000, 16, 24, 6)
    stripes = plan.stripes(classes)
    assert stripes[0][0] == 0 and stripes[-1][1] == 20_000
    assert all(before[1] == after[0] and after[0] % mosaic.ALIGNMENT == 0 for before, after in pairwise(stripes))
    broadest = max(last - first for first, last in map(plan.patches_of, stripes))
    kept = (classes + 1) * broadest * CELLS * (24 + 2) * CELLS * 4
    assert kept <= mosaic.STRIPE_BYTES or stripes[0] == (0, mosaic.ALIGNMENT)
    assert (len(stripes) == 1) == (classes <= 150)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_tile_gives_way_to_the_next_smoothly(axis):
    """Of a real model, whose logits of a pixel depend on the whole tile, so that two tiles disagree about it.

    Borders are no steps: where a tile begins, its part in the logits is next to nothing, and it grows by at most a
    quarter from one logit to the next, of which the overlap has eight. A hard cut is a step of 1, equal weights of 1/2.
    """
    model = tiny_model()
    vocabulary = model.encode(NAMES)
    picture = torch.randn(1, 3, *((112, 64) if axis == 0 else (64, 112)), generator=torch.Generator().manual_seed(0))
    plan = TilePlan.spread(*picture.shape[2:], 8, 8, 2)
    assert sorted((plan.rows, plan.columns)) == [(0,), (0, 6)]
    tiles, blended = [], []

    @torch.inference_mode()
    def see(row, column):
        tiles.append(model(picture[..., row * 8 : row * 8 + 64, column * 8 : column * 8 + 64], vocabulary).logits[0])
        return tiles[-1]

    def keep(logits, size):
        blended.append(logits)
        return torch.zeros(size, dtype=torch.int64)

    assemble(plan, len(NAMES), see, keep)
    maps = blended[-1].movedim(1 + axis, -1)[..., -40:]  # from two patches above the second tile on, if rows
    first, second = (tile.movedim(1 + axis, -1) for tile in tiles)
    first, second, maps = first[..., 24:32], second[..., :8], maps[..., 8:16]
    change = second - first
    part = ((maps - first) * change).sum((0, 1)) / change.square().sum((0, 1))  # of the second tile, per logit
    torch.testing.assert_close(maps, first + part * change, rtol=1e-4, atol=1e-4)
    assert part[0] < 0.02 and part[-1] > 0.98
    growth = part.diff()
    assert (growth > 0).all() and growth.max() < 0.25
    torch.testing.assert_close(part, 1 - part.flip(0))
