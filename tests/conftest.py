"""Where the tests of an op run: on the GPU if there is one, else Triton interpreted and the CUDA kernels emulated."""

import os
import sys
from types import SimpleNamespace

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the cores; read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // int(workers), 1)))

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when fgaseg.kernels is imported

import accuracy


@pytest.fixture(autouse=True)
def device_of_backend(request):
    """Creates the tensors of a test with a ``backend`` parameter on the device of that backend, in a dtype it takes."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    backend = parameters.get("backend")
    if backend is None:
        yield
        return
    if why := accuracy.why_not_tested(backend, parameters.get("dtype")):
        pytest.skip(reason=why)
    with accuracy.device_of(backend):
        yield


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    """What is told once in a process is told once in a test, in whatever order the tests run."""
    for name, module in (("_TOLD", "fgaseg.notes"), ("_told", "fgaseg.model.prompts")):
        if module in sys.modules:  # the tests of the reference, which import torch alone, import no more for this
            monkeypatch.setattr(sys.modules[module], name, set())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in hub with caches of its own; `hub.environment` makes another process use them too."""
    import hub_stand_in
    from huggingface_hub import constants

    hub, home = hub_stand_in.StandInHub(), tmp_path / "hf_home"
    hub.home, hub.cache, hub.assets = home, home / "hub", home / "assets"
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(hub.cache),
        "HF_ASSETS_CACHE": str(hub.assets),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "DOWNLOAD_CHUNK_SIZE": 10_000,  # what a break loses at most
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("fgaseg.weights.hub.PAUSES", (0.0,))
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None))  # between tries
    hub.environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}
    yield hub
    hub.close()
