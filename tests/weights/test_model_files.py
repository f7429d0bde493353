"""Weights of any container are read, and nothing in an untrusted file runs."""

import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from fgaseg.errors import CheckpointError
from fgaseg.weights import load_training, load_weights, read_weights, save_training, write_weights
from fgaseg.weights.model_files import find_state_dict, read_shapes
from fgaseg.weights.training_state import write_sums


def test_weights_round_trip_with_every_container(tmp_path):
    state = {"a": torch.randn(3, 4).t(), "b": torch.arange(3), "c": torch.zeros(0)}
    write_weights(tmp_path / "model.safetensors", state)
    torch.save(state, tmp_path / "flat.pt")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(
        {"model": {f"module.{key}": value for key, value in state.items()}, "iteration": 3}, tmp_path / "trainer.pth"
    )
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    for source in [tmp_path, *tmp_path.iterdir()]:
        read = read_weights(source)
        assert read.keys() == state.keys(), source
        assert all(torch.equal(read[key], state[key]) for key in state), source


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path):
    for length in range(560, 640):  # a header of 640 bytes begins with 80 02, like a pickle
        path = tmp_path / "weights"
        write_weights(path, {"a" * length: torch.ones(1)})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        raise AssertionError("no header of 640 bytes came up")
    assert read_weights(path)["a" * length] == 1


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "protocol 2", "protocol 4", "state_dict", "training"])
def test_malicious_pickle_is_named_and_not_run(tmp_path, kind):
    path, proof = tmp_path / "weights.pt", tmp_path / "proof"
    evil = Evil(proof)
    if kind == "zip":
        torch.save(evil, path)
    elif kind == "legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif kind == "state_dict":
        torch.save({"model": {"a": torch.zeros(1)}, "extra": evil}, path)
    elif kind == "training":
        model = nn.Linear(2, 2)
        save_training(tmp_path / "checkpoint", model.state_dict(), {"step": 1})
        path = tmp_path / "checkpoint" / "state.pt"
        torch.save({"step": evil}, path)
        write_sums(path.parent)  # whoever can write the one can write the other
    else:
        path.write_bytes(pickle.dumps(evil, protocol=int(kind[-1])))
    with pytest.raises(CheckpointError, match=path.name) as caught:
        load_training(tmp_path / "checkpoint", model) if kind == "training" else read_weights(path)
    assert not proof.exists()
    assert len(str(caught.value).splitlines()) == 1
    if kind in ("zip", "legacy", "state_dict"):
        assert "posix.mkdir" in str(caught.value) and "refused" in str(caught.value)
    pickle.loads(path.read_bytes()) if kind.startswith("protocol") else torch.load(path, weights_only=False)
    assert proof.exists()  # the file would have worked: the test can fail


def test_every_truncation_is_an_error(tmp_path):
    state = {"a": torch.randn(50), "b": torch.randn(50)}
    write_weights(tmp_path / "whole.safetensors", state)
    torch.save(state, tmp_path / "whole.pt")
    torch.save(state, tmp_path / "whole-legacy.pt", _use_new_zipfile_serialization=False)
    for whole in sorted(tmp_path.glob("whole*")):
        data = whole.read_bytes()
        path = tmp_path / f"cut-{whole.name}"
        for length in {0, 1, 4, 8, 9, 20, 60, len(data) // 2, len(data) - 50, len(data) - 1}:
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=path.name) as caught:
                read_weights(path)
            assert len(str(caught.value).splitlines()) == 1
            if path.suffix == ".safetensors" and length > 8:
                assert "damaged or truncated safetensors file" in str(caught.value)


