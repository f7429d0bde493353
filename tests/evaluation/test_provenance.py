"""Every figure has its provenance, whose hash changes exactly when something that decides the figure does."""

import hashlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from own_encoder import Words
from PIL import Image
from tiny import NAMES, tiny_config, tiny_model

from fgaseg import FGASeg
from fgaseg.errors import ResultError
from fgaseg.evaluation import EvalOptions, evaluate_with_provenance, weights_hash
from fgaseg.evaluation.provenance import TYPES, differences, files_state, provenance, short_hash, state_hash


def test_the_hash_follows_what_decides_the_figures_and_nothing_else(model, saved_model, folder, open_folder, tmp_path):
    def evaluated(one, data, **options):
        return evaluate_with_provenance(one, data, "val", EvalOptions(**{"count": 3, **options}))

    data = open_folder(folder)
    first = evaluated(model, data)
    again = evaluate_with_provenance(model, data, "val", EvalOptions(count=3, read_ahead=1), out=tmp_path)
    assert first.hash == again.hash and first.unhashed != again.unhashed
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("images", "labels", "names.txt"):
        os.symlink(folder / name, moved / name)
    assert evaluated(model, open_folder(moved)).hash == first.hash
    hashes = {first.hash, evaluated(model, data, count=4).hash, evaluated(tiny_model(seed=1), data).hash}
    for overrides in ({"inference": "windows"}, {"template": "{}"}, {"first_synonym": True}, {"class_cap": 4},
                      {"resize": "scores"}):  # fmt: skip
        hashes.add(evaluated(FGASeg.from_pretrained(saved_model, **overrides), data).hash)
    with torch.autocast("cpu", torch.bfloat16):
        hashes.add(evaluated(model, data).hash)
    hashes.add(evaluated(FGASeg.from_pretrained(saved_model).bfloat16(), data, count=3).hash)
    assert len(hashes) == 10
    assert "precision" not in first.record["numerics"]
    windows = [
        FGASeg.from_pretrained(saved_model, inference="windows", resize=resize) for resize in ("logits", "scores")
    ]
    assert len({evaluated(one, data).hash for one in windows}) == 1  # which average scores either way
    training = FGASeg.from_pretrained(saved_model, checkpointing=True, class_pooling=1)
    assert evaluated(training, data).hash == first.hash


def test_a_changed_label_stem_or_pixel_changes_the_hash_though_the_counts_agree(model, folder, open_folder, tmp_path):
    def changed(stem=None, photo=None, label=None):
        data = open_folder(folder)
        old = data.pairs[0]
        data.pairs[0] = (stem or old[0], photo or old[1], label or old[2])
        return evaluate_with_provenance(model, data, "val", EvalOptions(count=2)).hash

    _, photo, label = open_folder(folder).pairs[0]
    first = changed()
    assert changed(stem="renamed") != first
    labels = np.array(Image.open(label))
    Image.fromarray(labels).save(tmp_path / "again.png", compress_level=0)
    assert changed(label=tmp_path / "again.png") == first  # the same labels in another file
    y, x = np.argwhere(labels != 255)[0]
    labels[y, x] = (labels[y, x] + 1) % 5
    Image.fromarray(labels).save(tmp_path / "other.png")
    assert changed(label=tmp_path / "other.png") != first
    pixels = np.array(Image.open(photo))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    assert changed(photo=tmp_path / "photo.png") != first


def test_the_record_stays_what_it_was():
    """A changed key, word or number would change every hash: figures of earlier versions could not be compared."""

    class Data:
        names = NAMES

        def __len__(self):
            return 3

    record = provenance(tiny_model(), Data(), "val", 2)
    lasting = {key: value for key, value in record.items() if key not in ("weights", "versions")}
    assert hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16] == "2e4a591110edf6f6"


def test_what_is_recorded_of_words_weights_and_views(monkeypatch):
    class Data(list):
        names = ("cat | kitten", "dog")

    model = tiny_model(inference="windows", image_size=70, template=["a {}", "the {}"])
    record = provenance(model, Data("ab"), "val", weights="hash")
    assert record["weights"] == "hash" and record["data"]["images"] == record["data"]["images_of_set"] == 2
    assert record["text"] == {"templates": ["a {}", "the {}"], "first_synonym": False, "synonyms": "best"}
    assert record["input"] == {"inference": "windows", "side": 640, "window": 384, "stride": 256, "longest": 2560,
                               "view": 64, "patch": 8}  # fmt: skip
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")  # which only a GPU heeds
    Data.names = ("cat", "dog")
    other = provenance(model, Data("ab"), "val", 1, weights="hash")
    assert other["numerics"] == record["numerics"] and other["numerics"]["float32_products"] == "highest"
    assert other["data"]["images"] == 1 and "synonyms" not in other["text"]


