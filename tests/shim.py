"""Builds the CUDA kernels for the CPU, where every CUDA thread is a coroutine (csrc/common/shim_machine.h)."""

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from paths import ROOT
from torch.utils.cpp_extension import include_paths, library_paths

from fgaseg.kernels._library import emulate

FOLDER = ROOT / "build" / "shim"
EMULATOR = [ROOT / "csrc" / "common" / name for name in ("shim_machine.cpp", "shim_watch.cpp", "shim_memory.cpp")]
OPTIONS = ["-O2", "-std=c++20", "-fPIC", "-Wno-unknown-pragmas", "-DFGASEG_SHIM"]
# every access of the kernels calls a function of shim_watch.cpp; one launch runs at a time, so statics need no lock
WATCHED = ["-g1", "-fsanitize=thread", "-fno-threadsafe-statics"]
STABLE = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]

_library: ctypes.CDLL | None = None


def emulate_cuda() -> str:
    """Builds and loads the library; returns why that is not possible, or ""."""
    global _library
    compiler = _compiler()
    sources = sorted(ROOT.glob("csrc/*/kernel.cu")) + sorted(ROOT.glob("csrc/*/cuda.cpp"))
    if not sources:
        return "this version of fgaseg has no CUDA kernels yet"
    if not shutil.which(compiler[0]):
        return f"no GPU, and no C++ compiler ('{compiler[0]}') to emulate one"
    try:
        path = _build(compiler, [*sources, *EMULATOR])
        emulate(path)
    except (subprocess.CalledProcessError, OSError) as error:
        return f"no GPU, and the emulation could not be built: {getattr(error, 'stderr', '') or error}"
    _library = ctypes.CDLL(str(path))
    _library.fgaseg_guard.restype = ctypes.c_bool
    _library.fgaseg_guard_faults.restype = _library.fgaseg_shim_barriers.restype = ctypes.c_char_p
    return ""


@contextmanager
def guarded() -> Iterator[None]:
    """Tensors allocated meanwhile lie between guard pages; whoever accesses one of those makes this an error."""
    if _library is None or not _library.fgaseg_guard(True):
        yield
        return
    try:
        yield
    finally:
        _library.fgaseg_guard(False)
        faults = _library.fgaseg_guard_faults().decode()
    if faults:
        raise AssertionError(f"memory outside of a tensor was used: {faults}")


@contextmanager
def order(seed: int) -> Iterator[None]:
    """Emulated blocks, warps and lanes run in another order; 0 is the ascending one."""
    assert _library is not None
    _library.fgaseg_shim_order(seed)
    try:
        yield
    finally:
        _library.fgaseg_shim_order(0)


@contextmanager
def ignored(barrier: str) -> Iterator[None]:
    """The barrier at "file:line" of a kernel orders nothing."""
    assert _library is not None
    _library.fgaseg_shim_ignore(barrier.encode())
    try:
        yield
    finally:
        _library.fgaseg_shim_ignore(b"")


def barriers() -> set[str]:
    """The barriers ("file:line") that emulated kernels passed since the last call."""
    assert _library is not None
    return set(_library.fgaseg_shim_barriers().decode().split())


def build_kernels(source: Path, folder: Path) -> ctypes.CDLL:
    """The launchers of the CUDA kernels in ``source``; the emulator that is loaded serves them too."""
    compiler, compiled, target = _compiler(), folder / f"{source.stem}.o", folder / f"{source.stem}.so"
    command = [*compiler, *OPTIONS, *WATCHED, f"-I{ROOT / 'csrc'}", "-x", "c++", "-c", str(source), "-o", str(compiled)]
    subprocess.run(command, check=True)
    subprocess.run([*compiler, "-shared", str(compiled), str(FOLDER / "cuda.so"), "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    library.fgaseg_error_text.restype = ctypes.c_char_p
    return library


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def _build(compiler: list[str], sources: list[Path]) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    headers = max(path.stat().st_mtime for path in [*ROOT.glob("csrc/*/*.h*"), Path(__file__)])
    command = [*compiler, *OPTIONS, *(f"-I{path}" for path in (ROOT / "csrc", *include_paths()))]
    objects, running = [], []
    for source in sources:
        target = FOLDER / f"{source.parent.name}-{source.stem}-{torch.__version__}.o"
        objects.append(target)
        if not target.exists() or target.stat().st_mtime < max(headers, source.stat().st_mtime):
            partial = target.with_suffix(f".{os.getpid()}")
            extra = [] if source in EMULATOR else WATCHED if source.suffix == ".cu" else STABLE
            job = [*command, *extra, "-x", "c++", "-c", str(source), "-o", str(partial)]
            running.append((job, partial, target, subprocess.Popen(job, stderr=subprocess.PIPE, text=True)))
    for job, partial, target, process in running:
        _, message = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, job, stderr=message)
        partial.replace(target)
    library = FOLDER / "cuda.so"
    if running or not library.exists():
        partial = FOLDER / f"cuda.{os.getpid()}"
        folders = [f"-L{path}" for path in library_paths()]
        link = [*compiler, "-shared", *map(str, objects), *folders, "-ltorch_cpu", "-lc10", "-ldl", "-o", str(partial)]
        subprocess.run(link, check=True, capture_output=True, text=True)
        partial.replace(library)
    return library
