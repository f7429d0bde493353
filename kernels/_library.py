"""The torch.library handle of fgaseg's ops, and the backends that implement them.

Python owns the schemas, so the ops exist with nothing built; the compiled libraries and Triton add implementations.
Every op exists once a backend (lcs_conv_cpp, lcs_conv_triton, lcs_conv_cuda), because the choice is made before the op:
torch.compile then sees one opaque op, whichever backend it is.
"""

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ._triton import INTERPRETED

HERE = Path(__file__).parent
BACKENDS = ("cpp", "triton", "cuda")
LIBRARY = torch.library.Library("fgaseg", "DEF")


def define(op: str, arguments: str, shape: Callable, room: str) -> None:
    """Defines fgaseg::<op>_<backend> for every backend; ``shape`` is its rule for the shapes of its results.

    ``arguments`` is the schema without the name. Triton's implementation is the function <op> of <room>.triton.
    """
    for backend in BACKENDS:
        name = f"{op}_{backend}"
        LIBRARY.define(name + arguments, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"fgaseg::{name}", shape)

    def launch(*args):
        with torch.cuda.device_of(next(arg for arg in args if isinstance(arg, torch.Tensor))):
            return getattr(importlib.import_module(".triton", room), op)(*args)

    for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        LIBRARY.impl(f"{op}_triton", launch, key)


def differentiate(op: str, save: Callable, backward: Callable) -> None:
    """The gradient of ``op``, the same for every backend: ``backward(ctx, ops, grad)``.

    ``ops(name)`` is the op ``name`` of the backend that ran forward.
    """

    def formula(backend: str) -> Callable:
        return lambda ctx, *grads: backward(ctx, lambda name: overload(name, backend), *grads)

    for backend in BACKENDS:
        torch.library.register_autograd(f"fgaseg::{op}_{backend}", formula(backend), setup_context=save)


def first_order_only(op: str) -> None:
    """Makes differentiating a backward op an error that says so, instead of a silent zero."""

    def backward(ctx, *grads):
        raise RuntimeError(f"{op} cannot be differentiated again; use backend='reference' for second derivatives")

    for backend in BACKENDS:
        torch.library.register_autograd(f"fgaseg::{op}_{backend}", backward)


def overload(op: str, backend: str) -> Any:
    return getattr(torch.ops.fgaseg, f"{op}_{backend}").default


def build_info() -> dict[str, str]:
    """What setup.py built and what it skipped and why: {"cpp", "host", "cuda", "torch", "python"}."""
    path = HERE / "_build_info.json"
    if not path.exists():
        missing = "not built: fgaseg was not installed here (pip install -e .)"
        return {"cpp": missing, "host": missing, "cuda": missing}
    return json.loads(path.read_text())


def _load(part: str, pattern: str) -> str:
    found = sorted(HERE.glob(pattern))
    if not found:
        return f"its library is not there ({build_info()[part]})"
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        return f"{found[0].name} did not load: {error}"
    return ""


def emulate(library: Path) -> None:
    """Loads CUDA kernels that were compiled for the CPU: from then on backend="cuda" takes CPU tensors."""
    torch.ops.load_library(library)
    unavailable["cuda"] = ""
    emulated.add("cuda")


# Why a backend cannot run anything here, "" if it can; and those that run on the CPU, slowly, to be tested.
unavailable: dict[str, str] = {
    "cpp": _load("cpp", "_C.*so"),
    "triton": "" if importlib.util.find_spec("triton") else "triton is not installed",
    "cuda": _load("cuda", "_C_cuda.*so"),
}
emulated: set[str] = {"triton"} if INTERPRETED else set()
