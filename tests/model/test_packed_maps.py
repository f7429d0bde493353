"""Rows of class maps: where each belongs, and the logits of classes that were not computed."""

import torch

from fgaseg.kernels import Selection
from fgaseg.model.packed_maps import DROPPED, DecodedMaps, PackedMaps


def packed(*classes: list[int], of: int) -> PackedMaps:
    """The maps of these classes of each image."""
    rows = torch.tensor([image * of + one for image, some in enumerate(classes) for one in some])
    counts = [len(some) for some in classes]
    return PackedMaps(len(classes), of, tuple(counts), Selection(rows, torch.tensor(counts), len(classes), of))


def test_positions_are_those_among_the_classes_asked_for():
    assert PackedMaps.all(2, 3).positions(torch.arange(3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert packed([1, 2], [2], of=4).positions(torch.tensor([1, 2])).tolist() == [0, 1, 3]
    assert packed([0, 3], [1, 3], of=4).positions(torch.tensor([0, 1, 3])).tolist() == [0, 2, 4, 5]


def test_classes_that_any_image_has():
    device = torch.device("cpu")
    assert PackedMaps.all(2, 3).present_classes(device).tolist() == [0, 1, 2]
    assert packed([1, 3], of=4).present_classes(device).tolist() == [1, 3]
    assert packed([3], [0, 3], of=4).present_classes(device).tolist() == [0, 3]


def test_pruned_classes_and_those_beyond_the_cap_have_logits_of_their_own():
    logits = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    maps = DecodedMaps(logits, packed([1], [2, 3], of=4), packed([0, 1, 3], [0, 2, 3], of=4), 0.25, [])
    expected = [[0.25, 1.0, DROPPED, 0.25], [0.25, DROPPED, 2.0, 3.0]]
    assert maps.dense().flatten(1).tolist() == expected
    assert maps.expand_to(torch.tensor([1, 2, 3])).flatten(1).tolist() == [row[1:] for row in expected]
    assert maps.kept().tolist() == [[False, True, False, False], [False, False, True, True]]
    without_cap = maps._replace(capped=PackedMaps.all(2, 4))
    assert without_cap.dense().flatten(1).tolist() == [[0.25, 1.0, 0.25, 0.25], [0.25, 0.25, 2.0, 3.0]]
    dropped = maps._replace(pruned_value=DROPPED)
    assert dropped.dense().flatten(1).tolist() == [[DROPPED, 1.0, DROPPED, DROPPED], [DROPPED, DROPPED, 2.0, 3.0]]
    everything = DecodedMaps(torch.arange(6.0).view(6, 1, 1), PackedMaps.all(2, 3), PackedMaps.all(2, 3), DROPPED, [])
    assert everything.dense().flatten(1).tolist() == [[0, 1, 2], [3, 4, 5]] and everything.kept() is None
