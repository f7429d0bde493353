"""The package of the ops for Hugging Face's kernels library, loaded by that library in processes without fgaseg."""

import ast
import dataclasses
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from accuracy import random
from packaged_kernels import flat
from paths import ROOT

from fgaseg import kernels
from fgaseg.environment import CALLS
from fgaseg.kernels import _library


def why_no_library() -> str:
    """In a process of its own, as `import kernels` may find the folder of that name in a checkout."""
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return "the kernels library is not installed"
    return ""


needs_library = pytest.mark.skipif(bool(why_no_library()), reason=why_no_library())


def write(folder, root=ROOT):
    command = [sys.executable, root / "hub" / "package.py", folder]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    done = write(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """A file with a call of every op, what fgaseg's reference returns, and whether Triton's interpreter runs it."""
    new = lambda *sizes: random(*sizes).float()  # noqa: E731
    able = "triton" in _library.emulated and not _library.unavailable["triton"]
    interpreted = ("upsample_argmax", "window_attention") if able else ()  # those of use elsewhere; others take longer
    saved = {}
    for op, arguments in CALLS.items():
        given = arguments(new, "cpu")
        result = getattr(kernels, op)(*given, backend="reference")
        saved[op] = {"arguments": [plain(x) for x in given], "results": flat(result), "triton": op in interpreted}
    file = tmp_path_factory.mktemp("calls") / "calls.pt"
    torch.save(saved, file)
    return file


def plain(argument):
    """Without the types of fgaseg, which the other process cannot import."""
    if dataclasses.is_dataclass(argument):
        fields = [getattr(argument, field.name) for field in dataclasses.fields(argument)]
    elif hasattr(argument, "_fields"):
        fields = list(argument)
    elif isinstance(argument, torch.nn.Module):
        fields = list(argument.buffers())
    else:
        return argument
    return {"type": type(argument).__name__, "fields": [plain(field) for field in fields]}


def run(calls, *packages) -> list[str]:
    """What the packages print in a process that has loaded them all."""
    command = [sys.executable, "-I", str(ROOT / "tests" / "packaged_kernels.py"), str(calls), *map(str, packages)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "overrid" not in done.stderr.lower()
    return done.stdout.splitlines()


def test_every_variant_has_every_op(package):
    """Where C++ was built it is in a variant of its own, as are CUDA kernels; the others hold Python alone."""
    compiled = {name for name in ("cpp", "cuda") if _library.build_info()[name].startswith("built")}
    found = {folder.name: folder for folder in (package / "build").iterdir()}
    assert len(found) == 2 + len(compiled) and {"torch-cpu", "torch-cuda"} <= set(found)
    numpy = set(kernels.labels.__all__)
    for name, folder in found.items():
        exported = ast.literal_eval((folder / "__init__.py").read_text().partition("__all__ = ")[2])
        assert exported == [op for op in kernels.__all__ if op not in numpy]
        libraries = sorted(path.name.partition(".")[0] for path in folder.glob("*.so"))
        expected = {"cpu": ["_C"], "cu": ["_C", "_C_cuda"]}["cpu" if "-cpu" in name else "cu"]
        assert libraries == (expected if "stable-abi" in name else [])
    ids = {json.loads((folder / "metadata.json").read_text())["id"] for folder in found.values()}
    assert len(ids) == len(found) and all(name.isidentifier() for name in ids)


def test_only_torch_triton_and_pythons_library_are_imported(package):
    """And nothing of the package itself by an absolute name, which would be another version of it."""
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            wrong = {name.partition(".")[0] for name in names} - {"torch", "triton"} - sys.stdlib_module_names
            assert not wrong, f"{file}: {wrong}"
        assert not re.search(r"torch\.ops\.fgaseg|[\"']fgaseg::", file.read_text()), file


def test_the_source_has_no_namespace_of_its_own(package):
    """kernel-builder writes it."""
    assert not list((package / "torch-ext").rglob("_ops.py"))
    assert (package / "torch-ext" / "fgaseg_ops" / "window_attention" / "triton.py").exists()


def test_a_folder_with_something_in_it_is_left_alone(package):
    assert "is not empty; name a new folder" in write(package).stderr


@needs_library
def test_build_file_and_metadata_satisfy_the_library(package):
    """Its own parsers, in a process that does not see the folder `kernels` of the checkout."""
    code = """
import sys; from pathlib import Path
from kernels._rust import Build, Digest, DigestAlgorithm, Metadata
folder = Path(sys.argv[1])
assert {str(b) for b in Build.open(folder).general.backends} == {"cpu", "cuda"}
for variant in (folder / "build").iterdir():
    Metadata.read_from_file(variant / "metadata.json").digest.validate(
        Digest.hash_variant(DigestAlgorithm.SHA256, variant))
"""
    subprocess.run([sys.executable, "-I", "-c", code, str(package)], check=True)


@needs_library
def test_the_library_chooses_a_variant_that_runs_every_op(package, calls):
    """The one for CUDA where torch has CUDA; without a GPU the C++ kernels or references of that run."""
    (loaded,) = run(calls, package)
    backend = "cuda" if torch.version.cuda else "cpu"
    assert loaded.startswith(f"_fgaseg_ops_{backend}_")


@needs_library
def test_every_variant_runs_every_op_beside_the_others_and_fgaseg(package, calls):
    """Each with its own namespace, and its own C++ library where it has one."""
    folders = sorted((package / "build").iterdir())
    loaded = run(calls, *folders, "fgaseg")
    assert len({line.split()[0] for line in loaded}) == len(folders) + 1
    for folder, line in zip(folders, loaded, strict=False):
        assert line.endswith("C++: loaded") == any(folder.glob("_C.*so")), line


@needs_library
def test_two_versions_in_one_process(package, calls, tmp_path):
    """Any change gives another namespace, also to the C++ library."""
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__", "_C_cuda.*"))
    shutil.copytree(ROOT / "hub", tmp_path / "hub")
    shutil.copy(ROOT / "LICENSE", tmp_path)
    with (tmp_path / "kernels" / "lcs_conv" / "op.py").open("a") as file:
        file.write("# another version\n")
    assert write(tmp_path / "package", tmp_path).returncode == 0
    variant = max(folder.name for folder in (package / "build").iterdir() if "cpu" in folder.name)  # with C++, if built
    first, second = run(calls, package / "build" / variant, tmp_path / "package" / "build" / variant)
    assert first.split()[0] != second.split()[0] and first.split()[1:] == second.split()[1:]
