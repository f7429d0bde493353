"""The torch.library handle of the ops, and the backends that implement them.

Python owns the schemas, so the ops exist with nothing built; the compiled libraries and Triton add implementations.
Every op is defined once per backend (lcs_conv_cpp, lcs_conv_triton, lcs_conv_cuda), because the backend is chosen
before the op is called: torch.compile then sees one opaque op, whichever backend it is.
"""

import ctypes
import importlib
import importlib.util
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ._ops import add_op_namespace_prefix, ops
from ._triton import INTERPRETED

HERE = Path(__file__).parent
BACKENDS = ("cpp", "triton", "cuda")
LIBRARY = torch.library.Library(ops.name, "DEF")
CHECKS: dict[str, Callable] = {}  # of ``define``, by op


class _Checked(threading.local):
    """The arguments, already checked, of the op that ``dispatch`` is calling in this thread; () otherwise."""

    args: tuple = ()


checked = _Checked()


def _were_checked(args: tuple) -> bool:
    """Whether ``dispatch`` checked these. On their way through PyTorch numbers and words become equal objects."""
    before = checked.args
    if len(args) != len(before):
        return False
    for one, other in zip(args, before, strict=True):
        if one is not other and (type(one) is not type(other) or isinstance(one, torch.Tensor) or one != other):
            return False
    return True


def define(op: str, arguments: str, check: Callable, fake: Callable, package: str) -> None:
    """Defines the op <op>_<backend> for every backend.

    arguments  the schema without the op's name
    check      takes the op's arguments, of which the first is a tensor, and raises ValueError or TypeError for what no
               backend can take. Called by ``dispatch``, by the shape rule and, if ``dispatch`` did not call it, before
               Triton; C++ and CUDA check for themselves (csrc/common/arguments.h)
    fake       takes the op's arguments and returns empty results, by which PyTorch learns their shapes and dtypes
    package    of the op; the function <op> of <package>.triton is the Triton implementation, imported when first called
    """

    CHECKS[op] = check

    def shape_rule(*args, **kwargs):
        check(*args, **kwargs)
        return fake(*args, **kwargs)

    for backend in BACKENDS:
        name = f"{op}_{backend}"
        LIBRARY.define(name + arguments, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(add_op_namespace_prefix(name), shape_rule)

    launcher: Callable | None = None

    def launch(*args):
        nonlocal launcher
        if not _were_checked(args):
            check(*args)
            if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in args):
                raise TypeError(f"{op}: on a GPU float64 is left to the reference")
        if launcher is None:
            launcher = getattr(importlib.import_module(".triton", package), op)
        device = args[0].device
        if device.type == "cpu" or device.index == torch.cuda.current_device():
            return launcher(*args)
        with torch.cuda.device(device):
            return launcher(*args)

    for key in ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
        LIBRARY.impl(f"{op}_triton", launch, key)


def register_autograd(op: str, save: Callable, backward: Callable) -> None:
    """Registers the gradient of ``op``, the same for every backend.

    save      as ``setup_context`` of torch.library.register_autograd
    backward  called as ``backward(ctx, ops, *grads)``, where ``ops(name)`` is the op ``name`` of the backend that ran
              the forward pass
    """

    def formula(backend: str) -> Callable:
        return lambda ctx, *grads: backward(ctx, lambda name: overload(name, backend), *grads)

    for backend in BACKENDS:
        name = add_op_namespace_prefix(f"{op}_{backend}")
        torch.library.register_autograd(name, formula(backend), setup_context=save)


def first_order_only(op: str) -> None:
    """Makes differentiating a backward op an error with a clear message instead of a silent zero."""

    def backward(ctx, *grads):
        raise RuntimeError(f"{op} cannot be differentiated again; use backend='reference' for second derivatives")

    for backend in BACKENDS:
        torch.library.register_autograd(add_op_namespace_prefix(f"{op}_{backend}"), backward)


def empty_like(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A contiguous, uninitialised tensor of the shape and dtype of each, such as a backward op returns."""
    return tuple(x.new_empty(x.shape) for x in tensors)


def overload(op: str, backend: str) -> Any:
    return getattr(ops, f"{op}_{backend}").default


def build_info() -> dict[str, str]:
    """What setup.py built, or skipped and why: {"cpp", "host", "cuda", "torch", "python"}."""
    path = HERE / "_build_info.json"
    if not path.exists():
        missing = "not built here; in a checkout of fgaseg, pip install -e . builds it"
        return {"cpp": missing, "host": missing, "cuda": missing}
    return json.loads(path.read_text())


def _register(library: Path) -> None:
    """Loads a compiled library, which implements the ops in our namespace (csrc/common/library.h)."""
    ctypes.CDLL(str(library)).fgaseg_register(ops.name.encode())


def _load(part: str, pattern: str) -> str:
    """Loads a compiled library; returns why that was not possible, or ""."""
    found = sorted(HERE.glob(pattern))
    if not found:
        return f"its library is missing ({build_info()[part]})"
    try:
        _register(found[0])
    except OSError as error:
        return f"{found[0].name} did not load: {error}"
    return ""


def emulate(library: Path) -> None:
    """Loads CUDA kernels that were compiled for the CPU: from then on backend="cuda" takes CPU tensors."""
    _register(library)
    unavailable["cuda"] = ""
    emulated.add("cuda")


# By backend, why it can run nothing here, or "".
unavailable: dict[str, str] = {
    "cpp": _load("cpp", "_C.*so"),
    "triton": "" if importlib.util.find_spec("triton") else "triton is not installed",
    "cuda": _load("cuda", "_C_cuda.*so"),
}
# GPU backends that run on the CPU, slowly, for tests.
emulated: set[str] = {"triton"} if INTERPRETED else set()
