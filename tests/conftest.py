"""Where the tests of an op run: on the GPU if there is one, else Triton interpreted and the CUDA kernels emulated."""

import os

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
