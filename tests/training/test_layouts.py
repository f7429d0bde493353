"""The same data set in every layout trains to the same weights and scores the same number."""

import pytest
import torch
from layouts import LAYOUTS, needs_photos, plain
from runs import TINY_MODEL, single_thread, weights

from fgaseg import Config, train
from fgaseg.data import FolderDataset

pytestmark = needs_photos


def run(root, keys):
    config = Config(
        model=TINY_MODEL,
        data={**keys, "crop": 32, "scale": (0.8, 1.5)},
        train={"out": root / "out", "steps": 3, "batch": 3, "lr": 1e-4, "warmup": 0, "tensorboard": False,
               "eval_every": 0, "save_every": 3},
    )  # fmt: skip
    with single_thread():  # also where the fixture of one test runs it before that of all
        summary = train(config, progress=False)
    return weights(root / "out"), summary.scores["val"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    keys = plain(root)
    return FolderDataset(Config(data=keys).data, "val"), *run(root, keys)


@pytest.mark.filterwarnings("ignore:.*validation photos are the training photos")
@pytest.mark.parametrize("name", LAYOUTS)
def test_trains_to_the_same_weights_and_scores_the_same(name, expected, tmp_path):
    keys = LAYOUTS[name](tmp_path)
    first, wanted, scores = expected
    dataset = FolderDataset(Config(data=keys).data, "val")
    assert dataset.names == first.names and len(dataset) == len(first)
    for item, other in zip(dataset, first, strict=True):
        same = torch.where(item["labels"] == dataset.ignore, 255, item["labels"])
        assert torch.equal(same, other["labels"]), item["stem"]
    got, other_scores = run(tmp_path, keys)
    assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert other_scores.rows == scores.rows and 0 < scores.pixels
