"""One export of a tiny model for all tests of a module that only read it."""

import copy

import pytest
from tiny import NAMES, tiny_model

import fgaseg


@pytest.fixture(scope="session")
def small():
    """The model whose export `exported` is; not to be changed."""
    return tiny_model(aggregation_layers=1)


@pytest.fixture(scope="session")
def exported(small, tmp_path_factory):
    """Folder of image, text and head for ONNX Runtime, OpenVINO and PyTorch, with a vocabulary."""
    folder = tmp_path_factory.mktemp("export") / "exported"
    options = fgaseg.ExportOptions(("onnx", "openvino", "torch"), vocabulary=small.encode([*NAMES, "car | van"]))
    fgaseg.export_model(copy.deepcopy(small), folder, options)
    return folder
