"""Which data sets a configuration names."""

import warnings

import pytest
import torch
from drawn_sets import draw_sets
from sample_data import make_folder

from fgaseg.config import Config
from fgaseg.data import SceneDataset
from fgaseg.data.from_config import benchmark_data_sets, data_sets
from fgaseg.data.preparation import prepare


def test_scenes_for_training_and_two_splits_for_validation():
    train_set, scored = data_sets(Config(data={"scenes": True, "crop": 32}, train={"seed": 5}))
    assert len(train_set) == 10_000 and {name: len(one) for name, one in scored.items()} == {"seen": 100, "unseen": 100}
    assert torch.equal(train_set[1]["pixels"], SceneDataset("train", 2, 32, seed=5)[1]["pixels"])
    for split, one in scored.items():
        assert torch.equal(one[1]["pixels"], SceneDataset(split, 2, 32)[1]["pixels"])
    _, scored = data_sets(Config(data={"scenes": True, "crop": 32, "val_count": 7}))
    assert [len(one) for one in scored.values()] == [7, 7]


def test_own_folders_are_scored_on_photos_of_their_own(tmp_path):
    data = make_folder(tmp_path / "a", color_jitter=True)
    with pytest.warns(
        UserWarning, match="validation photos are the training photos, so the mIoU measures memorisation"
    ):
        (train_set, scored), (other, _) = (data_sets(Config(data=data, train={"seed": seed})) for seed in (5, 6))
    assert list(scored) == ["val"] and len(train_set) == len(scored["val"]) == 4
    assert set(scored["val"][0]) == {"image", "labels", "stem"}
    assert not torch.equal(train_set[0]["pixels"], other[0]["pixels"])
    make_folder(tmp_path / "b", count=2)
    (tmp_path / "list.txt").write_text("p0\n")
    own = {"val_images": tmp_path / "b/images", "val_labels": tmp_path / "b/labels"}
    for update in (own, {"val_list": tmp_path / "list.txt"}, {"train_list": tmp_path / "list.txt"}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data_sets(Config(data=data.model_copy(update=update)))


@pytest.mark.filterwarnings("ignore:.*scores are not comparable")
def test_benchmark_sets_for_training_or_for_scoring_alone(tmp_path):
    draw_sets(tmp_path, [6, 10])
    prepare(["a150"], tmp_path)
    prepare(["a150"], tmp_path, split="train")
    own = make_folder(tmp_path / "own")
    scored_on = {"val_set": "a150", "root": tmp_path}
    train_set, scored = data_sets(Config(data=own.model_copy(update=scored_on)))
    assert len(train_set) == 4 and list(scored) == ["a150"] and len(scored["a150"]) == 9
    config = Config(data={"set": "a150", "root": tmp_path, "crop": 32, "scale": (0.5, 2.0)}, train={"seed": 5})
    train_set, scored = data_sets(config)
    assert len(train_set) == 6 and scored == {} and train_set[0]["pixels"].shape == (3, 32, 32)
    for seed, same in ((5, True), (0, False)):
        other, _ = benchmark_data_sets(config.data, seed)
        assert torch.equal(other[0]["pixels"], train_set[0]["pixels"]) == same
