"""The examples in C++ compile without a warning and label photos as the model does in Python."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported_graphs import assert_equal_but_for_ties
from paths import ROOT
from PIL import Image
from tiny import tiny_model

from fgaseg.errors import UsageError
from fgaseg.export import ExportOptions, Tiles, check_export, export_model
from fgaseg.export.graphs import WholeGraph

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
# more than 256 classes; two are equal, and one has two prompts and letters outside of ASCII
NAMES = ["café | coffee house", "dog", "red star", "café | coffee house", *(f"thing {i}" for i in range(300))]
HEADERS = "com.github.asus4.onnxruntime@0.4.8"  # an npm package that has the C++ headers of ONNX Runtime
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
SIZES = [(150, 113), (64, 68), (64, 255), (31, 97), (30, 300)]  # (64, 68): 8.5 patches; the last is a panorama


def attempt(command: list[str], purpose: str, folder: Path) -> str:
    """Run a command in a folder and return its output; the test is skipped if it cannot run or fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{purpose} cannot be had: {error}")
    return done.stdout.strip()


def onnxruntime_for_cpp(folder: Path) -> Path:
    """A folder with include/ and lib/, as in a release archive of ONNX Runtime: headers, and the wheel's library."""
    onnxruntime = pytest.importorskip("onnxruntime")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip("the onnxruntime that is installed has no libonnxruntime.so")
    include, lib = folder / "include", folder / "lib"
    include.mkdir()
    lib.mkdir()
    archive = attempt(["npm", "pack", "--silent", HEADERS], "headers of ONNX Runtime", folder)
    with tarfile.open(folder / archive) as files:
        for member in files:
            if "/ios-arm64/onnxruntime.framework/Headers/" in member.name and member.name.endswith(".h"):
                (include / Path(member.name).name).write_bytes(files.extractfile(member).read())
    (folder / archive).unlink()
    version = re.search(r"#define ORT_API_VERSION (\d+)", (include / "onnxruntime_c_api.h").read_text())[1]
    if int(onnxruntime.__version__.split(".")[1]) < int(version):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} is older than the headers, which are of 1.{version}")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (lib / name).symlink_to(library)
    return folder


def stb_image(folder: Path) -> Path:
    """The folder of stb_image.h: the system's, or that of Debian's package, unpacked."""
    if Path("/usr/include/stb/stb_image.h").exists():
        return Path("/usr/include/stb")
    get = "apt-get download -q libstb-dev || (apt-get update -q && apt-get download -q libstb-dev)"
    attempt(["bash", "-c", f"({get}) && dpkg -x libstb-dev*.deb ."], "stb_image.h", folder)
    return folder / "usr" / "include" / "stb"


@pytest.fixture(scope="module")
def stb(tmp_path_factory):
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("needs Linux and g++")
    return stb_image(tmp_path_factory.mktemp("stb"))


def compiled(name: str, target: Path, includes: list[Path], *options: str, libraries: Path, standard: str):
    """An example as a function of its arguments, after a compilation without warnings."""
    headers = [option for folder in includes for option in ("-isystem", str(folder))]
    run = ["g++", f"-std={standard}", *FLAGS, str(EXAMPLES / name), "-o", str(target), *headers, f"-L{libraries}"]
    done = subprocess.run([*run, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}

    def call(*arguments) -> subprocess.CompletedProcess:
        command = [str(target), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(scope="module")
def program(tmp_path_factory, stb):
    ort = onnxruntime_for_cpp(tmp_path_factory.mktemp("onnxruntime"))
    target = tmp_path_factory.mktemp("program") / "onnx_segment"
    return compiled("onnx_segment.cpp", target, [ort / "include", stb], "-lonnxruntime", libraries=ort / "lib",
                    standard="c++17")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, program):
    """An export with classes built in, and what it was made of. After `program`, which may skip."""
    model = tiny_model(aggregation_layers=1)
    vocabulary = model.encode(NAMES)
    folder = tmp_path_factory.mktemp("export")
    export_model(model, folder / "out", ExportOptions(vocabulary=vocabulary, parts=("whole",), name="tiny"))
    return SimpleNamespace(graph=folder / "out" / "whole.onnx", model=model, vocabulary=vocabulary)


def photo(height: int, width: int) -> Image.Image:
    colours = np.random.default_rng(height).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def with_metadata(graph: Path, target: Path, **values: str | None) -> Path:
    """A copy of a graph with other metadata; None removes a value."""
    import onnx

    model = onnx.load(graph)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata |= {f"fgaseg.{key}": value for key, value in values.items()}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: value for key, value in metadata.items() if value is not None})
    onnx.save(model, target)
    return target


