"""How a backend is chosen, the same for every op: the first that has no objection runs; the reference comes last."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._library import BACKENDS, CHECKS, checked, emulated, overload, unavailable

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Listed because torch 2.11's Dynamo cannot trace torch.amp.is_autocast_available
AUTOCASTING = ("cpu", "cuda", "xpu", "mps")
# As in csrc/common/arguments.h: of a kernel, a window or a frame; of a result, either side
LONGEST_SIDE, LONGEST_AXIS = 2**15 - 1, 2**31 - 1


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    why_not           of a call's arguments: "" if this backend can run the call, else the reason
    limit             the part of ``why_not`` that depends on more than the tensors' devices and dtypes
    prefer_reference  of a call's arguments: why "auto" gives the call to the reference although this backend could run
                      it, or ""
    prefer_next       likewise why "auto" gives the call to the next compiled backend, if one can run it
    native            dtypes that it multiplies as they are where the processor can; it converts all others to float32
    """

    name: str
    why_not: Callable[..., str]
    run: Callable[..., Any]
    prefer_reference: Callable[..., str] = lambda *_: ""
    native: tuple[torch.dtype, ...] = ()
    limit: Callable[..., str] = lambda *_: ""
    prefer_next: Callable[..., str] = lambda *_: ""


class CannotRun(RuntimeError):
    """The backend that was asked for by name cannot run the call."""


class _Able(NamedTuple):
    """Which of an op's backends have no objection to the devices and dtypes of some tensors."""

    of: tuple[Backend, ...]  # the backends that were asked
    named: dict[str, Backend]
    auto: tuple[Backend, ...]  # those that "auto" chooses among: on a CPU without emulated ones, which are slow
    autocast: str = ""  # the type of device whose autocast casts the call's tensors, or ""


OPS: dict[str, tuple[Backend, ...]] = {}
_shown: set[str] = set()  # the ops whose fallback warning was shown
_asked: dict[tuple, _Able] = {}  # by the devices and dtypes of a call's tensors
_examined: dict[tuple, _Able] = {}  # by ``_call``, of valid calls: to check again takes longer than to look up
MOST_EXAMINED = 2**12
_seen = attrgetter("shape", "dtype", "device")
_casts: dict[str, tuple[int, torch.dtype | None]] = {}  # of ``register``, by op


def register(
    op: str,
    reference: Callable,
    prefer_reference: dict[str, Callable[..., str]] | None = None,
    native: tuple[torch.dtype, ...] = (),
    order: tuple[str, ...] = BACKENDS,
    prefer_next: dict[str, Callable[..., str]] | None = None,
    casts: int = 0,
    casts_to: torch.dtype | None = None,
    **limits: Callable[..., str],
) -> None:
    """Lists the backends of ``op`` in the order in which they are tried.

    limits            by backend, what it alone cannot run, as ``Backend.why_not``
    prefer_reference  by backend, the calls for which the reference was measured to be faster, as in ``Backend``
    native            of the C++ backend, as in ``Backend``
    prefer_next       by backend, the calls for which the next in the order is preferred, as in ``Backend``
    casts             how many of the first arguments, all tensors, are cast ``under_autocast``, and to what
    order             of all compiled backends. Triton, whose compiler places the barriers, comes before our own CUDA
                      until both have been measured on a GPU, unless it needs many times as many instructions
    """
    prefer_reference, prefer_next = prefer_reference or {}, prefer_next or {}
    if casts:
        _casts[op] = (casts, casts_to)

    def limit(name: str) -> Callable[..., str]:
        return limits.get(name, lambda *_: "")

    def why_not(name: str) -> Callable[..., str]:
        return lambda *args: _why_not(name, args) or limit(name)(*args)

    compiled = [
        Backend(
            name,
            why_not(name),
            overload(op, name),
            prefer_reference.get(name, lambda *_: ""),
            native if name == "cpp" else (),
            limit(name),
            prefer_next.get(name, lambda *_: ""),
        )
        for name in order
    ]
    OPS[op] = (*compiled, Backend("reference", lambda *_: "", reference))


@contextmanager
def reference_forms(own: Mapping[str, Callable]) -> Iterator[None]:
    """Inside the block every op runs its reference alone or, where ``own`` has one, another form of it.

    For tracing: what is recorded is plain PyTorch. It holds for the whole process.
    """
    before = dict(OPS)
    forms = {op: Backend("reference", lambda *_: "", own.get(op, backends[-1].run)) for op, backends in OPS.items()}
    OPS.update({op: (form,) for op, form in forms.items()})
    try:
        yield
    finally:
        OPS.update(before)


