"""Fixtures of several files of tests in this folder."""

import pytest
from sample_data import copy_samples


@pytest.fixture
def tree(tmp_path):
    """The root of a writable copy of the sample benchmark sets."""
    return copy_samples(tmp_path / "datasets")
