"""A small model, and labelled images of several sizes on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, tiny_model

from fgaseg import FGASeg
from fgaseg.config import DataConfig
from fgaseg.data import FolderDataset
from fgaseg.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved_model) -> FGASeg:
    return FGASeg.from_pretrained(saved_model)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Twelve images with labels 0 to 4 and 255."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir()
    for n in range(12):
        size = tuple(rng.integers(20, 70, 2))
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / "images" / f"{n}.png")
        labels = rng.integers(0, 6, size, np.uint8)
        Image.fromarray(np.where(labels == 5, 255, labels).astype(np.uint8)).save(root / "labels" / f"{n}.png")
    (root / "names.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="session")
def open_folder() -> Callable[[Path], FolderDataset]:
    """Opens a folder of images, labels and names.txt for evaluation."""

    def opened(root: Path) -> FolderDataset:
        config = DataConfig(images=root / "images", labels=root / "labels", names=root / "names.txt")
        return FolderDataset(config, "val")

    return opened


@pytest.fixture
def dataset(open_folder, folder) -> FolderDataset:
    """The twelve images, opened anew for each test."""
    return open_folder(folder)


class Constant:
    """A model of another kind, which predicts the last class everywhere; `given` are the names that it was given."""

    training = False

    def train(self, mode):
        self.training = mode

    def encode(self, names):
        self.given = names
        return Vocabulary(tuple(names), torch.zeros(len(names), 1))

    def predict_labels(self, image, vocabulary):
        return torch.full(image.shape[:2], len(vocabulary) - 1)


@pytest.fixture
def constant() -> Constant:
    return Constant()


@pytest.fixture
def interrupted():
    """Evaluates so many images, then stops."""
    from fgaseg.evaluation import EvalOptions, evaluate_with_provenance

    def run(model, dataset, after, **given):
        asked = iter(range(1000))
        options = EvalOptions(stop=lambda: next(asked) >= after)
        assert evaluate_with_provenance(model, dataset, "val", options, **given) is None

    return run