def test_foreign_files_are_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    (tmp_path / "page.pt").write_text("<html>404 not found</html>")
    (tmp_path / "empty.pt").touch()
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("a", "b")
    words = {
        "list.pt": "not a state dict",
        "mixed.pt": "'epoch' is of type int",
        "module.pt": "torch.nn.modules.linear.Linear",
        "script.pt": "TorchScript archive, which can run code: refused .*pretrained=openai",
        "page.pt": "neither a safetensors nor a torch.save file",
        "empty.pt": "empty",
        "archive.pt": "not a torch.save file",
        "missing.pt": "No such file",
    }
    for name, word in words.items():
        with pytest.raises(CheckpointError, match=word) as caught:
            read_weights(tmp_path / name)
        assert name in str(caught.value)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_copied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = {key: value + 1 for key, value in before.items() if key != "0.bias"} | {"head.weight": torch.zeros(1)}
    other["1.weight"] = torch.zeros(3, 2)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, other, "some/file.pt")
    message = str(caught.value)
    for part in ("some/file.pt", "0.bias", "head.weight", "1.weight [3, 2], not [2, 2]"):
        assert part in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_long_lists_of_keys_are_shortened():
    with pytest.raises(CheckpointError, match="and 12 more"):
        load_weights(nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)]), {}, "file")
    with pytest.raises(CheckpointError, match=r"8 missing from the file: .*3\.bias$"):
        load_weights(nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)]), {}, "file")


def test_shapes_are_those_of_the_weights(tmp_path):
    state, shapes = {"a": torch.zeros(3, 4), "b": torch.zeros(0)}, {"a": (3, 4), "b": (0,)}
    write_weights(tmp_path / "model.safetensors", state)
    torch.save({"model": state}, tmp_path / "model.pth")
    assert read_shapes(tmp_path / "model.safetensors") == read_shapes(tmp_path / "model.pth") == shapes
    (tmp_path / "cut").write_bytes((tmp_path / "model.safetensors").read_bytes()[:20])
    with pytest.raises(CheckpointError, match="cut: damaged or truncated safetensors file .*; fetch it again"):
        read_shapes(tmp_path / "cut")


def test_a_process_that_may_open_no_more_files_is_not_told_of_damage(tmp_path, monkeypatch):
    def none_left(_):
        raise RuntimeError("Too many open files")

    write_weights(tmp_path / "x", {"a": torch.zeros(1)})
    monkeypatch.setattr(safetensors.torch, "load_file", none_left)
    with pytest.raises(CheckpointError, match="x: cannot read weights: Too many open files$"):
        read_weights(tmp_path / "x")


# ---- arrays of NumPy


