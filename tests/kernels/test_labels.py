import numpy as np
import pytest

from fgaseg.kernels import _dispatch, decode_runs, encode_runs, remap_labels
from fgaseg.kernels.labels import host

needs_host = pytest.mark.skipif(host._host is None, reason=f"the pybind11 module is not built: {host.why_no_host}")
DTYPES = ["uint8", "uint16", "int32", "int64"]
RNG = np.random.default_rng(0)


@pytest.fixture(params=[pytest.param("pybind11", marks=needs_host), "numpy"], autouse=True)
def implementation(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(host, "_host", None)
        monkeypatch.setattr(_dispatch, "_shown", {"remap_labels", "encode_runs", "decode_runs"})


@pytest.mark.parametrize("entry", DTYPES)
@pytest.mark.parametrize("label", DTYPES)
def test_remap_is_indexing(label, entry):
    size = 100 if label == "uint8" else 1000
    table = RNG.integers(0, 100, size).astype(entry)
    for labels in (RNG.integers(0, size, (7, 13)).astype(label), np.zeros((0, 3), label)):
        for layout in (labels, labels.T, labels[::2, ::-1]):
            got = remap_labels(layout, table)
            assert got.dtype == entry and np.array_equal(got, table[layout])


def test_remap_names_the_label_without_an_entry():
    with pytest.raises(ValueError, match=r"label 9 has no entry in the table; allowed 0\.\.4"):
        remap_labels(np.array([[0, 4], [9, 1]], np.uint8), np.arange(5, dtype=np.uint8))
    for label, dtype in [(-1, "int32"), (-1, "int64"), (256, "uint16"), (65536, "int32"), (2**32, "int64")]:
        with pytest.raises(ValueError, match=f"label {label} has no entry"):
            remap_labels(np.array([label], dtype), np.arange(5, dtype=np.uint8))
    with pytest.raises(TypeError, match="labels has dtype float64"):
        remap_labels(np.zeros(3), np.arange(5))


def test_runs_of_a_known_mask():
    """Column by column, zeros first, as COCO writes its uncompressed counts."""
    mask = np.array([[0, 1, 1], [0, 1, 0]], np.uint8)
    assert encode_runs(mask).tolist() == [2, 3, 1]
    assert encode_runs(1 - mask).tolist() == [0, 2, 3, 1]
    assert encode_runs(np.zeros((2, 3), bool)).tolist() == [6]


@pytest.mark.parametrize("shape", [(1, 1), (37, 41), (64, 1), (1, 9), (0, 5)])
@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_runs_there_and_back(shape, dtype):
    mask = (RNG.random(shape) < 0.3).astype(dtype)
    for layout in (mask, mask[::-1, ::-1], np.asfortranarray(mask)):
        counts = encode_runs(layout)
        assert counts.dtype == np.int64 and counts.sum() == mask.size
        assert np.array_equal(decode_runs(counts, *layout.shape), layout)
    assert np.array_equal(decode_runs(encode_runs(mask.astype(np.uint8) * 255), *shape), mask)


def test_wrong_runs_are_refused():
    with pytest.raises(ValueError, match=r"add up to 2\*3; they add up to 7"):
        decode_runs(np.array([3, 4]), 2, 3)
    with pytest.raises(ValueError, match="non-negative"):
        decode_runs(np.array([-1, 7]), 2, 3)
    with pytest.raises(ValueError, match=r"mask is float64\[2\]; expected bool or uint8 \[H, W\]"):
        encode_runs(np.zeros(2))


def test_numpy_instead_of_pybind11_warns(monkeypatch):
    monkeypatch.setattr(host, "_host", None)
    monkeypatch.setattr(host, "why_no_host", "left out of this test")
    monkeypatch.setattr(_dispatch, "_shown", set())
    with pytest.warns(UserWarning, match="encode_runs: running the plain reference(?s:.*)left out of this test"):
        encode_runs(np.zeros((2, 2), bool))
