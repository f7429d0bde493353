"""What an export consists of: files, names, axes, manifest; what is refused, and that nothing half-written stays."""

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import NAMES, tiny_model

import fgaseg
from fgaseg.cli import main
from fgaseg.export.exporting import SUFFIXES
from fgaseg.export.graphs import text_part
from fgaseg.export.tracing import trace

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (fgaseg[export])")
pytest.importorskip("openvino", reason="openvino is not installed (fgaseg[export])")
slow = pytest.mark.slow


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path, **inputs):
    return session(path).run(None, {name: x.numpy() for name, x in inputs.items()})


def test_the_files_are_those_of_the_manifest(exported, small):
    manifest = json.loads((exported / "manifest.json").read_text())
    parts, targets = ("image", "text", "head"), ("onnx", "openvino", "torch")
    assert set(manifest["files"]) == {f"{part}{SUFFIXES[to]}" for part in parts for to in targets}
    for name, entry in manifest["files"].items():
        for file, digest in {name: entry["sha256"], **entry.get("data", {})}.items():
            assert hashlib.sha256((exported / file).read_bytes()).hexdigest() == digest
    assert manifest["files"]["head.xml"]["data"].keys() == {"head.bin"}
    assert manifest["preprocessing"]["mean"] == pytest.approx(small.normalization[0])
    assert manifest["preprocessing"]["patch"] == small.patch
    assert manifest["files"]["image.onnx"]["operators"]["Conv"] == 1