def check_labels(found: np.ndarray, model, image: Image.Image, vocabulary) -> None:
    expected = assert_equal_but_for_ties(found, model, image, vocabulary)
    if max(found.shape) <= 4 * min(found.shape):  # `segment` sees longer photos in tiles
        np.testing.assert_array_equal(expected, model.segment(image, vocabulary).labels)
    assert len(np.unique(expected)) > 10 and expected.max() > 255
    assert 3 not in found  # it is equal to 0


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_labels_are_those_of_the_model(program, whole, tmp_path, size):
    image = photo(*size)
    image.save(tmp_path / "photo.png")
    done = program(whole.graph, tmp_path / "photo.png", tmp_path / "labels.pgm")
    assert (done.returncode, done.stderr) == (0, "")
    found = np.array(Image.open(tmp_path / "labels.pgm"))
    assert found.shape == size
    check_labels(found, whole.model, image, whole.vocabulary)
    shares = {name: float(share) for share, name in (line.split("% ", 1) for line in done.stdout.splitlines())}
    assert set(shares) == {whole.vocabulary.names[i] for i in np.unique(found)}
    assert sum(shares.values()) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize(("loss", "rule"), [("ce", "softmax"), ("bce", "sigmoid")])
def test_models_that_resize_scores(program, whole, tmp_path, loss, rule):
    image = photo(90, 120)
    image.save(tmp_path / "photo.png")
    model = tiny_model(aggregation_layers=1, resize="scores", loss={"seg": loss})  # the whole model's weights
    graph = with_metadata(whole.graph, tmp_path / "graph.onnx", before_resize=rule)
    done = program(graph, tmp_path / "photo.png", tmp_path / "labels.pgm")
    assert (done.returncode, done.stderr) == (0, "")
    check_labels(np.array(Image.open(tmp_path / "labels.pgm")), model, image, whole.vocabulary)


@pytest.fixture
def files(whole, tmp_path):
    photo(40, 50).save(tmp_path / "photo.png")
    (tmp_path / "text.txt").write_text("neither a photo nor a graph\n" * 10)
    damaged = io.BytesIO()
    photo(40, 50).save(damaged, "PNG")
    (tmp_path / "damaged.png").write_bytes(damaged.getvalue()[:200])
    with_metadata(whole.graph, tmp_path / "no_names.onnx", class_names=None)
    with_metadata(whole.graph, tmp_path / "no_patch.onnx", patch=None)
    with_metadata(whole.graph, tmp_path / "fewer.onnx", class_names="cat\ndog")
    with_metadata(whole.graph, tmp_path / "unknown.onnx", before_resize="tanh")
    shutil.copy(whole.graph, tmp_path / "whole.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("missing.onnx photo.png labels.pgm", "missing.onnx"),
        ("text.txt photo.png labels.pgm", "text.txt"),
        ("whole.onnx missing.png labels.pgm", "missing.png: cannot be read"),
        ("whole.onnx text.txt labels.pgm", "text.txt: cannot be read"),
        ("whole.onnx damaged.png labels.pgm", "damaged.png: cannot be read"),
        ("no_names.onnx photo.png labels.pgm", "the graph has no fgaseg.class_names"),
        ("no_patch.onnx photo.png labels.pgm", "the graph has no fgaseg.patch"),
        ("fewer.onnx photo.png labels.pgm", "fgaseg.class_names: 2 names"),
        ("unknown.onnx photo.png labels.pgm", "fgaseg.before_resize: tanh"),
        ("whole.onnx photo.png no_folder/labels.pgm", "no_folder/labels.pgm: cannot be written"),
        ("whole.onnx photo.png", "usage: onnx_segment"),
    ],
)
def test_says_in_one_line_what_is_wrong(program, files, monkeypatch, arguments, said):
    monkeypatch.chdir(files)
    done = program(*arguments.split())
    assert done.returncode == 1
    assert re.fullmatch(r"onnx_segment: .+\n", done.stderr) and said in done.stderr
    assert done.stdout == "" and not (files / "labels.pgm").exists()


