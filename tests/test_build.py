"""What setup.py decides, without building; and what the built library depends on."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from paths import ROOT

from fgaseg.kernels import _library

LIBRARY = next(iter(sorted((ROOT / "kernels").glob("_C.*so"))), None)
PLAN = "import json, torch, setup; print(json.dumps(setup.plan(torch)))"
PACKAGES = "import json, setup; print(json.dumps(setup.python_packages()))"


def plan(**environment: str) -> subprocess.CompletedProcess:
    """setup.py's plan, in its own process, with these environment variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FGASEG_", "CXX"))}
    run = [sys.executable, "-c", PLAN]
    return subprocess.run(run, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True)


def test_every_package_is_installed_once():
    """Also where an editable installation has linked fgaseg/kernels and fgaseg/configs."""
    command = [sys.executable, "-c", PACKAGES]
    packages = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert len(packages) == len(set(packages))
    assert {"fgaseg", "fgaseg.cli", "fgaseg.configs", "fgaseg.kernels", "fgaseg.kernels.lcs_conv"} <= set(packages)


def test_auto_says_what_it_skips():
    parts = json.loads(plan().stdout)
    assert set(parts) == {"cpp", "host", "cuda", "torch", "python"}
    assert all(parts[name].startswith(("built: ", "skipped: ")) for name in ("cpp", "host", "cuda"))


def test_demanding_cuda_stops_with_the_reason(tmp_path):
    stopped = plan(FGASEG_CUDA="1", CUDA_HOME=str(tmp_path))
    assert stopped.returncode != 0
    assert "FGASEG_CUDA=1 cannot be done: no nvcc with its headers was found" in stopped.stderr


def test_without_a_compiler_nothing_is_built_unless_demanded():
    parts = json.loads(plan(CXX="no-such-compiler").stdout)
    assert "skipped: no C++ compiler ('no-such-compiler' not found" in parts["cpp"] and "skipped" in parts["host"]
    stopped = plan(CXX="no-such-compiler", FGASEG_CPU="1")
    assert stopped.returncode != 0 and "FGASEG_CPU=1 cannot be done: no C++ compiler" in stopped.stderr


def test_a_compiler_that_does_not_work_is_not_used():
    assert "skipped: the C++ compiler does not work" in json.loads(plan(CXX="false").stdout)["cpp"]


def test_switched_off_is_skipped():
    parts = json.loads(plan(FGASEG_CPU="0", FGASEG_CUDA="0").stdout)
    assert parts["cpp"] == parts["host"] == "skipped: FGASEG_CPU=0" and parts["cuda"] == "skipped: FGASEG_CUDA=0"


def test_a_misspelt_switch_is_refused():
    stopped = plan(FGASEG_CPU="yes")
    assert stopped.returncode != 0 and "FGASEG_CPU=yes is not one of auto, 0, 1" in stopped.stderr


def test_the_record_agrees_with_the_libraries():
    info = _library.build_info()
    assert info["cpp"].startswith("built: ") == (LIBRARY is not None), info["cpp"]
    assert not _library.unavailable["cpp"] or LIBRARY is None


@pytest.mark.skipif(LIBRARY is None, reason="the C++ library is not built")
@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_library_uses_the_stable_abi_only():
    """No C++ symbols of ATen or c10 and none of Python, so that one build serves every torch >= 2.11."""
    run = ["nm", "-DC", "--undefined-only", LIBRARY]
    symbols = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "torch_call_dispatcher" in symbols  # so this is nm's output, and of this library
    assert not re.search(r"\b(at|c10|torch|pybind11)::|\bPy[A-Z_]", symbols)


@pytest.mark.skipif(LIBRARY is None, reason="the C++ library is not built")
@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_libraries_share_no_state_with_other_copies_of_them():
    """Of unique symbols, such as statics of inline functions, the loader keeps one for all libraries of a process."""
    for library in sorted((ROOT / "kernels").glob("_C*.so")):
        run = ["nm", "-DC", "--defined-only", library]
        symbols = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert " T fgaseg_register" in symbols or " W fgaseg_register" in symbols
        assert not re.search(r" u .*fgaseg", symbols), library


def test_constraints_pin_every_dependency():
    """Every package that pyproject.toml names has one exact version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["bench"], *extras["tokenizers"], *extras["test"][1:]]
    pinned = set(re.findall(r"^([A-Za-z0-9_.-]+)==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    missing = {re.match(r"[\w.-]+", name)[0].lower().replace("_", "-") for name in named} - pinned
    assert not missing