def test_inputs_and_outputs_have_the_names_and_free_axes_that_the_manifest_says(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    for part in ("image", "text", "head"):
        own, entry = session(exported / f"{part}.onnx"), manifest["files"][f"{part}.onnx"]
        for ports, values in ((entry["inputs"], own.get_inputs()), (entry["outputs"], own.get_outputs())):
            assert [(p["name"], p["shape"]) for p in ports] == [(v.name, v.shape) for v in values]
    assert session(exported / "head.onnx").get_outputs()[0].shape == ["batch", "classes", "4*rows", "4*columns"]


def test_the_metadata_of_a_graph_is_the_manifest(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    found = session(exported / "image.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(found["fgaseg"]) == {k: v for k, v in manifest.items() if k not in ("files", "check")}
    assert [float(x) for x in found["fgaseg.std"].split(",")] == manifest["preprocessing"]["std"]
    assert found["fgaseg.patch"] == "8" and found["fgaseg.before_resize"] == "none"


def test_the_vocabulary_beside_the_graphs_is_the_models(exported, small):
    described = json.loads((exported / "vocabulary.json").read_text())
    vocabulary = small.encode([*NAMES, "car | van"])
    assert described["names"] == list(vocabulary.names) and described["counts"] == [1, 1, 1, 1, 1, 2]
    stored = np.fromfile(exported / "vocabulary.f32", "<f4").reshape(-1, described["channels"])
    torch.testing.assert_close(torch.from_numpy(stored), vocabulary.embeddings)


def test_the_text_graph_gives_the_models_embeddings(exported, small):
    tokens = small.encoder.tokenizer(["a photo of a cat", "x", "a red star on a wooden floor"])
    found = torch.from_numpy(run(exported / "text.onnx", tokens=tokens)[0])
    expected = F.normalize(small.encoder.text_tower.run(tokens), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    needed = int(small.encoder.text_tower.ends(tokens).max()) + 1
    cut = torch.from_numpy(run(exported / "text.onnx", tokens=tokens[:, :needed])[0])
    torch.testing.assert_close(cut, expected, rtol=0, atol=1e-6)


def test_a_program_of_pytorch_holds_for_other_sizes(exported, small):
    load = lambda part: torch.export.load(exported / f"{part}.pt2").module(check_guards=False)  # noqa: E731
    image, head = load("image"), load("head")
    vocabulary = small.encode(["cat"])
    for size in ((1, 3, 40, 33), (2, 3, 64, 80), (1, 3, 8, 8)):
        pixels = torch.randn(size)
        logits = head(*image(pixels), vocabulary.embeddings)
        torch.testing.assert_close(logits, small(pixels, vocabulary).logits, rtol=0, atol=1e-4)


def test_each_file_holds_the_weights_of_its_part_alone(exported):
    sizes = {name: torch.export.load(exported / f"{name}.pt2").state_dict for name in ("image", "text", "head")}
    keys = {name: set(found) for name, found in sizes.items()}
    assert not any("visual" in key or "head." in key for key in keys["text"])
    assert not any("head." in key or "token_embedding" in key for key in keys["image"])
    assert not any("clip." in key for key in keys["head"])


@slow
@pytest.mark.exhaustive  # the examples in C++ have such a graph too
def test_classes_built_in_give_the_models_labels(small, tmp_path):
    vocabulary = small.encode(["cat", "car | van", "cat ", "wooden floor"], background="sky, wall")
    options = fgaseg.ExportOptions(("onnx",), ("whole",), vocabulary, "labels")
    fgaseg.export_model(small, tmp_path / "out", options)
    image = torch.rand(2, 3, 47, 81)
    labels = torch.from_numpy(run(tmp_path / "out" / "whole.onnx", image=image)[0])
    pixels = (image - small.mean[:, None, None]) / small.std[:, None, None]
    logits = small(pixels, vocabulary).logits
    resized = F.interpolate(logits, (48, 88), mode="bilinear")[:, :, :47, :81]
    expected = torch.tensor(small.first_of_equals(vocabulary))[resized.argmax(1)]
    assert labels.shape == (2, 47, 81) and (labels != expected).float().mean() < 1e-3
    assert (labels != 2).all()  # the same tokens as class 0


@slow
@pytest.mark.exhaustive
def test_tiles_are_what_deepness_reads(small, tmp_path):
    vocabulary = small.encode(NAMES)
    options = fgaseg.ExportOptions(
        ("onnx",), ("whole",), vocabulary, "probabilities", fgaseg.Tiles(64, resolution=12.5, overlap=20)
    )
    fgaseg.export_model(small, tmp_path / "out", options)
    own = session(tmp_path / "out" / "whole.onnx")
    (given,), (result,) = own.get_inputs(), own.get_outputs()
    assert given.shape == ["batch", 3, 64, 64] and result.shape == ["batch", len(NAMES), 64, 64]
    found = own.get_modelmeta().custom_metadata_map
    read = {key: json.loads(found[key]) for key in ("model_type", "tile_size", "tiles_overlap", "resolution")}
    assert read == {"model_type": "Segmentor", "tile_size": 64, "tiles_overlap": 20, "resolution": 12.5}
    assert json.loads(found["class_names"]) == {str(i): name for i, name in enumerate(NAMES)}
    image = torch.rand(1, 3, 64, 64)
    (probabilities,) = run(tmp_path / "out" / "whole.onnx", image=image)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    pixels = (image - small.mean[:, None, None]) / small.std[:, None, None]
    resized = F.interpolate(small(pixels, vocabulary).logits, (64, 64), mode="bilinear")
    torch.testing.assert_close(torch.from_numpy(probabilities), resized.softmax(1), rtol=0, atol=1e-5)


def test_the_command_writes_a_part_and_says_what_it_is(small, tmp_path, capsys):
    small.save_pretrained(tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--parts", "text", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "text.onnx" in out and "tokens [prompts, length] -> embeddings [prompts, 32]" in out and "opset 20" in out
    assert main([*arguments, "--json", "--opset", "19"]) == 0  # the export before is replaced
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["files"]["text.onnx"]["opset"] == 19
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert main([*arguments, "--opset", "7"]) == 1
    assert "opset 7" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest  # as it was


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "middle"], "'middle' is none of image, text, head, whole"),
        (["--parts", ","], "parts: is empty"),
        (["--to", "tflite"], "'tflite' is none of onnx, openvino, torch"),
        (["--tile", "64"], "give --classes or --names"),
        (["--tile", "0", "--classes", "a"], "tile 0: is the side"),
        (["--tile", "4097", "--classes", "a"], "give 1 to 4096"),
        (["--tile", "64", "--classes", "a", "--resolution", "-1"], "resolution -1.0"),
        (["--tile", "64", "--classes", "a", "--resolution", "nan"], "resolution nan"),
        (["--resolution", "10"], "--resolution is of --tile"),
        (["--overlap", "100", "--tile", "64", "--classes", "a"], "overlap 100: is a share"),
        (["--background", "sky"], "--background is one class more"),
        (["--calibrate", "photos"], "--calibrate is of --precision int8"),
        (["--precision", "int8"], "give --calibrate PHOTOS"),
        (["--precision", "int8", "--calibrate", "nowhere"], "--calibrate nowhere"),
        (["--precision", "int8", "--calibrate", "-"], "--calibrate -"),
        (["--check-classes", "3"], "--check-classes is of --check"),
        (["--classes", "names.txt"], "give it as --names"),
        (["--parts", "image", "--output", "labels"], "output and tiles are of the part whole"),
        (["--tile", "64", "--classes", "a", "--output", "labels"], "output probabilities"),
    ],
)
def test_what_contradicts_itself_is_one_line(arguments, message, small, tmp_path, capsys):
    small.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(small, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "manifest.json").write_text("[1]")
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(fgaseg.UsageError, match="holds other files"):
        fgaseg.export_model(small, tmp_path / "photos", fgaseg.ExportOptions())
    options = fgaseg.ExportOptions(("onnx",), ("text",))
    fgaseg.export_model(small, tmp_path / "out", options)
    fgaseg.export_model(small, tmp_path / "out", options)
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(fgaseg.UsageError, match="holds other files than an export \\(mine.txt\\)"):
        fgaseg.export_model(small, tmp_path / "out", options)
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    (tmp_path / "file").write_text("")
    with pytest.raises(fgaseg.UsageError, match="is a file"):
        fgaseg.export_model(small, tmp_path / "file", fgaseg.ExportOptions())


def test_nothing_half_written_stays(small, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fgaseg.export.exporting.write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        fgaseg.export_model(small, tmp_path / "out", fgaseg.ExportOptions(parts=("text",)))
    assert not list(tmp_path.iterdir())


def test_the_model_itself_stays_as_it_is(small, tmp_path):
    model = copy.deepcopy(small).double().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fgaseg.export_model(model, tmp_path / "out", fgaseg.ExportOptions(parts=("text",)))
    assert model.training and model.dtype == torch.float64
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad == q.requires_grad for p, q in zip(model.parameters(), small.parameters(), strict=True))


def test_weights_beyond_the_limit_are_in_a_file_beside(small, tmp_path, monkeypatch):
    monkeypatch.setattr("fgaseg.export.onnx.LARGEST", 100)
    options = fgaseg.ExportOptions(parts=("text",))
    manifest = fgaseg.export_model(small, tmp_path / "out", options)
    assert manifest["files"]["text.onnx"]["data"].keys() == {"text.onnx.data"}
    tokens = small.encoder.tokenizer(["a photo of a cat"])
    found = run(tmp_path / "out" / "text.onnx", tokens=tokens)[0]
    expected = F.normalize(small.encoder.text_tower.run(tokens), dim=-1)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-6)


def test_limits_are_said_for_the_models_that_have_them(tmp_path):
    model = tiny_model(preset="released", fast=True)
    manifest = fgaseg.export_model(model, tmp_path / "out", fgaseg.ExportOptions(parts=("text",)))
    said = " ".join(manifest["limits"])
    assert "windows" in said and "fast" in said and "released_fast_scores" in said
    assert manifest["labels"] == {"before_resize": "sigmoid", "probability": "none", "dropped": -100.0}


def test_an_axis_that_pytorch_fixes_is_an_error(small):
    part = text_part(copy.deepcopy(small))
    fixed = torch.zeros_like(part.example[0])

    class Fixed(torch.nn.Module):
        def forward(self, tokens):
            return tokens + fixed

    broken = part.__class__("text", Fixed(), part.example, part.inputs, part.outputs)
    with pytest.raises(fgaseg.ExportError, match="fixed the axis prompts"):
        trace(broken)
