"""The definitions of the label helpers, in numpy."""

import numpy as np


def remap_labels_reference(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table[labels]


def encode_runs_reference(mask: np.ndarray) -> np.ndarray:
    """Lengths of the alternating runs of 0 and 1, column by column; the first run is of zeros and may be empty."""
    flat = np.concatenate([[False], mask.ravel(order="F").astype(bool)])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges, [mask.size]])).astype(np.int64)


def decode_runs_reference(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    values = np.arange(len(counts)) % 2
    return np.repeat(values.astype(np.uint8), counts).reshape((height, width), order="F")
