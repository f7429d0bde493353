"""One export of a tiny model for all tests of all modules, and of all workers, that only read it."""

import copy
import os

import pytest
from filelock import FileLock
from tiny import NAMES, tiny_model

import fgaseg


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """What needs the export is slow: it takes a minute or two."""
    for item in items:
        if "exported" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def small():
    """The model whose export `exported` is; not to be changed."""
    return tiny_model(aggregation_layers=1)


@pytest.fixture(scope="session")
def exported(small, tmp_path_factory):
    """Folder of image, text and head for ONNX Runtime, OpenVINO and PyTorch, with a vocabulary."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exported"
    options = fgaseg.ExportOptions(("onnx", "openvino", "torch"), vocabulary=small.encode([*NAMES, "car | van"]))
    with FileLock(f"{folder}.lock"):
        if not folder.exists():  # export_model writes a folder whole or not at all
            fgaseg.export_model(copy.deepcopy(small), folder, options)
    return folder
