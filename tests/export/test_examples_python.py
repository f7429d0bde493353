"""examples/onnx_segment.py: the labels of `model.segment`, from an export, without fgaseg and torch."""

import copy
import importlib.util
import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported_graphs import assert_equal_but_for_ties
from paths import ROOT, SHARED
from PIL import Image
from tiny import NAMES as EXPORTED

from fgaseg.data import read_image
from fgaseg.export.tokenizer import LIMITS, write_tokenizer

for package in ("onnx", "onnxscript", "onnxruntime", "tokenizers"):
    pytest.importorskip(package)

SCRIPT = ROOT / "examples" / "onnx_segment.py"
PACKAGES = ("numpy", "onnxruntime", "pillow", "tokenizers")
NAMES = "cat, dog | puppy, Red star, red_star, car | automobile | van, automobile, wooden floor, van | tree"
# odd, portrait, panorama, smaller than the model's input, of one row of pixels, as large as its input
SIZES = [(63, 101), (201, 97), (90, 350), (17, 23), (1, 3), (64, 64)]


@pytest.fixture(scope="module")
def example():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("onnx_segment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(small):
    """The model of `exported`, which a test may change."""
    return copy.deepcopy(small)


def listed(names):
    return [name.strip() for name in names.split(",")]


def drawn(size, seed=0):
    """A photo [H, W, 3] of soft blots."""
    blots = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(blots).resize(size[::-1], Image.Resampling.BICUBIC))


def check(model, example, folder, photo, names=NAMES, manifest=None):
    """The labels of the example and of `model.segment` are equal, and of several classes."""
    manifest = manifest or json.loads((folder / "manifest.json").read_text())
    found = example.segment(folder, manifest, photo, *example.encode(folder, manifest["text"], names)[1:])
    assert found.shape == photo.shape[:2]
    same_labels(found, model, photo, listed(names))


def same_labels(found, model, photo, names):
    expected = assert_equal_but_for_ties(found, model, Image.fromarray(photo), model.encode(names))
    np.testing.assert_array_equal(expected, model.segment(photo, names).labels)
    assert len(np.unique(expected)) > 1