def _why_not(name: str, args: tuple) -> str:
    device_type = "cpu" if name == "cpp" else "cuda"
    for tensor in tensors(args):
        if tensor.device.type != device_type and not (tensor.device.type == "cpu" and name in emulated):
            return f"tensors are on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"{tensor.dtype} is not float32, float64, float16 or bfloat16"
        if tensor.dtype == torch.float64 and device_type == "cuda":
            return "on a GPU float64 is left to the reference"
    if unavailable[name]:
        return unavailable[name]
    return "" if device_type == "cpu" else _why_not_this_gpu(tensors(args)[0].device)


@torch.compiler.assume_constant_result
def _why_not_this_gpu(device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    major, minor = torch.cuda.get_device_capability(device)
    return "" if major >= 8 else f"compute capability {major}.{minor} is below 8.0"


def tensors(args) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]


def explain(op: str, *args) -> str:
    """Which backends can run ``op(*args)``, and why the others cannot: one line per backend, in the order of trial.

    Raises ValueError for an unknown op.
    """
    if op not in OPS:
        raise ValueError(f"no op '{op}'; there are {', '.join(OPS)}")
    args = tuple(getattr(arg, "rows", arg) for arg in args)  # a Selection is passed to the op as its rows
    call = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)} on {t.device}" for t in tensors(args))
    lines = [f"  {backend.name:<10}{_verdict(backend, args)}" for backend in OPS[op]]
    return "\n".join([f"{op}({call})", *lines])


def _verdict(backend: Backend, args: tuple) -> str:
    if why := backend.why_not(*args):
        return why
    if faster := backend.prefer_reference(*args):
        return f"can run, but auto takes the reference: {faster}"
    faster = backend.prefer_next(*args)
    return f"can run, but auto takes the next that can: {faster}" if faster else "can run"


def dispatch(op: str, backend: str, *args):
    """Checks the arguments and runs ``op(*args)`` on the named backend, or with "auto" on the first that can.

    Under autocast the arguments are cast first, if the op was registered so.
    """
    able = _known(op, args)
    if able is None or (able.autocast and torch.is_autocast_enabled(able.autocast)):
        casts, to = _casts.get(op, (0, None))
        if casts and _autocasts(args[0]):
            cast, off = under_autocast(*args[:casts], to=to)
            with off:
                return dispatch(op, backend, *cast, *args[casts:])
        able = _examine(op, args)
    if backend == "auto":
        chosen, by_choice = _first_that_can(able, args)
        # a choice is no fallback: no warning
        if chosen.name == "reference" and not by_choice and len(able.of) > 1 and _to_be_told(op, args):
            reasons = ((b.name, b.why_not(*args)) for b in able.of)
            warn_fallback(op, "\n".join(f"  {name:<10}{why}" for name, why in reasons if why))
    else:
        found = able.named.get(backend)
        if found is None or found.limit(*args):
            raise _cannot_run(op, backend, able, args)
        chosen = found
    if chosen.name != "triton" or torch.compiler.is_compiling():
        return chosen.run(*args)
    checked.args = args  # so that the op does not check them again
    try:
        return chosen.run(*args)
    finally:
        checked.args = ()


def _call(op: str, args: tuple) -> tuple:
    """All that checks look at, and what was loaded or is emulated, which may change."""
    return (op, *[_seen(x) if isinstance(x, Tensor) else x for x in args], *unavailable.values(), len(emulated))


def _known(op: str, args: tuple) -> _Able | None:
    """The op's able backends if a call like this one was examined before."""
    if torch.compiler.is_compiling():
        return None
    try:
        found = _examined.get(_call(op, args))
    except TypeError:  # sizes that are symbols have no hash
        return None
    return found if found is not None and found.of is OPS[op] else None


def _examine(op: str, args: tuple) -> _Able:
    """Checks the arguments; the op's able backends."""
    CHECKS[op](*args)
    able = able_backends(op, args)
    if not torch.compiler.is_compiling():
        if len(_examined) >= MOST_EXAMINED:
            _examined.clear()
        with suppress(TypeError):
            _examined[_call(op, args)] = able
    return able


def _first_that_can(able: _Able, args: tuple) -> tuple[Backend, bool]:
    """The backend that "auto" takes, and whether it is the reference by choice."""
    fitting = (candidate for candidate in able.auto if not candidate.limit(*args))
    chosen = next(fitting)
    if chosen.prefer_next(*args):
        chosen = next((one for one in fitting if one.name != "reference"), chosen)
    return (able.of[-1], True) if chosen.prefer_reference(*args) else (chosen, False)


