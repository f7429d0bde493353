"""Which samples make up a batch; unreadable photos, bad labels and dead workers."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_same_run, configure, keys_by_step, state

import fgaseg.training.batches
import fgaseg.training.processes
from fgaseg.errors import DataError, ImageError, TrainingError
from fgaseg.training import train
from fgaseg.training.batches import Batch, BatchSampler, BatchSource, EpochStream, make_loader


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


def test_the_next_readable_picture_takes_the_place():
    class Source:
        torn = (1, 2, 4)

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 5

        def __getitem__(self, index):
            if index in self.torn:
                raise ImageError(f"{index} is torn")
            return {"index": index}

    stream = EpochStream(Source(), 2)
    assert stream[0, 0] == {"index": 0, "skipped": {}}
    assert stream[0, 1] == {"index": 3, "skipped": {1: "1 is torn", 2: "2 is torn"}}
    assert stream[0, 4] == {"index": 0, "skipped": {4: "4 is torn"}}  # around the end
    assert isinstance(EpochStream(Source(), 1)[0, 1], ImageError)
    assert isinstance(EpochStream(Source())[0, 4], ImageError)
    assert stream[7, 0] and stream.source.epoch == 7
    Source.torn = range(5)
    assert isinstance(EpochStream(Source(), 99)[0, 1], ImageError)  # none is left


def test_a_loader_reads_what_the_configuration_says_and_draws_nothing(data, tmp_path):
    """The global random numbers are the model's."""
    config = configure(data, tmp_path, ["data.workers=1", "train.skip_unreadable=5", "train.batch=2"])
    loader = make_loader(Items(), config, 7, True)
    assert (loader.num_workers, loader.pin_memory, loader.dataset.allowed) == (1, True, 5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = make_loader(Items(), config.override("data.workers=0"), 7, False)
    (batch,) = alone
    assert torch.equal(torch.get_rng_state(), before)
    (keys,) = BatchSampler(10, config.train, 7)
    assert batch.stems == [str(index) for _, index in keys] and batch.pixels.shape == (2, 3, 4, 4)


class Items:
    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"pixels": torch.zeros(3, 4, 4), "labels": torch.zeros(4, 4).long(), "stem": str(index)}


def test_a_worker_ignores_ctrl_c_and_has_a_data_set_of_its_own(data, tmp_path, monkeypatch):
    """Threads share the data set, and the process group gets the signal."""
    loader, told = make_loader(Items(), configure(data, tmp_path), 0, False), []
    shared = loader.dataset.source
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(dataset=loader.dataset))
    monkeypatch.setattr(fgaseg.training.batches.signal, "signal", lambda *what: told.append(what))
    loader.worker_init_fn(0)
    assert told == [(signal.SIGINT, signal.SIG_IGN)]
    assert isinstance(loader.dataset.source, Items) and loader.dataset.source is not shared


def batch(**skipped):
    return Batch(torch.zeros(1), torch.zeros(1), [], {int(index[1:]): why for index, why in skipped.items()})


def test_all_processes_go_on_or_none(data, tmp_path, monkeypatch):
    config = configure(data, tmp_path, ["train.skip_unreadable=3"])
    source = BatchSource([batch(), ImageError("torn")], config, {}, torch.device("cpu"))
    monkeypatch.setattr(fgaseg.training.batches, "sum_over_processes", lambda flags: flags + torch.tensor([1, 0]))
    found = source.next(3)
    assert isinstance(found, TrainingError)
    assert str(found) == "another process could not read its part of step 3; its message says why"
    assert str(source.next(4)) == "torn"  # its own message, where it has one


@pytest.mark.parametrize("rank", [0, 1])
def test_what_any_process_skipped_is_counted_by_all_and_said_by_the_first(data, tmp_path, monkeypatch, caplog, rank):
    config, skipped = configure(data, tmp_path, ["train.skip_unreadable=4"]), {5: "5 is torn"}
    source = BatchSource([batch(_9="9 is torn", _7="7 is torn"), batch(), batch(_1="1 is torn")], config, skipped,
                         torch.device("cpu"))  # fmt: skip
    monkeypatch.setattr(fgaseg.training.batches, "rank", lambda: rank)
    there = iter([{7: "7 is torn there", 2: "2 is torn"}, {}])
    monkeypatch.setattr(fgaseg.training.batches, "gather_objects", lambda here: [here, next(there)])
    assert isinstance(source.next(1), Batch) and isinstance(source.next(2), Batch)
    assert source.skipped == skipped and list(skipped) == [5, 7, 9, 2] and skipped[7] == "7 is torn"
    said = [f"skipped {n} (train.skip_unreadable=4): {i} is torn" for n, i in ((2, 7), (3, 9), (4, 2))]
    assert caplog.messages == ([] if rank else said)
    error = source.next(3)
    assert isinstance(error, TrainingError) and str(error) == (
        "5 photos cannot be read and train.skip_unreadable allows 4: 5 is torn; 7 is torn; 9 is torn; 2 is torn; "
        "1 is torn"
    )


@pytest.mark.parametrize(
    "error, reason",
    [(RuntimeError("DataLoader worker (pid 1) exited.\nTraceback"), "DataLoader worker (pid 1) exited"),
     (EOFError(), "EOFError"), (ConnectionResetError("reset. "), "reset"), (FileNotFoundError("gone"), "gone")],
)  # fmt: skip
def test_a_dead_worker_is_said_in_one_line(data, tmp_path, error, reason):
    def batches():
        yield batch()
        raise error

    source = BatchSource(batches(), configure(data, tmp_path, ["data.workers=2"]), {}, torch.device("cpu"))
    source.next(1)
    found = source.next(2)
    assert isinstance(found, TrainingError)
    assert str(found) == (
        f"a loader worker died before step 2 ({reason}): the system may be out of memory; run the same command again "
        "to resume, with fewer data.workers (now 2) if it happens again"
    )


def test_an_error_of_the_program_itself_passes(data, tmp_path):
    def batches():
        raise RuntimeError("no worker's")
        yield

    with pytest.raises(RuntimeError, match="no worker's"):
        BatchSource(batches(), configure(data, tmp_path), {}, torch.device("cpu")).next(1)
