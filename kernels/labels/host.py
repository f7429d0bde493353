"""Label maps on the host, by the pybind11 module if it was built, else by numpy."""

import numpy as np

from .._dispatch import warn_fallback
from .._library import build_info
from .reference import decode_runs_reference, encode_runs_reference, remap_labels_reference

try:
    from .. import _host  # type: ignore[attr-defined]

    why_no_host = ""
except ImportError as error:
    _host = None
    why_no_host = f"{error} ({build_info()['host']})"

LABEL_DTYPES = ("uint8", "uint16", "int32", "int64")


def _built(name: str) -> bool:
    """Whether the compiled helper can be used; if not, a warning is shown once."""
    if _host is None:
        warn_fallback(name, f"  pybind11  {why_no_host}")
    return _host is not None


def remap_labels(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Renumbers a label map: ``table[labels]``, with every label checked.

    labels   any shape, uint8, uint16, int32 or int64
    table    [N]  the new value of each label, any of these dtypes
    returns  shape of labels, dtype of table

    Raises ValueError naming the first label outside 0..N-1, TypeError for other dtypes.
    """
    labels, table = np.asarray(labels), np.asarray(table)
    for name, array in (("labels", labels), ("table", table)):
        if array.dtype.name not in LABEL_DTYPES:
            raise TypeError(f"remap_labels: {name} has dtype {array.dtype}; expected one of {', '.join(LABEL_DTYPES)}")
    if table.ndim != 1:
        raise ValueError(f"remap_labels: table has shape {table.shape}; expected one dimension")
    if _built("remap_labels"):
        renumbered, bad = _host.remap_labels(np.ascontiguousarray(labels), np.ascontiguousarray(table))
    else:
        outside = labels[(labels < 0) | (labels >= len(table))]
        bad = int(outside[0]) if outside.size else None
        renumbered = labels if outside.size else remap_labels_reference(labels, table)
    if bad is not None:
        raise ValueError(f"remap_labels: label {bad} has no entry in the table; allowed 0..{len(table) - 1}")
    return renumbered


def encode_runs(mask: np.ndarray) -> np.ndarray:
    """COCO's uncompressed run lengths of a mask: column-major, alternating counts of 0 and 1, zeros first.

    mask     [H, W]  bool or uint8; non-zero counts as 1
    returns  [N] int64; the counts add up to H*W. Raises ValueError for other masks.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.name not in ("bool", "uint8"):
        raise ValueError(f"encode_runs: mask is {mask.dtype}{list(mask.shape)}; expected bool or uint8 [H, W]")
    if _built("encode_runs"):
        return _host.encode_runs(np.asfortranarray(mask).view(np.uint8))
    return encode_runs_reference(mask)


def decode_runs(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask that COCO's uncompressed run lengths describe: the inverse of ``encode_runs``.

    counts   [N] non-negative integers that add up to height*width
    returns  [H, W] uint8, 0 or 1, in column-major order. Raises ValueError for other counts.
    """
    counts = np.asarray(counts, dtype=np.int64)
    # every count is checked too, because a sum that overflows may still come out right
    if counts.ndim != 1 or ((counts < 0) | (counts > height * width)).any() or counts.sum() != height * width:
        raise ValueError(
            f"decode_runs: counts must be non-negative and add up to {height}*{width}; they add up to {counts.sum()}"
        )
    if _built("decode_runs"):
        return _host.decode_runs(np.ascontiguousarray(counts), height, width)
    return decode_runs_reference(counts, height, width)