def test_arrays_of_any_byte_order_and_layout(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    arrays = {f"{order}{kind}": values.astype(f"{order}{kind}") for order in "<>" for kind in ("f4", "f8", "i2", "i8")}
    arrays |= {"column by column": np.asfortranarray(values), "u1": values.astype("u1"), "bool": values > 2}
    torch.save({"model": arrays, "best": np.float32(0.5)}, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert torch.equal(found[key].double(), torch.from_numpy(array.astype("f8"))), key
        found[key].zero_()  # its memory is its own
    assert found[">i2"].dtype == torch.int16 and found["bool"].dtype == torch.bool
    assert find_state_dict({"a": values}, "file")["a"].tolist() == values.tolist()


class Reduced:
    """Pickled as an array with any state."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        rebuild, arguments, _ = np.zeros(0).__reduce__()
        return rebuild, arguments, self.state


def test_arrays_that_are_not_of_numbers_are_refused(tmp_path):
    wrong = {"complex": np.ones(2, "c8"), "text": np.array(["a"]), "dates": np.array(["2020"], dtype="M8[s]"),
             "no bytes": Reduced(1, (2,), np.dtype("f4"), False, "12345678")}  # fmt: skip
    for name, array in wrong.items():
        torch.save({"a": array}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="x.pth: holds a NumPy array of type .*only numeric arrays") as caught:
            read_weights(tmp_path / "x.pth")
        assert len(str(caught.value).splitlines()) == 1, name
    for array in (np.ones(2, "c8"), np.array(["a"])):
        with pytest.raises(CheckpointError, match="file: not a state dict: 'a' is of type ndarray, not a tensor"):
            find_state_dict({"a": array}, "file")
    with pytest.raises(CheckpointError, match="file: not a state dict: names to tensors are needed"):
        find_state_dict({}, "file")


def test_weights_that_were_saved_on_a_gpu(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")["a"]
    assert found.device.type == "cpu" and found.tolist() == [1, 1]


# ---- values that no model has


def linear():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


BROKEN = {
    "nan": torch.tensor([1.0, float("nan")]),
    "infinity": torch.tensor([-float("inf"), 0.0]),
    "infinity in float16": torch.tensor([float("inf"), 0.0]).half(),
    "too large for float32": torch.tensor([1e300, 0.0], dtype=torch.float64),
    "nan in eight bits": torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2),
}


@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_that_are_not_finite_are_refused_and_named(tmp_path, value, suffix):
    model, path = linear(), tmp_path / f"weights{suffix}"
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = {key: tensor + 1 for key, tensor in before.items()} | {"0.bias": value}
    (write_weights if suffix == ".safetensors" else lambda file, tensors: torch.save(tensors, file))(path, state)
    with pytest.raises(CheckpointError, match=r"1 weights have NaN or infinite values: 0\.bias; fetch") as caught:
        load_weights(model, read_weights(path), path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_other_kinds_of_numbers_are_refused_and_narrower_floats_are_not():
    model = linear()
    state = dict(model.state_dict())
    for kind in (torch.int8, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(CheckpointError, match=rf"1 weights are of another kind.*: 0\.weight {str(kind)[6:]}; give"):
            load_weights(model, state | {"0.weight": torch.ones(2, 2, dtype=kind)}, "file")
    with pytest.raises(CheckpointError, match="num_batches_tracked float32"):
        load_weights(model, state | {"1.num_batches_tracked": torch.tensor(1.0)}, "file")
    for kind in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        load_weights(model, state | {"0.weight": torch.full((2, 2), 0.5).to(kind)}, "file")
        assert model[0].weight.dtype == torch.float32 and (model[0].weight == 0.5).all()
    half = nn.Linear(1, 1).half()
    with pytest.raises(CheckpointError, match="1 weights have NaN or infinite values: weight; fetch"):
        load_weights(half, {"weight": torch.full((1, 1), 1e30).bfloat16(), "bias": torch.zeros(1)}, "file")
    empty = nn.Module()
    empty.register_buffer("nothing", torch.zeros(0, 2))
    load_weights(empty, {"nothing": torch.zeros(0, 2)}, "file")


def test_files_that_describe_more_than_they_hold(tmp_path):
    """A kilobyte of a pickle or of a compressed archive can ask for any amount of memory."""
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "view.pt")
    torch.save(dict.fromkeys(map(str, range(40)), torch.zeros(100)), tmp_path / "shared.pt")
    torch.save(dict.fromkeys("abcde", torch.zeros(100)), tmp_path / "five.pt")
    torch.save(dict.fromkeys("abcd", torch.zeros(100)), tmp_path / "four.pt")  # as many as towers may share
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (zipfile.ZipFile(tmp_path / "plain.pt") as plain,
          zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed):  # fmt: skip
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"a": torch.zeros(2, 2, device="meta")}, tmp_path / "meta.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    words = {"view.pt": "views of 4,000,000,000,000 bytes on the 4 that",
             "shared.pt": "views of 16,000 bytes on the 400", "five.pt": "views of 2,000 bytes on the 400",
             "packed.pt": "unpack to 4,00.* bytes, and the file has", "sparse.pt": "'a' is sparse_coo",
             "meta.pt": "'a' is strided on meta", "pipe.pt": "is no file .a pipe"}  # fmt: skip
    for name, word in words.items():
        with pytest.raises(CheckpointError, match=word) as caught:
            read_weights(tmp_path / name)
        assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert read_weights(tmp_path / "plain.pt")["a"].shape == (10**6,) and len(read_weights(tmp_path / "four.pt")) == 4


def test_names_of_tensors_that_would_paint_the_terminal(tmp_path):
    for name in ("a\x1b[2J", "a\nb: all is well", "a\u202eb"):
        write_weights(tmp_path / "names.safetensors", {name: torch.zeros(1)})
        with pytest.raises(CheckpointError, match="of a tensor has control characters: refused") as caught:
            read_weights(tmp_path / "names.safetensors")
        assert str(caught.value).isprintable()
        with pytest.raises(CheckpointError, match="of a tensor has control characters: refused"):
            read_shapes(tmp_path / "names.safetensors")
