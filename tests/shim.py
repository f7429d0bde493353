"""Builds the CUDA kernels for the CPU, where every CUDA thread is a coroutine (csrc/common/shim_machine.h)."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import torch
from paths import ROOT
from torch.utils.cpp_extension import include_paths, library_paths

from fgaseg.kernels._library import emulate

FOLDER = ROOT / "build" / "shim"


def emulate_cuda() -> str:
    """Builds and loads the library; returns why that is not possible, or ""."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    sources = sorted(ROOT.glob("csrc/*/kernel.cu")) + sorted(ROOT.glob("csrc/*/cuda.cpp"))
    if not sources:
        return "this version of fgaseg has no CUDA kernels yet"
    if not shutil.which(compiler[0]):
        return f"no GPU, and no C++ compiler ('{compiler[0]}') to emulate one"
    try:
        emulate(_build(compiler, sources))
    except (subprocess.CalledProcessError, OSError) as error:
        return f"no GPU, and the emulation could not be built: {getattr(error, 'stderr', '') or error}"
    return ""


def _build(compiler: list[str], sources: list[Path]) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    headers = max(path.stat().st_mtime for path in ROOT.glob("csrc/*/*.h*"))
    command = [*compiler, "-O2", "-std=c++20", "-fPIC", "-Wno-unknown-pragmas"]
    command += ["-DFGASEG_SHIM", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
    objects, running = [], []
    for source in sources:
        target = FOLDER / f"{source.parent.name}-{source.stem}-{torch.__version__}.o"
        objects.append(target)
        if not target.exists() or target.stat().st_mtime < max(headers, source.stat().st_mtime):
            partial = target.with_suffix(f".{os.getpid()}")
            job = [*command, "-x", "c++", "-c", str(source), "-o", str(partial)]
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
        link = [*compiler, "-shared", *map(str, objects), *folders, "-ltorch_cpu", "-lc10", "-o", str(partial)]
        subprocess.run(link, check=True, capture_output=True, text=True)
        partial.replace(library)
    return library
