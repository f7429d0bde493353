"""A page with the small model, in this process."""

import pytest
from tiny import tiny_model

from fgaseg.app import Labeller


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine" / "model"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def labeller(model_folder):
    return Labeller([str(model_folder)])
