"""Rows of class maps: where each belongs, and the logits of classes that were not computed."""

import torch

from fgaseg.kernels import Selection
from fgaseg.model.packed_maps import DROPPED, Chunk, ClassMaps, DecodedMaps, PackedMaps


def packed(*classes: list[int], of: int) -> PackedMaps:
    """The maps of these classes of each image."""
    rows = torch.tensor([image * of + one for image, some in enumerate(classes) for one in some])
    counts = [len(some) for some in classes]
    return PackedMaps(len(classes), of, tuple(counts), Selection(rows, torch.tensor(counts), len(classes), of))


def spans(chunks: list[Chunk]) -> list[tuple[int, int, int, int]]:
    return [(one.images.start, one.images.stop, one.rows.start, one.rows.stop) for one in chunks]


def test_a_chunk_is_eight_maps_of_24_by_24_on_a_cpu():
    def chunks(count: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        empty = torch.empty(count, height, width)
        return spans(ClassMaps(PackedMaps.all(1, count), empty, None, empty).chunks())

    assert chunks(8, 24, 24) == [(0, 1, 0, 8)]
    assert chunks(9, 24, 24) == [(0, 1, 0, 8), (0, 1, 8, 9)]
    assert chunks(8, 24, 25) == [(0, 1, 0, 7), (0, 1, 7, 8)]
    assert chunks(2, 70, 70) == [(0, 1, 0, 1), (0, 1, 1, 2)]  # at least one map


def test_chunks_are_of_one_image_or_of_all(monkeypatch):
    maps = packed([0, 1, 3], [2], of=4)
    assert spans(maps.chunks(10, 20)) == [(0, 1, 0, 2), (0, 1, 2, 3), (1, 2, 3, 4)]
    assert spans(maps.chunks(10, 1000)) == [(0, 1, 0, 3), (1, 2, 3, 4)]  # not equally many
    assert spans(PackedMaps.all(2, 2).chunks(10, 40)) == [(0, 2, 0, 4)]
    assert spans(PackedMaps.all(2, 2).chunks(10, 39)) == [(0, 1, 0, 2), (1, 2, 2, 4)]
    assert spans(PackedMaps.all(3, 1).chunks(10, 20, whole_images=True)) == [(0, 2, 0, 2), (2, 3, 2, 3)]
    assert spans(PackedMaps.all(3, 2).chunks(10, 30, whole_images=True)) == [
        (i, i + 1, 2 * i, 2 * i + 2) for i in range(3)
    ]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert spans(PackedMaps.all(2, 9).chunks(10, 10)) == [(0, 2, 0, 18)]


def test_rows_of_the_images_of_a_chunk():
    offsets = Chunk(slice(1, 3), slice(4, 10)).offsets(torch.device("cpu"))
    assert offsets.tolist() == [0, 3, 6] and offsets.dtype == torch.int64
    assert [packed([0, 1, 3], [2], of=4).rows_of(image) for image in (0, 1)] == [3, 1]
    assert PackedMaps.all(2, 3).rows_of(1) == 3


def test_maps_are_chosen_among_those_that_are_there():
    chosen = packed([1, 2], [0, 2], of=3).selection
    maps, at = PackedMaps.all(2, 3).select(chosen)
    assert maps == PackedMaps(2, 3, 2, chosen) and at.tolist() == [1, 2, 3, 5]
    maps, at = packed([0, 1], [1, 2], of=3).select(chosen)
    assert maps.selection.rows.tolist() == [1, 5] and at.tolist() == [1, 3]
    assert maps.counts == 1 and maps.selection.counts.tolist() == [1, 1]
    maps, at = packed([0, 1], [1], of=3).select(packed([0], [2], of=3).selection)
    assert maps.counts == (1, 0) and maps.selection.counts.tolist() == [1, 0] and at.tolist() == [0]
    whole = ClassMaps(PackedMaps.all(2, 3), torch.arange(6), torch.arange(6) + 10, torch.arange(6) + 20)
    some, at = whole.select(chosen)
    assert [x.tolist() for x in some[1:]] == [[1, 2, 3, 5], [11, 12, 13, 15], [21, 22, 23, 25]]
    assert some.packing.selection is chosen and at.tolist() == [1, 2, 3, 5]
    assert whole._replace(lcs=None).select(chosen)[0].lcs is None


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
    assert without_cap.expand_to(torch.tensor([1, 2, 3])).flatten(1).tolist() == [[1.0, 0.25, 0.25], [0.25, 2.0, 3.0]]


def test_logits_are_put_where_their_classes_are():
    logits = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    one = DecodedMaps(logits, packed([1, 3], of=4), PackedMaps.all(1, 4), DROPPED, [])
    assert one.expand_to(torch.tensor([1, 3])).flatten(1).tolist() == [[1.0, 2.0]]
    assert one.expand_to(torch.tensor([0, 1, 3])).flatten(1).tolist() == [[DROPPED, 1.0, 2.0]]
    two = DecodedMaps(logits, packed([3], [0], of=4), PackedMaps.all(2, 4), DROPPED, [])
    assert two.expand_to(torch.tensor([0, 3])).flatten(1).tolist() == [[DROPPED, 1.0], [2.0, DROPPED]]
    everything = two._replace(packing=PackedMaps.all(2, 1), capped=PackedMaps.all(2, 1))
    assert everything.expand_to(torch.tensor([0])).data_ptr() == logits.data_ptr()  # not copied
