"""Which samples make up a batch; unreadable photos, bad labels and dead workers."""

import numpy as np
import pytest
from PIL import Image
from runs import assert_same_run, configure, keys_by_step, state

import fgaseg.training.batches
import fgaseg.training.processes
from fgaseg.errors import DataError, ImageError, TrainingError
from fgaseg.training import train
from fgaseg.training.batches import BatchSampler, EpochStream


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("length, batch, start", [(10, 6, 0), (10, 6, 3), (24, 12, 0), (7, 12, 1)])
def test_no_image_is_dropped_or_repeated_in_an_epoch(data, tmp_path, monkeypatch, processes, length, batch, start):
    config = configure(data, tmp_path, ["train.steps=30", f"train.batch={batch}"])
    monkeypatch.setattr(fgaseg.training.batches, "world_size", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(fgaseg.training.batches, "rank", lambda number=number: number)
        shares.append(list(BatchSampler(length, config.train, start)))
    keys = [key for step in zip(*shares, strict=True) for share in step for key in share]
    assert len(keys) == (30 - start) * batch
    first = start * batch
    epochs = {epoch: [index for e, index in keys if e == epoch] for epoch in {epoch for epoch, _ in keys}}
    for epoch, indices in epochs.items():
        assert len(set(indices)) == len(indices)
        inside = epoch * length >= first and (epoch + 1) * length <= 30 * batch
        assert not inside or sorted(indices) == list(range(length))
    assert sum(len(indices) == length for indices in epochs.values()) >= 2
    monkeypatch.setattr(fgaseg.training.batches, "world_size", lambda: 1)
    monkeypatch.setattr(fgaseg.training.batches, "rank", lambda: 0)
    assert keys == [key for step in BatchSampler(length, config.train, start) for key in step]


def test_a_micro_batch_is_the_same_pictures_for_any_number_of_processes(data, tmp_path, monkeypatch):
    config = configure(data, tmp_path, ["train.steps=3", "train.batch=12", "train.accumulate=2"])
    found = []
    for processes in (1, 2, 3):
        monkeypatch.setattr(fgaseg.training.batches, "world_size", lambda processes=processes: processes)
        shares = []
        for number in range(processes):
            monkeypatch.setattr(fgaseg.training.batches, "rank", lambda number=number: number)
            shares.append([np.array_split(keys, 2) for keys in BatchSampler(10, config.train, 0)])
        found.append([[np.concatenate(parts).tolist() for parts in zip(*step, strict=True)]
                      for step in zip(*shares, strict=True)])  # fmt: skip
    assert found[0] == found[1] == found[2]


def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fgaseg.training.processes, "world_size", lambda: 3)
    with pytest.raises(TrainingError, match=r"train\.batch=4 cannot be shared evenly by 3 processes"):
        train(configure(data, tmp_path), progress=False)


def test_micro_batches_must_share_the_batch(data, tmp_path):
    with pytest.raises(TrainingError, match=r"train\.batch=4 .* 1 processes of 3 micro-batches.*multiple of 3"):
        train(configure(data, tmp_path, ["train.accumulate=3"]), progress=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_label_is_one_clear_error_from_any_worker(data, tmp_path, workers):
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (data / "labels").iterdir():
        Image.fromarray(np.full((40, 44), 77 if path.stem == "3" else 0, np.uint8)).save(labels / path.name)
    config = configure(data, tmp_path / "out", [f"data.labels={labels}", f"data.workers={workers}"])
    with pytest.raises(DataError, match=r"3\.png: holds label 77") as caught:
        train(config, progress=False)
    assert "Traceback" not in str(caught.value)


@pytest.fixture
def spoilt(data, tmp_path):
    """The data set with two photos cut short."""
    folder = tmp_path / "spoilt"
    (folder / "images").mkdir(parents=True)
    for path in (data / "images").iterdir():
        content = path.read_bytes()
        (folder / "images" / path.name).write_bytes(content[: len(content) // 2] if path.stem in "37" else content)
    return [f"data.images={folder / 'images'}", f"data.val_images={data / 'images'}"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_is_named_and_the_steps_before_it_are_saved(data, tmp_path, spoilt, workers):
    config = configure(data, tmp_path / "out", [*spoilt, f"data.workers={workers}", "train.save_every=0"])
    with pytest.raises(ImageError, match=r"[37]\.png") as caught:
        train(config, progress=False)
    assert len(str(caught.value).splitlines()) == 1
    first = min(step for step, keys in enumerate(keys_by_step(config)) if {3, 7} & {index for _, index in keys})
    assert state(tmp_path / "out")["step"] == first if first else not (tmp_path / "out" / "checkpoint").exists()


def test_unreadable_photos_are_skipped_up_to_the_limit_named_and_counted(data, tmp_path, spoilt, caplog):
    outs = [tmp_path / "0", tmp_path / "2"]
    for workers, out in zip((0, 2), outs, strict=True):
        config = configure(data, out, [*spoilt, f"data.workers={workers}", "train.skip_unreadable=2"])
        caplog.clear()
        summary = train(config, progress=False)
        said = caplog.text
        assert said.count("skipped 1 (train.skip_unreadable=2)") == said.count("skipped 2 (") == 1
        assert "3.png" in said and "7.png" in said
        assert len(summary.skipped) == 2 and summary.dump()["skipped"] == summary.skipped
    assert_same_run(outs[1], outs[0])
    config = configure(data, tmp_path / "1", [*spoilt, "train.skip_unreadable=1"])
    with pytest.raises(TrainingError, match=r"2 photos cannot be read and train.skip_unreadable allows 1: .*png"):
        train(config, progress=False)
    # with a higher limit it resumes and ends in the same weights
    train(config.override("train.skip_unreadable=2"), progress=False)
    assert_same_run(tmp_path / "1", outs[0])


def test_the_next_readable_picture_takes_the_place(data):
    class Source:
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 5

        def __getitem__(self, index):
            if index in (1, 2, 4):
                raise ImageError(f"{index} is torn")
            return {"index": index}

    stream = EpochStream(Source(), 2)
    assert stream[0, 0] == {"index": 0, "skipped": {}}
    assert stream[0, 1] == {"index": 3, "skipped": {1: "1 is torn", 2: "2 is torn"}}
    assert stream[0, 4] == {"index": 0, "skipped": {4: "4 is torn"}}  # around the end
    assert isinstance(EpochStream(Source(), 1)[0, 1], ImageError)
    assert isinstance(EpochStream(Source())[0, 4], ImageError)
