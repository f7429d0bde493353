"""Lower precisions of an export: what is in 8 or 16 bits, and that the labels hold."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NAMES, tiny_model

import fgaseg
from fgaseg.data.scenes import SEEN, scene
from fgaseg.errors import ExportError, ImageError, UsageError
from fgaseg.export import int8
from fgaseg.export.exporting import parts_of
from fgaseg.export.graphs import head_part, image_part, whole_part
from fgaseg.export.onnx import SCOPES
from fgaseg.inference.prediction import _whole

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx import TensorProto, numpy_helper  # noqa: E402


def drawn(count, seed=0, size=(64, 80)):
    return [Image.fromarray(scene([seed, i], size, SEEN)[0]) for i in range(count)]


@pytest.fixture(scope="module")
def vocabulary(small):
    return small.encode([*NAMES, "grass", "sky"])


@pytest.fixture(scope="module")
def quantised(small, exported, vocabulary, tmp_path_factory):
    """The ONNX graphs of the shared export in int8: their folder, and what write_int8 says of each."""
    folder, facts = tmp_path_factory.mktemp("int8"), {}
    for part in parts_of(small, fgaseg.ExportOptions()):
        graph = folder / f"{part.name}.onnx"
        shutil.copy(exported / graph.name, graph)
        facts[part.name] = int8.write_int8(part, graph, drawn(6, seed=1), vocabulary)
    return folder, facts


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, *inputs):
    opened = session(path)
    return opened.run(None, dict(zip([one.name for one in opened.get_inputs()], inputs, strict=True)))


def openvino_run(path, *inputs):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(compiled(list(inputs)).values())


def torch_run(path, *inputs):
    with torch.inference_mode():
        found = torch.export.load(path).module(check_guards=False)(*map(torch.from_numpy, inputs))
    return [x.numpy() for x in (found if isinstance(found, tuple) else (found,))]


def agreement(model, vocabulary, image, head, runner=run):
    """How int8 compares with float32 PyTorch on scenes that did not calibrate: the correlation of the logits, without
    what a pixel's classes have in common, and the share of equal labels where the classes of random weights are no near
    ties."""
    got, expected = [], []
    for photo in drawn(4, seed=2, size=(80, 64)):
        pixels = _whole(model, photo)
        with torch.no_grad():
            expected.append(model(pixels, vocabulary).logits.numpy())
        got.append(runner(head, *runner(image, pixels.numpy()), vocabulary.embeddings.numpy())[0])
    got, expected = (np.concatenate(x) - np.concatenate(x).mean(1, keepdims=True) for x in (got, expected))
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > expected.std()
    same = got.argmax(1) == expected.argmax(1)
    return float(np.corrcoef(got.ravel(), expected.ravel())[0, 1]), float(same[clear].mean())


def graph_of(path):
    model = onnx.load(path)
    return model, {weight.name: weight for weight in model.graph.initializer}


def test_labels_hold_in_int8(small, exported, vocabulary, quantised):
    """Random weights amplify steps in the head; of trained ones 99 % of the labels hold (benchmarks/results)."""
    folder, _ = quantised
    correlation, same = agreement(small, vocabulary, folder / "image.onnx", exported / "head.onnx")
    assert correlation > 0.97 and same > 0.97
    correlation, same = agreement(small, vocabulary, exported / "image.onnx", folder / "head.onnx")
    assert correlation > 0.75 and same > 0.75


def test_labels_do_not_hold_without_the_right_photos(small, vocabulary, exported, tmp_path, monkeypatch):
    """The bounds above fail where the ranges are of other inputs: here of pixels that were not normalised."""
    monkeypatch.setattr(int8, "UNIT", ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)))
    for part in parts_of(small, fgaseg.ExportOptions(parts=("image",))):
        shutil.copy(exported / "image.onnx", tmp_path)
        int8.write_int8(part, tmp_path / "image.onnx", drawn(6, seed=1), vocabulary)
    correlation, same = agreement(small, vocabulary, tmp_path / "image.onnx", exported / "head.onnx")
    assert correlation < 0.7 and same < 0.7


def test_openvino_reads_int8(small, vocabulary, quantised, tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    folder, _ = quantised
    for part in ("image", "head"):
        openvino.save_model(openvino.convert_model(folder / f"{part}.onnx"), tmp_path / f"{part}.xml")
    correlation, same = agreement(small, vocabulary, tmp_path / "image.xml", tmp_path / "head.xml", openvino_run)
    assert correlation > 0.75 and same > 0.75
    assert (tmp_path / "image.bin").stat().st_size < 1.2 * (folder / "image.onnx").stat().st_size


def test_embeddings_hold_in_int8(small, vocabulary, quantised):
    folder, _ = quantised
    tokens = small.encoder.text_tower.tokenizer([small.config.template.format(name) for name in vocabulary.names])
    found = run(folder / "text.onnx", tokens.numpy())[0]
    assert (found * vocabulary.embeddings.numpy()).sum(1).min() > 0.995


def size_of(weights):
    return sum(weight.ByteSize() for weight in weights.values())


def test_weights_are_int8(exported, quantised):
    """Every layer that is counted has an int8 weight, with seven bits of it."""
    folder, facts = quantised
    for part, allowed in (("image", 0.4), ("text", 0.3), ("head", 0.7)):
        _, weights = graph_of(folder / f"{part}.onnx")
        eight = [weight for weight in weights.values() if weight.data_type == TensorProto.INT8 and len(weight.dims) > 1]
        table = 1 if part == "text" else 0
        assert len(eight) == facts[part]["int8"]["layers"] + table
        own = [np.abs(numpy_helper.to_array(one)).max() for one in eight if one.dims[0] < 49408]
        assert max(own) <= 64
        _, float32 = graph_of(exported / f"{part}.onnx")
        assert size_of(weights) < allowed * size_of(float32)
    assert "MatMulInteger" in facts["text"]["operators"]
    assert "QuantizeLinear" in facts["image"]["operators"] and facts["image"]["int8"]["photos"] == 6


def test_no_path_of_this_machine_is_in_a_graph(exported, quantised):
    folder = str(Path(fgaseg.__file__).parent).encode()
    for file in [*exported.rglob("*"), *quantised[0].iterdir()]:
        assert file.is_dir() or folder not in file.read_bytes(), file


def test_what_decides_between_classes_is_float32(small, quantised):
    folder, facts = quantised
    model, _ = graph_of(folder / "head.onnx")
    made = {node.output[0]: node for node in model.graph.node}
    scopes = ("head.p2t'", "head.lcs'", "head.embed_global'", "head.embed_local'", "decoder.head'")
    found = dict.fromkeys(scopes, 0)
    for node in model.graph.node:
        inside = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
        for scope in scopes:
            if scope in inside and node.op_type in int8.LAYERS:
                found[scope] += 1
                assert not any(name in made and made[name].op_type == "DequantizeLinear" for name in node.input[1:])
    assert all(found.values()), found
    assert facts["head"]["int8"]["float32"] >= 5


def test_inputs_and_outputs_stay(exported, quantised):
    folder, _ = quantised
    for part in ("image", "text", "head"):
        before, after = (session(path / f"{part}.onnx") for path in (exported, folder))
        for ports in ("get_inputs", "get_outputs"):
            found = [[(x.name, x.type, x.shape) for x in getattr(opened, ports)()] for opened in (before, after)]
            assert found[0] == found[1]
        model, _ = graph_of(folder / f"{part}.onnx")
        assert "fgaseg.mean" in {entry.key for entry in model.metadata_props}


def test_photos_are_prepared_as_for_labelling(small, vocabulary):
    """A photo of one colour tells channels, mean and standard deviation apart; another its size."""
    photo = Image.new("RGB", (90, 60), (200, 100, 7))
    (sample,) = int8.samples(image_part(small), [photo], vocabulary)
    assert np.array_equal(sample["pixels"], _whole(small, photo).numpy())
    (sample,) = int8.samples(head_part(small), [drawn(1)[0]], vocabulary)
    with torch.no_grad():
        expected = small.image_encoder(_whole(small, drawn(1)[0]))
    assert np.allclose(sample["embedding"], expected.embedding.numpy(), atol=1e-5)
    assert np.allclose(sample["late"], expected.late.numpy(), atol=1e-5)


def test_classes_are_spread(small):
    """Of many classes the most and the least similar one and some between; without a vocabulary, built-in names."""
    (sample,) = int8.samples(head_part(small), drawn(1), None)
    assert sample["texts"].shape == (int8.CLASSES, 32)
    embedding = torch.from_numpy(sample["embedding"])
    texts = small.encode(fgaseg.data.stuff_names()).embeddings
    with torch.no_grad():
        best = small.head.global_similarity(embedding, texts)[1].flatten(2).amax(2)[0]
    chosen = [int((texts - torch.from_numpy(one)).abs().sum(1).argmin()) for one in sample["texts"]]
    assert chosen[0] == int(best.argmax()) and chosen[-1] == int(best.argmin())
    assert len(set(chosen)) == int8.CLASSES


def test_whole_and_tiles(small, vocabulary):
    part = whole_part(small, vocabulary, "probabilities", 48)
    (sample,) = int8.samples(part, drawn(1), vocabulary)
    assert list(sample) == ["image"] and sample["image"].shape == (1, 3, 48, 48)
    assert 0 <= sample["image"].min() and 0.5 < sample["image"].max() <= 1
    free = whole_part(small)
    (sample,) = int8.samples(free, drawn(1), vocabulary)
    assert set(sample) == {"image", "texts"} and sample["image"].shape[2:] == _whole(small, drawn(1)[0]).shape[2:]
    assert int8.photos_for(free) == int8.PHOTOS
    assert int8.photos_for(whole_part(small, small.encode([f"name {i}" for i in range(300)]))) == int8.FEWEST


def test_photos_are_spaced():
    assert int8.spaced(list(range(100)), 4) == [0, 33, 66, 99]
    assert int8.spaced([1, 2], 4) == [1, 2]


def test_refusals(small, exported, vocabulary, tmp_path):
    photos = drawn(1)
    with pytest.raises(UsageError, match="precision int8 is for onnx and openvino"):
        fgaseg.ExportOptions(("torch",), precision="int8", calibration=photos)
    with pytest.raises(UsageError, match="precision int8 needs calibration"):
        fgaseg.ExportOptions(precision="int8")
    with pytest.raises(UsageError, match="photos are for the precision int8, not for float16"):
        fgaseg.ExportOptions(precision="float16", calibration=photos)
    fgaseg.ExportOptions(parts=("text",), precision="int8")
    shutil.copy(exported / "image.onnx", tmp_path)
    with pytest.raises(ImageError, match="none.jpg"):
        int8.write_int8(image_part(small), tmp_path / "image.onnx", [tmp_path / "none.jpg"], vocabulary)
    (tmp_path / "image.onnx.data").touch()
    with pytest.raises(ExportError, match="image: int8 is for graphs of up to 1.9 GB"):
        int8.write_int8(image_part(small), tmp_path / "image.onnx", photos, vocabulary)


def test_a_part_without_layers_stays(small, tmp_path, vocabulary):
    """The quantiser takes an empty list of layers for all of them."""
    inputs = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    outputs = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [inputs], [outputs])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "head.onnx")
    before = (tmp_path / "head.onnx").read_bytes()
    assert int8.write_int8(head_part(small), tmp_path / "head.onnx", drawn(1), vocabulary) == {"precision": "float32"}
    assert (tmp_path / "head.onnx").read_bytes() == before


@pytest.mark.slow
def test_labels_hold_in_float16(small, exported, vocabulary, tmp_path):
    options = fgaseg.ExportOptions(parts=("image",), precision="float16")
    fgaseg.export_model(copy.deepcopy(small), tmp_path / "out", options)
    correlation, same = agreement(small, vocabulary, tmp_path / "out" / "image.onnx", exported / "head.onnx")
    assert 0.999 < correlation < 1 and same > 0.999


@pytest.mark.slow
@pytest.mark.exhaustive  # three minutes each
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_an_export_in_a_lower_precision(precision, tmp_path):
    model = tiny_model(aggregation_layers=1)
    names = model.encode(NAMES)
    photos = drawn(4) if precision == "int8" else ()
    runners = {".onnx": run, ".xml": openvino_run} | ({} if precision == "int8" else {".pt2": torch_run})
    to = ("onnx", "openvino", "torch")[: len(runners)]
    options = fgaseg.ExportOptions(to, ("image", "head"), names, precision=precision, calibration=photos)
    manifest = fgaseg.export_model(copy.deepcopy(model), tmp_path / "out", options)
    assert {entry["precision"] for entry in manifest["files"].values()} == {precision}
    assert manifest["model"]["precision"] == precision
    assert {one.suffix for one in (tmp_path / "out").iterdir()} == {*runners, ".bin", ".json", ".f32"}
    for suffix, runner in runners.items():
        paths = [tmp_path / "out" / f"{part}{suffix}" for part in ("image", "head")]
        correlation, same = agreement(model, names, *paths, runner)
        bound = 0.999 if precision == "float16" else 0.75
        assert correlation > bound and same > bound


@pytest.mark.slow
@pytest.mark.exhaustive
def test_tiles_in_int8(tmp_path):
    model = tiny_model(aggregation_layers=1)
    names = model.encode(NAMES)
    chosen = (("whole",), names, "probabilities", fgaseg.Tiles(64), "int8", drawn(4))
    with pytest.raises(UsageError, match="OpenVINO 2026.4 fails to compile"):
        fgaseg.ExportOptions(("onnx", "openvino"), *chosen)
    manifest = fgaseg.export_model(model, tmp_path / "out", fgaseg.ExportOptions(("onnx",), *chosen))
    assert manifest["files"]["whole.onnx"]["int8"]["layers"] > 10
    photo = drawn(1, seed=9, size=(64, 64))[0]
    image = np.asarray(photo, np.float32).transpose(2, 0, 1)[None] / 255
    with torch.inference_mode():
        logits = model(_whole(model, photo), names).logits
    expected = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear").softmax(1).numpy()
    (found,) = run(tmp_path / "out" / "whole.onnx", image)
    # of labels more change: the classes of random weights nearly tie
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.75