def command(*arguments, python=sys.executable, cwd=None):
    return subprocess.run([python, SCRIPT, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


# ---- quick: without graphs


@pytest.mark.parametrize("old, new", [((5, 7), (13, 29)), ((40, 30), (17, 8)), ((1, 3), (4, 4)), ((6, 6), (6, 6))])
def test_resizes_as_pytorch_does(example, old, new):
    maps = torch.randn(2, *old)
    expected = F.interpolate(maps[None], new, mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(example.resize(maps.numpy(), new), expected, atol=1e-6)


@pytest.mark.parametrize("first_synonym", [True, False])
def test_subjects_are_the_models(example, model, first_synonym):
    model.text_encoder.first_synonym = first_synonym
    for name in ["cat", "traffic_light", " a  b ", "zero\u200bwidth", "\ufeff", "one, two", "__", ", a", "a,b"]:
        assert example.subject(name, first_synonym) == model.text_encoder.subject(name)


@pytest.mark.parametrize("changed", [{}, {"templates": ("a {}", "one {} there"), "first_synonym": True}])
def test_classes_are_the_models(example, model, monkeypatch, tmp_path, changed):
    """Embeddings, synonyms and equal classes, with the model in place of the text graph."""
    for name, value in changed.items():
        setattr(model.text_encoder, name, value)
    text = {
        "templates": ["a photo of a {}"],
        "first_synonym": False,
        "synonyms": "best",
        "tokenizer": "t.json",
    } | changed
    write_tokenizer(model.encoder.tokenizer, tmp_path / "t.json")
    tower = model.encoder.text_tower

    def graph(_, part):
        assert part == "text"
        return lambda tokens: [F.normalize(tower.embed(ids := torch.from_numpy(tokens), tower.ends(ids)), dim=-1)]

    monkeypatch.setattr(example, "graph", graph)
    with torch.no_grad():
        names, texts, counts, first = example.encode(tmp_path, text, NAMES + ", salt &amp; pepper, salt & pepper")
        expected = model.encode([*listed(NAMES), "salt &amp; pepper", "salt & pepper"])
    assert (tuple(names), tuple(counts), tuple(first)) == (expected.names, expected.counts, expected.first)
    np.testing.assert_allclose(texts, expected.embeddings.numpy(), atol=1e-6)


def test_photos_are_read_as_fgaseg_reads_them(example, tmp_path):
    photo = Image.fromarray(drawn((20, 30)))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg")
    photo.convert("L").save(tmp_path / "grey.png")
    photo.quantize(8).save(tmp_path / "palette.png")
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo.save(tmp_path / "transparent.png")
    for path in sorted(tmp_path.iterdir()):
        found, expected = example.read_photo(path), np.asarray(read_image(path))
        assert found.shape == expected.shape, path
        assert (found == expected).all(), path
    assert example.read_photo(tmp_path / "turned.jpg").shape == (30, 20, 3)


def test_says_why(example, monkeypatch, tmp_path):
    def said(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            example.main()
        assert "\n" not in stopped.value.code
        return stopped.value.code

    folder, photo = tmp_path / "folder", tmp_path / "photo.png"
    folder.mkdir()
    Image.fromarray(drawn((8, 8))).save(photo)
    assert "manifest.json: cannot be read" in said(folder, photo, "cat")
    for written in ('{"format": "fgaseg-export", "version": 2}', '{"format": "other", "version": 1}'):
        (folder / "manifest.json").write_text(written)
        assert "manifest.json: is of another format; this program reads fgaseg-export, version 1" in said(
            folder, photo, "cat"
        )
    text = {"templates": ["a {}"], "first_synonym": False, "synonyms": "average", "tokenizer": "tokenizer.json"}
    written = {"format": "fgaseg-export", "version": 1, "text": text}
    (folder / "manifest.json").write_text(json.dumps(written))
    assert "missing.jpg: is no photo" in said(folder, tmp_path / "missing.jpg", "cat")
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:60])
    assert "broken.jpg: is no photo" in said(folder, tmp_path / "broken.jpg", "cat")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    assert "deep.png: has more than 8 bits" in said(folder, tmp_path / "deep.png", "cat")
    assert "has an empty one, number 2" in said(folder, photo, "cat, , dog")
    assert "has an empty one, number 1" in said(folder, photo, "")
    assert "this model averages synonyms" in said(folder, photo, "cat | kitten, dog")
    assert "text.onnx: cannot be loaded" in said(folder, photo, "cat")
    assert "vocabulary.json: cannot be read" in said(folder, photo)


def test_needs_nothing_else():
    """The packages that its first lines tell to install, and the standard library."""
    import ast

    tree = ast.parse(SCRIPT.read_text())
    found = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert found - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL", "tokenizers"}
    assert "pip install " + " ".join(PACKAGES) in ast.get_docstring(tree)


# ---- with graphs


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_the_models(model, example, exported, size):
    check(model, example, exported, drawn(size))


@pytest.mark.parametrize("number", range(3))
def test_labels_of_a_photo(model, example, exported, number):
    photos = sorted((SHARED / "data" / "msrc_v2" / "images").glob("*.jpg"))
    if not photos:
        pytest.skip(reason=f"{SHARED}/data is not there")
    check(model, example, exported, example.read_photo(photos[number * len(photos) // 3]))


@pytest.mark.parametrize("loss, before", [("ce", "softmax"), ("bce", "sigmoid")])
def test_labels_from_resized_scores(model, example, exported, loss, before):
    changed = {"resize": "scores", "loss": model.config.loss.model_copy(update={"seg": loss})}
    model.config = model.config.model_copy(update=changed)
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["labels"]["before_resize"] = before
    check(model, example, exported, drawn((90, 130)), manifest=manifest)


def test_one_class_and_many(model, example, exported):
    check(model, example, exported, drawn((50, 60)), ", ".join(f"thing {i}" for i in range(300)))
    manifest = json.loads((exported / "manifest.json").read_text())
    vocabulary = example.encode(exported, manifest["text"], "cat")
    assert (example.segment(exported, manifest, drawn((50, 60)), *vocabulary[1:]) == 0).all()


def test_command(model, exported, tmp_path):
    photo = drawn((70, 110))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    done = command(exported, tmp_path / "photo.png", NAMES, "--out", tmp_path / "labels.png", "--json")
    found, expected = json.loads(done.stdout), model.segment(photo, listed(NAMES)).labels
    same_labels(np.asarray(Image.open(tmp_path / "labels.png")), model, photo, listed(NAMES))
    assert (found["names"][4], found["size"]) == ("car", [70, 110])
    np.testing.assert_allclose(found["shares"], np.bincount(expected.ravel(), minlength=8) / expected.size, atol=2e-4)
    done = command(exported, tmp_path / "photo.png", "cat, " + "very " * 20 + "long")
    assert "this prompt is too long, its end is not read: a photo of a very very" in done.stderr
    assert sum(float(line.split("%")[0]) for line in done.stdout.splitlines()) == pytest.approx(100, abs=0.2)


def test_exported_classes(model, example, exported):
    photo, manifest = drawn((75, 200)), json.loads((exported / "manifest.json").read_text())
    assert set(LIMITS) <= set(manifest["limits"])
    names, *vocabulary = example.prepared(exported)
    assert names == [*EXPORTED, "car"]
    same_labels(example.segment(exported, manifest, photo, *vocabulary), model, photo, [*EXPORTED, "car | van"])


def test_a_long_photo_is_told(exported, tmp_path):
    Image.fromarray(drawn((40, 200))).save(tmp_path / "photo.png")
    done = command(exported, tmp_path / "photo.png", "--out", tmp_path / "labels.png")
    assert "a photo this long is cut into tiles by fgaseg" in done.stderr
    assert np.asarray(Image.open(tmp_path / "labels.png")).shape == (40, 200)


def test_runs_in_an_empty_environment(model, exported, tmp_path):
    """Where nothing but its four packages is installed, outside of the repository."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    if not python.exists():
        python = tmp_path / "venv" / "Scripts" / "python.exe"
    pip = [python, "-m", "pip"]
    install = [*pip, "install", "-q", "-c", ROOT / "constraints.txt", *PACKAGES]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(reason=f"nothing can be installed: {installed.stderr.strip().splitlines()[-1]}")
    listing = subprocess.run([*pip, "list"], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "fgaseg", "transformers", "open_clip_torch"} & set(listing.split())
    photo = drawn((70, 110))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    arguments = exported, tmp_path / "photo.png", NAMES, "--out", tmp_path / "labels.png"
    done = command(*arguments, python=Path(python), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    same_labels(np.asarray(Image.open(tmp_path / "labels.png")), model, photo, listed(NAMES))