def test_an_encoder_of_ones_own_is_recorded_by_its_name():
    class Data(list):
        names = NAMES

    own = FGASeg(tiny_config(encoder={"name": "words", "architecture": None, "finetune": "attention"}), Words())
    encoder = provenance(own, Data("ab"), "val", weights="hash")["model"]["encoder"]
    assert encoder["own"] == own.encoder.name


def test_a_record_is_identified_by_its_content_whatever_the_order():
    expected = hashlib.sha256(b'{"a": 1, "b": {"c": [2], "d": null}}').hexdigest()[:8]
    assert short_hash({"a": 1, "b": {"c": [2], "d": None}}) == expected
    assert short_hash({"b": {"d": None, "c": [2]}, "a": 1}) == expected


def test_differences_are_named_in_order_and_cut():
    before = {"z": 1, "same": [1], "deep": {"b": "x" * 38, "a": None}, "gone": {"x": 1}}
    now = {"z": 2, "same": [1], "deep": {"b": "y" * 39, "a": {}}, "added": True}
    assert differences(before, now) == [
        "added was null, now true",
        "deep.a was null, now {}",
        f'deep.b was "{"x" * 38}", now "{"y" * 36}...',
        'gone was {"x": 1}, now null',
        "z was 1, now 2",
    ]


def test_the_state_of_files_follows_length_and_label_map():
    class Data(list):
        label_space = None

    def state(length, meaning=None):
        data = Data(range(length))
        if meaning:
            data.label_space = SimpleNamespace(fingerprint=lambda: meaning)
        return files_state(data)

    states = [state(2), state(3), state(2, "a"), state(2, "b")]
    assert len(set(states)) == 4 and states == [state(2), state(3), state(2, "a"), state(2, "b")]
    assert files_state([0, 1]) == state(2)  # without either attribute


def test_weights_are_those_of_the_file(model, saved_model):
    assert weights_hash(model) == hashlib.sha256((saved_model / "model.safetensors").read_bytes()).hexdigest()


def test_tensors_of_every_type_are_hashed_as_their_file_would_be():
    tensors = {f"{'zyxäÄ'[i % 5]}.{i}": torch.arange(i + 1).to(dtype)[:, None] for i, dtype in enumerate(TYPES)}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 2), "transposed": torch.randn(2, 3).t()}
    whole = {name: value.contiguous() for name, value in tensors.items()}
    assert state_hash(tensors) == hashlib.sha256(safetensors.torch.save(whole)).hexdigest()
    assert state_hash({}) == hashlib.sha256(safetensors.torch.save({})).hexdigest()


def test_what_is_written_is_what_was_hashed(model, dataset, tmp_path):
    result = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    data = json.loads((tmp_path / "val.json").read_text())
    assert set(data) == {"hash", "record", "free", "scores", "details"}
    assert data["hash"] == result.hash == short_hash(data["record"])
    assert data["record"]["data"]["images"] == 12 and data["record"]["weights"] == weights_hash(model)
    assert data["record"]["data"]["pictures"] == data["scores"]["pictures"] == result.scores.samples_hash
    assert set(data["record"]["versions"]) == {"fgaseg", "torch", "open_clip_torch"}
    assert data["scores"]["miou_gt"] == result.scores.miou_gt and (tmp_path / "val.csv").exists()
    written = ["val.csv", "val.json", "val_confusion.csv", "val_confusion.png", "val_images.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    first, *lines, details, last = (tmp_path / "val.json").read_text().splitlines()
    assert (first, last) == ("{", "}") and lines[0].startswith('  "hash": ') and details.startswith('  "details": {"')


def test_a_finished_result_is_read_and_that_of_another_evaluation_refused(model, dataset, tmp_path, monkeypatch):
    dataset.pairs = dataset.pairs[:2]
    first = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    kept = (tmp_path / "val.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(FGASeg, "predict_labels", lambda *_: pytest.fail("evaluated again"))
        again = evaluate_with_provenance(model, dataset, "val", out=tmp_path)
    assert again.scores == first.scores and again.unhashed["read_from"] == str(tmp_path / "val.json")
    other = tiny_model(seed=1, template="a {}")
    with pytest.raises(ResultError, match=r"val\.json: is the result of another evaluation .*weights was"):
        evaluate_with_provenance(other, dataset, "val", out=tmp_path)
    assert (tmp_path / "val.json").read_text() == kept
    assert evaluate_with_provenance(other, dataset, "val", out=tmp_path, restart=True).hash != first.hash
    with monkeypatch.context() as patch:  # another process than the main one reads, writes and removes nothing
        patch.setattr("fgaseg.evaluation.results.rank", lambda: 1)
        for restart in (False, True):
            assert evaluate_with_provenance(model, dataset, "val", out=tmp_path, restart=restart) is None
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv"] * 3 + [".json", ".png"]
    assert evaluate_with_provenance(model, dataset, "val", out=tmp_path / "new", restart=True).scores == first.scores
    (tmp_path / "val.json").write_text("{}")
    with pytest.raises(ResultError, match="move it away"):
        evaluate_with_provenance(other, dataset, "val", out=tmp_path)