def _cannot_run(op: str, backend: str, able: _Able, args: tuple) -> Exception:
    for candidate in able.of:
        if candidate.name == backend:
            why = candidate.why_not(*args)
            return CannotRun(f"{op}: backend='{backend}' cannot run this call: {why}\n{explain(op, *args)}")
    return ValueError(f"{op}: no backend '{backend}'; there are auto, {', '.join(b.name for b in able.of)}")


def able_backends(op: str, args: tuple) -> _Able:
    """Kept for every combination of devices and dtypes: to ask each time takes longer than to launch a kernel."""
    if torch.compiler.is_compiling():
        return _ask(op, args)
    # what was loaded or is emulated, and the backends (``reference_forms``), may change
    kinds = [(arg.device, arg.dtype) for arg in args if isinstance(arg, Tensor)]
    key = (op, *kinds, *unavailable.values(), len(emulated))
    found = _asked.get(key)
    if found is None or found.of is not OPS[op]:
        found = _asked[key] = _ask(op, args)
    return found


def _ask(op: str, args: tuple) -> _Able:
    able = [b for b in OPS[op] if b.name not in unavailable or not _why_not(b.name, args)]
    kind = tensors(args)[0].device.type
    auto = (b for b in able if not (kind == "cpu" and b.name in emulated))
    autocast = kind if op in _casts and kind in AUTOCASTING else ""
    return _Able(OPS[op], {b.name: b for b in able}, tuple(auto), autocast)


def _to_be_told(op: str, args: tuple) -> bool:
    """Whether a fallback is news; on meta nothing is computed. What was told before is not put into words again."""
    if tensors(args)[0].device.type == "meta":
        return False
    return torch.compiler.is_compiling() or op not in _shown or os.environ.get("FGASEG_STRICT") == "1"


@torch.compiler.assume_constant_result  # so that torch.compile shows it too, once, while it traces
def warn_fallback(op: str, reasons: str) -> None:
    """Warns once per op that only the reference can run it; with FGASEG_STRICT=1 raises RuntimeError instead."""
    if os.environ.get("FGASEG_STRICT") == "1":
        raise RuntimeError(f"{op}: FGASEG_STRICT=1 and only the reference can run this call\n{reasons}")
    if op not in _shown:
        _shown.add(op)
        text = f"{op}: running the plain reference (shown once; FGASEG_STRICT=1 makes it an error)\n{reasons}"
        warnings.warn(text, stacklevel=4)


def differentiated(*args: Tensor | None) -> bool:
    """Whether a gradient of any of these will be asked for."""
    return torch.is_grad_enabled() and any(arg is not None and arg.requires_grad for arg in args)


def check_same(op: str, **named: Tensor) -> None:
    """Raises TypeError or ValueError unless all tensors share one floating dtype and one device."""
    (first, reference), *others = named.items()
    if reference.dtype not in DTYPES:
        raise TypeError(f"{op}: {first} has dtype {reference.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    for name, tensor in others:
        if tensor.dtype != reference.dtype:
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype} but {first} has {reference.dtype}; convert one with .to()"
            )
        if tensor.device != reference.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} but {first} is on {reference.device}; move one with .to()"
            )


def check_shape(op: str, name: str, x: Tensor, expected: Sequence[int]) -> None:
    """Raises ValueError unless x has this shape."""
    if x.dim() != len(expected) or any(n != size for n, size in zip(x.shape, expected, strict=True)):
        raise ValueError(f"{op}: {name} has shape {list(x.shape)}; expected {list(expected)}")


def _autocasts(x: Tensor) -> bool:
    device = x.device.type
    return device in AUTOCASTING and torch.is_autocast_enabled(device)


def under_autocast(*args: Tensor, to: torch.dtype | None = None):
    """The arguments cast to autocast's dtype, and a context manager in which autocast is off.

    Outside autocast the arguments are returned unchanged. ``to`` replaces autocast's dtype (float32 for the ops that
    autocast would run in full precision). float64 is not cast, as in autocast itself.
    """
    if not _autocasts(args[0]):
        return args, nullcontext()
    device = args[0].device.type
    target = to or torch.get_autocast_dtype(device)
    cast = tuple(arg.to(target) if arg.is_floating_point() and arg.dtype != torch.float64 else arg for arg in args)
    return cast, torch.autocast(device, enabled=False)