@pytest.fixture(scope="module")
def compiled_program(tmp_path_factory, stb):
    own = Path(torch.__file__).parent
    target = tmp_path_factory.mktemp("program") / "aoti_segment"
    libraries = ("-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10")
    return compiled("aoti_segment.cpp", target, [own / "include", stb], *libraries, libraries=own / "lib",
                    standard="c++20")  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory, compiled_program):
    """A package for images of the model's own size, and what it was made of."""
    model = tiny_model(aggregation_layers=1)
    vocabulary = model.encode([*NAMES[:4], "sky"])
    folder = tmp_path_factory.mktemp("export") / "out"
    options = ExportOptions(to=("aoti",), parts=("whole",), vocabulary=vocabulary, output="probabilities",
                            tiles=Tiles(model.config.image_size))  # fmt: skip
    export_model(model, folder, options)
    return SimpleNamespace(folder=folder, path=folder / "whole.aoti.pt2", model=model, vocabulary=vocabulary)


@pytest.mark.exhaustive  # the package takes three minutes
def test_a_compiled_package_computes_what_the_model_computes(package):
    rows = check_export(package.model, package.folder)
    assert {row["batch"] for row in rows} == {1, 2}
    assert all(not row["failed"] and row["error"] <= 1e-4 for row in rows)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [(64, 64), (101, 140)], ids=str)
def test_a_compiled_package_labels_photos_in_cpp(compiled_program, package, tmp_path, size):
    image = photo(*size)
    image.save(tmp_path / "photo.png")
    done = compiled_program(package.path, tmp_path / "photo.png", tmp_path / "labels.pgm")
    assert (done.returncode, done.stderr) == (0, "")
    found = np.array(Image.open(tmp_path / "labels.pgm"))
    square = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    square = F.interpolate(square, (64, 64), mode="bilinear")
    with torch.inference_mode():
        maps = F.interpolate(
            WholeGraph(package.model, package.vocabulary, "probabilities")(square), size, mode="bilinear"
        )
    expected = np.array(package.model.first_of_equals(package.vocabulary))[maps[0].argmax(0).numpy()]
    if size == (64, 64):
        np.testing.assert_array_equal(expected, package.model.segment(image, package.vocabulary).labels)
    assert len(np.unique(expected)) > 2
    assert (found != expected).mean() <= 5e-4


@pytest.mark.exhaustive
def test_the_compiled_form_says_in_one_line_what_is_wrong(compiled_program, package, tmp_path):
    photo(40, 50).save(tmp_path / "photo.png")
    (tmp_path / "text.txt").write_text("neither a photo nor a package\n" * 10)
    for arguments, said in (
        ((tmp_path / "missing.pt2", tmp_path / "photo.png", tmp_path / "labels.pgm"), "missing.pt2: cannot be read"),
        ((tmp_path / "text.txt", tmp_path / "photo.png", tmp_path / "labels.pgm"), "text.txt: "),
        ((package.path, tmp_path / "text.txt", tmp_path / "labels.pgm"), "text.txt: cannot be read"),
        ((package.path, tmp_path / "photo.png", tmp_path / "none" / "labels.pgm"), "labels.pgm: cannot be written"),
        ((package.path,), "usage: aoti_segment"),
    ):
        done = compiled_program(*arguments)
        assert done.returncode == 1
        assert re.fullmatch(r"aoti_segment: .+\n", done.stderr) and said in done.stderr


def test_only_graphs_of_one_size_are_compiled():
    with pytest.raises(UsageError, match="aoti compiles the part whole"):
        ExportOptions(to=("aoti",))
